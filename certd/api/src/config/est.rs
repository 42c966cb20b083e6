//! `[cert_issuance.est]`: EST servers and how the service proves itself to them.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::EstUrl;
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
    pub urls: BTreeMap<String, EstUrl>,
    /// Servers are certified by `trusted_certs` alone; the system's own list does not count.
    pub only_trusted_certs: bool,
    /// A certificate that takes the place of another is asked for at `simplereenroll` where the server has it.
    pub simplereenroll: bool,
    /// Subject of the TLS client identity when it is first enrolled, in place of that of the certificate which needs it.
    pub identity_subject: Option<BTreeMap<String, String>>,
    /// Keys of the credentials that are written and have no effect. Never written back.
    pub ineffective: Vec<Ineffective>,
}

/// A key that is written and has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ineffective {
    /// The key.
    pub key: &'static str,
    /// What it lacks, or why else it counts for nothing.
    pub because: &'static str,
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
    /// What has no effect, because its other half is missing.
    pub(super) fn ineffective(&self) -> Vec<Ineffective> {
        let half =
            |key, present: bool, because, other: bool| (present && !other).then_some(Ineffective { key, because });
        let [username, password] = [self.username.is_some(), self.password.is_some()];
        let [cert, pk] = [self.identity_cert.is_some(), self.identity_pk.is_some()];
        let [bootstrap_cert, bootstrap_pk] =
            [self.bootstrap_identity_cert.is_some(), self.bootstrap_identity_pk.is_some()];
        let alone = bootstrap_cert && bootstrap_pk && !(cert && pk);
        [
            half("username", username, "there is no password", password),
            half("password", password, "there is no username", username),
            half("identity_cert", cert, "there is no identity_pk", pk),
            half("identity_pk", pk, "there is no identity_cert", cert),
            half("bootstrap_identity_cert", bootstrap_cert, "there is no bootstrap_identity_pk", bootstrap_pk),
            half("bootstrap_identity_pk", bootstrap_pk, "there is no bootstrap_identity_cert", bootstrap_cert),
            half("bootstrap_identity_cert", alone, "there is no identity_cert with identity_pk to obtain", false),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

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
    #[serde(default, skip_serializing_if = "is_false")]
    only_trusted_certs: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    simplereenroll: bool,
    // Tables: TOML writes them behind the plain keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_auto_renew: Option<AutoRenew>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    urls: BTreeMap<String, EstUrl>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_subject: Option<BTreeMap<String, String>>,
    /// The super-config's spelling, which the public service's guide also shows for this file; read, never written.
    #[serde(default, skip_serializing)]
    auth: Option<RawAuth>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
pub(super) fn is_false(value: &bool) -> bool {
    !value
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
        let mut ineffective = Vec::new();
        let written = match raw.auth {
            Some(nested) if flat == RawAuth::default() => nested,
            Some(_) => {
                ineffective.push(Ineffective { key: "auth", because: "its keys stand beside it as well" });
                flat
            }
            None => flat,
        };
        ineffective.extend(written.ineffective());
        Self {
            trusted_certs: raw.trusted_certs,
            auth: written.checked(),
            identity_auto_renew: raw.identity_auto_renew,
            urls: raw.urls,
            only_trusted_certs: raw.only_trusted_certs,
            simplereenroll: raw.simplereenroll,
            identity_subject: raw.identity_subject,
            ineffective,
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
            only_trusted_certs: est.only_trusted_certs,
            simplereenroll: est.simplereenroll,
            identity_auto_renew: est.identity_auto_renew,
            urls: est.urls,
            identity_subject: est.identity_subject,
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
    fn what_has_no_effect_is_known() {
        let keys = |text: &str| {
            let est = toml::from_str::<Est>(text).unwrap();
            est.ineffective.iter().map(|ineffective| ineffective.key).collect::<Vec<_>>()
        };
        assert!(keys("username = \"u\"\npassword = \"p\"\nidentity_cert = \"c\"\nidentity_pk = \"k\"").is_empty());
        assert_eq!(keys("username = \"u\"\nidentity_pk = \"k\""), ["username", "identity_pk"]);
        assert_eq!(keys("password = \"p\"\nidentity_cert = \"c\""), ["password", "identity_cert"]);
        let bootstrap = "bootstrap_identity_cert = \"b\"\nbootstrap_identity_pk = \"b\"";
        assert_eq!(keys(bootstrap), ["bootstrap_identity_cert"]);
        assert_eq!(keys("username = \"u\"\npassword = \"p\"\n[auth]\nidentity_pk = \"x\""), ["auth"]);
        assert_eq!(keys("[auth]\nidentity_pk = \"x\""), ["identity_pk"]);
    }

    #[test]
    fn own_additions_survive_writing() {
        let text = "only_trusted_certs = true\nsimplereenroll = true\nidentity_subject = { CN = \"x\" }";
        let est: Est = toml::from_str(text).unwrap();
        assert!(est.only_trusted_certs && est.simplereenroll && est.identity_subject.is_some());
        assert_eq!(toml::from_str::<Est>(&toml::to_string(&est).unwrap()).unwrap(), est);
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
