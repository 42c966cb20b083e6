//! One connection of the load generator: writes a request that was put together beforehand, and knows when its answer is complete.
//!
//! Reads of HTTP what the key service's answers have: a head with `content-length`. Anything else is an error of the run.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// More than any answer of these runs.
const LARGEST_ANSWER: usize = 16 * 1024;

/// A connection with one request under way at most.
pub(crate) struct Connection {
    stream: UnixStream,
    answer: Vec<u8>,
    length: usize,
    /// When the request under way was begun, its connection included.
    pub(crate) begun: Instant,
}

impl Connection {
    /// Connects. `begun` is set to the time before.
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let begun = Instant::now();
        let stream =
            UnixStream::connect(socket).with_context(|| format!("could not connect to {}", socket.display()))?;
        stream.set_nonblocking(true).context("could not make the connection non-blocking")?;
        Ok(Self { stream, answer: vec![0; LARGEST_ANSWER], length: 0, begun })
    }

    /// Connects anew, and keeps the buffer.
    pub(crate) fn reopen(&mut self, socket: &Path) -> Result<()> {
        let Self { stream, begun, .. } = Self::open(socket)?;
        (self.stream, self.begun, self.length) = (stream, begun, 0);
        Ok(())
    }

    /// Writes a whole request. It is far smaller than the socket's buffer, which is empty.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<()> {
        self.length = 0;
        self.stream.write_all(request).context("could not send a request")
    }

    /// Reads what is there. The answer, once it is complete.
    pub(crate) fn receive(&mut self) -> Result<Option<Answer<'_>>> {
        loop {
            match self.stream.read(&mut self.answer[self.length..]) {
                Ok(0) => bail!("the connection ended before its answer"),
                Ok(read) => self.length += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("could not read an answer"),
            }
            if let Some((status, body)) = complete(&self.answer[..self.length])? {
                return Ok(Some(Answer { status, body: &self.answer[body..self.length] }));
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A whole answer.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// Status and beginning of the body, if all of it is there.
fn complete(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, body) = (&bytes[..head], head + 4);
    let text = std::str::from_utf8(head).context("the head of an answer is not text")?;
    let status = text.get(9..12).and_then(|status| status.parse().ok()).context("an answer has no status")?;
    let Some((_, length)) = text.split_once("content-length: ") else {
        bail!("an answer has no content-length: {text}");
    };
    let length: usize = length.split("\r\n").next().and_then(|length| length.parse().ok()).context("a bad length")?;
    if body + length > LARGEST_ANSWER || bytes.len() > body + length {
        bail!("an answer is longer than it should be: {text}");
    }
    Ok((bytes.len() == body + length).then_some((status, body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_body_is() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ndate: now\r\n\r\n{}";
        for end in 0..answer.len() {
            assert_eq!(complete(&answer[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(complete(answer).unwrap(), Some((200, answer.len() - 2)));
        assert!(complete(&[answer, &b"x"[..]].concat()).is_err());
        assert!(complete(b"HTTP/1.1 204 No Content\r\n\r\n").is_err());
    }
}
