//! What the module runtime adds: its CA, the bundles that modules trust, and the key under which they keep their secrets.

use aziot_certd_api::config::{Method, Options, Preloaded};
use aziot_edged_api::config::{EDGE_CA, MANIFEST_TRUST_BUNDLE, MASTER_ENCRYPTION_KEY, TRUST_BUNDLE};

use super::{Collection, EstIds, Material, file_uri};
use crate::layout::Layout;
use crate::named_files::EdgeFiles;
use crate::settings::{Edge, EdgeCa, EstIdentity, IssuedEdgeCa};

/// The next certificate and key of the CA of modules, while they are exchanged.
const EDGE_CA_NEXT: &str = "aziot-edged-ca-temp";
/// The certificates of modules.
const MODULES: &str = "aziot-edged/module/*";
/// The operator's part of what modules trust.
const TRUST_BUNDLE_OF_USER: &str = "trust-bundle-user";
/// For the CA of modules alone.
const EST_OF_EDGE_CA: EstIds = EstIds {
    identity: "est-id-aziot-edged-ca",
    bootstrap: "est-bootstrap-id-aziot-edged-ca",
    next: "est-id-aziot-edged-ca-temp",
};

/// The id of the certificate with which a registry's content is trusted.
pub(in crate::generate) fn content_trust(registry: &str) -> String {
    format!("content-trust-{registry}")
}

impl Collection<'_> {
    /// All of it. `layout` says where an imported key lies.
    pub(super) fn edge(&mut self, edge: &Edge, files: &EdgeFiles, layout: &Layout) {
        self.material.edged_keys = vec![EDGE_CA, MASTER_ENCRYPTION_KEY];
        self.material.edged_certs = vec![EDGE_CA, MODULES];
        match &edge.edge_ca {
            EdgeCa::Preloaded { cert, key } => self.pair(EDGE_CA, cert, key),
            EdgeCa::Issued(issued) => self.issued_edge_ca(issued),
        }
        self.bundles(edge);
        for (registry, uri) in &edge.content_trust {
            self.cert(&content_trust(registry), uri);
        }
        if edge.imported_master_encryption_key.is_some() {
            self.key(MASTER_ENCRYPTION_KEY, file_uri(&layout.master_key()).into());
            self.material.master_key.clone_from(&files.master_key);
        }
    }

    fn issued_edge_ca(&mut self, issued: &IssuedEdgeCa) {
        let auth = self.est_auth(&issued.est, &EST_OF_EDGE_CA);
        let options = Options { auth, ..issued.options.clone() };
        let Material { issuance, certd_edge_keys, edged_keys, edged_certs, .. } = &mut self.material;
        // As the public tool has it for every method. Needed for a self-signed certificate, which is signed with the key of its own id, the next
        // one with the next key.
        certd_edge_keys.push(EDGE_CA);
        match (options.method, &issued.est.identity) {
            (Method::SelfSigned, _) => certd_edge_keys.push(EDGE_CA_NEXT),
            (Method::LocalCa, _) | (Method::Est, None) => {}
            (Method::Est, Some(EstIdentity::Lasting { .. })) => certd_edge_keys.push(EST_OF_EDGE_CA.identity),
            (Method::Est, Some(EstIdentity::Bootstrap { .. })) => {
                let EstIds { identity, bootstrap, next } = EST_OF_EDGE_CA;
                certd_edge_keys.extend([bootstrap, next, identity]);
            }
        }
        if issued.auto_renew.rotate_key {
            edged_keys.push(EDGE_CA_NEXT);
        }
        edged_certs.push(EDGE_CA_NEXT);
        let mut next = options.clone();
        if next.method == Method::Est && next.url.is_none() {
            // The table of servers may name one for this certificate alone.
            let servers = issuance.est.as_ref().map(|est| &est.urls).filter(|urls| !urls.contains_key(EDGE_CA_NEXT));
            next.url = servers.and_then(|urls| urls.get(EDGE_CA)).cloned();
        }
        issuance.certificates.insert(EDGE_CA_NEXT.to_owned(), next);
        issuance.certificates.insert(EDGE_CA.to_owned(), options);
    }

    fn bundles(&mut self, edge: &Edge) {
        let mut members = vec![EDGE_CA.to_owned()];
        if let Some(uri) = &edge.trust_bundle_cert {
            self.cert(TRUST_BUNDLE_OF_USER, uri);
            members.push(TRUST_BUNDLE_OF_USER.to_owned());
        }
        self.preload_cert(TRUST_BUNDLE, Preloaded::List(members));
        if let Some(uri) = &edge.manifest_trust_bundle_cert {
            self.cert(MANIFEST_TRUST_BUNDLE, uri);
        }
    }
}
