//! Logs as the engine multiplexes them, frame by frame: an item is one frame with its head, so that it can go out in one piece.
//!
//! Public log readers cut off the first 8 bytes of whatever one read gives them, so a frame must never be split or share an item. A
//! terminal's output has no frames; it gets heads as if it were standard output.

use std::{mem, time::Duration};

use futures_util::{Stream, stream};
use hyper::body::{Bytes, Incoming};

use super::{Error, transport};

const HEAD: usize = 8;
/// Payload of one item at most. The engine's own frames stay near 16 KiB, or 1 MB with its `local` log driver; longer ones are cut in two.
const PAYLOAD_LIMIT: usize = 1024 * 1024;
/// Payload of the frames made for a terminal.
const TERMINAL_PAYLOAD: usize = 16 * 1024;
/// The last stream that a head may name: 0 standard input, 1 standard output, 2 standard error, 3 an error of the engine's.
const LAST_STREAM: u8 = 3;
const STANDARD_OUTPUT: u8 = 1;

/// The frames of one container's log.
#[derive(Debug)]
pub(crate) struct Frames {
    call: String,
    body: Incoming,
    splitter: Splitter,
    idle: Option<Duration>,
}

impl Frames {
    /// `idle` is how long the engine may take for the next piece; none where the log is followed.
    pub(super) fn new(call: String, body: Incoming, terminal: bool, idle: Option<Duration>) -> Self {
        Self { call, body, splitter: Splitter::new(terminal), idle }
    }

    /// The next frame, head and payload; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(frame) = self.splitter.next().map_err(|bad| self.malformed(bad))? {
                return Ok(Some(frame));
            }
            match transport::next_of(|| self.call.clone(), &mut self.body, self.idle).await? {
                Some(piece) => self.splitter.push(piece),
                None => return self.splitter.end().map(|()| None).map_err(|bad| self.malformed(bad)),
            }
        }
    }

    /// The frames as a stream; it ends after an error.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        stream::try_unfold(self, |mut frames| async move { Ok(frames.next().await?.map(|frame| (frame, frames))) })
    }

    fn malformed(&self, bad: BadFrame) -> Error {
        Error::Malformed { call: self.call.clone(), source: bad.into() }
    }
}

/// What comes from the engine is no log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadFrame {
    /// These are no heads of frames.
    #[error("the log is not in frames")]
    Head,
    /// The stream ended in the middle of one.
    #[error("the log ends within a frame")]
    Cut,
}

/// Cuts what arrives, in pieces of any size, into frames.
#[derive(Debug)]
struct Splitter {
    terminal: bool,
    /// What has arrived and is not looked at.
    piece: Bytes,
    /// The frame under way: at least its head, unless less than that has arrived.
    frame: Vec<u8>,
    /// Payload of the frame under way that belongs to a later item, because the frame is too long for one.
    later: usize,
}

impl Splitter {
    fn new(terminal: bool) -> Self {
        Self { terminal, piece: Bytes::new(), frame: Vec::new(), later: 0 }
    }

    /// Takes the next piece; every frame of the one before must have been asked for.
    fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "pieces come one after the other");
        self.piece = piece;
    }

    /// The next whole frame, if one has arrived.
    fn next(&mut self) -> Result<Option<Bytes>, BadFrame> {
        if self.terminal {
            return Ok(self.next_of_terminal());
        }
        // Most frames arrive whole, and in a piece of their own.
        if self.frame.is_empty()
            && let Some(head) = self.piece.first_chunk()
        {
            let length = HEAD + payload(*head)?;
            if length <= self.piece.len().min(HEAD + PAYLOAD_LIMIT) {
                return Ok(Some(self.piece.split_to(length)));
            }
        }
        loop {
            let wanted = match self.frame.first_chunk() {
                None => HEAD,
                Some(head) => HEAD + payload(*head)?,
            };
            let missing = wanted - self.frame.len();
            let arrived = self.piece.split_to(missing.min(self.piece.len()));
            self.frame.extend_from_slice(&arrived);
            if arrived.len() < missing {
                return Ok(None);
            }
            if wanted == HEAD && self.frame.len() == HEAD {
                self.shorten()?;
            }
            if self.is_whole()? {
                return Ok(Some(self.take()));
            }
        }
    }

    /// Leaves what is too much for one item to the next.
    fn shorten(&mut self) -> Result<(), BadFrame> {
        if let Some(head) = self.frame.first_chunk::<HEAD>() {
            let length = payload(*head)?;
            self.later = length.saturating_sub(PAYLOAD_LIMIT);
            let stream = head[0];
            self.frame = head_of(stream, length - self.later).to_vec();
        }
        Ok(())
    }

    fn is_whole(&self) -> Result<bool, BadFrame> {
        let Some(head) = self.frame.first_chunk() else { return Ok(false) };
        Ok(self.frame.len() == HEAD + payload(*head)?)
    }

    fn take(&mut self) -> Bytes {
        let frame = mem::take(&mut self.frame);
        if self.later > 0 {
            let length = self.later.min(PAYLOAD_LIMIT);
            self.later -= length;
            self.frame = head_of(frame[0], length).to_vec();
        }
        frame.into()
    }

    fn next_of_terminal(&mut self) -> Option<Bytes> {
        let length = self.piece.len().min(TERMINAL_PAYLOAD);
        let payload = self.piece.split_to(length);
        (length > 0).then(|| [&head_of(STANDARD_OUTPUT, length)[..], &payload].concat().into())
    }

    /// Nothing more comes.
    fn end(&self) -> Result<(), BadFrame> {
        if self.frame.is_empty() { Ok(()) } else { Err(BadFrame::Cut) }
    }
}

/// Length of the payload after `head`.
fn payload(head: [u8; HEAD]) -> Result<usize, BadFrame> {
    let [stream, 0, 0, 0, length @ ..] = head else { return Err(BadFrame::Head) };
    if stream > LAST_STREAM {
        return Err(BadFrame::Head);
    }
    usize::try_from(u32::from_be_bytes(length)).map_err(|_| BadFrame::Head)
}

/// The head of a frame; no payload here is longer than four bytes can tell.
fn head_of(stream: u8, length: usize) -> [u8; HEAD] {
    let [first, second, third, fourth] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream, 0, 0, 0, first, second, third, fourth]
}

#[cfg(test)]
mod tests;
