//! An IoT Hub with its device provisioning service, for development without the cloud: over real TLS, with its own certification authority,
//! and as strict about tokens, etags and limits as the public one.
//!
//! Beside them, where its settings ask for it, an EST server with its own authorities.
//!
//! A library so that tests can run it in their own process; `main.rs` is the program. Devices prove themselves by symmetric key, by certificate or
//! by TPM; twins, direct methods and messages to devices are not there.
//!
//! `server` accepts and `front` guards; `dps`, `hub` and `est` are the routes, `provisioning` and `registry` the domain, `state` its file; `control`
//! is the way in for whoever started it.

mod attestation;
mod authentication;
mod behaviour;
mod certificates;
mod client_certificate;
mod clients;
mod cloud;
mod control;
mod dps;
mod enrollments;
pub mod est;
mod faults;
mod folder;
mod front;
mod hub;
mod hubs;
mod journal;
mod key;
mod nonces;
mod provisioning;
mod random;
mod registries;
mod registry;
pub mod sas;
mod server;
mod simulator;
mod state;
mod stream;
mod throttle;
mod thumbprint;
pub mod tpm;

pub use behaviour::OffsetError;
pub use certificates::Error as CertificateError;
pub use enrollments::{Enrollments, Error as EnrollmentError, ParseError};
pub use folder::Error as FolderError;
pub use hubs::Error as HubsError;
pub use key::{Error as KeyError, SymmetricKey};
pub use server::TlsError;
pub use simulator::{Error, ServerCertificate, Settings, Simulator};
pub use state::Error as StateError;
