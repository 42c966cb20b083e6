//! Keys, requests, certificates and TLS through the public interface, with a key service that really signs and OpenSSL as judge.

#[cfg(test)]
mod chains;
#[cfg(test)]
mod client_identity;
#[cfg(test)]
mod issuing;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod late_authentication;
#[cfg(test)]
mod pkcs7;
#[cfg(test)]
mod proxies;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod server_trust;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tls_server;
