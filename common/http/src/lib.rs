//! HTTP over Unix sockets, as every daemon of this project serves and calls it.
//!
//! A call is declared once, as a type that implements [`Call`]; [`Service`] mounts it and [`Client`] sends it. What stands
//! under every call is here too: socket activation, peer credentials, the api-version rule, body rules, limits, the
//! throttle, the error body, the request log and an orderly stop. What a call *does* is not: that is a daemon's domain.

pub mod body;
pub mod call;
pub mod client;
pub mod daemon;
pub mod endpoint;
pub mod error;
pub mod glob;
pub mod listener;
mod parameters;
pub mod peer;
pub mod retry;
mod room;
pub mod server;
pub mod service;
mod stream;
pub mod streamed;
#[cfg(feature = "testing")]
pub mod testing;
mod throttle;
pub mod version;
pub mod wire;

pub use call::{Body, Call, Reply};
pub use client::{Client, ClientError};
pub use daemon::DaemonError;
pub use endpoint::Endpoint;
pub use error::{Status, with_causes};
pub use glob::Glob;
pub use http::{Method, StatusCode};
pub use listener::{Activation, Listener, SocketMode};
pub use peer::{Peer, PeerProcess};
pub use retry::Retry;
pub use room::Room;
pub use server::{Limits, Server};
pub use service::{Service, Target};
pub use streamed::Streamed;
pub use tokio_util::sync::CancellationToken as Shutdown;
pub use version::ApiVersion;
pub use wire::{Base64, SecretBytes, SecretText};

/// The header that carries a request's id from daemon to daemon; see [`aziot_log::RequestId`].
pub const REQUEST_ID_HEADER: &str = "x-request-id";
