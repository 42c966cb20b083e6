//! The service as its callers see it: through its socket, with a real key service behind it.

mod device;
mod enrolling;
mod est_identity;
mod est_identity_meanwhile;
mod est_server;
mod issuing;
mod requests;
mod running;
