//! The key service with its keys on a PKCS#11 token: made, used, moved and deleted there, and what callers get when the PIN is wrong or
//! the token is pulled out. `SoftHSM2` is the token; `token/reader.c` stands before it, so that it can be pulled.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, World,
    device::write_private,
    hex, openssl, raw,
    token::{self, PIN, Token},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const VERSION: &str = "api-version=2021-05-01";
/// SHA-256 of `abc`.
const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
/// The algorithm and length that PKCS#1 puts before a SHA-256.
const DIGEST_INFO: &str = "3031300d060960864801650304020105000420";
/// A public key on P-256 up to its point, compressed: RFC 5480.
const EC_PUBLIC_KEY: &str = "3039301306072a8648ce3d020106082a8648ce3d030107032200";
/// The algorithm of an RSA public key: RFC 8017.
const RSA_ENCRYPTION: &str = "300d06092a864886f70d0101010500";

/// A device whose keys belong on a token. The key service, which does not run yet, believes that `pin` is its PIN.
fn with_token(pin: &str) -> Result<World> {
    let world = World::empty()?;
    let token = Token::make(&world.path("token"))?;
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]);
    compile.arg(format!("-DMODULE=\"{}\"", token.module().display()));
    for (name, file) in [("REMOVED", "removed"), ("PULLED", "pulled"), ("LOGINS", "logins")] {
        compile.arg(format!("-D{name}=\"{}\"", world.path("token").join(file).display()));
    }
    compile.arg("-o").arg(world.path("token/reader.so"));
    run(compile.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/token/reader.c")))?;

    world.configure_keys(&format!("[[principal]]\nuid = {}\nkeys = [\"*\"]\n", world.uid()?))?;
    let parameters = format!("[aziot_keys]\n{}", token::settings(&world.path("token/reader.so"), pin));
    world.drop_in(Daemon::Keys, "20-token.toml", &parameters)?;
    Ok(world)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn start(world: &mut World) -> Result<()> {
    let config = world.path("token/softhsm2.conf");
    world.start_with(Daemon::Keys, move |command| _ = command.env("SOFTHSM2_CONF", &config))
}

fn call(device: &Device, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
    let body = body.map(Value::to_string);
    raw::call(&device.socket(Daemon::Keys), method, &format!("{path}?{VERSION}"), body.as_deref())
}

fn post(device: &Device, path: &str, body: &Value) -> Result<Reply> {
    call(device, "POST", path, Some(body))
}

/// The bytes of the only member of an answer.
fn bytes(reply: Reply, member: &str) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(reply.expect(200)?.text(&format!("/{member}"))?)?)
}

fn hmac(device: &Device, handle: &str) -> Result<Reply> {
    let parameters = json!({ "message": STANDARD.encode("hello") });
    post(device, "/sign", &json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": parameters }))
}

fn ecdsa(device: &Device, handle: &str) -> Result<Reply> {
    let parameters = json!({ "digest": STANDARD.encode(hex::decode(DIGEST)?) });
    post(device, "/sign", &json!({ "keyHandle": handle, "algorithm": "ECDSA", "parameters": parameters }))
}

fn parameter(device: &Device, handle: &str, name: &str) -> Result<Vec<u8>> {
    bytes(post(device, &format!("/parameters/{name}"), &json!({ "keyHandle": handle }))?, "value")
}

fn der(tag: u8, content: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(content.len())?.to_be_bytes();
    Ok([&[tag, 0x82], &length[..], content].concat())
}

fn ec_public_key(device: &Device, handle: &str) -> Result<Vec<u8>> {
    assert_eq!(parameter(device, handle, "ec-curve-oid")?, hex::decode("06082a8648ce3d030107")?);
    Ok([hex::decode(EC_PUBLIC_KEY)?, parameter(device, handle, "ec-point")?].concat())
}

fn rsa_public_key(device: &Device, handle: &str) -> Result<Vec<u8>> {
    let modulus = parameter(device, handle, "rsa-modulus")?;
    assert_eq!(modulus.len(), 256);
    // Its highest bit is set, so that it needs a zero before it.
    let numbers = [der(2, &[&[0], &modulus[..]].concat())?, der(2, &parameter(device, handle, "rsa-exponent")?)?];
    let bits = der(3, &[&[0], &der(0x30, &numbers.concat())?[..]].concat())?;
    der(0x30, &[hex::decode(RSA_ENCRYPTION)?, bits].concat())
}

/// Has openssl verify a signature of [`DIGEST`].
fn verify(device: &Device, public_key: &[u8], signature: &[u8], options: &[&str]) -> Result<()> {
    let path = |name: &str| device.path(&format!("token/{name}"));
    write_private(&path("public"), public_key)?;
    write_private(&path("signature"), signature)?;
    write_private(&path("digest"), hex::decode(DIGEST)?)?;
    let mut arguments: Vec<std::ffi::OsString> =
        ["pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey"].map(Into::into).into();
    arguments.extend([path("public").into(), "-in".into(), path("digest").into()]);
    arguments.extend(["-sigfile".into(), path("signature").into()]);
    arguments.extend(options.iter().map(Into::into));
    openssl::run(arguments, "").map(|_| ())
}

fn logged(device: &Device, words: &[&str]) -> Result<()> {
    let log = device.log(Daemon::Keys)?;
    ensure!(log.lines().any(|line| words.iter().all(|word| line.contains(word))), "no line with {words:?} in\n{log}");
    Ok(())
}

/// Not even the key that signs handles is a file.
fn no_key_files(device: &Device) -> Result<()> {
    let Ok(files) = fs::read_dir(device.path("var/lib/aziot/keyd/keys")) else { return Ok(()) };
    let names = files.map(|file| file.map(|file| file.file_name())).collect::<Result<Vec<_>, _>>()?;
    ensure!(names.is_empty(), "{names:?}");
    Ok(())
}

fn logins(device: &Device) -> usize {
    fs::read(device.path("token/logins")).map_or(0, |bytes| bytes.len())
}

/// `keys.md`, 7.5 and 7.6.
#[test]
fn key_pairs_live_on_the_token() -> Result<()> {
    let mut world = with_token(PIN)?;
    start(&mut world)?;
    let ec = post(&world, "/keypair", &json!({ "keyId": "ec" }))?.expect(200)?.text("/keyHandle")?;
    let preferred = json!({ "keyId": "rsa", "preferredAlgorithms": "rsa-2048:*" });
    let rsa = post(&world, "/keypair", &preferred)?.expect(200)?.text("/keyHandle")?;
    for (handle, algorithm) in [(&ec, "ECDSA"), (&rsa, "RSA")] {
        let value = post(&world, "/parameters/algorithm", &json!({ "keyHandle": handle }))?;
        assert_eq!(value.expect(200)?.text("/value")?, algorithm);
    }
    let public_key = ec_public_key(&world, &ec)?;
    verify(&world, &public_key, &bytes(ecdsa(&world, &ec)?, "signature")?, &[])?;
    let info = STANDARD.encode([hex::decode(DIGEST_INFO)?, hex::decode(DIGEST)?].concat());
    let body = json!({ "keyHandle": rsa, "algorithm": "RSA-PKCS1", "plaintext": info });
    let signature = bytes(post(&world, "/encrypt", &body)?, "ciphertext")?;
    verify(&world, &rsa_public_key(&world, &rsa)?, &signature, &["-pkeyopt", "digest:sha256"])?;
    assert_eq!(ecdsa(&world, &rsa)?.status, 400);

    // The same after a restart.
    ensure!(world.stop(Daemon::Keys)?.success());
    start(&mut world)?;
    let again = call(&world, "GET", "/keypair/ec", None)?.expect(200)?.text("/keyHandle")?;
    assert_eq!(ec_public_key(&world, &again)?, public_key);

    // A move replaces its target, and a move of nothing does not.
    let target = post(&world, "/keypair", &json!({ "keyId": "target" }))?.expect(200)?.text("/keyHandle")?;
    let _ = post(&world, "/keypair/target", &json!({ "from": "ec" }))?.expect(204)?;
    assert_eq!(ec_public_key(&world, &target)?, public_key);
    verify(&world, &public_key, &bytes(ecdsa(&world, &target)?, "signature")?, &[])?;
    assert_eq!(ecdsa(&world, &ec)?.status, 400);
    assert_eq!(call(&world, "GET", "/keypair/ec", None)?.status, 400);
    assert_eq!(post(&world, "/keypair/target", &json!({ "from": "ec" }))?.status, 500);
    assert_eq!(ec_public_key(&world, &target)?, public_key);

    for _ in 0..2 {
        let _ = call(&world, "DELETE", "/keypair", Some(&json!({ "keyHandle": target })))?.expect(204)?;
    }
    assert_eq!(call(&world, "GET", "/keypair/target", None)?.status, 400);
    assert_eq!(call(&world, "GET", "/keypair/rsa", None)?.status, 200);
    no_key_files(&world)
}

/// `keys.md`, 10.3 and 10.4: the token computes what a file would.
#[test]
fn symmetric_keys_live_on_the_token() -> Result<()> {
    let mut world = with_token(PIN)?;
    start(&mut world)?;
    let k1 = STANDARD.encode((0x40..0x60).collect::<Vec<u8>>());
    let import = |id: &str, usage: &str| -> Result<String> {
        let body = json!({ "keyId": id, "usage": usage, "keyBytes": k1 });
        post(&world, "/key", &body)?.expect(200)?.text("/keyHandle")
    };
    let (signing, encrypting) = (import("k1", "derive,sign")?, import("k1-aes", "encrypt")?);
    assert_eq!(
        hmac(&world, &signing)?.expect(200)?.text("/signature")?,
        "AQQykAlNzSEQds2eZsR49XiRhWw9v1lQ9RFBkRtspDM="
    );
    let derive = json!({ "baseKeyHandle": signing, "derivationData": STANDARD.encode("modA:1:primary") });
    let derived = post(&world, "/derivedkey", &derive)?.expect(200)?.text("/keyHandle")?;
    let exported = post(&world, "/derivedkey/export", &json!({ "keyHandle": derived }))?.expect(200)?.text("/key")?;
    assert_eq!(exported, "gqL6+afNgnlOBxxrGgRlveOuRq2/BaxtOSSzZFKddVw=");

    let parameters =
        json!({ "iv": STANDARD.encode((0..12).collect::<Vec<u8>>()), "aad": STANDARD.encode("$iotedged") });
    let aead = |member: &str, data: &[u8]| json!({ "keyHandle": encrypting, "algorithm": "AEAD", "parameters": parameters, member: STANDARD.encode(data) });
    let ciphertext = bytes(post(&world, "/encrypt", &aead("plaintext", b"some plaintext"))?, "ciphertext")?;
    assert_eq!(hex::encode(&ciphertext), "02496a011d57fc28c1ab7cf4a7c099a39373afb7d904b0f728907694833490");
    let plaintext = bytes(post(&world, "/decrypt", &aead("ciphertext", &ciphertext))?, "plaintext")?;
    assert_eq!(plaintext, b"some plaintext");
    // What the key is not for, the token refuses; and no key of a token is for both.
    assert_eq!(hmac(&world, &encrypting)?.status, 500);
    assert_eq!(post(&world, "/key", &json!({ "keyId": "both", "usage": "sign,encrypt" }))?.status, 400);

    let made = post(&world, "/key", &json!({ "keyId": "made", "usage": "sign" }))?.expect(200)?.text("/keyHandle")?;
    let signature = hmac(&world, &made)?.expect(200)?;
    ensure!(world.stop(Daemon::Keys)?.success());
    start(&mut world)?;
    assert_eq!(hmac(&world, &made)?, signature);
    let _ = call(&world, "DELETE", "/key", Some(&json!({ "keyHandle": made })))?.expect(204)?;
    assert_eq!(hmac(&world, &made)?.status, 400);
    no_key_files(&world)
}

/// The service starts, since an operator may want the rest of it, and a token that counts wrong PINs is not locked by repetitions.
#[test]
fn a_wrong_pin_is_tried_once() -> Result<()> {
    let wrong = "wrong-4711";
    let mut world = with_token(wrong)?;
    start(&mut world)?;
    logged(&world, &["[ERR!]", "token \"device\" refused the configured PIN"])?;
    for _ in 0..3 {
        for (method, path, body) in [
            ("POST", "/key", Some(json!({ "keyId": "k", "usage": "sign" }))),
            ("POST", "/keypair", Some(json!({ "keyId": "pair" }))),
            ("GET", "/keypair/pair", None),
        ] {
            let reply = call(&world, method, path, body.as_ref())?;
            assert_eq!((reply.status, reply.message().as_str()), (500, "internal error"), "{method} {path}");
        }
    }
    assert_eq!(logins(&world), 1);
    assert!(!world.log(Daemon::Keys)?.contains(wrong));
    no_key_files(&world)?;

    // With the right one it is the token that it was.
    ensure!(world.stop(Daemon::Keys)?.success());
    let drop_in = world.path("etc/aziot/keyd/config.d/20-token.toml");
    write_private(&drop_in, fs::read_to_string(&drop_in)?.replace(wrong, PIN))?;
    start(&mut world)?;
    let _ = post(&world, "/key", &json!({ "keyId": "k", "usage": "sign" }))?.expect(200)?;
    Ok(())
}

#[test]
fn a_token_that_is_pulled_fails_its_callers_until_it_is_back() -> Result<()> {
    let mut world = with_token(PIN)?;
    start(&mut world)?;
    let key = post(&world, "/key", &json!({ "keyId": "k", "usage": "sign" }))?.expect(200)?.text("/keyHandle")?;
    let pair = post(&world, "/keypair", &json!({ "keyId": "pair" }))?.expect(200)?.text("/keyHandle")?;
    let signature = hmac(&world, &key)?.expect(200)?;
    let (removed, pulled) = (world.path("token/removed"), world.path("token/pulled"));
    // Between two operations, and in the middle of one.
    for (file, is_between) in [(&removed, true), (&pulled, false)] {
        write_private(file, "")?;
        let reply = if is_between { hmac(&world, &key)? } else { ecdsa(&world, &pair)? };
        assert_eq!((reply.status, reply.message().as_str()), (500, "internal error"), "{is_between}");
        assert!(removed.exists() && !pulled.exists());
        for _ in 0..2 {
            assert_eq!(hmac(&world, &key)?.status, 500);
            assert_eq!(ecdsa(&world, &pair)?.status, 500);
            assert_eq!(call(&world, "GET", "/keypair/pair", None)?.status, 500);
            // Neither is a key made anew, nor elsewhere.
            assert_eq!(post(&world, "/keypair", &json!({ "keyId": "pair" }))?.status, 500);
            assert_eq!(post(&world, "/key", &json!({ "keyId": "new", "usage": "sign" }))?.status, 500);
            assert_eq!(call(&world, "DELETE", "/key", Some(&json!({ "keyHandle": key })))?.status, 500);
        }
        logged(&world, &["[ERR!]", "there is no initialized token with the label"])?;
        no_key_files(&world)?;

        fs::remove_file(&removed)?;
        assert_eq!(hmac(&world, &key)?, signature);
        let _ = ecdsa(&world, &pair)?.expect(200)?;
        let _ = call(&world, "GET", "/keypair/pair", None)?.expect(200)?;
    }
    // Once at the start and once each time it was put in again.
    assert_eq!(logins(&world), 3);
    no_key_files(&world)
}

/// An end with 153 would be for ever, and the token may be put in later.
#[test]
fn a_token_that_is_not_there_at_the_start_is_waited_for() -> Result<()> {
    let mut world = with_token(PIN)?;
    write_private(&world.path("token/removed"), "")?;
    let config = world.path("token/softhsm2.conf");
    let status = world.run_to_end(Daemon::Keys, |command| _ = command.env("SOFTHSM2_CONF", &config))?;
    assert_eq!(status.code(), Some(1));
    logged(&world, &["[ERR!]", "20-token.toml:3:1: ", "there is no initialized token with the label"])?;
    assert!(!world.log(Daemon::Keys)?.contains(PIN), "{}", world.log(Daemon::Keys)?);
    assert_eq!(logins(&world), 0);
    fs::remove_file(world.path("token/removed"))?;
    start(&mut world)?;
    let _ = post(&world, "/key", &json!({ "keyId": "k", "usage": "sign" }))?.expect(200)?;
    Ok(())
}
