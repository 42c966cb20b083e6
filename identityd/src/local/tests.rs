use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use aziot_certd_api::certificate::{Certificate, GetCertificate};
use aziot_http::{Peer, Retry, Service, Status, StatusCode, testing::TestServer};
use openssl::{
    asn1::Asn1Time,
    hash::MessageDigest,
    pkey::PKey,
    rsa::Rsa,
    x509::{X509, X509Req},
};

use super::*;

/// A certificate service that issues whatever it is asked for, unless it fails.
#[derive(Default)]
struct Certd {
    requests: Mutex<Vec<String>>,
    /// Whether it gives no answer.
    is_failing: AtomicBool,
    /// Whether it issues and stores even so.
    is_slow: AtomicBool,
    /// Ends of its certificates, in seconds from now.
    end: AtomicI64,
    stored: Mutex<Option<String>>,
    /// Held back while a test wants it.
    held: Option<Semaphore>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[derive(Debug, thiserror::Error)]
#[error("not now")]
struct Failed;

impl Status for Failed {
    fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

impl Certd {
    fn start() -> (Arc<Self>, TestServer, LocalIdentities) {
        Self::default().serve()
    }

    fn serve(self) -> (Arc<Self>, TestServer, LocalIdentities) {
        let certd = Arc::new(Self { end: AtomicI64::new(86_400), ..self });
        let service = Service::new(Arc::clone(&certd), aziot_certd_api::VERSIONS)
            .call(|certd: Arc<Certd>, _: Peer, call: CreateCertificate| async move { certd.create(call).await })
            .call(|certd: Arc<Certd>, _: Peer, _: GetCertificate| async move { certd.get() });
        let server = TestServer::start(service.into_routes());
        let client = aziot_certd_api::client(&server.endpoint(), Retry::local(0)).unwrap();
        (certd, server, LocalIdentities::new(client))
    }

    async fn create(&self, call: CreateCertificate) -> Result<Certificate, Failed> {
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        if let Some(held) = &self.held {
            drop(held.acquire().await.unwrap());
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        let is_failing = self.is_failing.load(Ordering::SeqCst);
        let pem = self.issue(&call.csr);
        if !is_failing || self.is_slow.load(Ordering::SeqCst) {
            *self.stored.lock().unwrap() = Some(pem.clone());
        }
        self.requests.lock().unwrap().push(call.csr);
        if is_failing { Err(Failed) } else { Ok(Certificate { pem }) }
    }

    fn get(&self) -> Result<Certificate, Failed> {
        self.stored.lock().unwrap().clone().map(|pem| Certificate { pem }).ok_or(Failed)
    }

    fn issue(&self, request: &str) -> String {
        let request = X509Req::from_pem(request.as_bytes()).unwrap();
        let authority = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let end = Timestamp::now().as_second() + self.end.load(Ordering::SeqCst);
        let mut certificate = X509::builder().unwrap();
        certificate.set_subject_name(request.subject_name()).unwrap();
        certificate.set_pubkey(&request.public_key().unwrap()).unwrap();
        certificate.set_not_before(&Asn1Time::from_unix(end - 86_400).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::from_unix(end).unwrap()).unwrap();
        certificate.sign(&authority, MessageDigest::sha256()).unwrap();
        String::from_utf8(certificate.build().to_pem().unwrap()).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn wanted(purpose: CertificateUse) -> Wanted {
    Wanted::new("m", "edge", "example.com", purpose, 7).unwrap()
}

/// Asks until there is one.
async fn eventually(identities: &LocalIdentities) -> LocalIdentity {
    let asked = async {
        loop {
            match identities.identity(wanted(CertificateUse::Client)).await {
                Ok(identity) => return identity,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("a certificate comes")
}

#[tokio::test]
async fn an_issuer_that_takes_its_time_is_asked_for_the_same_again() {
    let (certd, _server, identities) = Certd::start();
    certd.is_failing.store(true, Ordering::SeqCst);
    identities.identity(wanted(CertificateUse::Client)).await.unwrap_err();
    certd.is_failing.store(false, Ordering::SeqCst);
    let identity = eventually(&identities).await;
    let requests = certd.requests();
    assert!(requests.len() == 2 && requests[0] == requests[1], "{requests:?}");
    assert_eq!(identity.auth.certificate, certd.stored.lock().unwrap().clone().unwrap());
}

#[tokio::test]
async fn what_came_when_nobody_waited_any_more_is_used() {
    let (certd, _server, identities) = Certd::start();
    certd.is_failing.store(true, Ordering::SeqCst);
    certd.is_slow.store(true, Ordering::SeqCst);
    identities.identity(wanted(CertificateUse::Client)).await.unwrap_err();
    let identity = eventually(&identities).await;
    assert_eq!(certd.requests().len(), 1);
    assert_eq!(identity.auth.certificate, certd.stored.lock().unwrap().clone().unwrap());
}

#[tokio::test]
async fn a_failure_is_told_to_all_who_ask_within_a_second() {
    let (certd, _server, identities) = Certd::start();
    certd.is_failing.store(true, Ordering::SeqCst);
    let ask = || identities.identity(wanted(CertificateUse::Client));
    let (one, other, third) = tokio::join!(ask(), ask(), ask());
    assert!(one.is_err() && other.is_err() && third.is_err());
    ask().await.unwrap_err();
    assert_eq!(certd.requests().len(), 1);
}

#[tokio::test]
async fn each_purpose_has_its_own() {
    let (certd, _server, identities) = Certd::start();
    let client = identities.identity(wanted(CertificateUse::Client)).await.unwrap();
    identities.identity(wanted(CertificateUse::Server)).await.unwrap();
    let again = identities.identity(wanted(CertificateUse::Client)).await.unwrap();
    assert_eq!(again.auth.certificate, client.auth.certificate);
    assert_eq!(certd.requests().len(), 2);
}

#[tokio::test]
async fn so_many_are_issued_at_once_and_no_more() {
    let (certd, _server, identities) = Certd { held: Some(Semaphore::new(0)), ..Certd::default() }.serve();
    let count = MOST_AT_ONCE + 4;
    let all = futures_util::future::join_all((0..count).map(|number| {
        let name = format!("m{number}");
        identities.identity(Wanted::new(&name, "edge", "example.com", CertificateUse::Client, 7).unwrap())
    }));
    let release = async {
        while certd.at_once.load(Ordering::SeqCst) < MOST_AT_ONCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        certd.held.as_ref().unwrap().add_permits(count);
    };
    let (issued, ()) =
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(all, release) }).await.unwrap();
    assert!(issued.iter().all(Result::is_ok));
    assert_eq!(certd.most_at_once.load(Ordering::SeqCst), MOST_AT_ONCE);
}

#[tokio::test]
async fn where_the_clock_is_wrong_not_each_call_costs_a_key() {
    let (certd, _server, identities) = Certd::start();
    certd.end.store(-1000, Ordering::SeqCst);
    let first = identities.identity(wanted(CertificateUse::Client)).await.unwrap();
    let again = identities.identity(wanted(CertificateUse::Client)).await.unwrap();
    assert_eq!(again.auth.certificate, first.auth.certificate);
    assert_eq!(certd.requests().len(), 1);
}

#[test]
fn the_last_fifth_is_near_the_end() {
    let validity = Validity { not_before: 1000, not_after: 2000 };
    for (now, near) in [(0, false), (1000, false), (1800, false), (1801, true), (2000, true), (3000, true)] {
        assert_eq!(is_near_end(validity, now), near, "{now}");
    }
    assert!(is_near_end(Validity { not_before: 5, not_after: 5 }, 0), "no life at all");
}

#[test]
fn what_comes_near_its_end_is_kept_for_a_while_and_not_past_its_end() {
    let validity = Validity { not_before: 1000, not_after: 2000 };
    for (now, seconds) in [(1800, 0), (1801, 60), (1990, 10), (2000, 60), (i64::MAX, 60)] {
        assert_eq!(least(validity, now), Duration::from_secs(seconds), "{now}");
    }
}

#[test]
fn an_identity_is_of_one_user_and_purpose() {
    let wanted = |host, purpose, caller| Wanted::new("m", host, "example.com", purpose, caller).unwrap();
    let mine = wanted("edge", CertificateUse::Client, 7);
    assert_eq!(mine, wanted("edge", CertificateUse::Client, 7));
    for other in [
        wanted("edge", CertificateUse::Client, 8),
        wanted("edge", CertificateUse::Server, 7),
        wanted("renamed", CertificateUse::Client, 7),
    ] {
        assert_ne!(mine, other);
    }
    let error = Wanted::new(&"m".repeat(70), "edge", "example.com", CertificateUse::Client, 7).unwrap_err();
    assert!(error.to_string().starts_with("the name \"mmm"), "{error}");
}
