//! Certificates in a world: a cloud that takes those of the local CA, and certificates with dates of the test's choice.

use aziot_certd_api::certificate::{GetCertificate, ImportCertificate};
use aziot_keyd_api::key_pair::{CreateKeyPair, LoadKeyPair};
use aziot_pki::{certificate::Chain, key::RemoteKey};
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, PKeyRef, Public},
    x509::{X509, X509Name},
};

use super::*;

/// What is enrolled in such a world.
const ENROLLMENTS: &str = "
[[enrollment]]
registration_id = 'dev-1'
symmetric_key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
[[enrollment]]
registration_id = 'dev-x'
certificate_authority = 'local-ca.pem'
[[enrollment]]
registration_id = 'dev-y'
certificate_authority = 'local-ca.pem'
[[enrollment]]
registration_id = 'dev-t'
endorsement_key = 'any'
[[device]]
device_id = 'manual-x'
certificate_authority = 'local-ca.pem'
[[device]]
device_id = 'manual-k'
symmetric_key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
";

/// Enrolls devices of all kinds.
pub(crate) fn enroll(settings: &mut aziot_simulator::Settings) {
    let folder = settings.folder.as_ref().unwrap().parent().unwrap().to_owned();
    let path = folder.join("enrollments.toml");
    aziot_files::write(&path, Mode::PRIVATE, ENROLLMENTS).unwrap();
    settings.enrollments = Enrollments::read(&path).unwrap();
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

impl World {
    /// A world with a certificate service, whose cloud takes certificates of the local CA.
    pub(crate) async fn with_certificates() -> Self {
        Self::with_cloud(enroll).await.start_certd().await
    }

    /// Settings of a DPS device with a certificate.
    pub(crate) fn dps_x509(&self, attestation: &str, more: &str) -> String {
        format!(
            "{}source = 'dps'\nglobal_endpoint = 'https://localhost:{}'\nscope_id = '0ne1'\n\
             [provisioning.attestation]\nmethod = 'x509'\nidentity_cert = 'identity'\nidentity_pk = 'identity'\n\
             {attestation}\n{more}",
            self.head(),
            self.port
        )
    }

    /// Settings of a device that is configured by hand; `authentication` is the inside of that table.
    pub(crate) fn manual(&self, device_id: &str, authentication: &str, more: &str) -> String {
        format!(
            "{}source = 'manual'\niothub_hostname = '{}'\ndevice_id = '{device_id}'\n\
             [provisioning.authentication]\n{authentication}\n{more}",
            self.head(),
            self.hub()
        )
    }

    /// Lets a socket be reached by another name too.
    pub(crate) fn bring(&self, socket: &str, name: &str) {
        std::os::unix::fs::symlink(self.folder.path().join(socket), self.folder.path().join(name)).unwrap();
    }

    /// Takes that name away.
    pub(crate) fn take(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    fn certd(&self) -> aziot_http::Client {
        let endpoint = Endpoint::Unix(self.folder.path().join("certd.sock"));
        aziot_certd_api::client(&endpoint, Retry::local(0)).unwrap()
    }

    fn keyd_client(&self) -> aziot_http::Client {
        aziot_keyd_api::client(&self.keyd(), Retry::local(0)).unwrap()
    }

    /// The certificate as it is stored.
    pub(crate) async fn stored(&self, id: &str) -> Option<Chain> {
        let stored = self.certd().send(&GetCertificate { cert_id: id.to_owned() }).await;
        stored.ok().map(|certificate| Chain::from_pem(&certificate.pem).unwrap())
    }

    /// Stores a certificate.
    pub(crate) async fn store(&self, id: &str, pem: String) {
        self.certd().send(&ImportCertificate { cert_id: id.to_owned(), pem }).await.unwrap();
    }

    /// The public half of a key pair that the key service has, and that nobody replaces at this moment.
    pub(crate) async fn public_key(&self, key_id: &str) -> Option<PKey<Public>> {
        let client = self.keyd_client();
        let handle = client.send(&LoadKeyPair { key_id: key_id.to_owned() }).await.ok()?.key_handle;
        Some(RemoteKey::load(&client, handle).await.ok()?.public_key().to_owned())
    }

    /// A client that shows this chain, whose key is in the key service.
    pub(crate) async fn identity(&self, key_id: &str, pem: &str) -> Arc<ClientIdentity> {
        let client = self.keyd_client();
        let handle = client.send(&LoadKeyPair { key_id: key_id.to_owned() }).await.unwrap().key_handle;
        let key = RemoteKey::load(&client, handle).await.unwrap();
        ClientIdentity::new(&Chain::from_pem(pem).unwrap(), key).unwrap()
    }

    /// Makes a key pair in the key service.
    pub(crate) async fn make_key_pair(&self, key_id: &str) -> PKey<Public> {
        let preferred_algorithms = Some("ec-p256".to_owned());
        self.keyd_client().send(&CreateKeyPair { key_id: key_id.to_owned(), preferred_algorithms }).await.unwrap();
        self.public_key(key_id).await.unwrap()
    }

    /// A certificate of the local CA, with its chain, that holds from `begin` to `end`.
    pub(crate) fn certificate(&self, key: &PKeyRef<Public>, common_name: &str, begin: i64, end: i64) -> String {
        let read = |name: &str| std::fs::read(self.folder.path().join(name)).unwrap();
        let authority = X509::from_pem(&read("local-ca.pem")).unwrap();
        let authority_key = PKey::private_key_from_pem(&read("local-ca.key.pem")).unwrap();
        let mut name = X509Name::builder().unwrap();
        name.append_entry_by_nid(Nid::COMMONNAME, common_name).unwrap();
        let mut certificate = X509::builder().unwrap();
        certificate.set_version(2).unwrap();
        certificate
            .set_serial_number(&BigNum::from_u32(fastrand::u32(2..)).unwrap().to_asn1_integer().unwrap())
            .unwrap();
        certificate.set_subject_name(&name.build()).unwrap();
        certificate.set_issuer_name(authority.subject_name()).unwrap();
        certificate.set_pubkey(key).unwrap();
        certificate.set_not_before(&Asn1Time::from_unix(begin).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::from_unix(end).unwrap()).unwrap();
        certificate.sign(&authority_key, MessageDigest::sha256()).unwrap();
        Chain::from(vec![certificate.build(), authority]).to_pem().unwrap()
    }
}
