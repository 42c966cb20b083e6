//! A key service that keeps its keys in memory, and the `openssl` program as a judge of what is made with them.

use std::{
    collections::HashMap,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use aziot_files::{Mode, write};
use aziot_http::{Base64, Client, Peer, Retry, Service, Status, StatusCode, testing::TestServer};
use aziot_keyd_api::{
    VERSIONS,
    key::KeyHandle,
    key_pair::{GetParameter, Parameter},
    operation::{Ciphertext, Encrypt, EncryptMechanism, Sign, SignMechanism, Signature},
};
use aziot_pki::key::{KeyError, RemoteKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint, PointConversionForm},
    ecdsa::EcdsaSig,
    nid::Nid,
    pkey::{Id, PKey, Private},
    rsa::{Padding, Rsa},
};

/// Private scalars of the specification's worked example.
pub(crate) const CA_SCALAR: &str = "035ab3e577942c83e597f161f198d682fe6aa820b891d7f51aaab959b8f5ce61";
pub(crate) const LEAF_SCALAR: &str = "2aca946df38db25b8d37c35634f4c9a1d12e4d981b553117b0d7d3808571f7f1";

/// CN=Vector CA, 2025-01-01 to 2049-01-01.
pub(crate) const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBSzCB8qADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCVZlY3RvciBD
QTAeFw0yNTAxMDEwMDAwMDBaFw00OTAxMDEwMDAwMDBaMBQxEjAQBgNVBAMMCVZl
Y3RvciBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEZsYvlohsApeWecdtoX
YmGoMqftP3pYIBBiB6xPxhcuP/QlW8aDnNzaNJ3214u90Ti7LIxC3pythS5WuaOn
gx2jNTAzMBIGA1UdEwEB/wQIMAYBAf8CAQAwHQYDVR0OBBYEFC2I2hI6lH+RtfQ0
c4EgtPKVgBPbMAoGCCqGSM49BAMCA0gAMEUCIQCsfH4I1ln2Kc1esRRck1gOScWQ
oExVRE8xBh3I/39fGAIgKKg5Tx0Z7hDUfOw6v3GxgkR/1Y2q1CBwkoS8+lFYNmk=
-----END CERTIFICATE-----
";

/// CN=vector-leaf with key usage, extended key usage and an alternative name.
pub(crate) const REQUEST: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIIBIDCBxwIBADAWMRQwEgYDVQQDDAt2ZWN0b3ItbGVhZjBZMBMGByqGSM49AgEG
CCqGSM49AwEHA0IABOpxXRdTnZMXTiF8es1B+2SI94nmQn6excFDFXK8pSbloB/o
cXNCaPSZORn2PlMKSt0c2uNp3ZlBClIh7MqsbzygTzBNBgkqhkiG9w0BCQ4xQDA+
MA4GA1UdDwEB/wQEAwIFoDATBgNVHSUEDDAKBggrBgEFBQcDAjAXBgNVHREEEDAO
ggxsZWFmLmV4YW1wbGUwCgYIKoZIzj0EAwIDSAAwRQIhAJrCU0Dkup7ri1E57UMN
qw0S4ZzC1qfaMhT33B5W0B39AiAkfPC+ddCCnGKns3ejI8u00NJaJi5KEejEWNkS
9PSsqQ==
-----END CERTIFICATE REQUEST-----
";

/// The pair with this private scalar on P-256.
pub(crate) fn p256(scalar: &str) -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let scalar = BigNum::from_hex_str(scalar).unwrap();
    let mut point = EcPoint::new(&group).unwrap();
    point.mul_generator2(&group, &scalar, &mut BigNumContext::new().unwrap()).unwrap();
    PKey::from_ec_key(EcKey::from_private_components(&group, &scalar, &point).unwrap()).unwrap()
}

pub(crate) fn new_ec(curve: Nid) -> PKey<Private> {
    let group = EcGroup::from_curve_name(curve).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

pub(crate) fn new_rsa(bits: u32) -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap()
}

/// A key service of a few keys, whose handles are their names.
pub(crate) struct Keyd {
    keys: Arc<Keys>,
    _server: TestServer,
    client: Client,
}

struct Keys {
    pairs: HashMap<&'static str, PKey<Private>>,
    calls: AtomicUsize,
    lies: AtomicBool,
    hangs: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
#[error("parameter \"keyHandle\" has an invalid value")]
struct Refused;

impl Status for Refused {
    fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }
}

impl Keyd {
    pub(crate) fn start(pairs: impl IntoIterator<Item = (&'static str, PKey<Private>)>) -> Self {
        let pairs = pairs.into_iter().collect();
        let (calls, lies, hangs) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let keys = Arc::new(Keys { pairs, calls, lies, hangs });
        let service = Service::new(Arc::clone(&keys), VERSIONS).call(parameter).call(sign).call(encrypt);
        let server = TestServer::start(service.into_routes());
        let client = aziot_keyd_api::client(&server.endpoint(), Retry::local(0)).unwrap();
        Self { keys, _server: server, client }
    }

    pub(crate) async fn key(&self, name: &str) -> RemoteKey {
        self.try_key(name).await.unwrap()
    }

    pub(crate) async fn try_key(&self, name: &str) -> Result<RemoteKey, KeyError> {
        RemoteKey::load(&self.client, KeyHandle(name.to_owned())).await
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Calls that were answered so far.
    pub(crate) fn calls(&self) -> usize {
        self.keys.calls.load(Ordering::Relaxed)
    }

    /// From now on signatures are of something else.
    pub(crate) fn lie(&self) {
        self.keys.lies.store(true, Ordering::Relaxed);
    }

    /// From now on signatures are never finished.
    pub(crate) fn hang(&self) {
        self.keys.hangs.store(true, Ordering::Relaxed);
    }
}

impl Keys {
    fn pair(&self, handle: &KeyHandle) -> Result<&PKey<Private>, Refused> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.pairs.get(handle.0.as_str()).ok_or(Refused)
    }

    async fn signing_pair(&self, handle: &KeyHandle) -> Result<&PKey<Private>, Refused> {
        let pair = self.pair(handle);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        pair
    }
}

async fn parameter(keys: Arc<Keys>, _peer: Peer, call: GetParameter) -> Result<Parameter, Refused> {
    let pair = keys.pair(&call.key_handle)?;
    let base64 = |bytes: &[u8]| STANDARD.encode(bytes);
    let value = match (call.name.as_str(), pair.id()) {
        ("algorithm", Id::EC) => "ECDSA".to_owned(),
        ("algorithm", Id::RSA) => "RSA".to_owned(),
        ("ec-curve-oid", Id::EC) => match pair.ec_key().unwrap().group().curve_name() {
            Some(Nid::X9_62_PRIME256V1) => base64(b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"),
            Some(Nid::SECP384R1) => base64(b"\x06\x05\x2b\x81\x04\x00\x22"),
            Some(Nid::SECP521R1) => base64(b"\x06\x05\x2b\x81\x04\x00\x23"),
            Some(Nid::SECP224R1) => base64(b"\x06\x05\x2b\x81\x04\x00\x21"),
            _ => base64(b"\x06\x01\x00"),
        },
        ("ec-point", Id::EC) => {
            let (key, mut context) = (pair.ec_key().unwrap(), BigNumContext::new().unwrap());
            let form = PointConversionForm::COMPRESSED;
            base64(&key.public_key().to_bytes(key.group(), form, &mut context).unwrap())
        }
        ("rsa-modulus", Id::RSA) => base64(&pair.rsa().unwrap().n().to_vec()),
        ("rsa-exponent", Id::RSA) => base64(&pair.rsa().unwrap().e().to_vec()),
        _ => return Err(Refused),
    };
    Ok(Parameter { value })
}

async fn sign(keys: Arc<Keys>, _peer: Peer, call: Sign) -> Result<Signature, Refused> {
    let key = keys.signing_pair(&call.key_handle).await?.ec_key().map_err(|_| Refused)?;
    let SignMechanism::Ecdsa { mut digest } = call.mechanism else { return Err(Refused) };
    let mut order = BigNum::new().unwrap();
    key.group().order(&mut order, &mut BigNumContext::new().unwrap()).unwrap();
    assert!(digest.0.len() <= usize::try_from(order.num_bytes()).unwrap(), "the digest was not cut");
    if keys.lies.load(Ordering::Relaxed) {
        digest.0[0] ^= 1;
    }
    let signature = EcdsaSig::sign(&digest.0, &key).unwrap().to_der().unwrap();
    Ok(Signature { signature: Base64(signature) })
}

async fn encrypt(keys: Arc<Keys>, _peer: Peer, call: Encrypt) -> Result<Ciphertext, Refused> {
    let key = keys.signing_pair(&call.key_handle).await?.rsa().map_err(|_| Refused)?;
    let padding = match call.mechanism {
        EncryptMechanism::RsaPkcs1 => Padding::PKCS1,
        EncryptMechanism::RsaNoPadding => Padding::NONE,
        EncryptMechanism::Aead { .. } => return Err(Refused),
    };
    let mut block = vec![0; usize::try_from(key.size()).unwrap()];
    key.private_encrypt(call.plaintext.expose(), &mut block, padding).unwrap();
    Ok(Ciphertext { ciphertext: Base64(block) })
}

/// Runs `openssl` in a folder of these files; its output, or panics with it.
pub(crate) fn openssl(files: &[(&str, &str)], arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(folder.path().join(name), Mode::PRIVATE, text).unwrap();
    }
    run_openssl(folder.path(), arguments)
}

fn run_openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("the openssl program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
