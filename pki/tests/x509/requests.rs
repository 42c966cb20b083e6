//! Requests: made ones please OpenSSL, foreign ones are taken or refused as the specification says.

use aziot_pki::{
    Extension, OctetString, name,
    request::{Request, RequestError, create},
};
use der::Encode as _;
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    x509::{X509Name, X509Req, X509ReqBuilder},
};

use crate::support::{CA_SCALAR, Keyd, LEAF_SCALAR, REQUEST, new_rsa, openssl, p256};

fn foreign(key: &PKey<Private>, signer: &PKey<Private>) -> X509Req {
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", "foreign").unwrap();
    let mut builder = X509ReqBuilder::new().unwrap();
    builder.set_subject_name(&name.build()).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.sign(signer, MessageDigest::sha256()).unwrap();
    builder.build()
}

fn pem(request: &X509Req) -> String {
    String::from_utf8(request.to_pem().unwrap()).unwrap()
}

#[tokio::test]
async fn own_requests_please_openssl_and_are_read_back() {
    let keyd = Keyd::start([("ec", p256(LEAF_SCALAR)), ("rsa", new_rsa(2048))]);
    let subject = name::from_entries([("CN", "own"), ("O", "o")]).unwrap();
    let usage = Extension {
        extn_id: "2.5.29.15".parse().unwrap(),
        critical: true,
        extn_value: OctetString::new([3, 2, 5, 0xa0]).unwrap(),
    };
    for name in ["ec", "rsa"] {
        let key = keyd.key(name).await;
        let text = create(subject.clone(), std::slice::from_ref(&usage), &key).await.unwrap();
        let shown = openssl(&[("r", &text)], &["req", "-in", "r", "-verify", "-noout", "-text"]);
        assert!(shown.contains("Digital Signature, Key Encipherment"), "{shown}");
        let request = Request::from_pem(&text).unwrap();
        assert_eq!((request.subject(), request.extensions()), (&subject, std::slice::from_ref(&usage)));
        assert!(key.is_public_key(request.public_key_info()));

        let bare = create(subject.clone(), &[], &key).await.unwrap();
        let shown = openssl(&[("r", &bare)], &["req", "-in", "r", "-verify", "-noout", "-text"]);
        assert!(shown.contains("(none)"), "{shown}");
        assert!(Request::from_pem(&bare).unwrap().extensions().is_empty());
    }
}

#[test]
fn the_first_request_among_other_text_counts() {
    let vector = Request::from_pem(REQUEST).unwrap();
    assert_eq!(vector.extensions().len(), 3);
    let other = pem(&foreign(&p256(CA_SCALAR), &p256(CA_SCALAR)));
    let old = REQUEST.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST");
    let unrelated = REQUEST.replace("CERTIFICATE REQUEST", "SOMETHING");
    for text in [
        format!("Certificate Request:\n    Data\n{REQUEST}"),
        format!("{REQUEST}{other}"),
        old,
        format!("{unrelated}{REQUEST}"),
        REQUEST.replace('\n', "\r\n"),
    ] {
        assert_eq!(Request::from_pem(&text).unwrap().subject(), vector.subject(), "{text}");
    }
}

#[test]
fn unfit_requests_are_refused() {
    let key = p256(CA_SCALAR);
    let bare_base64: String = REQUEST.lines().filter(|line| !line.starts_with('-')).collect();
    let encrypted = REQUEST.replacen('\n', "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1);
    for text in ["", "hello", &bare_base64, &REQUEST.replace("CERTIFICATE REQUEST", "CERTIFICATE")] {
        assert!(matches!(Request::from_pem(text), Err(RequestError::Missing)), "{text}");
    }
    for text in [&REQUEST[..200], &REQUEST.replace("MIIBIDCB", "!!!!"), &encrypted] {
        assert!(matches!(Request::from_pem(text), Err(RequestError::Pem(_))), "{text}");
    }
    let cut = REQUEST.replace("9PSsqQ==\n", "");
    assert!(matches!(Request::from_pem(&cut), Err(RequestError::Malformed(_))));

    let error = Request::from_pem(&pem(&foreign(&key, &p256(LEAF_SCALAR)))).unwrap_err();
    assert_eq!(error.to_string(), "CSR failed to be verified with its public key");
    let weak = new_rsa(1024);
    assert!(matches!(Request::from_pem(&pem(&foreign(&weak, &weak))), Err(RequestError::WeakKey { bits: 1024 })));
    let strong = new_rsa(2048);
    assert!(Request::from_pem(&pem(&foreign(&strong, &strong))).is_ok());
}

/// The vector's request with another attribute type in place of PKCS #9's, or with other bytes in the attribute; signed anew.
fn with_attributes(attributes: &[u8]) -> String {
    use der::{Decode as _, asn1::BitString};
    use x509_cert::{attr::Attributes, request::CertReq};

    let mut request = CertReq::from_der(&foreign(&p256(LEAF_SCALAR), &p256(LEAF_SCALAR)).to_der().unwrap()).unwrap();
    request.info.attributes = Attributes::from_der(attributes).unwrap();
    let mut signer = openssl::sign::Signer::new(MessageDigest::sha256(), &p256(LEAF_SCALAR)).unwrap();
    let signature = signer.sign_oneshot_to_vec(&request.info.to_der().unwrap()).unwrap();
    request.signature = BitString::from_bytes(&signature).unwrap();
    pem(&X509Req::from_der(&request.to_der().unwrap()).unwrap())
}

fn set(content: &[u8], tag: u8) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

#[test]
fn both_kinds_of_extension_requests_count_and_broken_ones_are_absent() {
    const PKCS9: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";
    const MICROSOFT: &[u8] = b"\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x02\x01\x0e";
    const USAGE: &[u8] = b"\x30\x10\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x05\xa0";
    let attribute = |oid: &[u8], value: &[u8]| set(&[oid, &set(value, 0x31)].concat(), 0x30);
    let extensions = |attributes: &[Vec<u8>]| {
        let text = with_attributes(&set(&attributes.concat(), 0x31));
        Request::from_pem(&text).unwrap().extensions().len()
    };
    assert_eq!(extensions(&[attribute(PKCS9, USAGE)]), 1);
    assert_eq!(extensions(&[attribute(MICROSOFT, USAGE)]), 1);
    assert_eq!(extensions(&[attribute(PKCS9, b"\x02\x01\x05")]), 0);
    assert_eq!(extensions(&[attribute(PKCS9, b"\x02\x01\x05"), attribute(MICROSOFT, USAGE)]), 1);
    assert_eq!(extensions(&[]), 0);
}
