//! An open connection: TLS, or in clear where that was allowed.
//!
//! Failures that the server causes after the handshake are put into words here, because hyper only passes them on.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use rustls::{AlertDescription, HandshakeType, PeerMisbehaved, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

/// The server broke off a connection in order to ask for a client certificate on it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server asks for the client certificate after the handshake (renegotiation or post-handshake authentication), which is not \
     supported: let it ask when the connection is opened"
)]
pub struct LateAuthentication {
    source: io::Error,
}

/// What TLS runs over.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open connection.
pub struct Stream {
    kind: Kind,
    /// Whether a proxy reads the requests, and so wants to be told the server's name in each.
    proxied: bool,
    /// Whether the last thing from the server was the wish for another handshake.
    renegotiating: bool,
}

enum Kind {
    Tls(Box<TlsStream<Box<dyn Transport>>>),
    Clear(Box<dyn Transport>),
}

impl Stream {
    /// A tunnel under TLS is invisible from inside: no absolute URIs, no proxy header.
    pub(super) fn tls(stream: TlsStream<Box<dyn Transport>>) -> Self {
        Self { kind: Kind::Tls(Box::new(stream)), proxied: false, renegotiating: false }
    }

    pub(super) fn clear(stream: Box<dyn Transport>, proxied: bool) -> Self {
        Self { kind: Kind::Clear(stream), proxied, renegotiating: false }
    }

    fn inner(&mut self) -> Pin<&mut dyn Transport> {
        match &mut self.kind {
            Kind::Tls(stream) => Pin::new(stream),
            Kind::Clear(stream) => Pin::new(stream),
        }
    }

    /// Sends what reading gave rise to, such as the refusal of a renegotiation: until then the server waits, and so do we.
    fn answer(&mut self, was_idle: bool, context: &mut Context<'_>) {
        if !self.wants_write() {
            return;
        }
        // Before TLS 1.3 nothing else that a server sends is answered by the TLS layer.
        self.renegotiating |= was_idle && self.version() == Some(ProtocolVersion::TLSv1_2);
        // A failure shows in the next read.
        let _ = self.inner().poll_flush(context);
    }

    fn wants_write(&self) -> bool {
        matches!(&self.kind, Kind::Tls(stream) if stream.get_ref().1.wants_write())
    }

    fn version(&self) -> Option<ProtocolVersion> {
        match &self.kind {
            Kind::Tls(stream) => stream.get_ref().1.protocol_version(),
            Kind::Clear(_) => None,
        }
    }

    fn explained(&self, error: io::Error) -> io::Error {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let is_late = self.renegotiating
            || match tls {
                Some(rustls::Error::InappropriateHandshakeMessage { got_type, .. }) => {
                    matches!(got_type, HandshakeType::CertificateRequest | HandshakeType::HelloRequest)
                }
                Some(rustls::Error::PeerMisbehaved(fault)) => *fault == PeerMisbehaved::TooManyRenegotiationRequests,
                // Before TLS 1.3 the handshake is over when the first byte is read: what fails then is another one.
                Some(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)) => {
                    self.version() == Some(ProtocolVersion::TLSv1_2)
                }
                _ => false,
            };
        if is_late { io::Error::new(error.kind(), LateAuthentication { source: error }) } else { error }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (was_idle, before) = (!self.wants_write(), buffer.filled().len());
        let read = self.inner().poll_read(context, buffer);
        self.answer(was_idle, context);
        ready!(read).map_err(|error| self.explained(error))?;
        if buffer.filled().len() > before {
            self.renegotiating = false;
        } else if self.renegotiating && buffer.remaining() > 0 {
            return Poll::Ready(Err(self.explained(io::ErrorKind::UnexpectedEof.into())));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(context)
    }
}
