//! What EST servers answer: a list of certificates, a request to come back later, or a refusal (RFC 7030, 4.1.3 and 4.2.3).
//!
//! Read generously, because servers differ in form; whether the certificates are the right ones is not asked here.

use std::time::{Duration, SystemTime};

use aziot_pki::pkcs7::{self, Pkcs7Error};
use http::{HeaderMap, Response, header};
use hyper::body::Bytes;
use jiff::{Timestamp, fmt::rfc2822};
use openssl::x509::X509;

const MEDIA_TYPE: &str = "application/pkcs7-mime";
/// Characters of a refusal that go into the log.
const EXCERPT: usize = 300;
/// How soon one comes back where the server does not say.
const DEFAULT_PAUSE: Duration = Duration::from_secs(30);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Some servers wait for a person to approve; it is asked for often enough to be of use then.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// An answer that is not an error.
pub(crate) enum Answer {
    /// In order of appearance.
    Certificates(Vec<X509>),
    /// The request is taken and not decided on; it is to be sent again after this time.
    NotYet(Duration),
}

/// An answer that is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// Another status than 200 and 202.
    #[error("the server answered {status}: {text:?}")]
    Status { status: u16, text: String, retry_after: Option<Duration> },
    /// More than a list of certificates can be.
    #[error("the server's answer has more than {limit} bytes")]
    TooLong { limit: usize },
    /// Something else than PKCS#7, such as a page of text.
    #[error("the server answered with the media type {media_type:?}, not with {MEDIA_TYPE}")]
    MediaType { media_type: String },
    /// A list without certificates, where some are needed.
    #[error("the server's list of certificates is empty")]
    Empty,
    /// No PKCS#7 after all.
    #[error("the server's answer holds no certificates")]
    Malformed(#[source] Pkcs7Error),
}

/// Reads a whole answer.
pub(crate) fn read(answer: &Response<Bytes>, now: SystemTime) -> Result<Answer, Unusable> {
    let retry_after = retry_after(answer.headers(), now);
    match answer.status().as_u16() {
        200 => {}
        202 => {
            let pause = retry_after.unwrap_or(DEFAULT_PAUSE);
            return Ok(Answer::NotYet(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)));
        }
        status => return Err(Unusable::Status { status, text: excerpt(answer.body()), retry_after }),
    }
    let media_type = answer.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let media_type = String::from_utf8_lossy(media_type);
    let bare = media_type.split(';').next().unwrap_or_default().trim();
    if !bare.eq_ignore_ascii_case(MEDIA_TYPE) {
        return Err(Unusable::MediaType { media_type: excerpt(media_type.as_bytes()) });
    }
    pkcs7::certificates(answer.body()).map(Answer::Certificates).map_err(Unusable::Malformed)
}

/// Seconds, or a date (RFC 9110, section 10.2.3); a date that has passed is no time at all.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date: Timestamp = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(SystemTime::from(date).duration_since(now).unwrap_or_default())
}

/// The beginning of a foreign text, on one line.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * EXCERPT)]);
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;
    use crate::test_vectors::CA;

    fn answer(status: u16, media_type: Option<&str>, body: &[u8]) -> Response<Bytes> {
        let mut answer = Response::builder().status(status);
        if let Some(media_type) = media_type {
            answer = answer.header(header::CONTENT_TYPE, media_type);
        }
        answer.body(Bytes::copy_from_slice(body)).unwrap()
    }

    fn one_certificate() -> String {
        let certificate = X509::from_pem(CA.as_bytes()).unwrap();
        STANDARD.encode(pkcs7::from_certificates(&[certificate]).unwrap())
    }

    #[test]
    fn media_types_are_read_generously() {
        let body = one_certificate();
        for media_type in [
            "application/pkcs7-mime",
            "application/pkcs7-mime; smime-type=certs-only",
            "Application/PKCS7-MIME",
            "application/pkcs7-mime ; x",
        ] {
            let read = read(&answer(200, Some(media_type), body.as_bytes()), UNIX_EPOCH);
            assert!(matches!(read, Ok(Answer::Certificates(list)) if list.len() == 1), "{media_type}");
        }
        for media_type in [None, Some("text/html"), Some("application/pkcs7-mimes"), Some("application/pkcs10")] {
            let read = read(&answer(200, media_type, body.as_bytes()), UNIX_EPOCH);
            assert!(matches!(read, Err(Unusable::MediaType { .. })), "{media_type:?}");
        }
    }

    #[test]
    fn only_200_has_certificates() {
        let body = one_certificate();
        for status in [201, 204, 301, 401, 404, 503] {
            let read = read(&answer(status, Some(MEDIA_TYPE), body.as_bytes()), UNIX_EPOCH);
            assert!(matches!(read, Err(Unusable::Status { status: told, .. }) if told == status));
        }
        let garbage = read(&answer(200, Some(MEDIA_TYPE), b"<html>"), UNIX_EPOCH);
        assert!(matches!(garbage, Err(Unusable::Malformed(_))));
    }

    #[test]
    fn one_comes_back_when_the_server_says() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        for (text, seconds) in [
            (Some("7"), 7),
            (Some("0"), 1),
            (Some("86400"), 3600),
            (Some("Sun, 06 Nov 1994 08:49:37 GMT"), 77),
            (Some("Sun, 06 Nov 1904 08:49:37 GMT"), 1),
            (Some("soon"), 30),
            (None, 30),
        ] {
            let mut answer = answer(202, None, b"");
            if let Some(text) = text {
                answer.headers_mut().insert(header::RETRY_AFTER, text.parse().unwrap());
            }
            let Ok(Answer::NotYet(pause)) = read(&answer, now) else { panic!("{text:?}") };
            assert_eq!(pause.as_secs(), seconds, "{text:?}");
        }
    }

    #[test]
    fn of_a_refusal_only_the_beginning_is_kept() {
        let body = format!("first\r\n\tline\0{}", "x".repeat(10_000));
        let Err(Unusable::Status { text, .. }) = read(&answer(500, None, body.as_bytes()), UNIX_EPOCH) else {
            panic!("no error");
        };
        assert!(text.starts_with("first line\0x") && text.chars().count() == EXCERPT);
    }
}
