//! What can go wrong between this device and the cloud, and what that means: wait, register anew, or call a person.

use std::{fmt, time::Duration};

use http::{Response, StatusCode};
use hyper::body::Bytes;
use serde_json::{Map, Value};

use crate::{
    BoxError,
    transport::{ClockSkew, retry_after},
};

/// Why a call to the cloud has no result. Texts name the host and hold no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection; nothing was sent.
    #[error("could not connect to {host}")]
    NotConnected {
        /// Host and port as the URL names them.
        host: String,
        /// What the system said.
        source: BoxError,
    },
    /// The connection ended before the answer was complete.
    #[error("the connection to {host} broke")]
    Interrupted {
        /// Host and port as the URL names them.
        host: String,
        /// What went wrong.
        source: BoxError,
    },
    /// No answer in time.
    #[error("{host} did not answer within {} s", limit.as_secs())]
    TimedOut {
        /// Host and port as the URL names them.
        host: String,
        /// The time it had.
        limit: Duration,
    },
    /// The server's certificate is not trusted.
    #[error("the certificate of {host} is not trusted")]
    Untrusted {
        /// Host and port as the URL names them.
        host: String,
        /// What is wrong with it.
        source: BoxError,
    },
    /// The server does not accept the client certificate, and says so by ending the connection.
    #[error("{host} does not accept this device's certificate")]
    CertificateRefused {
        /// Host and port as the URL names them.
        host: String,
        /// The server's alert.
        source: BoxError,
    },
    /// No server can be trusted: TLS is not set up on this system.
    #[error("TLS cannot be used on this system")]
    Tls(#[source] BoxError),
    /// The service answered and said no.
    #[error("{0}")]
    Refused(Refusal),
    /// An answer that is not JSON, as captive portals give it.
    #[error("invalid Content-Type; expected JSON")]
    NotJson {
        /// Host and port as the URL names them.
        host: String,
    },
    /// A success that the call does not have.
    #[error("Expected one of {expected:?}, got {status}")]
    Unexpected {
        /// The statuses of success.
        expected: Vec<u16>,
        /// The one that came.
        status: StatusCode,
    },
    /// The body is not what the protocol says, or is about something that was not asked for.
    #[error("malformed answer from {host}")]
    Malformed {
        /// Host and port as the URL names them.
        host: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The answer has no end, or one that is too far. Another attempt would bring the same.
    #[error("the answer from {host} is longer than {limit} bytes")]
    TooLong {
        /// Host and port as the URL names them.
        host: String,
        /// So many bytes were read.
        limit: usize,
    },
    /// DPS does not challenge this TPM: it is not the one that was enrolled.
    #[error("DPS has no enrollment of this TPM (of its endorsement key) as {registration_id:?}: {refusal}")]
    TpmUnknown {
        /// Name of the registration.
        registration_id: String,
        /// What DPS said.
        refusal: Box<Refusal>,
    },
    /// DPS decided, and not for a hub.
    #[error("{0}")]
    NotAssigned(NotAssigned),
    /// DPS took too long to decide.
    #[error("DPS assigned no hub within {} s", limit.as_secs())]
    NotAssignedInTime {
        /// The time it had.
        limit: Duration,
    },
    /// The device's key did not sign a token, or a TLS handshake.
    #[error("could not sign with the device's key")]
    Signing(#[source] BoxError),
    /// There is no client certificate, or no use of its key: nothing was sent.
    #[error("could not use the device's certificate")]
    Certificate(#[source] BoxError),
    /// The TPM gave no public keys, or did not take a key.
    #[error("could not {action}")]
    Tpm {
        /// What was wanted of it.
        action: &'static str,
        /// What its service said.
        source: BoxError,
    },
    /// The call cannot be written as a request.
    #[error("{host} cannot be called")]
    Unsendable {
        /// Host and port as the URL names them.
        host: String,
        /// Why.
        source: BoxError,
    },
}

impl Error {
    /// An answer that cannot be used. The parser's text may quote it, so it is cut.
    pub(crate) fn malformed(host: &str, error: impl fmt::Display) -> Self {
        Self::Malformed { host: host.to_owned(), source: serde::de::Error::custom(excerpt(&error.to_string())) }
    }

    /// Whether waiting may mend it: no network, a broken connection, an overloaded or failing service.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self {
            Self::NotConnected { .. }
            | Self::Interrupted { .. }
            | Self::TimedOut { .. }
            | Self::NotAssignedInTime { .. } => true,
            Self::Refused(refusal) => refusal.network_error || is_transient(refusal.status),
            _ => false,
        }
    }

    /// Whether the hub does not know this device, or not by this key: it may have been moved to another hub. A token that a wrong clock made is
    /// no reason to think so; a certificate was made by another clock.
    #[must_use]
    pub fn is_device_rejected(&self) -> bool {
        if matches!(self, Self::CertificateRefused { .. }) {
            return true;
        }
        let Self::Refused(Refusal { status, subject, network_error: false, clock_skew, .. }) = self else {
            return false;
        };
        if clock_skew.is_some_and(|skew| skew.is_of_token) {
            return false;
        }
        match *status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => true,
            StatusCode::NOT_FOUND => *subject == Subject::Device,
            _ => false,
        }
    }

    /// Whether the hub knows the device but has no such module.
    #[must_use]
    pub fn is_module_missing(&self) -> bool {
        let Self::Refused(Refusal { status, subject, network_error: false, .. }) = self else { return false };
        (*status, *subject) == (StatusCode::NOT_FOUND, Subject::Module)
    }

    /// Whether the hub would not create what is there already.
    #[must_use]
    pub fn is_already_there(&self) -> bool {
        self.status() == Some(StatusCode::CONFLICT)
    }

    /// Whether what was to be changed has another version than the one that was read.
    #[must_use]
    pub fn is_changed_meanwhile(&self) -> bool {
        self.status() == Some(StatusCode::PRECONDITION_FAILED)
    }

    /// Whether the server proved to be somebody else.
    #[must_use]
    pub fn is_untrusted(&self) -> bool {
        matches!(self, Self::Untrusted { .. })
    }

    /// The time for which a service that said no wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    /// The status of a service that said no.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            Self::TpmUnknown { refusal, .. } => Some(refusal.status),
            Self::Unexpected { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Statuses after which the same request may succeed.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}

/// Characters that are kept of a text that somebody else wrote.
const EXCERPT: usize = 300;

/// What others wrote, fit for a log line and an error message: not too long, on one line, and without power over terminals.
pub(crate) fn excerpt(text: &str) -> String {
    let mut characters = text.chars();
    let kept = characters.by_ref().take(EXCERPT);
    let mut short: String = kept.map(|character| if character.is_control() { ' ' } else { character }).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

/// What a refused request was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A registration at DPS.
    Registration,
    /// The device at the hub.
    Device,
    /// One of its modules.
    Module,
}

/// A service's no, in its own words.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Status of the answer, 400 or above.
    pub status: StatusCode,
    /// What was asked about, corrected by what the service said.
    pub subject: Subject,
    /// The service's text, or `HTTP error <status>`.
    pub text: String,
    /// The service's own number or name for the error.
    pub error_code: Option<String>,
    /// What its operators find the request by.
    pub tracking_id: Option<String>,
    /// A parent gateway says that the cloud is out of its reach.
    pub network_error: bool,
    /// The time for which the service wants to be left alone.
    pub retry_after: Option<Duration>,
    /// How wrong this device's clock is, where that may explain why a token or a certificate was refused.
    pub clock_skew: Option<ClockSkew>,
}

/// What both services call a device that is not there.
const DEVICE_NOT_FOUND: [&str; 2] = ["404001", "DeviceNotFound"];

impl Refusal {
    /// Reads an answer with an error status.
    pub(crate) fn of(answer: &Response<Bytes>, subject: Subject) -> Self {
        Self {
            retry_after: retry_after(answer),
            clock_skew: answer.extensions().get().copied(),
            ..Self::read(answer.status(), subject, answer.body())
        }
    }

    /// Reads an error body; all forms that hub, DPS and gateways send, and none.
    pub(crate) fn read(status: StatusCode, subject: Subject, body: &[u8]) -> Self {
        let mut refusal = Self {
            status,
            subject,
            text: format!("HTTP error {status}"),
            error_code: None,
            tracking_id: None,
            network_error: false,
            retry_after: None,
            clock_skew: None,
        };
        if let Ok(members) = serde_json::from_slice::<Map<String, Value>>(body) {
            refusal.take(&members);
        }
        if refusal.error_code.as_deref().is_some_and(|code| DEVICE_NOT_FOUND.contains(&code)) {
            refusal.subject = Subject::Device;
        }
        refusal
    }

    fn take(&mut self, members: &Map<String, Value>) {
        let text = |names: &[&str]| names.iter().find_map(|name| members.get(*name).and_then(as_text));
        let short = |names: &[&str]| text(names).map(|text| excerpt(&text));
        self.error_code = short(&["errorCode", "code"]).or(self.error_code.take());
        self.tracking_id = short(&["trackingId"]).or(self.tracking_id.take());
        self.network_error |= members.get("networkError") == Some(&Value::Bool(true));
        let Some(message) = text(&["message", "Message", "errorMessage"]).filter(|text| !text.is_empty()) else {
            return;
        };
        // The hub's text is often JSON itself, or starts with the code.
        if let Ok(inner) = serde_json::from_str::<Map<String, Value>>(&message) {
            self.take(&inner);
        } else if let Some((code, rest)) = message.strip_prefix("ErrorCode:").and_then(|text| text.split_once(';')) {
            self.error_code = Some(excerpt(code));
            self.text = excerpt(rest);
        } else {
            self.text = excerpt(&message);
        }
    }
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)?;
        let status = self.status.to_string();
        let details = [
            (!self.text.contains(&status)).then(|| format!("HTTP {status}")),
            self.error_code.as_ref().map(|code| format!("error code {code}")),
            self.tracking_id.as_ref().map(|id| format!("tracking id {id}")),
        ];
        let details: Vec<_> = details.into_iter().flatten().collect();
        if !details.is_empty() {
            write!(formatter, " ({})", details.join(", "))?;
        }
        match self.clock_skew.map(|skew| skew.seconds_behind) {
            None => Ok(()),
            Some(ahead) if ahead < 0 => {
                write!(formatter, "; this device's clock is {} s ahead of the service's", ahead.unsigned_abs())
            }
            Some(behind) => write!(formatter, "; this device's clock is {behind} s behind the service's"),
        }
    }
}

/// A registration that ended without a hub.
#[derive(Clone, Debug)]
pub struct NotAssigned {
    /// `failed`, `disabled`, `unassigned`, or what else DPS said.
    pub status: String,
    /// DPS's text, if it gave one.
    pub text: Option<String>,
    /// DPS's number for it.
    pub error_code: Option<String>,
    /// What DPS's operators find the registration by.
    pub tracking_id: Option<String>,
}

impl fmt::Display for NotAssigned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.text, self.status.as_str()) {
            (Some(text), _) => formatter.write_str(text)?,
            (None, "disabled") => formatter.write_str("the enrollment of this device is disabled in DPS")?,
            (None, "unassigned") => formatter.write_str("DPS has not assigned this device to a hub")?,
            (None, status) => write!(formatter, "the registration ended with the status {status:?}")?,
        }
        let code = self.error_code.as_ref().map(|code| format!("error code {code}"));
        let tracking = self.tracking_id.as_ref().map(|id| format!("tracking id {id}"));
        let details: Vec<_> = [code, tracking].into_iter().flatten().collect();
        if details.is_empty() { Ok(()) } else { write!(formatter, " ({})", details.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, subject: Subject, body: &str) -> Error {
        Error::Refused(Refusal::read(StatusCode::from_u16(status).unwrap(), subject, body.as_bytes()))
    }

    #[test]
    fn error_bodies_of_all_senders_are_read() {
        for (body, text) in [
            (
                r#"{"errorCode":401002,"trackingId":"t","message":"Unauthorized","timestampUtc":"x"}"#,
                "Unauthorized (HTTP 401 Unauthorized, error code 401002, tracking id t)",
            ),
            (
                r#"{"Message":"{\"errorCode\":401003,\"trackingId\":\"t\",\"message\":\"no\"}"}"#,
                "no (HTTP 401 Unauthorized, error code 401003, tracking id t)",
            ),
            (
                r#"{"Message":"ErrorCode:IotHubUnauthorizedAccess;no"}"#,
                "no (HTTP 401 Unauthorized, error code IotHubUnauthorizedAccess)",
            ),
            (r#"{"errorMessage":"gone","networkError":true}"#, "gone (HTTP 401 Unauthorized)"),
            ("", "HTTP error 401 Unauthorized"),
            ("<html>", "HTTP error 401 Unauthorized"),
            (r#"{"message":null}"#, "HTTP error 401 Unauthorized"),
        ] {
            assert_eq!(refused(401, Subject::Device, body).to_string(), text, "{body}");
        }
    }

    #[test]
    fn foreign_text_is_short_and_harmless() {
        let long = "x".repeat(100_000);
        let inner = format!(r#"{{\"errorCode\":\"{long}\",\"trackingId\":\"{long}\",\"message\":\"{long}\"}}"#);
        for body in [
            format!(r#"{{"message":"{long}","trackingId":"{long}","code":"{long}"}}"#),
            format!(r#"{{"Message":"{inner}"}}"#),
            format!(r#"{{"Message":"ErrorCode:{long};{long}"}}"#),
        ] {
            let text = refused(500, Subject::Device, &body).to_string();
            assert!((600..1_100).contains(&text.len()), "{}", text.len());
        }
        let forged = r#"{"message":"a\ncaused by: b\u001b[31m","trackingId":"t\r\n","code":"c\u0007"}"#;
        let text = refused(500, Subject::Device, forged).to_string();
        assert!(!text.contains(char::is_control), "{text:?}");
        let odd = refused(500, Subject::Device, r#"{"message":"Gerät 機器"}"#).to_string();
        assert!(odd.starts_with("Gerät 機器 (HTTP 500"), "{odd}");
    }

    #[test]
    fn each_failure_means_one_thing() {
        use Subject::{Device, Module};
        let meaning = |error: &Error| (error.is_offline(), error.is_device_rejected(), error.is_module_missing());
        for (status, subject, body, expected) in [
            (401, Module, "", (false, true, false)),
            (403, Device, "", (false, true, false)),
            (404, Device, "", (false, true, false)),
            (404, Module, "", (false, false, true)),
            (404, Module, r#"{"errorCode":404001}"#, (false, true, false)),
            (404, Module, r#"{"Message":"ErrorCode:DeviceNotFound;x"}"#, (false, true, false)),
            (404, Module, r#"{"Message":"ErrorCode:ModuleNotFound;x"}"#, (false, false, true)),
            (409, Module, "", (false, false, false)),
            (412, Module, "", (false, false, false)),
            (429, Device, "", (true, false, false)),
            (500, Device, "", (true, false, false)),
            (502, Device, "<html>", (true, false, false)),
            (503, Device, "", (true, false, false)),
            (401, Device, r#"{"errorMessage":"x","networkError":true}"#, (true, false, false)),
            (404, Module, r#"{"errorMessage":"x","networkError":true}"#, (true, false, false)),
        ] {
            assert_eq!(meaning(&refused(status, subject, body)), expected, "{status} {body}");
        }
        let untrusted = Error::Untrusted { host: "h".into(), source: "expired".into() };
        assert_eq!(meaning(&untrusted), (false, false, false));
        let timed_out = Error::TimedOut { host: "h".into(), limit: Duration::from_secs(70) };
        assert_eq!(meaning(&timed_out), (true, false, false));
    }
}
