//! Keys and certificates: which ids stand for those that are on the device, how the others are issued, and who may use them.
//!
//! The ids are those of the public tool. One id names a certificate and its key.

pub(super) mod edge;

use std::collections::BTreeMap;
use std::path::Path;

use aziot_certd_api::config::{self as certd, EstAuth, Issuance, KeyPair, Options, Preloaded};
use aziot_certd_api::renewal::AutoRenew;
use aziot_http::SecretBytes;
use aziot_keys::KeyUri;
use url::Url;

use crate::finding::Findings;
use crate::layout::Layout;
use crate::named_files::EdgeFiles;
use crate::settings::{DeviceCertificate, Est, EstCredentials, EstIdentity, Issued, LocalCa, Settings, SymmetricKey};

/// The key from which the identity service derives the keys of modules.
const MASTER_KEY: &str = "aziot_identityd_master_id";
/// The device's own key and certificate.
pub(super) const DEVICE: &str = "device-id";
/// The next ones, while they are exchanged.
const DEVICE_NEXT: &str = "device-id-temp";
/// The device's own CA, certificate and key.
const LOCAL_CA: &str = "local-ca";

/// Ids of the certificate that is shown to an EST server, of the one that it starts with, and of its next key while that is exchanged.
struct EstIds {
    identity: &'static str,
    bootstrap: &'static str,
    next: &'static str,
}

/// For all certificates without credentials of their own.
const EST: EstIds = EstIds { identity: "est-id", bootstrap: "est-bootstrap-id", next: "est-id-temp" };
/// For the device's own certificate.
const EST_OF_DEVICE: EstIds =
    EstIds { identity: "est-id-device-id", bootstrap: "est-bootstrap-id-device-id", next: "est-id-device-id-temp" };

/// All that the key service and the certificate service have to know about keys and certificates.
pub(super) struct Material {
    /// Key id to URI.
    pub(super) preloaded_keys: BTreeMap<String, String>,
    /// Certificate id to place.
    pub(super) preloaded_certs: BTreeMap<String, Preloaded>,
    /// How certificates are issued.
    pub(super) issuance: Issuance,
    /// Keys of the identity service.
    pub(super) identityd_keys: Vec<&'static str>,
    /// Certificates of the identity service.
    pub(super) identityd_certs: Vec<&'static str>,
    /// Keys of the certificate service.
    pub(super) certd_keys: Vec<&'static str>,
    /// Keys of the certificate service for what it does for the module runtime.
    pub(super) certd_edge_keys: Vec<&'static str>,
    /// Keys of the module runtime.
    pub(super) edged_keys: Vec<&'static str>,
    /// Certificates of the module runtime.
    pub(super) edged_certs: Vec<&'static str>,
    /// Contents of the device key's file, if the super-config holds a key itself.
    pub(super) device_key: Option<SecretBytes>,
    /// Contents of the imported master encryption key's file, if it is to be written.
    pub(super) master_key: Option<SecretBytes>,
}

/// Collects [`Material`]; a later entry takes the place of an earlier one of its id.
struct Collection<'f> {
    material: Material,
    findings: &'f mut Findings,
}

/// What `settings` ask for. `layout` says where keys lie that are written with the configurations.
pub(super) fn material(settings: &Settings, files: &EdgeFiles, layout: &Layout, findings: &mut Findings) -> Material {
    let keys = settings.preloaded_keys.iter().map(|(id, uri)| (id.clone(), canonical_uri(uri)));
    let material = Material {
        preloaded_keys: keys.collect(),
        preloaded_certs: settings.preloaded_certs.clone(),
        issuance: Issuance::default(),
        identityd_keys: vec![MASTER_KEY],
        identityd_certs: Vec::new(),
        certd_keys: Vec::new(),
        certd_edge_keys: Vec::new(),
        edged_keys: Vec::new(),
        edged_certs: Vec::new(),
        device_key: None,
        master_key: None,
    };
    let mut collection = Collection { material, findings };
    match settings.provisioning.certificate() {
        Some(DeviceCertificate::Preloaded { cert, key }) => {
            collection.pair(DEVICE, cert, key);
            collection.material.identityd_keys.push(DEVICE);
        }
        Some(DeviceCertificate::Issued(issued)) => collection.issued(issued),
        None => {}
    }
    if let Some(key) = settings.provisioning.symmetric_key() {
        collection.symmetric_key(key, &layout.device_key());
    }
    if let Some(est) = &settings.est {
        collection.est(est);
    }
    if let Some(local_ca) = &settings.local_ca {
        collection.local_ca(local_ca);
    }
    if let Some(edge) = &settings.edge {
        collection.edge(edge, files, layout);
    }
    collection.material
}

impl Collection<'_> {
    fn key(&mut self, id: &str, uri: String) {
        let replaced = self.material.preloaded_keys.insert(id.to_owned(), uri).is_some();
        self.warn_if(replaced, "preloaded_keys", id);
    }

    fn cert(&mut self, id: &str, uri: &Url) {
        self.preload_cert(id, Preloaded::Uri(uri.clone()));
    }

    fn preload_cert(&mut self, id: &str, place: Preloaded) {
        let replaced = self.material.preloaded_certs.insert(id.to_owned(), place).is_some();
        self.warn_if(replaced, "preloaded_certs", id);
    }

    /// Only the user's entries can be in the way: no two of the generated ones have one id.
    fn warn_if(&mut self, replaced: bool, table: &str, id: &str) {
        if replaced {
            let message = "is ignored, because the id is reserved for what other keys of this file set";
            self.findings.warn(&[table, id], message);
        }
    }

    fn pair(&mut self, id: &str, cert: &Url, key: &KeyUri) {
        self.key(id, canonical_uri(key));
        self.cert(id, cert);
    }

    fn symmetric_key(&mut self, key: &SymmetricKey, file: &Path) {
        match key {
            SymmetricKey::At(uri) => self.key(DEVICE, canonical_uri(uri)),
            SymmetricKey::Inline(bytes) => {
                self.key(DEVICE, file_uri(file).into());
                self.material.device_key = Some(bytes.clone());
            }
        }
        self.material.identityd_keys.push(DEVICE);
    }

    fn issued(&mut self, issued: &Issued) {
        let auth = self.est_auth(&issued.est, &EST_OF_DEVICE);
        match &issued.est.identity {
            None => {}
            Some(EstIdentity::Lasting { .. }) => self.material.certd_keys.push(EST_OF_DEVICE.identity),
            // Whether a renewal rotates the key is set for all EST identities at once, maybe in a drop-in.
            Some(EstIdentity::Bootstrap { .. }) => {
                let EstIds { identity, bootstrap, next } = EST_OF_DEVICE;
                self.material.certd_keys.extend([bootstrap, next, identity]);
            }
        }
        let options = Options { auth, ..issued.options.clone() };
        let Material { issuance, identityd_keys, identityd_certs, .. } = &mut self.material;
        identityd_keys.push(DEVICE);
        if let Some(AutoRenew { rotate_key, .. }) = issued.auto_renew {
            if rotate_key {
                identityd_keys.push(DEVICE_NEXT);
            }
            issuance.certificates.insert(DEVICE_NEXT.to_owned(), options.clone());
            identityd_certs.push(DEVICE_NEXT);
        }
        issuance.certificates.insert(DEVICE.to_owned(), options);
        identityd_certs.push(DEVICE);
    }

    fn est(&mut self, est: &Est) {
        let auth = self.est_auth(&est.credentials, &EST);
        match &est.credentials.identity {
            None => {}
            Some(EstIdentity::Lasting { .. }) => self.material.certd_keys.push(EST.identity),
            Some(EstIdentity::Bootstrap { .. }) => {
                self.material.certd_keys.extend([EST.bootstrap, EST.identity]);
                if est.identity_auto_renew.rotate_key {
                    self.material.certd_keys.push(EST.next);
                }
            }
        }
        let trusted_certs: Vec<String> =
            (1..=est.trusted_certs.len()).map(|number| format!("est-server-ca-{number}")).collect();
        for (id, uri) in trusted_certs.iter().zip(&est.trusted_certs) {
            self.cert(id, uri);
        }
        self.material.issuance.est = Some(certd::Est {
            trusted_certs,
            auth,
            identity_auto_renew: Some(est.identity_auto_renew).filter(|renewal| *renewal != AutoRenew::default()),
            urls: est.urls.clone(),
            ..certd::Est::default()
        });
    }

    fn est_auth(&mut self, credentials: &EstCredentials, ids: &EstIds) -> Option<EstAuth> {
        let pair = |id: &str| KeyPair { cert: id.to_owned(), pk: id.to_owned() };
        let (identity, bootstrap_identity) = match &credentials.identity {
            None => (None, None),
            Some(EstIdentity::Lasting { cert, key }) => {
                self.pair(ids.identity, cert, key);
                (Some(pair(ids.identity)), None)
            }
            // The lasting identity is not there yet: the certificate service makes its key and has it certified.
            Some(EstIdentity::Bootstrap { cert, key }) => {
                self.pair(ids.bootstrap, cert, key);
                (Some(pair(ids.identity)), Some(pair(ids.bootstrap)))
            }
        };
        let is_open = credentials.basic.is_none() && identity.is_none();
        (!is_open).then(|| EstAuth { basic: credentials.basic.clone(), identity, bootstrap_identity })
    }

    fn local_ca(&mut self, local_ca: &LocalCa) {
        self.material.certd_keys.push(LOCAL_CA);
        self.material.issuance.local_ca = Some(certd::LocalCa { cert: LOCAL_CA.to_owned(), pk: LOCAL_CA.to_owned() });
        match local_ca {
            LocalCa::Preloaded { cert, key } => self.pair(LOCAL_CA, cert, key),
            LocalCa::Issued(options) => {
                self.material.issuance.certificates.insert(LOCAL_CA.to_owned(), (**options).clone());
            }
        }
    }
}

fn canonical_uri(uri: &KeyUri) -> String {
    match uri {
        KeyUri::File(path) => file_uri(path).into(),
        KeyUri::Pkcs11(uri) => uri.to_text().to_string(),
    }
}

fn file_uri(path: &Path) -> Url {
    Url::from_file_path(path).expect("paths of layouts and of file URIs are absolute")
}
