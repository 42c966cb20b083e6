//! How a certificate is issued on this device: by whom, with which key, and under which terms (certs.md, section 4).
//!
//! What comes from a server is in [`est`](crate::est).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aziot_certd_api::config::{LocalCa, Options};
use aziot_http::ClientError;
use aziot_keyd_api::{key::KeyHandle, key_pair::LoadKeyPair};
use aziot_log::{chain, fields};
use aziot_pki::{
    Name,
    certificate::{self, Chain, ChainError, IssueError, Issuer, KnownChains, Terms},
    key::{self, KeyError, KnownKeys, NEXT_SUFFIX, RemoteKey, UnknownKey},
    name::{self, NameError, cut_common_name},
    request::Request,
};

use crate::{est::enrolment, settings::Settings, store};

/// Why a certificate was not issued, though its request was in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Neither the call nor the configuration says who issues it.
    #[error("[cert_issuance] has no entry for it, and the request names no issuer")]
    NotConfigured,
    /// A server did not issue it.
    #[error(transparent)]
    Est(Arc<enrolment::Error>),
    /// The configuration wants the local CA and names none.
    #[error("[cert_issuance] has method = \"local_ca\" for it, and there is no [cert_issuance.local_ca]")]
    NoLocalCa,
    /// The local CA's certificate is not there.
    #[error("the local CA's certificate {id:?} does not exist")]
    LocalCaMissing { id: String },
    /// The local CA's certificate cannot be read.
    #[error("could not read the local CA's certificate {id:?}")]
    LocalCaStore { id: String, source: store::Error },
    /// The local CA's certificate is broken.
    #[error("the local CA's certificate {id:?} is unusable")]
    LocalCa { id: String, source: ChainError },
    /// The key service does not give the key pair.
    #[error("could not get the key pair {id:?}")]
    KeyPair { id: String, source: ClientError },
    /// The key pair cannot be used.
    #[error("could not use the key pair {id:?}")]
    Key { id: String, source: KeyError },
    /// The key pair that the caller named cannot be used.
    #[error("could not use the issuer's key pair")]
    IssuerKey(#[source] UnknownKey),
    /// The configured subject is none.
    #[error("the subject that [cert_issuance] has for it is unusable")]
    Subject(#[source] NameError),
    /// The certificate could not be made.
    #[error("could not make the certificate")]
    Issue(#[source] IssueError),
}

impl Error {
    /// Whether the key service gave no answer, so that asking again at once is of no use.
    fn is_offline(&self) -> bool {
        matches!(self, Self::Issue(IssueError::Key(KeyError::Sign(error))) if error.is_offline())
    }
}

fn unknown_key(name: &key::Name, error: UnknownKey) -> Error {
    match (name, error) {
        (key::Name::Id(id), UnknownKey::Handle(source)) => Error::KeyPair { id: id.clone(), source },
        (key::Name::Id(id), UnknownKey::Key(source)) => Error::Key { id: id.clone(), source },
        (key::Name::Handle(_), error) => Error::IssuerKey(error),
    }
}

/// One certificate to be issued.
pub(crate) struct Issuing<'a> {
    pub(crate) id: &'a str,
    pub(crate) request: &'a Request,
    pub(crate) settings: &'a Settings,
    pub(crate) keys: &'a KnownKeys,
    pub(crate) chains: &'a KnownChains,
}

impl Issuing<'_> {
    /// Issued by a certificate and a key that the caller chose, whatever the configured method. The handle is a
    /// capability: whoever has it may use the key, so it is used as it is.
    pub(crate) async fn by_named_issuer(&self, chain: &Chain, handle: String) -> Result<String, Error> {
        self.by_authority(chain, &key::Name::Handle(KeyHandle(handle))).await
    }

    /// Signed by a key pair of its own.
    pub(crate) async fn self_signed(&self) -> Result<String, Error> {
        self.issue(Issuer::Itself(&self.own_key().await?)).await
    }

    /// Issued by the authority of `[cert_issuance.local_ca]`.
    pub(crate) async fn by_local_ca(&self) -> Result<String, Error> {
        let local_ca = self.settings.issuance.local_ca.as_ref().ok_or(Error::NoLocalCa)?;
        let chain = self.local_ca_chain(local_ca).await?;
        self.by_authority(&chain, &key::Name::Id(local_ca.pk.clone())).await
    }

    /// What is known of the key may be out of date, which shows in a failure: then the key service is asked anew, once.
    async fn by_authority(&self, chain: &Chain, name: &key::Name) -> Result<String, Error> {
        let (key, was_known) = self.keys.get(name).await.map_err(|error| unknown_key(name, error))?;
        match self.issue(Issuer::Authority(chain, &key)).await {
            Err(error) if was_known && !error.is_offline() => {
                tracing::debug!("{}; asking for the issuer's key again", aziot_log::chain(&error));
                self.keys.forget(name);
                let (key, _) = self.keys.get(name).await.map_err(|error| unknown_key(name, error))?;
                self.issue(Issuer::Authority(chain, &key)).await
            }
            outcome => outcome,
        }
    }

    fn options(&self) -> Option<&Options> {
        self.settings.issuance.certificates.get(self.id)
    }

    async fn issue(&self, issuer: Issuer<'_>) -> Result<String, Error> {
        let terms = self.options().map(terms).transpose().map_err(Error::Subject)?.unwrap_or_default();
        certificate::issue(self.request, &terms, issuer, SystemTime::now()).await.map_err(Error::Issue)
    }

    async fn local_ca_chain(&self, local_ca: &LocalCa) -> Result<Chain, Error> {
        let id = &local_ca.cert;
        let text = self.settings.store.run({
            let id = id.clone();
            move |store| store.read(&id)
        });
        let text = text.await.map_err(|source| Error::LocalCaStore { id: id.clone(), source })?;
        let text = text.ok_or_else(|| Error::LocalCaMissing { id: id.clone() })?;
        self.chains.parse(&text).map_err(|source| Error::LocalCa { id: id.clone(), source })
    }

    async fn key_pair(&self, id: &str) -> Result<RemoteKey, Error> {
        let call = LoadKeyPair { key_id: id.to_owned() };
        let keyd = self.keys.keyd();
        let handle = keyd.send(&call).await.map_err(|source| Error::KeyPair { id: id.to_owned(), source })?;
        RemoteKey::load(keyd, handle.key_handle).await.map_err(|source| Error::Key { id: id.to_owned(), source })
    }

    /// The key pair that signs a self-signed certificate: the one called like it. A renewal asks for `<id>-temp` with
    /// the key that `<id>` has, when it keeps the key, or for `<id>` with a new key.
    async fn own_key(&self) -> Result<RemoteKey, Error> {
        let wanted = self.request.public_key_info();
        let named = self.key_pair(self.id).await;
        match &named {
            Ok(key) if key.is_public_key(wanted) => return named,
            Err(Error::KeyPair { source, .. }) if source.is_offline() => return named,
            _ => {}
        }
        if let Some(base) = self.id.strip_suffix(NEXT_SUFFIX) {
            match self.key_pair(base).await {
                Ok(key) if key.is_public_key(wanted) => return Ok(key),
                Ok(_) => {}
                Err(error) => tracing::debug!({ fields::KEY_ID } = base, "{}", chain(&error)),
            }
        }
        let key = named?;
        tracing::warn!(
            { fields::CERTIFICATE_ID } = self.id,
            { fields::KEY_ID } = self.id,
            "the request is for another key than the one that signs: the certificate will not verify as self-signed"
        );
        Ok(key)
    }
}

fn terms(options: &Options) -> Result<Terms, NameError> {
    let lifetime = options
        .expiry_days
        .map_or(certificate::DEFAULT_LIFETIME, |days| Duration::from_secs(u64::from(days.get()) * 86_400));
    Ok(Terms { lifetime, subject: subject(options)? })
}

/// The subject that the configuration has for a certificate.
pub(crate) fn subject(options: &Options) -> Result<Option<Name>, NameError> {
    match (&options.common_name, &options.subject) {
        (Some(common_name), _) => name::from_entries([("CN", cut_common_name(common_name))]).map(Some),
        (None, Some(subject)) => name_of(subject).map(Some),
        (None, None) => Ok(None),
    }
}

/// A configured name, its attributes in the byte order of the keys, as the map has them.
pub(crate) fn name_of(subject: &BTreeMap<String, String>) -> Result<Name, NameError> {
    name::from_entries(subject.iter().map(|(key, value)| {
        // Only this spelling of the attribute is cut, as in the public service.
        let value = if key.eq_ignore_ascii_case("cn") { cut_common_name(value) } else { value };
        (key.as_str(), value)
    }))
}

#[cfg(test)]
mod tests {
    use aziot_certd_api::config::Method;

    use super::*;

    fn options(common_name: Option<&str>, subject: &[(&str, &str)]) -> Options {
        let mut options = Options::new(Method::LocalCa);
        options.common_name = common_name.map(str::to_owned);
        let entries = subject.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        options.subject = (!subject.is_empty()).then(|| entries.collect());
        options
    }

    fn text(options: &Options) -> String {
        let name = subject(options).unwrap().unwrap();
        // First to last; a whole name prints last to first.
        name.iter_rdn().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn the_common_name_wins_over_the_subject_and_keys_go_in_byte_order() {
        assert!(subject(&options(None, &[])).unwrap().is_none());
        assert_eq!(text(&options(Some("a"), &[("O", "b")])), "CN=a");
        assert_eq!(text(&options(None, &[("L", "AQ"), ("ST", "Antarctica"), ("CN", "x")])), "CN=x,L=AQ,ST=Antarctica");
        let all = [("ST", "s"), ("L", "l"), ("CN", "n"), ("C", "AQ"), ("emailAddress", "a@b"), ("2.5.4.5", "5")];
        let name = subject(&options(None, &all)).unwrap().unwrap();
        let oids: Vec<_> = name.iter().map(|attribute| attribute.oid.to_string()).collect();
        assert_eq!(oids, ["2.5.4.5", "2.5.4.6", "2.5.4.3", "2.5.4.7", "2.5.4.8", "1.2.840.113549.1.9.1"]);
    }

    #[test]
    fn common_names_are_cut_at_64_characters() {
        let (long, kept) = ("ä".repeat(65), "ä".repeat(64));
        assert_eq!(text(&options(Some(&long), &[])), format!("CN={kept}"));
        assert_eq!(text(&options(None, &[("CN", &long)])), format!("CN={kept}"));
        assert!(subject(&options(None, &[("commonName", &long)])).is_err());
        assert!(subject(&options(None, &[("cn", "x")])).is_err());
        assert_eq!(terms(&Options::new(Method::LocalCa)).unwrap().lifetime.as_secs(), 30 * 86_400);
    }
}
