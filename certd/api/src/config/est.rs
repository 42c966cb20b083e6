//! `[cert_issuance.est]`: EST servers and how the service proves itself to them.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use crate::renewal::AutoRenew;

/// What holds for all certificates that come over EST.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RawEst", into = "RawEst")]
pub struct Est {
    /// Ids of certificates that servers may be certified by, besides the system's own list.
    pub trusted_certs: Vec<String>,
    /// Credentials of certificates that have none of their own.
    pub auth: Option<EstAuth>,
    /// How TLS client identities are renewed; [`AutoRenew::default`] if absent.
    pub identity_auto_renew: Option<AutoRenew>,
    /// Certificate id to base URL; `default` stands for all others.
    pub urls: BTreeMap<String, Url>,
}

/// Credentials: basic, a TLS client identity, or both.
///
/// Half a pair counts as none, and a bootstrap identity counts only beside an identity, as in the public service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EstAuth {
    /// User name and password (HTTP basic).
    pub basic: Option<Basic>,
    /// The TLS client identity.
    pub identity: Option<KeyPair>,
    /// The TLS client identity that obtains the other one.
    pub bootstrap_identity: Option<KeyPair>,
}

/// User name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basic {
    /// Name of the user.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// A certificate and the key pair that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// Id of the certificate.
    pub cert: String,
    /// Id of the key pair in the key service.
    pub pk: String,
}

/// Text that nobody may see: `Debug` prints `[redacted]`, dropping wipes it.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
pub struct Password(Zeroizing<String>);

impl Password {
    /// The text itself; the name marks the places that handle it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<Password> for String {
    fn from(password: Password) -> Self {
        password.expose().to_owned()
    }
}

/// The six keys as they are written; [`checked`](Self::checked) tells what they amount to.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RawAuth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<Password>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) identity_cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) identity_pk: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bootstrap_identity_cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bootstrap_identity_pk: Option<String>,
}

impl RawAuth {
    pub(super) fn checked(self) -> Option<EstAuth> {
        let pair = |cert: Option<String>, pk: Option<String>| Some(KeyPair { cert: cert?, pk: pk? });
        let basic = self.username.zip(self.password).map(|(username, password)| Basic { username, password });
        let identity = pair(self.identity_cert, self.identity_pk);
        let bootstrap_identity =
            identity.as_ref().and_then(|_| pair(self.bootstrap_identity_cert, self.bootstrap_identity_pk));
        (basic.is_some() || identity.is_some()).then_some(EstAuth { basic, identity, bootstrap_identity })
    }
}

impl From<Option<EstAuth>> for RawAuth {
    fn from(auth: Option<EstAuth>) -> Self {
        let Some(EstAuth { basic, identity, bootstrap_identity }) = auth else { return Self::default() };
        let (username, password) = basic.map(|basic| (basic.username, basic.password)).unzip();
        let (identity_cert, identity_pk) = identity.map(|pair| (pair.cert, pair.pk)).unzip();
        let (bootstrap_identity_cert, bootstrap_identity_pk) =
            bootstrap_identity.map(|pair| (pair.cert, pair.pk)).unzip();
        Self { username, password, identity_cert, identity_pk, bootstrap_identity_cert, bootstrap_identity_pk }
    }
}

#[derive(Serialize, Deserialize)]
struct RawEst {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trusted_certs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<Password>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_pk: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap_identity_cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap_identity_pk: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_auto_renew: Option<AutoRenew>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    urls: BTreeMap<String, Url>,
    /// The super-config's spelling, which the public service's guide also shows for this file; read, never written.
    #[serde(default, skip_serializing)]
    auth: Option<RawAuth>,
}

impl From<RawEst> for Est {
    fn from(raw: RawEst) -> Self {
        let flat = RawAuth {
            username: raw.username,
            password: raw.password,
            identity_cert: raw.identity_cert,
            identity_pk: raw.identity_pk,
            bootstrap_identity_cert: raw.bootstrap_identity_cert,
            bootstrap_identity_pk: raw.bootstrap_identity_pk,
        };
        let written = if flat == RawAuth::default() { raw.auth.unwrap_or_default() } else { flat };
        Self {
            trusted_certs: raw.trusted_certs,
            auth: written.checked(),
            identity_auto_renew: raw.identity_auto_renew,
            urls: raw.urls,
        }
    }
}

impl From<Est> for RawEst {
    fn from(est: Est) -> Self {
        let auth = RawAuth::from(est.auth);
        Self {
            trusted_certs: est.trusted_certs,
            username: auth.username,
            password: auth.password,
            identity_cert: auth.identity_cert,
            identity_pk: auth.identity_pk,
            bootstrap_identity_cert: auth.bootstrap_identity_cert,
            bootstrap_identity_pk: auth.bootstrap_identity_pk,
            identity_auto_renew: est.identity_auto_renew,
            urls: est.urls,
            auth: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(text: &str) -> Option<EstAuth> {
        toml::from_str::<Est>(text).unwrap().auth
    }

    #[test]
    fn half_a_pair_is_none() {
        assert_eq!(auth(""), None);
        assert_eq!(auth("username = \"u\"\nidentity_pk = \"k\""), None);
        let basic = auth("username = \"u\"\npassword = \"p\"\nidentity_cert = \"c\"").unwrap();
        assert!(basic.identity.is_none() && basic.basic.is_some());
        let bootstrap = "bootstrap_identity_cert = \"b\"\nbootstrap_identity_pk = \"b\"\n";
        assert_eq!(auth(bootstrap), None);
        assert!(auth(&format!("{bootstrap}username = \"u\"\npassword = \"p\"")).unwrap().bootstrap_identity.is_none());
        let both = auth(&format!("{bootstrap}identity_cert = \"c\"\nidentity_pk = \"k\"")).unwrap();
        assert!(both.bootstrap_identity.is_some());
    }

    #[test]
    fn the_other_spelling_counts_where_there_are_no_flat_keys() {
        let nested = "[auth]\nidentity_cert = \"n\"\nidentity_pk = \"n\"";
        assert_eq!(auth(nested).unwrap().identity.unwrap().cert, "n");
        let both = auth(&format!("identity_cert = \"c\"\nidentity_pk = \"k\"\n{nested}")).unwrap();
        assert_eq!(both.identity.unwrap().cert, "c");
    }

    #[test]
    fn a_password_does_not_show() {
        let auth = auth("username = \"u\"\npassword = \"hunter2\"").unwrap();
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}
