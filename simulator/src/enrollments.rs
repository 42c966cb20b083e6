//! Who may register: the file of enrollments, and which of them a registration belongs to.
//!
//! Enrollments are the operator's input and are read anew at each start; what became of a registration is kept by `provisioning.rs`. The file's
//! format is in `file.rs`.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;

use crate::attestation::{Attestation, Authority};
use crate::authentication::KeyPair;
use crate::client_certificate::TrustAnchors;
use crate::key::{self, SymmetricKey};
use crate::registry;
use file::File;
pub use file::ParseError;
pub(crate) use file::parse_toml;

const LIMIT_BYTES: u64 = 16 << 20;

/// Why enrollments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or that of an authority, cannot be read.
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
    /// An entry names no way to prove itself, or several.
    #[error(
        "{0:?} needs exactly one of symmetric_key, certificate_thumbprint, certificate_authority and endorsement_key, and no other kind beside it"
    )]
    Ways(String),
    /// The file of an authority has no certificate.
    #[error("could not find a certificate in {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What OpenSSL says; nothing if there is just none.
        #[source]
        source: Option<ErrorStack>,
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

/// What an enrollment makes of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Assign,
    Disabled,
    /// With this text.
    Failed(String),
    Unassigned,
}

/// One device that may register.
#[derive(Clone, Debug)]
struct Enrollment {
    /// Compared without regard to case, as DPS does.
    registration_id: String,
    attestation: Attestation,
    /// Name at the hub; the registration id if absent.
    device_id: Option<String>,
    /// The hub to send the device to, of this simulator or not; the first one if absent.
    assigned_hub: Option<String>,
    verdict: Verdict,
    /// So many polls say `assigning`, if not the usual number.
    assigning_polls: Option<u32>,
    /// Whether the device has `$edgeAgent` and `$edgeHub` from the start.
    iot_edge: bool,
}

/// What the devices of a group have in common.
#[derive(Clone, Debug)]
enum GroupSecret {
    /// Their keys are HMAC-SHA256 under this one over the registration id.
    Key(SymmetricKey),
    /// It issued their certificates.
    Authority(Authority),
}

/// Any number of devices.
#[derive(Clone, Debug)]
struct Group {
    secret: GroupSecret,
    assigned_hub: Option<String>,
    verdict: Verdict,
    iot_edge: bool,
}

/// A device that is at a hub from the start: manual provisioning.
#[derive(Clone, Debug)]
pub(crate) struct ManualDevice {
    pub(crate) device_id: String,
    pub(crate) attestation: Attestation,
    /// Name of its hub; the first one if absent.
    pub(crate) hub: Option<String>,
    pub(crate) iot_edge: bool,
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
    pub(crate) attestation: Attestation,
    pub(crate) device_id: String,
    pub(crate) assigned_hub: Option<String>,
    pub(crate) verdict: Verdict,
    pub(crate) assigning_polls: Option<u32>,
    pub(crate) iot_edge: bool,
}

impl Enrollments {
    /// Reads a file: JSON if its name ends in `.json`, else TOML. The files of authorities are read when the simulator starts.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = aziot_files::read_limited(path, LIMIT_BYTES).map_err(Error::Read)?;
        let file = File::parse(path, &bytes).map_err(|source| Error::Parse { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut enrollments = Self::default();
        for written in file.enrollment {
            enrollments.add(written.understood(folder)?)?;
        }
        for written in file.group {
            enrollments.groups.push(written.understood(folder)?);
        }
        for written in file.device {
            let device = written.understood(folder)?;
            check_name(&device.device_id)?;
            enrollments.devices.push(device);
        }
        Ok(enrollments)
    }

    /// Adds one written `REGISTRATION_ID:BASE64_KEY`.
    pub fn add_argument(&mut self, argument: &str) -> Result<(), Error> {
        // Registration ids may hold a colon, base64 never does.
        let (registration_id, key) = argument.rsplit_once(':').ok_or(Error::Argument)?;
        let registration_id = registration_id.to_owned();
        let key = SymmetricKey::from_base64(key)
            .map_err(|source| Error::Key { registration_id: registration_id.clone(), source })?;
        self.add(Enrollment {
            registration_id,
            attestation: Attestation::SymmetricKey(KeyPair { primary_key: key.clone(), secondary_key: key }),
            device_id: None,
            assigned_hub: None,
            verdict: Verdict::Assign,
            assigning_polls: None,
            iot_edge: true,
        })
    }

    fn add(&mut self, enrollment: Enrollment) -> Result<(), Error> {
        let device_id = enrollment.device_id.as_ref().unwrap_or(&enrollment.registration_id);
        check_name(device_id)?;
        check_name(&enrollment.registration_id)?;
        let id = enrollment.registration_id.clone();
        match self.individual.insert(id.to_lowercase(), enrollment) {
            None => Ok(()),
            Some(_) => Err(Error::Twice(id)),
        }
    }

    /// Reads the certificates of all authorities. Blocks.
    pub(crate) fn load_authorities(&mut self) -> Result<(), Error> {
        let individual = self.individual.values_mut().map(|enrollment| &mut enrollment.attestation);
        let devices = self.devices.iter_mut().map(|device| &mut device.attestation);
        let single = individual.chain(devices).filter_map(|attestation| match attestation {
            Attestation::Authority(authority) => Some(authority),
            _ => None,
        });
        let groups = self.groups.iter_mut().filter_map(|group| match &mut group.secret {
            GroupSecret::Authority(authority) => Some(authority),
            GroupSecret::Key(_) => None,
        });
        single.chain(groups).try_for_each(|authority| {
            authority.anchors = read_anchors(&authority.path)?;
            Ok(())
        })
    }

    /// Whether nobody could register and no device is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.individual.is_empty() && self.groups.is_empty() && self.devices.is_empty()
    }

    pub(crate) fn manual_devices(&self) -> &[ManualDevice] {
        &self.devices
    }

    /// What `registration_id` may get, the likeliest first: its own enrollment, else one candidate per group, with keys one per spelling of the
    /// id too. Which of a group's candidates is meant shows when a credential fits.
    pub(crate) fn candidates(&self, registration_id: &str) -> Vec<Grant> {
        if let Some(enrollment) = self.individual.get(&registration_id.to_lowercase()) {
            return vec![Grant {
                attestation: enrollment.attestation.clone(),
                device_id: enrollment.device_id.clone().unwrap_or_else(|| enrollment.registration_id.clone()),
                assigned_hub: enrollment.assigned_hub.clone(),
                verdict: enrollment.verdict.clone(),
                assigning_polls: enrollment.assigning_polls,
                iot_edge: enrollment.iot_edge,
            }];
        }
        self.groups.iter().flat_map(|group| group.candidates(registration_id)).collect()
    }
}

impl Group {
    fn candidates(&self, registration_id: &str) -> Vec<Grant> {
        let attestations = match &self.secret {
            GroupSecret::Authority(authority) => vec![Attestation::Authority(authority.clone())],
            GroupSecret::Key(key) => {
                let mut spellings = vec![registration_id.to_owned(), registration_id.to_lowercase()];
                spellings.dedup();
                let derived = |spelling: String| {
                    let key = key.derive(&spelling);
                    Attestation::SymmetricKey(KeyPair { primary_key: key.clone(), secondary_key: key })
                };
                spellings.into_iter().map(derived).collect()
            }
        };
        let grant = |attestation| Grant {
            attestation,
            device_id: registration_id.to_owned(),
            assigned_hub: self.assigned_hub.clone(),
            verdict: self.verdict.clone(),
            assigning_polls: None,
            iot_edge: self.iot_edge,
        };
        attestations.into_iter().map(grant).collect()
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    registry::check_name(name).map_err(|_| Error::Name(name.to_owned()))
}

fn read_anchors(path: &Path) -> Result<TrustAnchors, Error> {
    let pem = aziot_files::read_limited(path, LIMIT_BYTES).map_err(Error::Read)?;
    let error = |source| Error::Authority { path: path.to_owned(), source };
    let anchors = TrustAnchors::from_pem(&pem).map_err(|source| error(Some(source)))?;
    if anchors.is_empty() { Err(error(None)) } else { Ok(anchors) }
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
        let key = |grant: &Grant| match &grant.attestation {
            Attestation::SymmetricKey(keys) => keys.primary_key.clone(),
            other => panic!("{other:?}"),
        };
        let keys: Vec<_> = candidates.iter().map(key).collect();
        assert_eq!(keys, [group.derive("Dev-1"), group.derive("dev-1")]);
    }

    #[test]
    fn each_entry_proves_itself_in_one_way() {
        let print = "A9993E364706816ABA3E25717850C26C9CD0D89D";
        let key = format!("symmetric_key = '{KEY}'");
        let thumbprint = format!("certificate_thumbprint = '{print}'");
        let entry = |table: &str, id: &str, ways: &[&str]| {
            read("e.toml", &format!("[[{table}]]\n{id} = 'a'\n{}\n", ways.join("\n")))
        };
        let (authority, tpm) = ("certificate_authority = 'ca.pem'", "endorsement_key = 'any'");
        let second = format!("secondary_thumbprint = '{print}'");
        for ways in [&[key.as_str()][..], &[&thumbprint], &[&thumbprint, &second], &[authority], &[tpm]] {
            entry("enrollment", "registration_id", ways).unwrap();
        }
        for ways in [&[][..], &[&key, tpm], &[&thumbprint, authority], &[&second], &[&key, &second], &[authority, tpm]]
        {
            let error = entry("enrollment", "registration_id", ways).unwrap_err();
            assert!(matches!(error, Error::Ways(ref whose) if whose == "a"), "{ways:?}: {error}");
        }
        assert!(matches!(entry("group", "name", &[&key, authority]), Err(Error::Ways(_))));
        assert!(matches!(entry("group", "name", &[tpm]), Err(Error::Parse { .. })));
        assert!(matches!(entry("device", "device_id", &[tpm]), Err(Error::Parse { .. })));
        assert!(entry("enrollment", "registration_id", &["endorsement_key = '!'"]).is_err());
        assert!(entry("enrollment", "registration_id", &["certificate_thumbprint = 'AB'"]).is_err());
    }

    #[test]
    fn an_authority_is_a_file_beside_the_enrollments() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.toml");
        let text = "[[group]]\nname = 'g'\ncertificate_authority = 'ca.pem'\n";
        aziot_files::write(&path, aziot_files::Mode::PRIVATE, text).unwrap();
        let mut enrollments = Enrollments::read(&path).unwrap();
        assert!(matches!(enrollments.load_authorities(), Err(Error::Read(_))));
        let authority = crate::certificates::new_authority("test", None).unwrap();
        for (pem, is_one) in
            [(Vec::new(), false), (b"no PEM".to_vec(), false), (authority.certificate.to_pem().unwrap(), true)]
        {
            aziot_files::write(folder.path().join("ca.pem"), aziot_files::Mode::SHARED, pem).unwrap();
            assert_eq!(enrollments.load_authorities().is_ok(), is_one);
        }
    }
}
