//! A key service and a certificate service in memory, on sockets, that can be stopped dead at any call.

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use aziot_certd_api::{
    certificate::{Certificate, CreateCertificate, DeleteCertificate, GetCertificate, ImportCertificate},
    renewal::AutoRenew,
};
use aziot_http::{Base64, Peer, Retry, Service, Status, StatusCode, testing::TestServer};
use aziot_keyd_api::{
    key::{Handle, KeyHandle},
    key_pair::{CreateKeyPair, DeleteKeyPair, GetParameter, LoadKeyPair, MoveKeyPair, Parameter},
    operation::{Sign, SignMechanism, Signature},
};
use aziot_pki::{
    certificate::Chain,
    renewal::{
        Credential, Engine,
        issued::{Issued, Settings},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{
    asn1::Asn1Time,
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, PointConversionForm},
    ecdsa::EcdsaSig,
    hash::MessageDigest,
    nid::Nid,
    pkey::{HasPublic, PKey, PKeyRef, Private},
    x509::{X509, X509NameBuilder, X509NameRef, X509Req},
};
use tokio::sync::Notify;

use super::world::{NEW_YEAR, TestClock, policy};

/// The first certificate is due, and those that are issued are not.
pub(crate) const NOW: i64 = NEW_YEAR + 85;

/// When a call is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It was not carried out.
    Before,
    /// It was, and nobody heard of it.
    After,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Refused, and not carried out.
    Answers(u16),
    /// Carried out, and refused all the same.
    LiesAfter(u16),
    /// Carried out; there is no answer.
    Silent,
}

/// Both services, until this is dropped.
pub(crate) struct Device {
    state: Arc<Services>,
    keyd: TestServer,
    certd: TestServer,
}

struct Services {
    keys: Mutex<HashMap<String, PKey<Private>>>,
    certificates: Mutex<HashMap<String, String>>,
    calls: Mutex<Vec<String>>,
    cut: Mutex<Option<(usize, Cut)>>,
    faults: Mutex<HashMap<&'static str, Fault>>,
    was_cut: Notify,
    called: Notify,
    issues: Mutex<Option<String>>,
    authority: PKey<Private>,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Refused {
    status: StatusCode,
    message: &'static str,
}

impl Status for Refused {
    fn status(&self) -> StatusCode {
        self.status
    }
}

const ABSENT: Refused =
    Refused { status: StatusCode::BAD_REQUEST, message: "parameter \"id\" has an invalid value\ncaused by: not found" };
const INVALID: Refused = Refused { status: StatusCode::BAD_REQUEST, message: "parameter has an invalid value" };

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

impl Device {
    /// With the certificate `device-id`, which is due, and its key.
    pub(crate) fn start() -> Self {
        let (key, authority) = (new_key(), new_key());
        let mut name = X509NameBuilder::new().unwrap();
        name.append_entry_by_text("CN", "my-device").unwrap();
        let first = issue(&authority, &name.build(), &key, NEW_YEAR, NEW_YEAR + 100);
        let state = Arc::new(Services {
            keys: Mutex::new(HashMap::from([("device-id".to_owned(), key)])),
            certificates: Mutex::new(HashMap::from([("device-id".to_owned(), first)])),
            calls: Mutex::default(),
            cut: Mutex::default(),
            faults: Mutex::default(),
            was_cut: Notify::new(),
            called: Notify::new(),
            issues: Mutex::default(),
            authority,
        });
        let keyd = Service::new(Arc::clone(&state), aziot_keyd_api::VERSIONS)
            .call(load_key)
            .call(create_key)
            .call(delete_key)
            .call(move_key)
            .call(parameter)
            .call(sign);
        let certd = Service::new(Arc::clone(&state), aziot_certd_api::VERSIONS)
            .call(get)
            .call(import)
            .call(create)
            .call(delete);
        Self { state, keyd: TestServer::start(keyd.into_routes()), certd: TestServer::start(certd.into_routes()) }
    }

    pub(crate) fn issued(&self, policy: AutoRenew) -> Issued {
        self.impatient(policy, Duration::from_secs(30))
    }

    /// Each call has so long.
    pub(crate) fn impatient(&self, policy: AutoRenew, attempt: Duration) -> Issued {
        let settings = Settings {
            certificate_id: "device-id".to_owned(),
            key_id: "device-id".to_owned(),
            policy,
            subject: None,
            extensions: Vec::new(),
            preferred_algorithms: "ec-p256:*".to_owned(),
        };
        let retry = Retry { retries: 0, attempt, total: attempt };
        let keyd = aziot_keyd_api::client(&self.keyd.endpoint(), retry).unwrap();
        let certd = aziot_certd_api::client(&self.certd.endpoint(), retry).unwrap();
        Issued::new(certd, keyd, settings)
    }

    /// An engine of a new process, which has the credential.
    pub(crate) fn engine(&self) -> Engine {
        Self::engine_of(&Arc::new(self.issued(policy("80%", "4%"))))
    }

    pub(crate) fn engine_of(issued: &Arc<Issued>) -> Engine {
        let engine = Engine::new(TestClock::at(NOW));
        engine.replace(vec![Arc::clone(issued) as Arc<dyn Credential>]);
        engine
    }

    /// The call of this number, from now on, is never answered.
    pub(crate) fn cut_at(&self, number: usize, cut: Cut) {
        self.state.calls.lock().unwrap().clear();
        *self.state.cut.lock().unwrap() = Some((number, cut));
    }

    /// All calls are answered again.
    pub(crate) fn mend(&self) {
        *self.state.cut.lock().unwrap() = None;
        self.state.faults.lock().unwrap().clear();
        self.state.calls.lock().unwrap().clear();
    }

    pub(crate) fn fault(&self, call: &'static str, fault: Fault) {
        self.state.faults.lock().unwrap().insert(call, fault);
    }

    /// The calls so far, keys' parameters left out.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.all_calls().into_iter().filter(|call| !call.starts_with("parameter")).collect()
    }

    pub(crate) fn all_calls(&self) -> Vec<String> {
        self.state.calls.lock().unwrap().clone()
    }

    /// Waits until the call has come.
    pub(crate) async fn until_called(&self, call: &str) {
        loop {
            let called = self.state.called.notified();
            if self.all_calls().iter().any(|other| other == call) {
                return;
            }
            called.await;
        }
    }

    /// Whatever is requested.
    pub(crate) fn answer_requests_with(&self, pem: &str) {
        *self.state.issues.lock().unwrap() = Some(pem.to_owned());
    }

    /// Waits until a call has been cut off.
    pub(crate) async fn was_cut(&self) {
        self.state.was_cut.notified().await;
    }

    pub(crate) fn certificate(&self) -> Chain {
        Chain::from_pem(&self.state.certificates.lock().unwrap()["device-id"]).unwrap()
    }

    /// Whether `device-id` and `device-id` belong together.
    pub(crate) fn is_pair(&self) -> bool {
        let chain = self.certificate();
        let keys = self.state.keys.lock().unwrap();
        keys.get("device-id").is_some_and(|key| chain.leaf().unwrap().public_key().unwrap().public_eq(key))
    }

    pub(crate) fn is_renewed(&self) -> bool {
        self.certificate().validity().unwrap().not_after > NEW_YEAR + 100
    }

    pub(crate) fn names(&self) -> (Vec<String>, Vec<String>) {
        let mut keys: Vec<_> = self.state.keys.lock().unwrap().keys().cloned().collect();
        let mut certificates: Vec<_> = self.state.certificates.lock().unwrap().keys().cloned().collect();
        keys.sort();
        certificates.sort();
        (keys, certificates)
    }

    /// Puts a new key in place of the one that the certificate is for.
    pub(crate) fn lose_key(&self) {
        self.state.keys.lock().unwrap().insert("device-id".to_owned(), new_key());
    }

    pub(crate) fn store(&self, pem: Option<&str>) {
        let mut certificates = self.state.certificates.lock().unwrap();
        certificates.remove("device-id");
        certificates.extend(pem.map(|pem| ("device-id".to_owned(), pem.to_owned())));
    }
}

fn issue(
    authority: &PKey<Private>,
    subject: &X509NameRef,
    key: &PKeyRef<impl HasPublic>,
    not_before: i64,
    not_after: i64,
) -> String {
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(100, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(subject).unwrap();
    builder.set_issuer_name(subject).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(not_before).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(not_after).unwrap()).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.sign(authority, MessageDigest::sha256()).unwrap();
    String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
}

impl Services {
    /// Does `work` as the script wants it.
    async fn answer<T>(&self, call: String, work: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call.clone());
            calls.len()
        };
        self.called.notify_waiters();
        let cut = self.cut.lock().unwrap().filter(|(at, _)| *at == number).map(|(_, cut)| cut);
        if cut == Some(Cut::Before) {
            self.was_cut.notify_one();
            pending::<()>().await;
        }
        let fault = self.faults.lock().unwrap().get(call.as_str()).copied();
        let refused = |status| Refused { status: StatusCode::from_u16(status).unwrap(), message: "refused as told" };
        if let Some(Fault::Answers(status)) = fault {
            return Err(refused(status));
        }
        let answer = work();
        if cut == Some(Cut::After) {
            self.was_cut.notify_one();
            pending::<()>().await;
        }
        match fault {
            Some(Fault::LiesAfter(status)) => Err(refused(status)),
            Some(Fault::Silent) => pending().await,
            _ => answer,
        }
    }

    fn key(&self, handle: &KeyHandle) -> Result<PKey<Private>, Refused> {
        self.keys.lock().unwrap().get(&handle.0).cloned().ok_or(INVALID)
    }
}

async fn load_key(services: Arc<Services>, _: Peer, call: LoadKeyPair) -> Result<Handle, Refused> {
    let work = || {
        let is_there = services.keys.lock().unwrap().contains_key(&call.key_id);
        if is_there { Ok(Handle { key_handle: KeyHandle(call.key_id.clone()) }) } else { Err(INVALID) }
    };
    services.answer(format!("load key {}", call.key_id), work).await
}

async fn create_key(services: Arc<Services>, _: Peer, call: CreateKeyPair) -> Result<Handle, Refused> {
    let work = || {
        services.keys.lock().unwrap().entry(call.key_id.clone()).or_insert_with(new_key);
        Ok(Handle { key_handle: KeyHandle(call.key_id.clone()) })
    };
    services.answer(format!("create key {}", call.key_id), work).await
}

async fn delete_key(services: Arc<Services>, _: Peer, call: DeleteKeyPair) -> Result<(), Refused> {
    let work = || {
        services.keys.lock().unwrap().remove(&call.key_handle.0);
        Ok(())
    };
    services.answer(format!("delete key {}", call.key_handle.0), work).await
}

async fn move_key(services: Arc<Services>, _: Peer, call: MoveKeyPair) -> Result<(), Refused> {
    let work = || {
        let mut keys = services.keys.lock().unwrap();
        let key = keys.remove(&call.from).ok_or(INVALID)?;
        keys.insert(call.key_id.clone(), key);
        Ok(())
    };
    services.answer(format!("move key to {}", call.key_id), work).await
}

async fn parameter(services: Arc<Services>, _: Peer, call: GetParameter) -> Result<Parameter, Refused> {
    let work = || {
        let key = services.key(&call.key_handle)?.ec_key().unwrap();
        let value = match call.name.as_str() {
            "algorithm" => "ECDSA".to_owned(),
            "ec-curve-oid" => STANDARD.encode(b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"),
            "ec-point" => {
                let mut context = BigNumContext::new().unwrap();
                let form = PointConversionForm::COMPRESSED;
                STANDARD.encode(key.public_key().to_bytes(key.group(), form, &mut context).unwrap())
            }
            _ => return Err(INVALID),
        };
        Ok(Parameter { value })
    };
    services.answer(format!("parameter {}", call.name), work).await
}

async fn sign(services: Arc<Services>, _: Peer, call: Sign) -> Result<Signature, Refused> {
    let work = || {
        let key = services.key(&call.key_handle)?.ec_key().unwrap();
        let SignMechanism::Ecdsa { digest } = &call.mechanism else { return Err(INVALID) };
        Ok(Signature { signature: Base64(EcdsaSig::sign(&digest.0, &key).unwrap().to_der().unwrap()) })
    };
    services.answer(format!("sign with {}", call.key_handle.0), work).await
}

async fn get(services: Arc<Services>, _: Peer, call: GetCertificate) -> Result<Certificate, Refused> {
    let work = || {
        let pem = services.certificates.lock().unwrap().get(&call.cert_id).cloned().ok_or(ABSENT)?;
        Ok(Certificate { pem })
    };
    services.answer(format!("get {}", call.cert_id), work).await
}

async fn import(services: Arc<Services>, _: Peer, call: ImportCertificate) -> Result<Certificate, Refused> {
    let work = || {
        services.certificates.lock().unwrap().insert(call.cert_id.clone(), call.pem.clone());
        Ok(Certificate { pem: call.pem.clone() })
    };
    services.answer(format!("put {}", call.cert_id), work).await
}

async fn create(services: Arc<Services>, _: Peer, call: CreateCertificate) -> Result<Certificate, Refused> {
    let work = || {
        let request = X509Req::from_pem(call.csr.as_bytes()).map_err(|_| INVALID)?;
        let key = request.public_key().unwrap();
        assert!(request.verify(&key).unwrap(), "the request is signed by another key");
        let told = services.issues.lock().unwrap().clone();
        let pem = told.unwrap_or_else(|| issue(&services.authority, request.subject_name(), &key, NOW, NOW + 100));
        services.certificates.lock().unwrap().insert(call.cert_id.clone(), pem.clone());
        Ok(Certificate { pem })
    };
    services.answer(format!("post {}", call.cert_id), work).await
}

async fn delete(services: Arc<Services>, _: Peer, call: DeleteCertificate) -> Result<(), Refused> {
    let work = || {
        services.certificates.lock().unwrap().remove(&call.cert_id);
        Ok(())
    };
    services.answer(format!("delete {}", call.cert_id), work).await
}
