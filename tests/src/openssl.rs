//! The openssl program, as an independent judge of what the device made.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::curl::feed;

/// Runs `openssl` with these arguments and input, and returns what it printed.
pub fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>, input: &str) -> Result<String> {
    let output = feed(Command::new("openssl").args(arguments), input)?;
    if !output.status.success() {
        bail!("openssl failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes a CA of EC P-256: a private key and a self-signed certificate, each in a file of its own.
pub fn make_ca(key: &Path, certificate: &Path, name: &str) -> Result<()> {
    let subject = format!("/CN={name}");
    let options = ["-nodes", "-days", "3650", "-subj", &subject, "-addext", "basicConstraints=critical,CA:TRUE"];
    let mut arguments = new_key("-x509", key);
    arguments.extend(options.map(Into::into));
    arguments.extend([
        "-addext".into(),
        "keyUsage=critical,keyCertSign,cRLSign".into(),
        "-out".into(),
        certificate.into(),
    ]);
    run(arguments, "").map(|_| ())
}

/// Makes a key of EC P-256 and a self-signed certificate for a TLS client of this name, each in a file of its own.
pub fn make_client_certificate(key: &Path, certificate: &Path, name: &str) -> Result<()> {
    let subject = format!("/CN={name}");
    let options = ["-nodes", "-days", "30", "-subj", &subject, "-addext", "basicConstraints=critical,CA:FALSE"];
    let mut arguments = new_key("-x509", key);
    arguments.extend(options.map(Into::into));
    arguments.extend(["-addext".into(), "extendedKeyUsage=clientAuth".into(), "-out".into(), certificate.into()]);
    run(arguments, "").map(|_| ())
}

/// Makes a key of EC P-256 in a file.
pub fn make_key(key: &Path) -> Result<()> {
    let arguments: [&std::ffi::OsStr; 6] = [
        "genpkey".as_ref(),
        "-algorithm".as_ref(),
        "EC".as_ref(),
        "-pkeyopt".as_ref(),
        "ec_paramgen_curve:P-256".as_ref(),
        "-out".as_ref(),
    ];
    run(arguments.into_iter().chain([key.as_os_str()]), "").map(|_| ())
}

/// Makes a certificate signing request (PEM) for a key that is there already.
pub fn request_for(key: &Path, name: &str) -> Result<String> {
    let subject = format!("/CN={name}");
    let arguments: [&std::ffi::OsStr; 6] =
        ["req".as_ref(), "-new".as_ref(), "-key".as_ref(), key.as_os_str(), "-subj".as_ref(), subject.as_ref()];
    run(arguments, "")
}

/// Makes a key of EC P-256 and a certificate signing request (PEM) for it.
pub fn make_request(key: &Path, name: &str) -> Result<String> {
    let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
    let mut arguments = new_key("-new", key);
    arguments.extend(["-nodes", "-subj", &subject, "-addext", &names].map(Into::into));
    run(arguments, "")
}

fn new_key(kind: &str, key: &Path) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> =
        ["req", kind, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout"].map(Into::into).into();
    arguments.push(key.into());
    arguments
}

/// Verifies a certificate against one root; the text is what `openssl verify` says.
pub fn verify(root: &Path, certificate: &Path) -> Result<String> {
    let arguments: [&std::ffi::OsStr; 4] =
        ["verify".as_ref(), "-CAfile".as_ref(), root.as_os_str(), certificate.as_os_str()];
    run(arguments, "")
}

/// Lower-case hex of the SHA-256 of a text.
pub fn sha256(text: &str) -> Result<String> {
    Ok(last_word(&run(["dgst", "-sha256"], text)?))
}

/// Lower-case hex of the HMAC-SHA256 of a text.
pub fn hmac_sha256(key: &[u8], text: &str) -> Result<String> {
    // Keys of test vectors are no secrets, so an argument is good enough.
    let key = format!("hexkey:{}", crate::hex::encode(key));
    Ok(last_word(&run(["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key], text)?))
}

fn last_word(text: &str) -> String {
    text.trim().rsplit(' ').next().unwrap_or_default().to_owned()
}
