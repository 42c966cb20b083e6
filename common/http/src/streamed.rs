//! A reply that is sent piece by piece while it comes into being: the log of a module, a support bundle.
//!
//! Each piece is one chunk (RFC 9112, section 7.1), and leaves in a write of its own as long as its reader keeps up: deployed clients take
//! what one read gives them for one whole frame of a log. What the pieces hold is the daemon's business.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body as AnyBody,
    response::{IntoResponse as _, Response},
};
use futures_util::{Stream, TryStreamExt as _};
use http::{HeaderValue, StatusCode, header};
use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::{daemon::BoxError, throttle::Streaming};

/// An answer of which only the head is ready.
pub struct Streamed {
    content_type: &'static str,
    length: Option<u64>,
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>,
}

impl Streamed {
    /// Text of a length that nobody knows yet. An error ends the connection: by then the status is sent.
    pub fn text<E: Into<BoxError> + 'static>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self {
        Self { content_type: "text/plain", length: None, pieces: Box::pin(pieces.map_err(Into::into)) }
    }

    /// A zip file of this many bytes. Errors as for [`text`](Self::text).
    pub fn zip<E: Into<BoxError> + 'static>(
        length: u64,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Self {
        Self { content_type: "application/zip", length: Some(length), pieces: Box::pin(pieces.map_err(Into::into)) }
    }

    pub(crate) fn into_response(self, status: StatusCode) -> Response {
        let body = AnyBody::new(Pieces { pieces: self.pieces, flush: false });
        let mut response = (status, [(header::CONTENT_TYPE, self.content_type)], body).into_response();
        if let Some(length) = self.length {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        response
    }
}

/// The body of a streamed answer.
struct Pieces {
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>,
    /// The last piece has still to be written.
    flush: bool,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // hyper writes what it has whenever the body has nothing: without a pause it would gather several pieces.
        if std::mem::take(&mut self.flush) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            match ready!(self.pieces.as_mut().poll_next(context)) {
                // An empty chunk would be the end of the body.
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    self.flush = true;
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Some(Err(error)) => {
                    tracing::info!({ aziot_log::fields::ERROR } = %aziot_log::chain(&*error), "cut a streamed answer short");
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A body that keeps its request's slot until it ends or its reader has gone.
pub(crate) struct Held {
    body: AnyBody,
    _slot: Streaming,
}

impl Held {
    /// Whether an answer's body takes its time: it does not know its length.
    pub(crate) fn is_needed(body: &AnyBody) -> bool {
        body.size_hint().exact().is_none()
    }

    pub(crate) fn new(body: AnyBody, slot: Streaming) -> Self {
        Self { body, _slot: slot }
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::stream;

    use super::*;

    #[test]
    fn each_piece_is_written_before_the_next_is_asked_for() {
        let pieces = ["one", "", "two"].map(|piece| Ok::<_, BoxError>(Bytes::from(piece)));
        let Streamed { pieces, .. } = Streamed::text(stream::iter(pieces));
        let mut body = Pieces { pieces, flush: false };
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = || match Pin::new(&mut body).poll_frame(&mut context) {
            Poll::Pending => "(write)".to_owned(),
            Poll::Ready(None) => "(end)".to_owned(),
            Poll::Ready(Some(frame)) => String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap(),
        };
        let seen: Vec<_> = (0..5).map(|_| poll()).collect();
        assert_eq!(seen, ["one", "(write)", "two", "(write)", "(end)"]);
    }
}
