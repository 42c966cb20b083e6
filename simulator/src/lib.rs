//! An IoT Hub with its device provisioning service, for development without the cloud: over real TLS, with its own certification authority,
//! and as strict about tokens, etags and limits as the public one.
//!
//! Beside them, where its settings ask for it, an EST server with its own authorities.
//!
//! A library so that tests can run it in their own process; `main.rs` is the program. It simulates symmetric keys; X.509 and TPM
//! attestation, twins, direct methods and messages to devices are not there.
//!
//! `server` accepts and `front` guards; `dps`, `hub` and `est` are the routes, `provisioning` and `registry` the domain, `state` its file; `control`
//! is the way in for whoever started it.

mod certificates;
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
mod journal;
mod key;
mod provisioning;
mod random;
mod registry;
pub mod sas;
mod server;
mod simulator;
mod state;
mod stream;

pub use certificates::Error as CertificateError;
pub use enrollments::{Enrollment, Enrollments, Error as EnrollmentError, Group, ManualDevice, ParseError};
pub use folder::Error as FolderError;
pub use key::{Error as KeyError, SymmetricKey};
pub use server::TlsError;
pub use simulator::{Error, ServerCertificate, Settings, Simulator};
pub use state::Error as StateError;
