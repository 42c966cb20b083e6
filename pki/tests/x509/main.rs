//! Keys, requests and certificates through the public interface, with a key service that really signs and the `openssl`
//! program as judge.

#[cfg(test)]
mod issuing;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod support;
