//! Certificates: the worked example byte for byte, clipping, and what is refused.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aziot_pki::{
    certificate::{self, Chain, DEFAULT_LIFETIME, IssueError, Issuer, Terms},
    name,
    request::{Request, create},
};
use der::{Decode as _, Encode as _};
use x509_cert::{Certificate, ext::Extension};

use crate::support::{CA, CA_SCALAR, Keyd, LEAF_SCALAR, REQUEST, new_rsa, openssl, p256};

const DAY: u64 = 86_400;
/// 2026-11-21T16:27:27Z.
const NOW: u64 = 1_795_278_447;

async fn issue(request: &Request, terms: &Terms, issuer: Issuer<'_>, now: SystemTime) -> Result<Chain, IssueError> {
    let text = certificate::issue(request, terms, issuer, now).await?;
    Ok(Chain::from_pem(&text).unwrap())
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn days(days: u64) -> Terms {
    Terms { lifetime: Duration::from_secs(days * DAY), subject: None }
}

fn parsed(chain: &Chain) -> Certificate {
    Certificate::from_der(&chain.leaf().unwrap().to_der().unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn extensions(certificate: &Certificate) -> Vec<(String, bool, String)> {
    let shown = |extension: &Extension| {
        (extension.extn_id.to_string(), extension.critical, hex(extension.extn_value.as_bytes()))
    };
    certificate.tbs_certificate().extensions().unwrap().iter().map(shown).collect()
}

fn owned(extensions: &[(&str, bool, &str)]) -> Vec<(String, bool, String)> {
    extensions.iter().map(|(oid, critical, value)| ((*oid).to_owned(), *critical, (*value).to_owned())).collect()
}

fn ends(chain: &Chain) -> (u64, u64) {
    let validity = *parsed(chain).tbs_certificate().validity();
    (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs())
}

const REQUESTED: [(&str, bool, &str); 4] = [
    ("2.5.29.15", true, "030205a0"),
    ("2.5.29.37", false, "300a06082b06010505070302"),
    ("2.5.29.17", false, "300e820c6c6561662e6578616d706c65"),
    ("2.5.29.14", false, "04141b1cef91165d21680c650fb88582634c84bf62ee"),
];

#[tokio::test]
async fn the_worked_example_of_a_local_ca() {
    let keyd = Keyd::start([("ca", p256(CA_SCALAR))]);
    let (key, ca, request) = (keyd.key("ca").await, Chain::from_pem(CA).unwrap(), Request::from_pem(REQUEST).unwrap());
    let chain = issue(&request, &days(90), Issuer::Authority(&ca, &key), at(NOW)).await.unwrap();

    let text = chain.to_pem().unwrap();
    assert!(text.ends_with(CA), "the leaf, then the authority as it was");
    assert_eq!(chain.certificates().len(), 2);
    let certificate = parsed(&chain);
    let tbs = certificate.tbs_certificate();
    assert_eq!(tbs.version() as u8, 2);
    assert_eq!(hex(&tbs.issuer().to_der().unwrap()), "30143112301006035504030c09566563746f72204341");
    assert_eq!(hex(&tbs.subject().to_der().unwrap()), "30163114301206035504030c0b766563746f722d6c656166");
    assert_eq!(hex(&tbs.validity().not_before.to_der().unwrap()), hex(b"\x17\x0d261121162227Z"));
    assert_eq!(hex(&tbs.validity().not_after.to_der().unwrap()), hex(b"\x17\x0d270219162727Z"));
    assert_eq!(certificate.signature_algorithm().oid.to_string(), "1.2.840.10045.4.3.2");
    let mut expected = owned(&REQUESTED);
    expected.push(("2.5.29.35".into(), false, "301680142d88da123a947f91b5f434738120b4f2958013db".into()));
    assert_eq!(extensions(&certificate), expected);

    let again = issue(&request, &days(90), Issuer::Authority(&ca, &key), at(NOW)).await.unwrap();
    let serial = |chain: &Chain| chain.leaf().unwrap().serial_number().to_bn().unwrap();
    assert_ne!(serial(&chain), serial(&again));
    assert!(!serial(&chain).is_negative() && serial(&chain).num_bits() > 64 && serial(&chain).num_bits() <= 128);

    let leaf = text.strip_suffix(CA).unwrap();
    let time = NOW.to_string();
    let arguments = ["verify", "-attime", &time, "-CAfile", "ca", "leaf"];
    assert_eq!(openssl(&[("ca", CA), ("leaf", leaf)], &arguments), "leaf: OK\n");
}

#[tokio::test]
async fn the_worked_example_self_signed() {
    let keyd = Keyd::start([("ca", p256(CA_SCALAR)), ("leaf", p256(LEAF_SCALAR))]);
    let request = Request::from_pem(REQUEST).unwrap();
    for name in ["ca", "leaf"] {
        let key = keyd.key(name).await;
        let chain = issue(&request, &Terms::default(), Issuer::Itself(&key), at(NOW)).await.unwrap();
        assert_eq!(chain.certificates().len(), 1);
        let certificate = parsed(&chain);
        assert_eq!(certificate.tbs_certificate().issuer(), certificate.tbs_certificate().subject());
        assert_eq!(extensions(&certificate), owned(&REQUESTED));
        assert!(chain.leaf().unwrap().verify(key.public_key()).unwrap(), "{name}");
        assert_eq!(ends(&chain).1, NOW + DEFAULT_LIFETIME.as_secs());
    }
}

#[tokio::test]
async fn lifetimes_are_clipped_to_the_shortest_of_the_chain_and_encoded_by_their_year() {
    let keyd = Keyd::start([("root", p256(CA_SCALAR)), ("middle", new_rsa(2048))]);
    let (root_key, middle_key) = (keyd.key("root").await, keyd.key("middle").await);
    let request = Request::from_pem(REQUEST).unwrap();
    let own = |subject| create(name::from_entries([("CN", subject)]).unwrap(), &[], &middle_key);
    let middle_request = Request::from_pem(&own("middle").await.unwrap()).unwrap();
    let root = Chain::from_pem(CA).unwrap();

    // The authority lasts longer than its own issuer.
    let root_request = create(name::from_entries([("CN", "root")]).unwrap(), &[], &root_key).await.unwrap();
    let short = Request::from_pem(&root_request).unwrap();
    let short = issue(&short, &days(20), Issuer::Itself(&root_key), at(NOW)).await.unwrap();
    let long = issue(&middle_request, &days(4000), Issuer::Authority(&root, &root_key), at(NOW)).await.unwrap();
    let text = format!("{}{}", &long.to_pem().unwrap().strip_suffix(CA).unwrap(), short.to_pem().unwrap());
    let mixed = Chain::from_pem(&text).unwrap();

    for (chain, key, terms, end) in [
        (&short, &root_key, Terms::default(), 20),
        (&short, &root_key, days(4000), 20),
        (&short, &root_key, days(5), 5),
        (&mixed, &middle_key, days(90), 20),
        (&long, &middle_key, days(90), 90),
    ] {
        let issued = issue(&request, &terms, Issuer::Authority(chain, key), at(NOW)).await.unwrap();
        assert_eq!(ends(&issued), (NOW - 300, NOW + end * DAY));
        assert_eq!(issued.certificates().len(), chain.certificates().len() + 1);
    }

    let far = issue(&request, &days(30 * 365), Issuer::Itself(&root_key), at(NOW)).await.unwrap();
    let not_after = parsed(&far).tbs_certificate().validity().not_after.to_der().unwrap();
    assert_eq!(not_after[..2], [0x18, 15], "GeneralizedTime from 2050 on");
    let too_far = issue(&request, &days(u64::from(u32::MAX)), Issuer::Itself(&root_key), at(NOW)).await.unwrap();
    assert_eq!(
        hex(&parsed(&too_far).tbs_certificate().validity().not_after.to_der().unwrap()),
        hex(b"\x18\x0f99991231235959Z")
    );
    let no_clock = issue(&request, &days(1), Issuer::Itself(&root_key), at(100)).await.unwrap();
    assert_eq!(ends(&no_clock), (0, 100 + DAY));
}

#[tokio::test]
async fn an_rsa_authority_without_key_identifier_and_a_configured_subject() {
    let keyd = Keyd::start([("rsa", new_rsa(2048))]);
    let key = keyd.key("rsa").await;
    let files = [("x", "[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN=old\n")];
    // OpenSSL's own key: the certificate is foreign to ours in every way but that it is valid.
    let foreign = openssl(
        &files,
        &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-config", "x", "-days", "9"],
    );
    let request = Request::from_pem(REQUEST).unwrap();
    let foreign = Chain::from_pem(&foreign).unwrap();
    let refused = issue(&request, &days(1), Issuer::Authority(&foreign, &key), SystemTime::now()).await;
    assert!(matches!(refused, Err(IssueError::ForeignKey { subject }) if subject.contains("old")));

    let subject = name::from_entries([("CN", "configured"), ("O", "o")]).unwrap();
    let terms = Terms { lifetime: Duration::from_secs(DAY), subject: Some(subject.clone()) };
    let chain = issue(&request, &terms, Issuer::Itself(&key), SystemTime::now()).await.unwrap();
    assert_eq!(parsed(&chain).tbs_certificate().subject(), &subject);
    assert_eq!(parsed(&chain).tbs_certificate().issuer(), &subject);
    let shown = openssl(&[("c", &chain.to_pem().unwrap())], &["x509", "-in", "c", "-noout", "-text"]);
    assert!(shown.contains("sha256WithRSAEncryption") && shown.contains("O = o") || shown.contains("O=o"), "{shown}");
}

#[tokio::test]
async fn the_authority_key_identifier_is_always_the_real_one() {
    let keyd = Keyd::start([("ca", p256(CA_SCALAR))]);
    let key = keyd.key("ca").await;
    let foreign = |oid: &str, value: &[u8]| Extension {
        extn_id: oid.parse().unwrap(),
        critical: false,
        extn_value: aziot_pki::OctetString::new(value).unwrap(),
    };
    let wanted = [foreign("2.5.29.35", b"\x30\x03\x80\x01\x07"), foreign("2.5.29.14", b"\x04\x01\x09")];
    let request = create(name::from_entries([("CN", "x")]).unwrap(), &wanted, &key).await.unwrap();
    let request = Request::from_pem(&request).unwrap();
    let ca = Chain::from_pem(CA).unwrap();
    let issued = issue(&request, &days(1), Issuer::Authority(&ca, &key), at(NOW)).await.unwrap();
    let real = ("2.5.29.35", false, "301680142d88da123a947f91b5f434738120b4f2958013db");
    assert_eq!(extensions(&parsed(&issued)), owned(&[real, ("2.5.29.14", false, "040109")]));
    let own = issue(&request, &days(1), Issuer::Itself(&key), at(NOW)).await.unwrap();
    assert_eq!(extensions(&parsed(&own))[0].2, "3003800107", "nobody else issues it, so nobody knows better");
}

#[tokio::test]
async fn what_would_be_worthless_is_not_issued() {
    let keyd = Keyd::start([("ca", p256(CA_SCALAR)), ("leaf", p256(LEAF_SCALAR))]);
    let (key, request, ca) = (keyd.key("ca").await, Request::from_pem(REQUEST).unwrap(), Chain::from_pem(CA).unwrap());
    let refused = async |chain: &Chain, now| {
        issue(&request, &days(1), Issuer::Authority(chain, &key), at(now)).await.unwrap_err()
    };
    assert!(matches!(refused(&Chain::default(), NOW).await, IssueError::NoIssuer));
    // 2049-01-01.
    let end = 2_493_072_000;
    let error = refused(&ca, end).await;
    assert!(matches!(error, IssueError::Expired { .. }) && error.to_string().contains("CN=Vector CA"), "{error}");
    assert!(issue(&request, &days(1), Issuer::Authority(&ca, &key), at(end - 1)).await.is_ok());

    let other = keyd.key("leaf").await;
    let error = issue(&request, &days(1), Issuer::Authority(&ca, &other), at(NOW)).await.unwrap_err();
    assert!(matches!(error, IssueError::ForeignKey { .. }));

    keyd.lie();
    assert!(matches!(refused(&ca, NOW).await, IssueError::Unverified));
    let error = issue(&request, &days(1), Issuer::Itself(&key), at(NOW)).await.unwrap_err();
    assert!(matches!(error, IssueError::Unverified));
}

#[tokio::test]
async fn whoever_asks_for_a_ca_gets_one_and_openssl_follows_the_chain() {
    let keyd = Keyd::start([("root", new_rsa(2048)), ("middle", p256(CA_SCALAR)), ("leaf", p256(LEAF_SCALAR))]);
    let (root_key, middle_key) = (keyd.key("root").await, keyd.key("middle").await);
    let extension = |oid: &str, value: &[u8]| Extension {
        extn_id: oid.parse().unwrap(),
        critical: true,
        extn_value: aziot_pki::OctetString::new(value).unwrap(),
    };
    let authority = [extension("2.5.29.19", b"\x30\x03\x01\x01\xff"), extension("2.5.29.15", b"\x03\x02\x02\x04")];
    let request = async |name, key| {
        let text = create(name::from_entries([("CN", name)]).unwrap(), &authority, key).await.unwrap();
        Request::from_pem(&text).unwrap()
    };
    let (of_root, of_middle) = (request("root", &root_key).await, request("middle", &middle_key).await);
    let root = issue(&of_root, &days(9), Issuer::Itself(&root_key), at(NOW)).await.unwrap();
    let middle = issue(&of_middle, &days(8), Issuer::Authority(&root, &root_key), at(NOW)).await.unwrap();
    let leaf = Request::from_pem(REQUEST).unwrap();
    let leaf = issue(&leaf, &days(7), Issuer::Authority(&middle, &middle_key), at(NOW)).await.unwrap();
    assert_eq!(leaf.certificates().len(), 3);
    let (root, chain, time) = (root.to_pem().unwrap(), leaf.to_pem().unwrap(), NOW.to_string());
    let files = [("root", root.as_str()), ("chain", &chain)];
    let arguments = ["verify", "-x509_strict", "-attime", &time, "-CAfile", "root", "-untrusted", "chain", "chain"];
    assert_eq!(openssl(&files, &arguments), "chain: OK\n");
}

#[test]
fn chains_are_read_from_any_text_and_written_as_one() {
    let old = CA.replace("CERTIFICATE", "X509 CERTIFICATE");
    let other = CA.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let chain = Chain::from_pem(&format!("free text\n{old}\n{other}{}", CA.trim_end())).unwrap();
    assert_eq!(chain.to_pem().unwrap(), [CA, CA].concat());
    assert!(Chain::from_pem("").unwrap().is_empty() && Chain::from_pem(&other).unwrap().leaf().is_none());
    for broken in [&CA[..200], &CA.replace("MIIBSz", "MIIBSy"), &CA.replace("MIIBSz", "-----")] {
        assert!(Chain::from_pem(broken).is_err(), "{broken}");
    }
}
