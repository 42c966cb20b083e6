//! What the EST server does: who is granted what, what waits, and what was issued. Knows no HTTP but the headers that credentials are in.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use http::HeaderMap;
use jiff::Timestamp;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Public};
use openssl::x509::{X509, X509Ref};
use serde::Serialize;

use super::authority::{Authorities, Origin, Validity};
use super::callers::{self, Caller};
use super::issuance::{self, Issuance};
use super::pending::Pending;
use super::request::{self, Request};
use super::settings::{Bootstrap, Change, RangeError, Settings};
use crate::certificates;
use crate::clients::ClientChain;
use crate::faults::Form;
use crate::journal;

/// So many issued certificates are remembered.
const MAX_ISSUED: usize = 1000;
const DAY_SECONDS: i64 = 24 * 60 * 60;
/// Longer than clocks of one machine are apart.
const EXPIRED_SINCE_SECONDS: i64 = 60;
/// More certificates than any chain has.
const MANY: usize = 150;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no label {0:?}")]
    Label(String),
    #[error(transparent)]
    Caller(#[from] callers::Error),
    #[error(transparent)]
    Request(#[from] request::Error),
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("could not issue a certificate")]
    Issue(#[from] ErrorStack),
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    SimpleEnroll,
    SimpleReenroll,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// What the answer holds, the certificate first unless a form has it otherwise.
    Granted(Vec<X509>),
    /// Come again with the same request.
    Pending { retry_after_seconds: u32 },
}

/// An EST server.
pub(crate) struct Est {
    settings: ArcSwap<Settings>,
    authorities: Authorities,
    pending: Pending,
    issued: Mutex<VecDeque<Issuance>>,
}

/// One enrolment as it came.
pub(crate) struct Enrolment<'a> {
    pub(crate) operation: Operation,
    pub(crate) label: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) client: Option<&'a ClientChain>,
    pub(crate) body: &'a [u8],
    pub(crate) form: Option<Form>,
}

impl Est {
    /// Its authorities are in `folder`, or are made there. Blocks.
    pub(crate) fn open(folder: &Path, settings: Settings) -> Result<Self, certificates::Error> {
        Ok(Self::new(Authorities::open(folder)?, settings))
    }

    fn new(authorities: Authorities, settings: Settings) -> Self {
        let settings = ArcSwap::from_pointee(settings);
        Self { settings, authorities, pending: Pending::default(), issued: Mutex::default() }
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Puts a change in force for requests from now on.
    pub(crate) fn change(&self, change: &Change) -> Result<(), RangeError> {
        self.settings.store(Arc::new(self.settings().changed(change)?));
        Ok(())
    }

    /// The last certificates that were issued, the oldest first.
    pub(crate) fn issued(&self) -> Vec<Issuance> {
        journal::all(&self.issued)
    }

    /// The issuers, the root last. Given to everybody unless the settings protect them.
    pub(crate) fn authorities(
        &self,
        label: Option<&str>,
        headers: &HeaderMap,
        client: Option<&ClientChain>,
    ) -> Result<Vec<X509>, Error> {
        let settings = self.settings();
        check_label(label, &settings)?;
        if settings.protect_cacerts {
            callers::identify(headers, client, &settings, &self.authorities)?;
        }
        Ok(self.issuers())
    }

    /// Grants an enrolment, has it wait, or refuses it.
    pub(crate) fn enroll(&self, enrolment: &Enrolment<'_>) -> Result<Outcome, Error> {
        let settings = self.settings();
        check_label(enrolment.label, &settings)?;
        let caller = callers::identify(enrolment.headers, enrolment.client, &settings, &self.authorities)?;
        let request = Request::from_body(enrolment.body)?;
        authorize(enrolment.operation, &caller, &request, &settings)?;
        if self.pending.is_to_wait(&request.der, &settings) {
            return Ok(Outcome::Pending { retry_after_seconds: settings.retry_after_seconds });
        }
        let now = Timestamp::now();
        let certificate = self.certify(&request, enrolment.form, &settings, now.as_second())?;
        let issuance = issuance::describe(enrolment, &caller, &request, &certificate, now)?;
        journal::add(&self.issued, issuance, MAX_ISSUED);
        Ok(Outcome::Granted(self.compose(certificate, enrolment.form, &settings)?))
    }

    /// Makes a certificate as a device brings it from the factory: PEM, with its issuer.
    pub(crate) fn bootstrap(&self, request: &Request, lifetime_seconds: u32) -> Result<Vec<u8>, ErrorStack> {
        let now = Timestamp::now().as_second();
        let validity = Validity { not_before: now, not_after: now + i64::from(lifetime_seconds) };
        self.authorities.bootstrap(request, validity)
    }

    fn issuers(&self) -> Vec<X509> {
        self.authorities.issuers().map(Clone::clone).into()
    }

    fn certify(
        &self,
        request: &Request,
        form: Option<Form>,
        settings: &Settings,
        now: i64,
    ) -> Result<X509, ErrorStack> {
        let identity = settings.identity_lifetime_seconds.filter(|_| request.is_for_identity());
        let lifetime = i64::from(identity.unwrap_or(settings.lifetime_seconds));
        let start = match form {
            Some(Form::Expired) => now - lifetime - EXPIRED_SINCE_SECONDS,
            Some(Form::NotYetValid) => now + DAY_SECONDS,
            _ => now,
        };
        let not_before = start - i64::from(settings.backdate_seconds);
        let validity = Validity { not_before, not_after: start + lifetime };
        match form {
            Some(Form::WrongKey) => self.authorities.issue(request, Some(&*foreign_key()?), validity),
            Some(Form::OtherCa) => Authorities::issue_as_stranger(request, validity),
            _ => self.authorities.issue(request, None, validity),
        }
    }

    fn compose(&self, certificate: X509, form: Option<Form>, settings: &Settings) -> Result<Vec<X509>, ErrorStack> {
        let mut issuers = self.issuers();
        Ok(match form {
            Some(Form::NoCertificates) => Vec::new(),
            Some(Form::CaOnly) => issuers,
            Some(Form::Unordered) => {
                issuers.reverse();
                issuers.push(certificate);
                issuers
            }
            Some(Form::Extra) => {
                let stranger = certificates::new_authority("stranger CA", None)?.certificate;
                [vec![stranger, certificate.clone()], issuers, vec![certificate]].concat()
            }
            Some(Form::Many) => std::iter::repeat_n(certificate, MANY).collect(),
            _ if settings.send_chain => [vec![certificate], issuers].concat(),
            _ => vec![certificate],
        })
    }
}

fn check_label(label: Option<&str>, settings: &Settings) -> Result<(), Error> {
    match label {
        Some(label) if !settings.labels.iter().any(|known| known == label) => Err(Error::Label(label.to_owned())),
        _ => Ok(()),
    }
}

fn authorize(operation: Operation, caller: &Caller, request: &Request, settings: &Settings) -> Result<(), Error> {
    if request.is_ca && !settings.allow_ca {
        return Err(Error::Forbidden("no CA certificates are issued here"));
    }
    let names_client = |certificate: &X509Ref| certificate.to_der().is_ok_and(|der| request.names_the_same_as(&der));
    let refusal = match (operation, &caller.certificate) {
        (Operation::SimpleReenroll, Some((certificate, Origin::Issued))) if names_client(certificate) => None,
        (Operation::SimpleReenroll, Some((_, Origin::Issued))) => {
            Some("a re-enrolment keeps subject and names of the client's certificate")
        }
        (Operation::SimpleReenroll, _) => Some("a re-enrolment needs the certificate that it is about"),
        (Operation::SimpleEnroll, Some((_, Origin::Bootstrap)))
            if settings.bootstrap == Bootstrap::Identity && !request.is_for_identity() =>
        {
            Some("a bootstrap certificate obtains an identity only: client authentication alone, and no further names")
        }
        (Operation::SimpleEnroll, Some((certificate, Origin::Issued)))
            if settings.insist_on_reenroll && names_client(certificate) =>
        {
            Some("the client has a certificate of these names; simplereenroll renews it")
        }
        (Operation::SimpleEnroll, _) => None,
    };
    refusal.map_or(Ok(()), |refusal| Err(Error::Forbidden(refusal)))
}

/// A public key whose private half is gone.
fn foreign_key() -> Result<PKey<Public>, ErrorStack> {
    let group = openssl::ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = openssl::ec::EcKey::generate(&group)?;
    PKey::from_ec_key(openssl::ec::EcKey::from_public_key(&group, key.public_key())?)
}

#[cfg(test)]
mod tests {
    use openssl::pkey::Private;
    use openssl::x509::X509Extension;

    use super::super::authority::tests::authorities;
    use super::super::request::tests::{client_authentication, ec_key, make, san};
    use super::*;

    struct World {
        est: Est,
        key: PKey<Private>,
    }

    impl World {
        fn new(settings: Settings) -> Self {
            let users = [("u".to_owned(), "p".to_owned().into())].into();
            let est = Est::new(authorities(), Settings { users, ..settings });
            Self { est, key: ec_key(Nid::X9_62_PRIME256V1) }
        }

        fn body(&self, name: &str, extensions: Vec<X509Extension>) -> String {
            openssl::base64::encode_block(&make(&self.key, name, extensions))
        }

        fn enroll(
            &self,
            operation: Operation,
            client: Option<&ClientChain>,
            body: &str,
            form: Option<Form>,
        ) -> Result<Outcome, Error> {
            let mut headers = HeaderMap::new();
            if client.is_none() {
                headers.insert(http::header::AUTHORIZATION, "Basic dTpw".parse().unwrap());
            }
            let body = body.as_bytes();
            self.est.enroll(&Enrolment { operation, label: None, headers: &headers, client, body, form })
        }

        fn change(&self, json: &str) {
            self.est.change(&serde_json::from_str(json).unwrap()).unwrap();
        }

        fn simple(&self, client: Option<&ClientChain>, body: &str) -> Result<Vec<X509>, Error> {
            self.enroll(Operation::SimpleEnroll, client, body, None).map(granted)
        }

        fn again(&self, client: Option<&ClientChain>, body: &str) -> Result<Vec<X509>, Error> {
            self.enroll(Operation::SimpleReenroll, client, body, None).map(granted)
        }

        fn as_client(&self, leaf: &X509) -> ClientChain {
            chain(&[vec![leaf.clone()], self.est.issuers()].concat())
        }
    }

    fn granted(outcome: Outcome) -> Vec<X509> {
        let Outcome::Granted(certificates) = outcome else { panic!("{outcome:?}") };
        certificates
    }

    fn chain(certificates: &[X509]) -> ClientChain {
        let der: Vec<_> = certificates.iter().map(|certificate| certificate.to_der().unwrap().into()).collect();
        ClientChain::new(&der)
    }

    fn forbidden(result: Result<Vec<X509>, Error>) -> &'static str {
        match result {
            Err(Error::Forbidden(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_re_enrolment_is_about_the_certificate_that_asks() {
        let world = World::new(Settings::default());
        let body = world.body("pump", vec![san("pump")]);
        let first = world.simple(None, &body).unwrap();
        assert_eq!(first.len(), 1);
        let client = world.as_client(&first[0]);
        let second = world.again(Some(&client), &body).unwrap();
        assert_ne!(second[0].serial_number().to_bn().unwrap(), first[0].serial_number().to_bn().unwrap());
        for other in
            [world.body("pump", vec![]), world.body("pump", vec![san("valve")]), world.body("valve", vec![san("pump")])]
        {
            assert!(forbidden(world.again(Some(&client), &other)).contains("keeps subject"));
            assert!(world.simple(Some(&client), &other).is_ok());
        }
        assert!(forbidden(world.again(None, &body)).contains("needs the certificate"));
        let issued = serde_json::to_value(world.est.issued()).unwrap();
        assert_eq!((&issued[0]["user"], &issued[0]["operation"]), (&"u".into(), &"simpleenroll".into()));
        assert_eq!(
            (&issued[1]["client"]["serial"], &issued[1]["operation"]),
            (&issued[0]["serial"], &"simplereenroll".into())
        );
        assert_eq!(
            (&issued[1]["keyFingerprint"], &issued[1]["subject"]),
            (&issued[0]["keyFingerprint"], &"CN=pump".into())
        );
    }

    #[test]
    fn a_server_may_insist_on_re_enrolment() {
        let world = World::new(Settings { insist_on_reenroll: true, ..Settings::default() });
        let body = world.body("pump", vec![]);
        let client = world.as_client(&world.simple(None, &body).unwrap()[0]);
        assert!(forbidden(world.simple(Some(&client), &body)).contains("simplereenroll"));
        assert!(world.again(Some(&client), &body).is_ok());
    }

    #[test]
    fn a_bootstrap_certificate_obtains_an_identity_and_no_more() {
        let world = World::new(Settings { identity_lifetime_seconds: Some(7), ..Settings::default() });
        let identity = world.body("pump", vec![client_authentication()]);
        let factory = world.est.bootstrap(&Request::from_body(identity.as_bytes()).unwrap(), 60).unwrap();
        let factory = chain(&X509::stack_from_pem(&factory).unwrap());
        let granted = world.simple(Some(&factory), &identity).unwrap();
        let lifetime = granted[0].not_before().diff(granted[0].not_after()).unwrap();
        assert_eq!((lifetime.days, lifetime.secs), (0, 7));
        let device = world.body("pump", vec![]);
        assert!(forbidden(world.simple(Some(&factory), &device)).contains("an identity only"));
        assert!(forbidden(world.again(Some(&factory), &identity)).contains("needs the certificate"));
        assert!(world.simple(Some(&world.as_client(&granted[0])), &device).is_ok());
        world.change(r#"{"bootstrap":"anything"}"#);
        assert!(world.simple(Some(&factory), &device).is_ok());
    }

    #[test]
    fn authorities_are_made_only_on_demand() {
        let world = World::new(Settings::default());
        let ca = openssl::x509::extension::BasicConstraints::new().critical().ca().build().unwrap();
        let body = world.body("gateway", vec![ca]);
        assert!(forbidden(world.simple(None, &body)).contains("no CA"));
        world.change(r#"{"allowCa":true}"#);
        let text = world.simple(None, &body).unwrap()[0].to_text().unwrap();
        assert!(String::from_utf8(text).unwrap().contains("CA:TRUE, pathlen:0"));
    }

    #[test]
    fn a_pending_request_has_no_certificate_yet() {
        let world = World::new(Settings { pending_polls: 1, retry_after_seconds: 0, ..Settings::default() });
        let body = world.body("pump", vec![]);
        let enroll = || world.enroll(Operation::SimpleEnroll, None, &body, None).unwrap();
        assert!(matches!(enroll(), Outcome::Pending { retry_after_seconds: 0 }));
        assert!(world.est.issued().is_empty());
        assert!(matches!(enroll(), Outcome::Granted(_)));
    }

    #[test]
    fn odd_answers_are_what_they_say() {
        let world = World::new(Settings::default());
        let body = world.body("pump", vec![]);
        let answer = |form| granted(world.enroll(Operation::SimpleEnroll, None, &body, Some(form)).unwrap());
        let is_own = |certificate: &X509| certificate.public_key().unwrap().public_eq(&world.key);
        let issuers = world.est.issuers();
        let now = openssl::asn1::Asn1Time::days_from_now(0).unwrap();
        assert!(answer(Form::NoCertificates).is_empty());
        assert!(!is_own(&answer(Form::WrongKey)[0]));
        assert_eq!(answer(Form::CaOnly).len(), 2);
        let strange = &answer(Form::OtherCa)[0];
        assert!(is_own(strange) && strange.issued(&issuers[0]) != openssl::x509::X509VerifyResult::OK);
        assert!(answer(Form::Expired)[0].not_after() < &*now);
        assert!(answer(Form::NotYetValid)[0].not_before() > &*now);
        let unordered = answer(Form::Unordered);
        assert!(unordered.len() == 3 && is_own(&unordered[2]) && unordered[0] == issuers[1]);
        let extra = answer(Form::Extra);
        assert!(extra.len() == 5 && is_own(&extra[1]) && extra[1] == extra[4] && !is_own(&extra[0]));
        assert_eq!(answer(Form::Many).len(), MANY);
        assert_eq!(serde_json::to_value(world.est.issued()).unwrap()[1]["form"], "wrong-key");
        world.change(r#"{"sendChain":true}"#);
        assert_eq!(world.simple(None, &body).unwrap().len(), 3);
    }
}
