//! The service as its callers see it: through its socket, with a real key service behind it.

mod device;
mod issuing;
mod requests;
mod running;
