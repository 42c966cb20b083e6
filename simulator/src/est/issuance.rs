//! What is remembered of each issued certificate, for tests and for people who wonder.

use jiff::Timestamp;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::x509::{X509, X509Ref};
use serde::Serialize;

use super::authority::{Origin, key_digest};
use super::callers::Caller;
use super::request::Request;
use super::service::{Enrolment, Operation};
use crate::client_certificate::subject_text;
use crate::faults::Form;
use crate::thumbprint::hex;

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// One certificate that was issued, for whoever started the simulator.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Issuance {
    time: Timestamp,
    operation: Operation,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// Lower-case hex.
    serial: String,
    subject: String,
    not_before: Timestamp,
    not_after: Timestamp,
    /// SHA-256 over the certificate, lower-case hex.
    fingerprint: String,
    /// SHA-256 over the subject public key info, lower-case hex: a rotated key shows here.
    key_fingerprint: String,
    /// For an identity at this server: client authentication alone.
    is_identity: bool,
    /// Who asked with a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Who asked with a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Client>,
    /// What was odd about the answer, on demand.
    #[serde(skip_serializing_if = "Option::is_none")]
    form: Option<Form>,
    pem: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    is_bootstrap: bool,
    serial: String,
    subject: String,
}

/// What is to be remembered of `certificate`, which `enrolment` got.
pub(super) fn describe(
    enrolment: &Enrolment<'_>,
    caller: &Caller,
    request: &Request,
    certificate: &X509,
    now: Timestamp,
) -> Result<Issuance, ErrorStack> {
    let epoch = Asn1Time::from_unix(0)?;
    let time = |time: &Asn1TimeRef| {
        let since = epoch.diff(time)?;
        let seconds = i64::from(since.days) * DAY_SECONDS + i64::from(since.secs);
        Ok::<_, ErrorStack>(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
    };
    let client = caller.certificate.as_ref().map(|(certificate, origin)| {
        Ok::<_, ErrorStack>(Client {
            is_bootstrap: *origin == Origin::Bootstrap,
            serial: serial(certificate)?,
            subject: subject_text(certificate.subject_name()),
        })
    });
    Ok(Issuance {
        time: now,
        operation: enrolment.operation,
        label: enrolment.label.map(ToOwned::to_owned),
        serial: serial(certificate)?,
        subject: subject_text(certificate.subject_name()),
        not_before: time(certificate.not_before())?,
        not_after: time(certificate.not_after())?,
        fingerprint: hex(&certificate.digest(MessageDigest::sha256())?),
        key_fingerprint: key_digest(certificate)?,
        is_identity: request.is_for_identity(),
        user: caller.user.clone(),
        client: client.transpose()?,
        form: enrolment.form,
        pem: String::from_utf8_lossy(&certificate.to_pem()?).into_owned(),
    })
}

fn serial(certificate: &X509Ref) -> Result<String, ErrorStack> {
    Ok(hex(&certificate.serial_number().to_bn()?.to_vec()))
}
