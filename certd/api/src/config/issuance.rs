//! `[cert_issuance]`: how each certificate is issued.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap as _,
};

use super::{
    EstUrl,
    est::{Est, EstAuth, Ineffective, RawAuth},
    policy::Policy,
};

/// The whole table. Every key but `est` and `local_ca` is the id of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issuance {
    /// The EST servers of this device.
    pub est: Option<Est>,
    /// The certificate authority of this device.
    pub local_ca: Option<LocalCa>,
    /// Certificate id to how it is issued.
    pub certificates: BTreeMap<String, Options>,
}

impl Issuance {
    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A certificate authority whose key is in the key service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalCa {
    /// Id of its certificate.
    pub cert: String,
    /// Id of its key pair.
    pub pk: String,
}

/// How one certificate is issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RawOptions", into = "RawOptions")]
pub struct Options {
    /// Who issues it.
    pub method: Method,
    /// Days until it expires, at least 1; 30 if absent. EST servers decide for themselves.
    pub expiry_days: Option<NonZeroU32>,
    /// Subject in place of the request's: a common name alone. Wins over `subject`.
    pub common_name: Option<String>,
    /// Subject in place of the request's: OpenSSL's attribute names, applied in the byte order of the keys.
    pub subject: Option<BTreeMap<String, String>>,
    /// What requests for it may ask for. Absent: anything.
    pub policy: Option<Policy>,
    /// EST only: where this certificate is enrolled.
    pub url: Option<EstUrl>,
    /// EST only: credentials in place of those in `[cert_issuance.est]`.
    pub auth: Option<EstAuth>,
    /// EST only: a certificate that takes the place of another is asked for at `simplereenroll`. Absent: as
    /// `[cert_issuance.est]` has it.
    pub simplereenroll: Option<bool>,
    /// EST only: subject of an identity in `auth` when it is first enrolled.
    pub identity_subject: Option<BTreeMap<String, String>>,
    /// Keys of the credentials that are written and have no effect. Never written back.
    pub ineffective: Vec<Ineffective>,
}

impl Options {
    /// Issued by `method`, all else left at its default.
    #[must_use]
    pub fn new(method: Method) -> Self {
        Self {
            method,
            expiry_days: None,
            common_name: None,
            subject: None,
            policy: None,
            url: None,
            auth: None,
            simplereenroll: None,
            identity_subject: None,
            ineffective: Vec::new(),
        }
    }
}

/// Who issues a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A server, over EST (RFC 7030).
    Est,
    /// The certificate's own key pair in the key service.
    SelfSigned,
    /// The authority of `[cert_issuance.local_ca]`.
    LocalCa,
}

#[derive(Serialize, Deserialize)]
struct RawOptions {
    method: Method,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiry_days: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    common_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<EstUrl>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<super::Password>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_pk: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap_identity_cert: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap_identity_pk: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    simplereenroll: Option<bool>,
    // Tables: TOML writes them behind the plain keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_subject: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<Policy>,
}

impl From<RawOptions> for Options {
    fn from(raw: RawOptions) -> Self {
        let auth = RawAuth {
            username: raw.username,
            password: raw.password,
            identity_cert: raw.identity_cert,
            identity_pk: raw.identity_pk,
            bootstrap_identity_cert: raw.bootstrap_identity_cert,
            bootstrap_identity_pk: raw.bootstrap_identity_pk,
        };
        Self {
            method: raw.method,
            expiry_days: raw.expiry_days,
            common_name: raw.common_name,
            subject: raw.subject,
            url: raw.url,
            ineffective: auth.ineffective(),
            auth: auth.checked(),
            simplereenroll: raw.simplereenroll,
            identity_subject: raw.identity_subject,
            policy: raw.policy,
        }
    }
}

impl From<Options> for RawOptions {
    fn from(options: Options) -> Self {
        let auth = RawAuth::from(options.auth);
        Self {
            method: options.method,
            expiry_days: options.expiry_days,
            common_name: options.common_name,
            url: options.url,
            username: auth.username,
            password: auth.password,
            identity_cert: auth.identity_cert,
            identity_pk: auth.identity_pk,
            bootstrap_identity_cert: auth.bootstrap_identity_cert,
            bootstrap_identity_pk: auth.bootstrap_identity_pk,
            simplereenroll: options.simplereenroll,
            subject: options.subject,
            identity_subject: options.identity_subject,
            policy: options.policy,
        }
    }
}

impl Serialize for Issuance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut table = serializer.serialize_map(None)?;
        if let Some(est) = &self.est {
            table.serialize_entry("est", est)?;
        }
        if let Some(local_ca) = &self.local_ca {
            table.serialize_entry("local_ca", local_ca)?;
        }
        for (id, options) in &self.certificates {
            table.serialize_entry(id, options)?;
        }
        table.end()
    }
}

impl<'de> Deserialize<'de> for Issuance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(IssuanceVisitor)
    }
}

/// By hand, because serde's flattening forgets the lines of what it buffers.
struct IssuanceVisitor;

impl<'de> Visitor<'de> for IssuanceVisitor {
    type Value = Issuance;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a table of certificate ids, est and local_ca")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Issuance, A::Error> {
        let mut issuance = Issuance::default();
        while let Some(key) = table.next_key::<String>()? {
            match key.as_str() {
                "est" => issuance.est = Some(table.next_value()?),
                "local_ca" => issuance.local_ca = Some(table.next_value()?),
                _ => _ = issuance.certificates.insert(key, table.next_value()?),
            }
        }
        Ok(issuance)
    }
}
