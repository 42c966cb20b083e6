//! How a device may prove itself to DPS, as its enrollment says. Whether it did is decided in `dps/entrance.rs`.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::authentication::{Authentication, KeyPair};
use crate::client_certificate::TrustAnchors;
use crate::thumbprint::Thumbprint;

/// The way of one enrollment.
#[derive(Clone, Debug)]
pub(crate) enum Attestation {
    SymmetricKey(KeyPair),
    /// A certificate with one of these thumbprints.
    Thumbprints(Vec<Thumbprint>),
    /// A certificate of this authority with the registration id as common name.
    Authority(Authority),
    /// A TPM.
    EndorsementKey(EndorsementKey),
}

impl Attestation {
    /// The same at a hub, without DPS before it; not at all with a TPM, whose key for the hub comes from DPS.
    pub(crate) fn without_dps(&self) -> Authentication {
        match self {
            Self::SymmetricKey(keys) => Authentication::sas(keys.clone()),
            Self::Thumbprints(thumbprints) => Authentication::thumbprints(thumbprints),
            Self::Authority(authority) => Authentication::authority(authority.anchors.clone()),
            Self::EndorsementKey(_) => Authentication::none(),
        }
    }
}

/// The certificates of an authority, and the file they come from.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) path: PathBuf,
    /// Empty until they are read, at the start: the authorities of the EST server are made then.
    pub(crate) anchors: TrustAnchors,
}

/// Which TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndorsementKey {
    /// The first that proves itself, and from then on that one.
    Any,
    /// The TPM with this key.
    Exactly(Public),
}

impl<'de> Deserialize<'de> for EndorsementKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "any" {
            return Ok(Self::Any);
        }
        let decoded = STANDARD.decode(&text).map(|bytes| Self::Exactly(Public(bytes)));
        decoded.map_err(|_| serde::de::Error::custom("an endorsement key is \"any\" or base64 of a TPM2B_PUBLIC"))
    }
}

/// A marshalled `TPM2B_PUBLIC`, in JSON as base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Public(pub(crate) Vec<u8>);

impl Serialize for Public {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Public {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(|_| serde::de::Error::custom("it is not standard base64"))?;
        Ok(Self(bytes))
    }
}

/// The two keys of a TPM, as it sends them to DPS.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TpmKeys {
    pub(crate) endorsement_key: Public,
    pub(crate) storage_root_key: Public,
}
