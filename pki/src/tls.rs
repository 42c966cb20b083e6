//! TLS clients of the cloud and of EST servers: one crypto provider, the system's roots, one connector.
//!
//! The provider is the distribution's OpenSSL behind rustls, so that its security fixes reach us without a build; exchanging it is
//! the one line in [`provider`]. [`trust`] says whom we believe and [`identity`] who we are, [`connector`] opens connections, [`proxy`] leads
//! them round a firewall. Which servers are called, and what is said to them, is the callers' business.

pub mod connector;
pub mod identity;
pub mod proxy;
pub mod stream;
pub mod trust;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use rustls::{ClientConfig, client::ResolvesClientCert, crypto::CryptoProvider};

pub use connector::{ConnectError, Connector};
pub use identity::{ClientIdentity, IdentityError};
pub use proxy::{Proxy, ProxyError};
pub use rustls::RootCertStore;
pub use trust::Trust;

/// A TLS client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate of a certification authority was found; no server could be trusted.
    #[error("no trusted root certificate was found on this system; install ca-certificates or set SSL_CERT_FILE")]
    NoRoots {
        /// The first thing that went wrong while looking, if anything did.
        #[source]
        source: Option<rustls_native_certs::Error>,
    },
    /// A file that was to name certification authorities names none.
    #[error("no certificate of a certification authority was found in {}", path.display())]
    RootsFile {
        /// The file.
        path: PathBuf,
        /// The first thing that went wrong while reading, if anything did.
        #[source]
        source: Option<rustls_native_certs::Error>,
    },
    /// OpenSSL offers nothing that TLS 1.2 or 1.3 could use.
    #[error("the system's OpenSSL offers no usable TLS version")]
    Versions(#[source] rustls::Error),
}

/// The crypto that every TLS connection of ours uses.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls_openssl::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The certification authorities that the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` count). Reads files: blocking.
///
/// Read once, by a daemon at its start, and shared: a bundle takes about 7 ms and half a megabyte.
pub fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(TlsError::NoRoots { source: found.errors.into_iter().next() });
    }
    for error in found.errors {
        tracing::warn!(%error, "a root certificate could not be read");
    }
    tracing::debug!(added, ignored, "read the system's root certificates");
    Ok(Arc::new(roots))
}

/// The certification authorities in a PEM file, and no others. Blocking.
pub fn roots_from_file(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let found = rustls_native_certs::load_certs_from_paths(Some(path), None);
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(found.certs) {
        (0, _) => Err(TlsError::RootsFile { path: path.to_owned(), source: found.errors.into_iter().next() }),
        _ => Ok(Arc::new(roots)),
    }
}

/// The settings of connections to servers that `trust` accepts. `identity` answers a server that asks who we are.
///
/// Sessions are resumed between connections of one configuration: build it once per set of credentials and share it.
pub fn client_config(
    trust: &Trust,
    identity: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?;
    let builder = match trust.plain() {
        Some(roots) => builder.with_root_certificates(Arc::clone(roots)),
        None => builder.dangerous().with_custom_certificate_verifier(trust.verifier(algorithms)),
    };
    Ok(Arc::new(match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    }))
}
