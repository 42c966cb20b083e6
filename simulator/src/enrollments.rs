//! Who may register: the file of enrollments, and which of them a registration belongs to.
//!
//! Enrollments are the operator's input and are read anew at each start; what became of a registration is kept by `provisioning.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::key::{self, SymmetricKey};
use crate::registry::{self, KeyPair};

/// Why enrollments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("could not read the enrollments")]
    Read(#[source] aziot_files::Error),
    /// The file is not TOML (or JSON, where its name ends so) of the expected shape.
    #[error("could not understand the enrollments in {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Place and reason; without the line itself, which may hold a key.
        #[source]
        source: ParseError,
    },
    /// Two enrollments claim the same registration id, in any case.
    #[error("the registration id {0:?} is enrolled twice")]
    Twice(String),
    /// A registration or device id is none.
    #[error("{0:?} is no identity name: 1 to 128 ASCII letters, digits or - : . + % _ # * ? ! ( ) , = @ ; $ '")]
    Name(String),
    /// An enrollment in an argument is not `ID:KEY`.
    #[error("an enrollment is written REGISTRATION_ID:BASE64_KEY")]
    Argument,
    /// The key of an enrollment in an argument is none.
    #[error("the enrollment of {registration_id:?} has no usable key")]
    Key {
        /// Whose it is.
        registration_id: String,
        /// What is wrong with it.
        #[source]
        source: key::Error,
    },
}

/// Where and why a file could not be understood.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    line: usize,
    message: String,
}

/// One device that may register with a key of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrollment {
    /// Compared without regard to case, as DPS does.
    pub registration_id: String,
    /// Primary key of the device, at DPS and then at the hub.
    pub symmetric_key: SymmetricKey,
    /// Secondary key; the primary one if absent.
    pub secondary_key: Option<SymmetricKey>,
    /// Name at the hub; the registration id if absent.
    pub device_id: Option<String>,
    /// Host name of another hub to send the device to; this simulator if absent.
    pub assigned_hub: Option<String>,
    /// Answer `disabled` instead of assigning.
    #[serde(default)]
    pub disabled: bool,
    /// Answer `failed` with this text instead of assigning.
    pub fail_with: Option<String>,
    /// Whether the device has `$edgeAgent` and `$edgeHub` from the start.
    #[serde(default = "yes")]
    pub iot_edge: bool,
}

/// A key from which any number of devices derive theirs: HMAC-SHA256 over the registration id.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Name for the log.
    pub name: String,
    /// The group's key.
    pub symmetric_key: SymmetricKey,
    /// Answer `disabled` to all of them.
    #[serde(default)]
    pub disabled: bool,
    /// Whether the devices have `$edgeAgent` and `$edgeHub` from the start.
    #[serde(default = "yes")]
    pub iot_edge: bool,
}

/// A device that is at the hub from the start: manual provisioning.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManualDevice {
    /// Name at the hub.
    pub device_id: String,
    /// Primary key.
    pub symmetric_key: SymmetricKey,
    /// Secondary key; the primary one if absent.
    pub secondary_key: Option<SymmetricKey>,
    /// Whether the device has `$edgeAgent` and `$edgeHub` from the start.
    #[serde(default = "yes")]
    pub iot_edge: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    enrollment: Vec<Enrollment>,
    #[serde(default)]
    group: Vec<Group>,
    #[serde(default)]
    device: Vec<ManualDevice>,
}

/// All enrollments of a simulator.
#[derive(Clone, Debug, Default)]
pub struct Enrollments {
    individual: BTreeMap<String, Enrollment>,
    groups: Vec<Group>,
    devices: Vec<ManualDevice>,
}

/// What a registration that is known gets.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// Keys that count at DPS and, once assigned, at the hub; none where nothing is checked.
    pub(crate) keys: Option<KeyPair>,
    pub(crate) device_id: String,
    pub(crate) assigned_hub: Option<String>,
    pub(crate) disabled: bool,
    pub(crate) fail_with: Option<String>,
    pub(crate) iot_edge: bool,
}

impl Enrollments {
    /// Reads a file: JSON if its name ends in `.json`, else TOML.
    pub fn read(path: &Path) -> Result<Self, Error> {
        const LIMIT_BYTES: u64 = 16 << 20;
        let bytes = aziot_files::read_limited(path, LIMIT_BYTES).map_err(Error::Read)?;
        let parsed = if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_slice(&bytes)
                .map_err(|error| ParseError { line: error.line(), message: json_message(&error) })
        } else {
            parse_toml(&bytes)
        };
        let file: File = parsed.map_err(|source| Error::Parse { path: path.to_owned(), source })?;
        let mut enrollments = Self { groups: file.group, devices: file.device, ..Self::default() };
        for device in &enrollments.devices {
            check_name(&device.device_id)?;
        }
        file.enrollment.into_iter().try_for_each(|enrollment| enrollments.add(enrollment))?;
        Ok(enrollments)
    }

    /// Adds one written `REGISTRATION_ID:BASE64_KEY`.
    pub fn add_argument(&mut self, argument: &str) -> Result<(), Error> {
        // Registration ids may hold a colon, base64 never does.
        let (registration_id, key) = argument.rsplit_once(':').ok_or(Error::Argument)?;
        let registration_id = registration_id.to_owned();
        let symmetric_key = SymmetricKey::from_base64(key)
            .map_err(|source| Error::Key { registration_id: registration_id.clone(), source })?;
        self.add(Enrollment {
            registration_id,
            symmetric_key,
            secondary_key: None,
            device_id: None,
            assigned_hub: None,
            disabled: false,
            fail_with: None,
            iot_edge: true,
        })
    }

    /// Adds one; its registration id must be new.
    pub fn add(&mut self, enrollment: Enrollment) -> Result<(), Error> {
        let device_id = enrollment.device_id.as_ref().unwrap_or(&enrollment.registration_id);
        check_name(device_id)?;
        check_name(&enrollment.registration_id)?;
        let id = enrollment.registration_id.clone();
        match self.individual.insert(id.to_lowercase(), enrollment) {
            None => Ok(()),
            Some(_) => Err(Error::Twice(id)),
        }
    }

    /// Whether nobody could register and no device is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.individual.is_empty() && self.groups.is_empty() && self.devices.is_empty()
    }

    pub(crate) fn manual_devices(&self) -> &[ManualDevice] {
        &self.devices
    }

    /// What `registration_id` may get, the likeliest first: its own enrollment, else one candidate per group and spelling of the id. Which of
    /// a group's candidates is meant shows when a token fits the key.
    pub(crate) fn candidates(&self, registration_id: &str) -> Vec<Grant> {
        if let Some(enrollment) = self.individual.get(&registration_id.to_lowercase()) {
            let primary_key = enrollment.symmetric_key.clone();
            let secondary_key = enrollment.secondary_key.clone().unwrap_or_else(|| primary_key.clone());
            return vec![Grant {
                keys: Some(KeyPair { primary_key, secondary_key }),
                device_id: enrollment.device_id.clone().unwrap_or_else(|| enrollment.registration_id.clone()),
                assigned_hub: enrollment.assigned_hub.clone(),
                disabled: enrollment.disabled,
                fail_with: enrollment.fail_with.clone(),
                iot_edge: enrollment.iot_edge,
            }];
        }
        let mut spellings = vec![registration_id.to_owned(), registration_id.to_lowercase()];
        spellings.dedup();
        let of_group = |group: &Group| {
            let grant = |spelling: &String| {
                let key = group.symmetric_key.derive(spelling);
                Grant {
                    keys: Some(KeyPair { primary_key: key.clone(), secondary_key: key }),
                    device_id: registration_id.to_owned(),
                    assigned_hub: None,
                    disabled: group.disabled,
                    fail_with: None,
                    iot_edge: group.iot_edge,
                }
            };
            spellings.iter().map(grant).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of_group).collect()
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    registry::check_name(name).map_err(|_| Error::Name(name.to_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn read(name: &str, text: &str) -> Result<Enrollments, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        aziot_files::write(&path, aziot_files::Mode::PRIVATE, text).unwrap();
        Enrollments::read(&path)
    }

    fn chain(error: &(dyn std::error::Error + 'static)) -> String {
        aziot_log::chain(error).to_string()
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = format!("[[enrollment]]\nregistration_id = 'Dev-1'\nsymmetric_key = '{KEY}'\ndevice_id = 'seven'\n");
        let json =
            format!(r#"{{"enrollment":[{{"registration_id":"Dev-1","symmetric_key":"{KEY}","device_id":"seven"}}]}}"#);
        for enrollments in [read("e.toml", &toml).unwrap(), read("e.json", &json).unwrap()] {
            assert_eq!(enrollments.candidates("dev-1")[0].device_id, "seven");
            assert!(enrollments.candidates("dev-2").is_empty());
        }
    }

    #[test]
    fn a_slip_is_shown_by_line_and_a_key_never() {
        let error = chain(&read("e.toml", "\n[[enrollment]]\nregistraton_id = 'a'\n").unwrap_err());
        assert!(error.contains("line 3: unknown field `registraton_id`"), "{error}");
        let secret = "c2VjcmV0"; // decodes, but is too short
        for (name, text) in [
            ("e.toml", format!("[[group]]\nname = 'g'\nsymmetric_key = '{secret}'\n")),
            ("e.json", format!("{{\"group\":[{{\"name\":\"g\",\n\"symmetric_key\":\"{secret}\"}}]}}")),
        ] {
            let error = chain(&read(name, &text).unwrap_err());
            assert!(error.contains("the key has 6 bytes") && !error.contains(secret), "{error}");
        }
    }

    #[test]
    fn a_registration_is_enrolled_once() {
        let mut enrollments = Enrollments::default();
        enrollments.add_argument(&format!("aa:bb:{KEY}")).unwrap();
        assert_eq!(enrollments.candidates("AA:BB")[0].device_id, "aa:bb");
        assert!(matches!(enrollments.add_argument(&format!("AA:bb:{KEY}")), Err(Error::Twice(_))));
        assert!(matches!(enrollments.add_argument("alone"), Err(Error::Argument)));
        assert!(matches!(enrollments.add_argument("a b:AAAA"), Err(Error::Key { .. })));
        assert!(matches!(enrollments.add_argument(&format!("a b:{KEY}")), Err(Error::Name(_))));
    }

    #[test]
    fn group_keys_are_derived_from_the_id_in_either_spelling() {
        let text = format!("[[group]]\nname = 'g'\nsymmetric_key = '{KEY}'\n");
        let candidates = read("e.toml", &text).unwrap().candidates("Dev-1");
        let group = SymmetricKey::from_base64(KEY).unwrap();
        let keys: Vec<_> = candidates.iter().map(|grant| grant.keys.as_ref().unwrap().primary_key.clone()).collect();
        assert_eq!(keys, [group.derive("Dev-1"), group.derive("dev-1")]);
    }
}
