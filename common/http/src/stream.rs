//! A Unix stream that waits for room to write only when there is none.
//!
//! tokio's own stream always listens for both directions. On a Unix socket each answer that a caller reads makes room, and so woke the
//! daemon once more for every request, for nothing: a quarter of its system time under load. Reading and writing are as with
//! [`tokio::net::UnixStream`].

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Waits on a socket of the standard library for one direction. It must not block.
#[expect(deprecated, reason = "sound for sockets, which keep their descriptor; its successor is unsafe code")]
pub(crate) fn watch<T: AsFd + AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

/// A connected, non-blocking Unix stream.
pub(crate) struct Stream {
    reading: AsyncFd<UnixStream>,
    /// A second descriptor of the same socket, while its buffer is full.
    writing: Option<AsyncFd<UnixStream>>,
}

impl Stream {
    /// Takes over a connection, which must not block.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { reading: watch(stream, Interest::READABLE)?, writing: None })
    }

    /// Ready once there is something to read, or the end.
    pub(crate) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.reading.poll_read_ready(context))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    fn poll_write_with(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(self.reading.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => {
                    self.writing = None;
                    return Poll::Ready(outcome);
                }
            }
            if self.writing.is_none() {
                let socket = self.reading.get_ref().try_clone()?;
                self.writing = Some(watch(socket, Interest::WRITABLE)?);
            }
            let Some(writing) = &self.writing else { continue };
            ready!(writing.poll_write_ready(context))?.clear_ready();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.reading.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match guard.try_io(|stream| stream.get_ref().read(room)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => {
                    let length = outcome?;
                    // Less than there was room for: the socket is empty, and says so when there is more.
                    if length > 0 && length < room.len() {
                        guard.clear_ready();
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // It was not readable after all, and is asked about again.
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |mut stream| stream.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.reading.get_ref().shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (Stream, Stream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (Stream::new(one).unwrap(), Stream::new(other).unwrap())
    }

    #[tokio::test]
    async fn more_than_the_socket_holds_arrives_whole_and_then_the_end() {
        let (mut writer, mut reader) = pair();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut received = Vec::new();
        let write = async {
            writer.write_all(&sent).await.unwrap();
            assert!(writer.writing.is_none());
            drop(writer);
        };
        let ((), read) = tokio::join!(write, reader.read_to_end(&mut received));
        read.unwrap();
        assert!(received == sent);
    }

    #[tokio::test]
    async fn each_of_many_small_messages_wakes_the_reader() {
        let (mut one, mut other) = pair();
        let echo = async {
            let mut byte = [0; 1];
            while other.read(&mut byte).await.unwrap() > 0 {
                other.write_all(&byte).await.unwrap();
            }
        };
        let ask = async {
            for number in 0..200_u8 {
                one.write_all(&[number]).await.unwrap();
                let mut more_than_comes = [0; 64];
                assert_eq!(one.read(&mut more_than_comes).await.unwrap(), 1);
                assert_eq!(more_than_comes[0], number);
            }
            drop(one);
        };
        tokio::join!(echo, ask);
    }

    #[tokio::test]
    async fn writing_to_nobody_is_an_error() {
        let (mut one, other) = pair();
        drop(other);
        assert_eq!(one.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
