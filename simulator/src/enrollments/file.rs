//! The file of enrollments as its author writes it, and what is wrong with one.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Enrollment, Error, Group, GroupSecret, ManualDevice, Verdict};
use crate::attestation::{Attestation, Authority, EndorsementKey};
use crate::authentication::KeyPair;
use crate::client_certificate::TrustAnchors;
use crate::key::SymmetricKey;
use crate::thumbprint::Thumbprint;

/// Where and why a file could not be understood.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    line: usize,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) enrollment: Vec<WrittenEnrollment>,
    #[serde(default)]
    pub(super) group: Vec<WrittenGroup>,
    #[serde(default)]
    pub(super) device: Vec<WrittenDevice>,
}

impl File {
    /// JSON if the file's name ends in `.json`, else TOML.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ParseError> {
        if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_slice(bytes)
                .map_err(|error| ParseError { line: error.line(), message: json_message(&error) })
        } else {
            parse_toml(bytes)
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenEnrollment {
    registration_id: String,
    symmetric_key: Option<SymmetricKey>,
    secondary_key: Option<SymmetricKey>,
    certificate_thumbprint: Option<Thumbprint>,
    secondary_thumbprint: Option<Thumbprint>,
    certificate_authority: Option<PathBuf>,
    endorsement_key: Option<EndorsementKey>,
    device_id: Option<String>,
    assigned_hub: Option<String>,
    #[serde(default)]
    disabled: bool,
    fail_with: Option<String>,
    #[serde(default)]
    unassigned: bool,
    assigning_polls: Option<u32>,
    #[serde(default = "yes")]
    iot_edge: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenGroup {
    name: String,
    symmetric_key: Option<SymmetricKey>,
    certificate_authority: Option<PathBuf>,
    assigned_hub: Option<String>,
    #[serde(default)]
    disabled: bool,
    #[serde(default = "yes")]
    iot_edge: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenDevice {
    device_id: String,
    symmetric_key: Option<SymmetricKey>,
    secondary_key: Option<SymmetricKey>,
    certificate_thumbprint: Option<Thumbprint>,
    secondary_thumbprint: Option<Thumbprint>,
    certificate_authority: Option<PathBuf>,
    hub: Option<String>,
    #[serde(default = "yes")]
    iot_edge: bool,
}

fn yes() -> bool {
    true
}

/// All the ways that one entry of the file names; of two, the second is the spare one.
struct Ways {
    keys: [Option<SymmetricKey>; 2],
    thumbprints: [Option<Thumbprint>; 2],
    authority: Option<PathBuf>,
    endorsement_key: Option<EndorsementKey>,
}

impl Ways {
    /// The one way; `whose` is for the error.
    fn only(self, folder: &Path, whose: &str) -> Result<Attestation, Error> {
        let Self { keys, thumbprints, authority, endorsement_key } = self;
        match (keys, thumbprints, authority, endorsement_key) {
            ([Some(primary_key), spare], [None, None], None, None) => {
                let secondary_key = spare.unwrap_or_else(|| primary_key.clone());
                Ok(Attestation::SymmetricKey(KeyPair { primary_key, secondary_key }))
            }
            ([None, None], [Some(primary), spare], None, None) => {
                Ok(Attestation::Thumbprints([primary].into_iter().chain(spare).collect()))
            }
            ([None, None], [None, None], Some(path), None) => Ok(Attestation::Authority(authority_in(folder, path))),
            ([None, None], [None, None], None, Some(key)) => Ok(Attestation::EndorsementKey(key)),
            _ => Err(Error::Ways(whose.to_owned())),
        }
    }
}

fn authority_in(folder: &Path, path: PathBuf) -> Authority {
    Authority { path: folder.join(path), anchors: TrustAnchors::default() }
}

impl WrittenEnrollment {
    pub(super) fn understood(self, folder: &Path) -> Result<Enrollment, Error> {
        let ways = Ways {
            keys: [self.symmetric_key, self.secondary_key],
            thumbprints: [self.certificate_thumbprint, self.secondary_thumbprint],
            authority: self.certificate_authority,
            endorsement_key: self.endorsement_key,
        };
        let attestation = ways.only(folder, &self.registration_id)?;
        let verdict = match (self.disabled, self.fail_with, self.unassigned) {
            (true, _, _) => Verdict::Disabled,
            (false, Some(text), _) => Verdict::Failed(text),
            (false, None, true) => Verdict::Unassigned,
            (false, None, false) => Verdict::Assign,
        };
        Ok(Enrollment {
            registration_id: self.registration_id,
            attestation,
            device_id: self.device_id,
            assigned_hub: self.assigned_hub,
            verdict,
            assigning_polls: self.assigning_polls,
            iot_edge: self.iot_edge,
        })
    }
}

impl WrittenGroup {
    pub(super) fn understood(self, folder: &Path) -> Result<Group, Error> {
        let secret = match (self.symmetric_key, self.certificate_authority) {
            (Some(key), None) => GroupSecret::Key(key),
            (None, Some(path)) => GroupSecret::Authority(authority_in(folder, path)),
            _ => return Err(Error::Ways(self.name)),
        };
        let verdict = if self.disabled { Verdict::Disabled } else { Verdict::Assign };
        Ok(Group { secret, assigned_hub: self.assigned_hub, verdict, iot_edge: self.iot_edge })
    }
}

impl WrittenDevice {
    pub(super) fn understood(self, folder: &Path) -> Result<ManualDevice, Error> {
        let ways = Ways {
            keys: [self.symmetric_key, self.secondary_key],
            thumbprints: [self.certificate_thumbprint, self.secondary_thumbprint],
            authority: self.certificate_authority,
            endorsement_key: None,
        };
        let attestation = ways.only(folder, &self.device_id)?;
        Ok(ManualDevice { device_id: self.device_id, attestation, hub: self.hub, iot_edge: self.iot_edge })
    }
}

/// Reads TOML. An error has the place and the reason, but not the line itself, which may hold a key.
pub(crate) fn parse_toml<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ParseError> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| ParseError { line: 1, message: "it is not UTF-8 text".to_owned() })?;
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text[..start].matches('\n').count();
        ParseError { line, message: error.message().to_owned() }
    })
}

/// The parser's message without the place, which is told apart.
fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
