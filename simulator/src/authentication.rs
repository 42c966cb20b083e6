//! What the hub knows a device or module by: keys, thumbprints or an authority, and the form in which the registry keeps and shows it.

use serde::{Deserialize, Serialize};

use crate::client_certificate::TrustAnchors;
use crate::key::SymmetricKey;
use crate::thumbprint::Thumbprint;

/// How an identity proves itself.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AuthenticationType {
    /// Not at all: it cannot connect.
    None,
    /// By tokens.
    #[default]
    Sas,
    /// As module clients write it; counts as `selfSigned`.
    X509,
    /// By a certificate with one of two thumbprints, whoever issued it.
    SelfSigned,
    /// By a certificate of an authority, with the device's name in it.
    CertificateAuthority,
}

/// The two keys of an identity; either is good.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyPair {
    pub(crate) primary_key: SymmetricKey,
    pub(crate) secondary_key: SymmetricKey,
}

impl KeyPair {
    pub(crate) fn random() -> Self {
        Self { primary_key: SymmetricKey::random(), secondary_key: SymmetricKey::random() }
    }

    pub(crate) fn to_vec(&self) -> Vec<SymmetricKey> {
        vec![self.primary_key.clone(), self.secondary_key.clone()]
    }
}

/// Digests of the certificates an identity may use, as they were given: a client may have written anything.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Thumbprints {
    pub(crate) primary_thumbprint: Option<String>,
    pub(crate) secondary_thumbprint: Option<String>,
}

impl Thumbprints {
    pub(crate) fn new(thumbprints: &[Thumbprint]) -> Self {
        let text = |place: usize| thumbprints.get(place).map(ToString::to_string);
        Self { primary_thumbprint: text(0), secondary_thumbprint: text(1) }
    }

    /// Those that are thumbprints indeed.
    fn to_vec(&self) -> Vec<Thumbprint> {
        let given = [&self.primary_thumbprint, &self.secondary_thumbprint];
        given.into_iter().flatten().filter_map(|text| text.parse().ok()).collect()
    }
}

/// How an identity proves itself, and with what.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Authentication {
    #[serde(rename = "type")]
    pub(crate) kind: AuthenticationType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) symmetric_key: Option<KeyPair>,
    #[serde(rename = "x509Thumbprint", skip_serializing_if = "Option::is_none")]
    pub(crate) x509_thumbprint: Option<Thumbprints>,
    /// The public hub keeps authorities apart from devices; here each device has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_authority: Option<TrustAnchors>,
}

/// What a caller has to show to be this identity.
#[derive(Clone, Debug)]
pub(crate) enum Demand {
    /// A token by one of these keys.
    Token(Vec<SymmetricKey>),
    /// A certificate with one of these thumbprints.
    Thumbprint(Vec<Thumbprint>),
    /// A certificate that leads to one of these authorities.
    Authority(TrustAnchors),
}

impl Authentication {
    fn of(kind: AuthenticationType) -> Self {
        Self { kind, symmetric_key: None, x509_thumbprint: None, certificate_authority: None }
    }

    pub(crate) fn none() -> Self {
        Self::of(AuthenticationType::None)
    }

    pub(crate) fn sas(keys: KeyPair) -> Self {
        Self { symmetric_key: Some(keys), ..Self::of(AuthenticationType::Sas) }
    }

    pub(crate) fn thumbprints(thumbprints: &[Thumbprint]) -> Self {
        Self { x509_thumbprint: Some(Thumbprints::new(thumbprints)), ..Self::of(AuthenticationType::SelfSigned) }
    }

    pub(crate) fn authority(anchors: TrustAnchors) -> Self {
        Self { certificate_authority: Some(anchors), ..Self::of(AuthenticationType::CertificateAuthority) }
    }

    /// As a module client asked for it.
    pub(crate) fn written(kind: AuthenticationType, x509_thumbprint: Option<Thumbprints>) -> Self {
        Self { x509_thumbprint, ..Self::of(kind) }
    }

    /// What has to be shown; without keys or thumbprints nothing is good enough.
    pub(crate) fn demand(&self) -> Demand {
        match self.kind {
            AuthenticationType::None => Demand::Token(Vec::new()),
            AuthenticationType::Sas => {
                Demand::Token(self.symmetric_key.as_ref().map(KeyPair::to_vec).unwrap_or_default())
            }
            AuthenticationType::X509 | AuthenticationType::SelfSigned => {
                Demand::Thumbprint(self.x509_thumbprint.as_ref().map(Thumbprints::to_vec).unwrap_or_default())
            }
            AuthenticationType::CertificateAuthority => {
                Demand::Authority(self.certificate_authority.clone().unwrap_or_default())
            }
        }
    }
}
