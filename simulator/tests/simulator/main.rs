//! The simulator as its users meet it: over TLS, over its control socket, and as a program.

#![expect(clippy::unwrap_used, reason = "clippy knows #[test] functions as tests, but not the helpers beside them")]

mod certificates;
mod devices;
mod est;
mod est_client;
mod faults;
mod hubs;
mod limits;
mod program;
mod tpm;
mod world;
mod x509;
