//! Faults on demand: what a test or a curious developer wants the cloud to get wrong, and for which requests.
//!
//! Only chooses the fault; `server.rs` and `front.rs` commit it, and the EST server where it is about certificates.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Nothing.
    #[default]
    None,
    /// Each new connection is closed before TLS, and open ones when they are idle: as good as unreachable.
    Refuse,
    /// Each new connection is accepted, and then nothing is said on it.
    Stall,
    /// Each new connection is answered in clear: no TLS is spoken here.
    Plain,
    /// The request is served after `milliseconds`.
    Latency,
    /// The request is read, and no answer ever comes.
    Hang,
    /// The request is served, and its answer never comes.
    Withhold,
    /// The connection is reset instead of an answer.
    Reset,
    /// `status`, by default 500, with an error body.
    Status,
    /// Bytes that are no JSON, called JSON.
    Garbage,
    /// No body.
    Empty,
    /// A page of HTML, as from a captive portal.
    Html,
    /// The request is served, but the connection ends in the middle of the answer's body.
    Truncated,
    /// The request is served, and its answer bears `status` instead of its own.
    ServedAs,
    /// The request is served, and 10 MiB of blanks follow its answer: good JSON for who reads all of it.
    Huge,
    /// An EST request is served, and its answer says it in the wrong `form`.
    Answer,
}

impl Kind {
    /// Whether it befalls connections, before there is a request.
    pub(crate) fn is_of_connections(self) -> bool {
        matches!(self, Self::Refuse | Self::Stall | Self::Plain)
    }
}

/// What is odd about an answer of the EST server. Some forms are wrong, some are merely unusual; a client has to know which.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    /// PKCS#7 with an empty list of certificates.
    NoCertificates,
    /// PKCS#7 `SignedData` without content: 13 bytes.
    NoContent,
    /// The certificate is for a key that nobody has.
    WrongKey,
    /// The issuers, without the certificate.
    CaOnly,
    /// The certificate's own authority is one that nobody knows.
    OtherCa,
    /// The certificate has expired.
    Expired,
    /// The certificate becomes valid tomorrow.
    NotYetValid,
    /// Root, issuer and certificate, in this order.
    Unordered,
    /// The certificate in the middle of strangers, and twice.
    Extra,
    /// More than a hundred certificates.
    Many,
    /// Base64 in lines that end in CR LF.
    Crlf,
    /// Base64 in a single line.
    OneLine,
    /// Base64 without its padding.
    Unpadded,
    /// DER as it is.
    Der,
    /// PEM with the label `PKCS7`.
    Pem,
    /// The certificates themselves in PEM, without PKCS#7.
    PlainPem,
    /// No base64.
    Garbage,
    /// Base64 of bytes that are no DER.
    GarbageDer,
    /// Base64 of 2 MiB.
    Huge,
    /// No body.
    Empty,
    /// `text/plain`.
    WrongMediaType,
    /// The right media type with capitals, and a blank before the semicolon.
    OddMediaType,
    /// No media type.
    NoMediaType,
}

/// Which certificate new connections see.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CertificateFault {
    #[default]
    Good,
    /// For another host.
    WrongName,
    /// Expired yesterday.
    Expired,
    /// By a certification authority that nobody knows.
    OtherCa,
}

/// A fault and the requests it befalls. All members but `kind` may be left out.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// HTTP status of the answer; 200 unless `kind` is `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// Seconds for a `retry-after` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u32>,
    /// Wait so long before the fault (or, for `latency`, before the right answer).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) milliseconds: Option<u32>,
    /// Only requests whose path has this in it; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) matching: Option<String>,
    /// Only so many requests (for `refuse`, `stall` and `plain`: connections), then none; no limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u32>,
    /// Only requests with this method; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// For `status`, and only there: the body, called JSON whatever it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<String>,
    /// For `answer`, and only there: what is odd about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) form: Option<Form>,
    /// For `status`: the body that a parent gateway sends when the cloud is out of its reach.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) network_error: bool,
}

/// The fault that is set at the moment.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Fault>);

impl Faults {
    pub(crate) fn current(&self) -> Fault {
        self.lock().clone()
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.lock() = fault;
    }

    /// The fault for a request on `path`, if it is to have one.
    pub(crate) fn for_request(&self, method: &str, path: &str) -> Option<Fault> {
        let mut fault = self.lock();
        let befalls = fault.kind != Kind::None
            && !fault.kind.is_of_connections()
            && fault.method.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && fault.matching.as_deref().is_none_or(|text| path.contains(text));
        if befalls { spend(&mut fault) } else { None }
    }

    /// What befalls a new connection, if anything.
    pub(crate) fn for_connection(&self) -> Option<Kind> {
        let mut fault = self.lock();
        if fault.kind.is_of_connections() { spend(&mut fault).map(|fault| fault.kind) } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one from the count; the last one ends the fault.
fn spend(fault: &mut Fault) -> Option<Fault> {
    let taken = fault.clone();
    match &mut fault.count {
        None => {}
        Some(0) => {
            *fault = Fault::default();
            return None;
        }
        Some(1) => *fault = Fault::default(),
        Some(count) => *count -= 1,
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Faults {
        let faults = Faults::default();
        faults.set(serde_json::from_str(json).unwrap());
        faults
    }

    #[test]
    fn only_matching_requests_and_only_so_many() {
        let faults = faults(r#"{"kind":"status","status":429,"matching":"/devices/","count":2}"#);
        assert_eq!(faults.for_request("GET", "/scope/registrations/r"), None);
        assert_eq!(faults.for_request("GET", "/devices/d").unwrap().status, Some(429));
        assert!(faults.for_request("GET", "/devices/d").is_some());
        assert_eq!(faults.for_request("GET", "/devices/d"), None);
        assert_eq!(faults.current(), Fault::default());
    }

    #[test]
    fn only_one_method() {
        let faults = faults(r#"{"kind":"reset","method":"put"}"#);
        assert_eq!(faults.for_request("GET", "/"), None);
        assert!(faults.for_request("PUT", "/").is_some());
    }

    #[test]
    fn refusing_is_about_connections() {
        let faults = faults(r#"{"kind":"refuse","count":1}"#);
        assert_eq!(faults.for_request("GET", "/"), None);
        assert_eq!(faults.for_connection(), Some(Kind::Refuse));
        assert_eq!(faults.for_connection(), None);
    }

    #[test]
    fn nothing_befalls_anybody_without_a_fault() {
        assert_eq!(Faults::default().for_request("GET", "/"), None);
        assert_eq!(Faults::default().for_connection(), None);
        assert_eq!(faults(r#"{"kind":"reset","count":0}"#).for_request("GET", "/"), None);
    }

    #[test]
    fn slips_are_told() {
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"explode"}"#).is_err());
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"answer","form":"sideways"}"#).is_err());
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"status","stauts":500}"#).is_err());
    }
}
