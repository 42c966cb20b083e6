//! Answers of EST servers: the forms that the specification lists, and bytes that are none.

use aziot_pki::pkcs7::{Pkcs7Error, certificates, from_certificates};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{nid::Nid, x509::X509};
use proptest::prelude::*;

use crate::{
    support::{CA, new_ec, openssl},
    tls_server::{Traits, certify},
};

fn authority() -> X509 {
    X509::from_pem(CA.as_bytes()).unwrap()
}

fn bytes(certificates: &[X509]) -> Vec<Vec<u8>> {
    certificates.iter().map(|certificate| certificate.to_der().unwrap()).collect()
}

fn wrapped(text: &str, end: &str) -> String {
    text.as_bytes().chunks(64).fold(String::new(), |all, line| all + std::str::from_utf8(line).unwrap() + end)
}

#[test]
fn the_form_of_the_openssl_program_is_written_and_read() {
    let pem = openssl(&[("ca.pem", CA)], &["crl2pkcs7", "-nocrl", "-certfile", "ca.pem"]);
    let found = certificates(pem.as_bytes()).unwrap();
    assert_eq!(bytes(&found), bytes(&[authority()]));
    let structure = from_certificates(&found).unwrap();
    assert_eq!(structure.len(), 382);
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    assert_eq!(STANDARD.encode(&structure), body);
}

#[test]
fn every_form_of_the_list_is_read() {
    let structure = from_certificates(&[authority()]).unwrap();
    let text = STANDARD.encode(&structure);
    let pem = |label: &str| format!("-----BEGIN {label}-----\n{}-----END {label}-----\n", wrapped(&text, "\n"));
    let forms = [
        text.clone(),
        wrapped(&text, "\n"),
        wrapped(&text, "\r\n"),
        format!("\r\n\t {}", wrapped(&text, " \x0b\n")),
        text.trim_end_matches('=').to_owned(),
        pem("PKCS7"),
        pem("PKCS #7 SIGNED DATA"),
        pem("CERTIFICATE"),
        format!("subject=x\n{CA_KEY}{}", pem("PKCS7").replace('\n', "\r\n")),
    ];
    for form in &forms {
        assert_eq!(bytes(&certificates(form.as_bytes()).unwrap()), bytes(&[authority()]), "{form}");
    }
    assert!(text.ends_with('='), "the unpadded form is another");
    assert_eq!(bytes(&certificates(&structure).unwrap()), bytes(&[authority()]), "DER");
}

/// Another kind of block, in front.
const CA_KEY: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";

#[test]
fn order_and_repetitions_are_kept() {
    let key = new_ec(Nid::X9_62_PRIME256V1);
    let names = ["z", "a", "m", "a"];
    let list: Vec<_> = names.iter().map(|name| certify(name, &key, None, Traits::default())).collect();
    let repeated = [&list[..], &list[1..2]].concat();
    let found = certificates(&from_certificates(&repeated).unwrap()).unwrap();
    assert_eq!(bytes(&found), bytes(&repeated));
}

#[test]
fn no_certificates_are_an_empty_list() {
    // SignedData without content; with an empty list; plain data; encrypted data without content.
    let without_content = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02".to_vec();
    let data = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01".to_vec();
    let encrypted = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x06".to_vec();
    for structure in [without_content, data, encrypted, from_certificates(&[]).unwrap()] {
        assert_eq!(certificates(&structure).unwrap().len(), 0);
        assert_eq!(certificates(STANDARD.encode(&structure).as_bytes()).unwrap().len(), 0);
    }
}

#[test]
fn indefinite_lengths_are_read() {
    let mut structure = from_certificates(&[authority()]).unwrap();
    assert_eq!(structure[..4], [0x30, 0x82, 0x01, 0x7a]);
    structure.splice(..4, [0x30, 0x80]);
    structure.extend([0, 0]);
    assert_eq!(bytes(&certificates(&structure).unwrap()), bytes(&[authority()]));
}

#[test]
fn what_is_none_is_told_apart() {
    assert!(matches!(certificates(b""), Err(Pkcs7Error::Empty)));
    assert!(matches!(certificates(b" \r\n\t"), Err(Pkcs7Error::Empty)));
    assert!(matches!(certificates(CA.as_bytes()), Err(Pkcs7Error::Malformed(_))), "plain certificates");
    assert!(matches!(certificates(CA_KEY.as_bytes()), Err(Pkcs7Error::NoBlock)));
    assert!(matches!(certificates(b"-----BEGIN PKCS7-----\nMA"), Err(Pkcs7Error::Pem(_))));
    assert!(matches!(certificates(b"<html>busy</html>"), Err(Pkcs7Error::NotBase64)));
    assert!(matches!(certificates(b"MIIC-_=="), Err(Pkcs7Error::NotBase64)));
    assert!(matches!(certificates(&authority().to_der().unwrap()), Err(Pkcs7Error::Malformed(_))), "a certificate");
    assert!(matches!(certificates(b"aGVsbG8="), Err(Pkcs7Error::Malformed(_))));
    assert!(matches!(certificates(&[0xff, 0xfe, 0x00]), Err(Pkcs7Error::NotBase64)));
}

#[test]
fn floods_are_refused() {
    let many = vec![authority(); 101];
    let structure = from_certificates(&many).unwrap();
    assert!(matches!(certificates(&structure), Err(Pkcs7Error::TooMany { count: 101 })));
    assert_eq!(certificates(&from_certificates(&many[1..]).unwrap()).unwrap().len(), 100);
    assert!(matches!(certificates(&vec![b'M'; 1024 * 1024 + 1]), Err(Pkcs7Error::TooLong { .. })));
    assert!(matches!(certificates(&vec![b' '; 1024 * 1024]), Err(Pkcs7Error::Empty)));
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = certificates(&bytes);
    }

    #[test]
    fn damaged_answers_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        form in 0..3,
    ) {
        let structure = from_certificates(&[authority(), authority()]).unwrap();
        let mut bytes = match form {
            0 => structure,
            1 => STANDARD.encode(structure).into_bytes(),
            _ => format!("-----BEGIN PKCS7-----\n{}\n-----END PKCS7-----\n", STANDARD.encode(structure)).into_bytes(),
        };
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(found) = certificates(&bytes) {
            prop_assert!(found.len() <= 2);
        }
    }
}
