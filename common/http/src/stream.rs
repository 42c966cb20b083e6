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
///
/// tokio has deprecated `with_interest`: a type whose `as_raw_fd` answers with another descriptor later, or with one that it does not own,
/// has tokio watch, and on drop forget, a descriptor that belongs to somebody else. The callers' types are sockets of the standard library,
/// which own one descriptor, always answer with that, and are closed only after tokio has let go of it. The successor is the same
/// function as unsafe code, for which this crate has no place.
#[expect(deprecated, reason = "sound for sockets, which keep their descriptor; its successor is unsafe code")]
pub(crate) fn watch<T: AsFd + AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

/// Bytes of one read: most requests whole. hyper offers more room to a peer that sends much, and all of it would be zeroed each time.
const LARGEST_READ: usize = 8 * 1024;

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
            let writing = match self.writing.take() {
                Some(writing) => writing,
                None => watch(self.reading.get_ref().try_clone()?, Interest::WRITABLE)?,
            };
            let room = writing.poll_write_ready(context).map_ok(|mut guard| guard.clear_ready());
            self.writing = Some(writing);
            ready!(room)?;
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.reading.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled_to(buffer.remaining().min(LARGEST_READ));
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
    use std::{os::fd::RawFd, task::Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What the kernel is asked to tell about `descriptor`, as `poll(2)` events: the thread wakes for nothing else. Of all the tests of this
    /// process, but only one of them has this descriptor at a time.
    fn watched_for(descriptor: RawFd) -> Option<u32> {
        let descriptors = std::fs::read_dir("/proc/self/fdinfo").unwrap();
        descriptors.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok()).find_map(|text| {
            text.lines().find_map(|line| {
                // tfd:        8 events:     2019 data: ...
                let mut words = line.strip_prefix("tfd:")?.split_whitespace();
                let is_this = words.next()?.parse() == Ok(descriptor);
                let events = words.nth(1)?;
                is_this.then(|| u32::from_str_radix(events, 16).unwrap())
            })
        })
    }

    /// Room to write, which a peer makes with each answer that it reads.
    const ROOM: u32 = 0x4;
    const BYTES: u32 = 0x1;

    #[tokio::test]
    async fn a_peer_that_reads_its_answer_does_not_wake_the_thread() {
        let (mut one, mut other) = pair();
        let descriptor = one.reading.as_raw_fd();
        one.write_all(b"answer").await.unwrap();
        other.read_exact(&mut [0; 6]).await.unwrap();
        let events = watched_for(descriptor).unwrap();
        assert_eq!(events & (ROOM | BYTES), BYTES, "{events:x}");
        // What this type is for: tokio's own stream is told.
        let tokios = tokio::net::UnixStream::pair().unwrap().0;
        assert_eq!(watched_for(tokios.as_raw_fd()).unwrap() & (ROOM | BYTES), ROOM | BYTES);
    }

    #[tokio::test]
    async fn room_is_waited_for_only_while_there_is_none() {
        let (mut one, mut other) = pair();
        let sent = vec![7; 4_000_000];
        let mut writing = Box::pin(one.write_all(&sent));
        let mut context = Context::from_waker(Waker::noop());
        assert!(writing.as_mut().poll(&mut context).is_pending());
        drop(writing);
        let second = one.writing.as_ref().unwrap().as_raw_fd();
        assert_eq!(watched_for(second).unwrap() & ROOM, ROOM);
        assert_eq!(watched_for(one.reading.as_raw_fd()).unwrap() & ROOM, 0);

        // The peer makes room. The next write finds it, and nothing is waited for any more.
        while other.reading.get_ref().read(&mut [0; 4096]).is_ok() {}
        one.write_all(b"x").await.unwrap();
        assert!(one.writing.is_none());
        let mut last = Vec::new();
        drop(one);
        other.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"x");
    }

    #[tokio::test]
    async fn one_read_touches_a_bounded_part_of_the_buffer() {
        let (mut one, mut other) = pair();
        let sent = vec![7; LARGEST_READ + 1];
        one.write_all(&sent).await.unwrap();
        let mut memory = vec![std::mem::MaybeUninit::uninit(); 400_000];
        let mut buffer = ReadBuf::uninit(&mut memory);
        std::future::poll_fn(|context| Pin::new(&mut other).poll_read(context, &mut buffer)).await.unwrap();
        assert_eq!((buffer.filled().len(), buffer.initialized().len()), (LARGEST_READ, LARGEST_READ));
        // What was left is read without another word from the kernel.
        std::future::poll_fn(|context| Pin::new(&mut other).poll_read(context, &mut buffer)).await.unwrap();
        assert_eq!(buffer.filled(), sent);
    }

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
