//! The files that a super-config names and that must be on the device already: whether they are there, and whether a payload is what it has to be.
//!
//! Mostly only warns: a file may come later, and what is applied here may be meant for another machine. Who may read a file is not looked at; services
//! have groups that only the running system knows.

mod edge;

use std::io::ErrorKind;
use std::path::Path;

use aziot_keys::KeyUri;
use url::Url;

use crate::finding::Findings;
use crate::settings::{
    Attestation, Authentication, DeviceCertificate, EstCredentials, EstIdentity, LocalCa, Provisioning, Settings,
    SymmetricKey,
};

pub use edge::{EdgeFiles, read as read_for_edge};

/// More than DPS takes.
const LARGEST_PAYLOAD_BYTES: u64 = 1024 * 1024;

/// Looks at all of them.
pub fn check(settings: &Settings, findings: &mut Findings) {
    let mut look = Look { findings };
    look.provisioning(&settings.provisioning);
    if let Some(est) = &settings.est {
        for uri in &est.trusted_certs {
            look.cert(&["cert_issuance", "est", "trusted_certs"], uri);
        }
        look.est(&["cert_issuance", "est", "auth"], &est.credentials);
    }
    if let Some(LocalCa::Preloaded { cert, key }) = &settings.local_ca {
        look.cert(&["cert_issuance", "local_ca", "cert"], cert);
        look.key(&["cert_issuance", "local_ca", "pk"], key);
    }
    if let Some(edge) = &settings.edge {
        edge::check(edge, &mut look);
    }
}

struct Look<'f> {
    findings: &'f mut Findings,
}

impl Look<'_> {
    fn provisioning(&mut self, provisioning: &Provisioning) {
        let table = match provisioning {
            Provisioning::Manual { .. } => ["provisioning", "authentication"],
            Provisioning::Dps { .. } | Provisioning::None => ["provisioning", "attestation"],
        };
        let [provisioning_key, method_key] = table;
        let at = |key| [provisioning_key, method_key, key];
        match provisioning {
            Provisioning::Manual { authentication: Authentication::Sas(SymmetricKey::At(uri)), .. } => {
                self.key(&at("device_id_pk"), uri);
            }
            Provisioning::Dps { attestation: Attestation::SymmetricKey { key: SymmetricKey::At(uri), .. }, .. } => {
                self.key(&at("symmetric_key"), uri);
            }
            _ => {}
        }
        match provisioning.certificate() {
            Some(DeviceCertificate::Preloaded { cert, key }) => {
                self.cert(&at("identity_cert"), cert);
                self.key(&at("identity_pk"), key);
            }
            Some(DeviceCertificate::Issued(issued)) => self.est(&at("identity_cert"), &issued.est),
            None => {}
        }
        if let Provisioning::Dps { payload: Some(payload), .. } = provisioning {
            self.payload(payload);
        }
    }

    fn est(&mut self, table: &[&str], credentials: &EstCredentials) {
        let at = |key| [table, &[key]].concat();
        match &credentials.identity {
            None => {}
            Some(EstIdentity::Lasting { cert, key }) => {
                self.cert(&at("identity_cert"), cert);
                self.key(&at("identity_pk"), key);
            }
            Some(EstIdentity::Bootstrap { cert, key }) => {
                self.cert(&at("bootstrap_identity_cert"), cert);
                self.key(&at("bootstrap_identity_pk"), key);
            }
        }
    }

    fn payload(&mut self, uri: &Url) {
        let key_path = ["provisioning", "payload", "uri"];
        let Ok(path) = uri.to_file_path() else { return };
        let problem = match aziot_files::read_limited(&path, LARGEST_PAYLOAD_BYTES) {
            Ok(bytes) => match serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
                Ok(_) => return,
                Err(error) => format!("the file is not JSON: {error}; the device cannot register with it"),
            },
            Err(error) if error.is_not_found() => {
                "the file is not there; the device cannot register without it".to_owned()
            }
            // Somebody without rights looks at it in a dry run.
            Err(_) if is_hidden(&path) => return,
            Err(error) => format!("the file cannot be read: {error}"),
        };
        self.findings.warn(&key_path, problem);
    }

    fn cert(&mut self, key_path: &[&str], uri: &Url) {
        if let Ok(path) = uri.to_file_path() {
            self.file(key_path, &path);
        }
    }

    /// The key service would make a new key in the place of one that is not there; here that fits nothing.
    fn key(&mut self, key_path: &[&str], uri: &KeyUri) {
        if let KeyUri::File(path) = uri {
            self.file(key_path, path);
        }
    }

    fn file(&mut self, key_path: &[&str], path: &Path) {
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => self.findings.warn(key_path, format!("{} is not a file", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.findings.warn(key_path, format!("the file {} is not there", path.display()));
            }
            Err(_) => {}
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    std::fs::File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}
