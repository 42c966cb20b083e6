//! Requests and issuers that are wrong, and lists that turn in circles, through the sockets: the specified answer, a word in the log, nothing
//! stored, and the next caller is served.
//!
//! What an EST server may send is in `est_faults.rs`, damaged keys and settings in `bad_files.rs`.

use std::{fmt::Write as _, fs, time::Instant};

use anyhow::{Result, ensure};
use aziot_tests::{Daemon, World, calls::VERSION, device::write_private, openssl as program, raw};
use openssl::{
    asn1::{Asn1Object, Asn1OctetString, Asn1Time},
    bn::BigNum,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
    stack::Stack,
    x509::{X509, X509Builder, X509Extension, X509Name, X509NameBuilder, X509ReqBuilder, extension::BasicConstraints},
};
use serde_json::{Value, json};

const INTERNAL: &str = r#"{"message":"internal error"}"#;
const DAY: i64 = 86_400;

fn ec_key(curve: Nid) -> Result<PKey<Private>> {
    Ok(PKey::from_ec_key(EcKey::generate(&*EcGroup::from_curve_name(curve)?)?)?)
}

fn named(common_name: &str) -> Result<X509Name> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    Ok(name.build())
}

/// PEM; `signer` may be another key than the one that the request is for.
fn request(
    key: &PKey<Private>,
    signer: &PKey<Private>,
    digest: MessageDigest,
    extension: Option<usize>,
) -> Result<String> {
    let mut request = X509ReqBuilder::new()?;
    request.set_subject_name(&*named("pump")?)?;
    request.set_pubkey(key)?;
    if let Some(length) = extension {
        let mut extensions = Stack::new()?;
        let content = Asn1OctetString::new_from_bytes(&vec![7; length])?;
        extensions.push(X509Extension::new_from_der(
            &*Asn1Object::from_str("1.3.6.1.4.1.55555.1")?,
            false,
            &content,
        )?)?;
        request.add_extensions(&extensions)?;
    }
    request.sign(signer, digest)?;
    Ok(String::from_utf8(request.build().to_pem()?)?)
}

/// An authority, or what only looks like one.
fn authority(name: &str, key: &PKey<Private>, (begin, end): (i64, i64), is_ca: bool) -> Result<X509> {
    let now = jiff::Timestamp::now().as_second();
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    let serial = BigNum::from_u32(7)?.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    let subject = named(name)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&subject)?;
    builder.set_not_before(&*Asn1Time::from_unix(now + begin)?)?;
    builder.set_not_after(&*Asn1Time::from_unix(now + end)?)?;
    builder.set_pubkey(key)?;
    let mut constraints = BasicConstraints::new();
    constraints.critical();
    if is_ca {
        constraints.ca();
    }
    builder.append_extension(constraints.build()?)?;
    builder.sign(key, MessageDigest::sha256())?;
    Ok(builder.build())
}

/// keyd and certd with these issuers, each a certificate and a key of the same id, and further lines of `[preloaded_certs]`.
fn world(issuers: &[(&str, &X509, &PKey<Private>)], lists: &str) -> Result<World> {
    let mut world = World::empty()?;
    let (mut keys, mut certificates) = (String::new(), String::new());
    for (id, certificate, key) in issuers {
        let (key_file, file) = (world.path(&format!("{id}.key.pem")), world.path(&format!("{id}.pem")));
        write_private(&key_file, key.private_key_to_pem_pkcs8()?)?;
        write_private(&file, certificate.to_pem()?)?;
        let _ = writeln!(keys, "{id} = \"file://{}\"", key_file.display());
        let _ = writeln!(certificates, "{id} = \"file://{}\"", file.display());
    }
    let uid = world.uid()?;
    world.configure_keys(&format!("[preloaded_keys]\n{keys}\n[[principal]]\nuid = {uid}\nkeys = [\"*\"]\n"))?;
    world.configure_certificates(&format!(
        "[preloaded_certs]\n{certificates}{lists}\n\
         [cert_issuance]\nleaf = {{ method = \"local_ca\" }}\nlocal_ca = {{ cert = \"good\", pk = \"good\" }}\n\n\
         [[principal]]\nuid = {uid}\ncerts = [\"*\"]\n"
    ))?;
    world.start(Daemon::Keys)?;
    world.start(Daemon::Certificates)?;
    Ok(world)
}

fn good() -> Result<(X509, PKey<Private>)> {
    let key = ec_key(Nid::X9_62_PRIME256V1)?;
    Ok((authority("good CA", &key, (-DAY, 100 * DAY), true)?, key))
}

fn post(world: &World, id: &str, csr: &str, issuer: Option<&Value>) -> Result<aziot_tests::Reply> {
    let body = json!({ "certId": id, "csr": csr, "issuer": issuer }).to_string();
    raw::call(&world.socket(Daemon::Certificates), "POST", &format!("/certificates?{VERSION}"), Some(&body))
}

fn get(world: &World, id: &str) -> Result<aziot_tests::Reply> {
    raw::call(&world.socket(Daemon::Certificates), "GET", &format!("/certificates/{id}?{VERSION}"), None)
}

fn stored(world: &World) -> Result<usize> {
    let folder = world.path("var/lib/aziot/certd/certs");
    Ok(if folder.exists() { fs::read_dir(folder)?.count() } else { 0 })
}

/// `certs.md`, 1.4: 400, the parameter's name, and the cause; W14: short keys.
#[test]
fn requests_that_cannot_be_used_are_refused() -> Result<()> {
    let (ca, ca_key) = good()?;
    let world = world(&[("good", &ca, &ca_key)], "")?;
    let (key, other) = (ec_key(Nid::X9_62_PRIME256V1)?, ec_key(Nid::X9_62_PRIME256V1)?);
    let sha256 = MessageDigest::sha256();
    let whole = request(&key, &key, sha256, None)?;
    let der = openssl::x509::X509Req::from_pem(whole.as_bytes())?.to_der()?;
    let base64: String = whole.lines().filter(|line| !line.starts_with('-')).collect();
    let weak = PKey::from_rsa(Rsa::generate(1024)?)?;
    let weaker = PKey::from_rsa(Rsa::generate(512)?)?;
    let label = |label: &str| whole.replace("CERTIFICATE REQUEST", label);
    for (what, csr, cause) in [
        ("text", "no request".to_owned(), "there is no PEM block"),
        ("nothing", String::new(), "there is no PEM block"),
        ("base64 alone", base64, "there is no PEM block"),
        // As much of DER as JSON can carry.
        ("DER", der.iter().map(|byte| char::from(*byte)).collect(), "there is no PEM block"),
        ("a certificate", String::from_utf8(ca.to_pem()?)?, "there is no PEM block"),
        ("a private key", label("PRIVATE KEY"), "there is no PEM block"),
        ("no end", whole.replace("-----END", "-----"), "the request is not PEM"),
        ("no base64", whole.replacen("MI", "M!", 1), "the request is not PEM"),
        ("half of it", whole.replacen(&whole[100..200], "", 1), ""),
        (
            "a certificate called a request",
            String::from_utf8(ca.to_pem()?)?.replace("CERTIFICATE", "CERTIFICATE REQUEST"),
            "the request is not PKCS #10",
        ),
        ("another's signature", request(&key, &other, sha256, None)?, "CSR failed to be verified with its public key"),
        (
            "RSA of 1024 bits",
            request(&weak, &weak, sha256, None)?,
            "the RSA key has 1024 bits; at least 2048 are needed",
        ),
        (
            "RSA of 512 bits",
            request(&weaker, &weaker, sha256, None)?,
            "the RSA key has 512 bits; at least 2048 are needed",
        ),
    ] {
        let reply = post(&world, "leaf", &csr, None)?;
        let expected = format!("parameter \"csr\" has an invalid value\ncaused by: {cause}");
        ensure!(reply.status == 400 && reply.message().starts_with(&expected), "{what}: {reply:?}");
    }
    assert_eq!(stored(&world)?, 0, "something was stored");
    // Text around it, the old label, Windows line ends: it is a request all the same.
    for csr in [
        format!("Certificate Request:\n    Data\n{whole}\n{whole}"),
        label("NEW CERTIFICATE REQUEST"),
        whole.replace('\n', "\r\n"),
    ] {
        let _ = post(&world, "leaf", &csr, None)?.expect(201)?;
    }
    assert_eq!(stored(&world)?, 1);
    Ok(())
}

/// `design.md`: 1 MiB body, answered with 413. Below that, a request of one huge extension is carried over or refused, at once.
#[test]
fn a_mebibyte_of_extensions_is_too_much() -> Result<()> {
    let (ca, ca_key) = good()?;
    let world = world(&[("good", &ca, &ca_key)], "")?;
    let key = ec_key(Nid::X9_62_PRIME256V1)?;
    let sized = |length| request(&key, &key, MessageDigest::sha256(), Some(length));
    let reply = post(&world, "leaf", &sized(1 << 20)?, None)?;
    assert_eq!(reply.status, 413, "{reply:?}");
    assert_eq!(stored(&world)?, 0, "something was stored");
    let begin = Instant::now();
    let reply = post(&world, "leaf", &sized(700_000)?, None)?;
    ensure!(reply.status == 201, "{} {}", reply.status, reply.message());
    assert!(begin.elapsed().as_secs() < 5, "took {:?}", begin.elapsed());
    let _ = post(&world, "leaf", &sized(10)?, None)?.expect(201)?;
    Ok(())
}

fn verify(world: &World, root: &str, pem: &str) -> Result<String> {
    let leaf = world.path("issued.pem");
    write_private(&leaf, pem)?;
    program::verify(&world.path(root), &leaf)
}

/// `certs.md`, W11: no worthless certificate, and a clear word in the log.
#[test]
fn issuers_that_cannot_vouch_are_refused() -> Result<()> {
    let (ca, ca_key) = good()?;
    let key = ec_key(Nid::X9_62_PRIME256V1)?;
    let expired = authority("expired CA", &key, (-9 * DAY, -DAY), true)?;
    let plain = authority("no CA", &key, (-DAY, 9 * DAY), false)?;
    let foreign = authority("foreign CA", &ec_key(Nid::X9_62_PRIME256V1)?, (-DAY, 9 * DAY), true)?;
    let issuers =
        [("good", &ca, &ca_key), ("expired", &expired, &key), ("plain", &plain, &key), ("foreign", &foreign, &key)];
    let mut world = world(&issuers, "")?;
    let csr = request(&key, &key, MessageDigest::sha256(), None)?;
    let issuer = |world: &World, id: &str| -> Result<Value> {
        let reply = world.call(Daemon::Keys, "GET", &format!("/keypair/{id}?{VERSION}"), None)?.expect(200)?;
        Ok(json!({ "certId": id, "privateKeyHandle": reply.text("/keyHandle")? }))
    };
    for (id, words) in [("expired", "expired CA"), ("foreign", "foreign CA")] {
        let reply = post(&world, "by-named", &csr, Some(&issuer(&world, id)?))?;
        ensure!((reply.status, reply.body.as_str()) == (500, INTERNAL), "{id}: {reply:?}");
        let log = world.log(Daemon::Certificates)?;
        ensure!(
            log.lines().any(|line| line.contains("[ERR!]") && line.contains(words)),
            "{id}: no line with {words} in\n{log}"
        );
    }
    assert_eq!(stored(&world)?, 0, "something was stored");
    // The public service issues with any certificate, so this is only a warning.
    let reply = post(&world, "by-plain", &csr, Some(&issuer(&world, "plain")?))?.expect(201)?;
    ensure!(verify(&world, "plain.pem", &reply.text("/pem")?).is_err(), "openssl takes it for a CA");
    let log = world.log(Daemon::Certificates)?;
    ensure!(log.lines().any(|line| line.contains("[WARN]") && line.contains("no CA")), "no warning in\n{log}");

    // The same for the configured CA.
    let pem = post(&world, "leaf", &csr, None)?.expect(201)?.text("/pem")?;
    ensure!(verify(&world, "good.pem", &pem)?.trim().ends_with(": OK"), "openssl does not verify it");
    for id in ["expired", "foreign"] {
        world.stop(Daemon::Certificates)?;
        let lines = format!("[cert_issuance.local_ca]\ncert = {id:?}\npk = {id:?}\n");
        world.drop_in(Daemon::Certificates, "50-ca.toml", &lines)?;
        world.start(Daemon::Certificates)?;
        let reply = post(&world, "leaf", &csr, None)?;
        ensure!((reply.status, reply.body.as_str()) == (500, INTERNAL), "{id}: {reply:?}");
        ensure!(get(&world, "leaf")?.expect(200)?.text("/pem")? == pem, "{id}: what was stored is another now");
    }
    Ok(())
}

/// `certs.md`, W3: a circle of lists is told at the start, and what repeats counts as missing. Lists of lists grow fast, and are stopped.
#[test]
fn lists_that_turn_in_circles_end() -> Result<()> {
    let (ca, ca_key) = good()?;
    let mut lists = "one = [\"two\", \"good\"]\ntwo = [\"three\"]\nthree = [\"one\"]\nown = [\"own\"]\n".to_owned();
    for level in 0..12 {
        let _ = writeln!(lists, "level{level} = [\"level{next}\", \"level{next}\", \"level{next}\"]", next = level + 1);
    }
    lists += "level12 = [\"good\"]\n";
    let world = world(&[("good", &ca, &ca_key)], &lists)?;
    let log = world.log(Daemon::Certificates)?;
    for circle in [["\"one\"", "\"two\"", "\"three\""].as_slice(), &["\"own\""]] {
        let is_it = |line: &str| line.contains("[WARN]") && circle.iter().all(|id| line.contains(&id.replace('"', "")));
        ensure!(log.lines().any(is_it), "no warning of {circle:?} in\n{log}");
    }
    let pem = String::from_utf8(ca.to_pem()?)?;
    assert_eq!(get(&world, "one")?.expect(200)?.text("/pem")?, pem);
    assert_eq!(get(&world, "own")?.message(), "parameter \"id\" has an invalid value\ncaused by: not found");
    let begin = Instant::now();
    assert_eq!(get(&world, "level0")?.expect(500)?.body, INTERNAL);
    assert!(begin.elapsed().as_secs() < 2, "took {:?}", begin.elapsed());
    assert_eq!(get(&world, "level11")?.expect(200)?.text("/pem")?, pem.repeat(3));
    Ok(())
}

/// `certs.md`, W2: a preloaded file of DER is read as PEM, alone and in a list, and issues; noise is 500, and nobody dies.
#[test]
fn der_where_pem_is_expected_is_converted() -> Result<()> {
    let (ca, ca_key) = good()?;
    let world = world(&[("good", &ca, &ca_key)], "list = [\"good\", \"good\"]\n")?;
    let der = ca.to_der()?;
    write_private(&world.path("good.pem"), &der)?;
    let pem = String::from_utf8(ca.to_pem()?)?;
    assert_eq!(get(&world, "good")?.expect(200)?.text("/pem")?, pem);
    assert_eq!(get(&world, "list")?.expect(200)?.text("/pem")?, pem.repeat(2));
    let key = ec_key(Nid::X9_62_PRIME256V1)?;
    let csr = request(&key, &key, MessageDigest::sha256(), None)?;
    let issued = post(&world, "leaf", &csr, None)?.expect(201)?.text("/pem")?;
    ensure!(issued.ends_with(&pem), "the issuer is not there");
    for damage in [der[..der.len() / 2].to_vec(), b"\x30\x82\xff\xff".to_vec(), vec![0xff; 4096], Vec::new()] {
        write_private(&world.path("good.pem"), &damage)?;
        let reply = get(&world, "good")?;
        let is_told = if damage.is_empty() {
            reply.status == 200
        } else {
            (reply.status, reply.body.as_str()) == (500, INTERNAL)
        };
        ensure!(is_told, "{damage:?}: {reply:?}");
        assert_eq!(post(&world, "leaf", &csr, None)?.expect(500)?.body, INTERNAL);
        assert_eq!(get(&world, "leaf")?.expect(200)?.text("/pem")?, issued);
    }
    Ok(())
}
