//! Answers with certificates: PKCS#7 "certs-only" in base64 (RFC 7030, sections 4.1.3 and 4.2.3), and all the odd forms on demand.

use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use openssl::error::ErrorStack;
use openssl::x509::X509;

use crate::faults::Form;

const MEDIA_TYPE: &str = "application/pkcs7-mime; smime-type=certs-only";
const ODD_MEDIA_TYPE: &str = "Application/PKCS7-MIME ; smime-type=certs-only";
const TRANSFER_ENCODING: HeaderName = HeaderName::from_static("content-transfer-encoding");
const LINE: usize = 64;
const HUGE_BYTES: usize = 2 << 20;
/// `SignedData` without any content, which is legal ASN.1 and says nothing.
const NO_CONTENT: &[u8] = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";

/// These certificates, in the right form or the one that is asked for.
pub(crate) fn certificates(certificates: &[X509], form: Option<Form>) -> Result<Response, ErrorStack> {
    let der = match form {
        Some(Form::NoContent) => NO_CONTENT.to_vec(),
        Some(Form::GarbageDer) => b"no structure of ASN.1".to_vec(),
        Some(Form::Huge) => vec![0x30; HUGE_BYTES],
        _ => degenerate(certificates)?,
    };
    let body = match form {
        Some(Form::Crlf) => lines(&STANDARD.encode(&der), "\r\n"),
        Some(Form::OneLine) => STANDARD.encode(&der).into_bytes(),
        Some(Form::Unpadded) => lines(&STANDARD_NO_PAD.encode(&der), "\n"),
        Some(Form::Der) => der,
        Some(Form::Pem) => {
            let mut pem = b"-----BEGIN PKCS7-----\n".to_vec();
            pem.extend(lines(&STANDARD.encode(&der), "\n"));
            pem.extend(b"-----END PKCS7-----\n");
            pem
        }
        Some(Form::PlainPem) => {
            certificates.iter().map(|certificate| certificate.to_pem()).collect::<Result<Vec<_>, _>>()?.concat()
        }
        Some(Form::Garbage) => b"no base64 at all, {]\0\xff".to_vec(),
        Some(Form::Empty) => Vec::new(),
        _ => lines(&STANDARD.encode(&der), "\n"),
    };
    let media_type = match form {
        Some(Form::WrongMediaType) => Some("text/plain"),
        Some(Form::OddMediaType) => Some(ODD_MEDIA_TYPE),
        Some(Form::NoMediaType) => None,
        _ => Some(MEDIA_TYPE),
    };
    let mut response = (StatusCode::OK, [(TRANSFER_ENCODING, "base64")], body).into_response();
    match media_type {
        Some(media_type) => response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type)),
        None => response.headers_mut().remove(CONTENT_TYPE),
    };
    Ok(response)
}

/// Base64 in lines, the last of which ends too.
fn lines(base64: &str, end: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(base64.len() + base64.len() / LINE * end.len() + end.len());
    for line in base64.as_bytes().chunks(LINE) {
        bytes.extend(line);
        bytes.extend(end.as_bytes());
    }
    bytes
}

/// `SignedData` that nobody signed, only there for its certificates; in their order.
fn degenerate(certificates: &[X509]) -> Result<Vec<u8>, ErrorStack> {
    const SIGNED_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
    const DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
    const VERSION_1: &[u8] = b"\x02\x01\x01";
    const EMPTY_SET: &[u8] = b"\x31\x00";
    let certificates = certificates.iter().map(|certificate| certificate.to_der()).collect::<Result<Vec<_>, _>>()?;
    let signed_data =
        [VERSION_1, EMPTY_SET, &tagged(0x30, DATA), &tagged(0xa0, &certificates.concat()), EMPTY_SET].concat();
    Ok(tagged(0x30, &[SIGNED_DATA, &tagged(0xa0, &tagged(0x30, &signed_data))].concat()))
}

/// One value of DER.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match (content.len(), u8::try_from(significant.len())) {
        (0..0x80, _) => bytes.extend(if significant.is_empty() { &[0] } else { significant }),
        (_, Ok(count)) => {
            bytes.push(0x80 | count);
            bytes.extend(significant);
        }
        (_, Err(_)) => unreachable!("a length has at most eight bytes"),
    }
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use openssl::pkcs7::Pkcs7;

    use super::super::authority::tests::authorities;
    use super::*;

    async fn answer(form: Option<Form>) -> (Option<String>, Vec<u8>) {
        let authorities = authorities();
        let issuers = authorities.issuers().map(Clone::clone);
        let response = certificates(&issuers, form).unwrap();
        let media_type = response.headers().get(CONTENT_TYPE).map(|text| text.to_str().unwrap().to_owned());
        (media_type, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    fn parse(der: &[u8]) -> Vec<X509> {
        let Ok(pkcs7) = Pkcs7::from_der(der) else { return Vec::new() };
        let certificates = pkcs7.signed().and_then(|signed| signed.certificates());
        certificates.into_iter().flatten().map(ToOwned::to_owned).collect()
    }

    fn decode(body: &[u8]) -> Vec<X509> {
        let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        parse(&STANDARD.decode(text).unwrap())
    }

    #[test]
    fn openssl_reads_them_in_their_order() {
        let authorities = authorities();
        let [issuing, root] = authorities.issuers();
        for order in [vec![root, issuing], vec![issuing, root, issuing], vec![]] {
            let certificates: Vec<_> = order.into_iter().cloned().collect();
            let parsed = parse(&degenerate(&certificates).unwrap());
            assert!(parsed.iter().zip(&certificates).all(|(one, other)| one == other));
            assert_eq!(parsed.len(), certificates.len());
        }
        assert!(Pkcs7::from_der(&degenerate(&[]).unwrap()).is_ok());
    }

    #[tokio::test]
    async fn each_form_is_odd_in_its_own_way() {
        let (media_type, body) = answer(None).await;
        assert_eq!((media_type.as_deref(), decode(&body).len()), (Some(MEDIA_TYPE), 2));
        assert!(body.split(|byte| *byte == b'\n').all(|line| line.len() <= LINE) && body.ends_with(b"\n"));
        let crlf = answer(Some(Form::Crlf)).await.1;
        assert!(crlf.ends_with(b"\r\n") && decode(&crlf).len() == 2);
        assert!(!answer(Some(Form::OneLine)).await.1.contains(&b'\n'));
        assert_eq!(parse(&answer(Some(Form::Der)).await.1).len(), 2);
        assert!(answer(Some(Form::Pem)).await.1.starts_with(b"-----BEGIN PKCS7-----\n"));
        assert_eq!(X509::stack_from_pem(&answer(Some(Form::PlainPem)).await.1).unwrap().len(), 2);
        assert!(answer(Some(Form::Huge)).await.1.len() > HUGE_BYTES);
        assert!(answer(Some(Form::Empty)).await.1.is_empty());
        assert_eq!(answer(Some(Form::WrongMediaType)).await.0.as_deref(), Some("text/plain"));
        assert_eq!(answer(Some(Form::NoMediaType)).await.0, None);
        let no_content = answer(Some(Form::NoContent)).await.1;
        assert_eq!(STANDARD.decode(no_content.trim_ascii()).unwrap(), NO_CONTENT);
        assert!(decode(&no_content).is_empty());
    }
}
