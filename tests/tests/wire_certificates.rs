//! The certificate service byte for byte: the tables of `certs.md` 1.2 and 7.1, and the issuances of 7.3, judged by openssl.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use aziot_tests::{Daemon, Reply, World, calls::VERSION, device::write_private, hex, openssl, raw};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

/// The vector CA's private scalar and its certificate, and the request; section 7.3.
const CA_SCALAR: &str = "035ab3e577942c83e597f161f198d682fe6aa820b891d7f51aaab959b8f5ce61";
const LEAF_SCALAR: &str = "2aca946df38db25b8d37c35634f4c9a1d12e4d981b553117b0d7d3808571f7f1";
const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBSzCB8qADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCVZlY3RvciBD
QTAeFw0yNTAxMDEwMDAwMDBaFw00OTAxMDEwMDAwMDBaMBQxEjAQBgNVBAMMCVZl
Y3RvciBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEZsYvlohsApeWecdtoX
YmGoMqftP3pYIBBiB6xPxhcuP/QlW8aDnNzaNJ3214u90Ti7LIxC3pythS5WuaOn
gx2jNTAzMBIGA1UdEwEB/wQIMAYBAf8CAQAwHQYDVR0OBBYEFC2I2hI6lH+RtfQ0
c4EgtPKVgBPbMAoGCCqGSM49BAMCA0gAMEUCIQCsfH4I1ln2Kc1esRRck1gOScWQ
oExVRE8xBh3I/39fGAIgKKg5Tx0Z7hDUfOw6v3GxgkR/1Y2q1CBwkoS8+lFYNmk=
-----END CERTIFICATE-----
";
const REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBIDCBxwIBADAWMRQwEgYDVQQDDAt2ZWN0b3ItbGVhZjBZMBMGByqGSM49AgEG
CCqGSM49AwEHA0IABOpxXRdTnZMXTiF8es1B+2SI94nmQn6excFDFXK8pSbloB/o
cXNCaPSZORn2PlMKSt0c2uNp3ZlBClIh7MqsbzygTzBNBgkqhkiG9w0BCQ4xQDA+
MA4GA1UdDwEB/wQEAwIFoDATBgNVHSUEDDAKBggrBgEFBQcDAjAXBgNVHREEEDAO
ggxsZWFmLmV4YW1wbGUwCgYIKoZIzj0EAwIDSAAwRQIhAJrCU0Dkup7ri1E57UMN
qw0S4ZzC1qfaMhT33B5W0B39AiAkfPC+ddCCnGKns3ejI8u00NJaJi5KEejEWNkS
9PSsqQ==
-----END CERTIFICATE REQUEST-----
";

/// One request of the table, with the content type that it says, or none.
fn send(world: &World, method: &str, target: &str, content_type: Option<&str>, body: &str) -> Result<Reply> {
    let field = content_type.map(|value| format!("content-type: {value}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\n{field}content-length: {length}\r\nconnection: close\r\n\r\n");
    raw::reply(&raw::exchange(&world.socket(Daemon::Certificates), format!("{head}{body}").as_bytes())?)
}

/// 1.2: "Status lines for bodies seen in tests".
#[test]
fn bodies_and_content_types_are_taken_as_the_public_service_does() -> Result<()> {
    let world = World::certificates("")?;
    let json = Some("application/json");
    for (method, target, content_type, body, status, expected) in [
        ("GET", "/nope", None, "", 400, r#"{"message":"api-version not specified"}"#),
        ("GET", "/nope?V", None, "", 404, r#"{"message":"not found"}"#),
        ("GET", "/certificates?V", None, "", 400, r#"{"message":"method not allowed"}"#),
        ("POST", "/certificates/x?V", json, "{}", 400, r#"{"message":"method not allowed"}"#),
        ("PATCH", "/certificates?V", None, "", 400, r#"{"message":"method not allowed"}"#),
        ("POST", "/certificates?V", None, "", 400, r#"{"message":"missing request body"}"#),
        ("POST", "/certificates?V", Some("text/plain"), "{}", 400, r#"{"message":"missing request body"}"#),
        ("POST", "/certificates?V", json, "{", 422, ""),
        ("POST", "/certificates?V", json, r#"{"certId":"x"}"#, 422, ""),
        ("POST", "/certificates?V", json, r#"{"certId":"x","csr":7}"#, 422, ""),
        ("POST", "/certificates?V", json, r#"{"certId":"x","csr":"","issuer":{"certId":"y"}}"#, 422, ""),
        (
            "PUT",
            "/certificates/x?V",
            Some("text/plain"),
            r#"{"pem":"hi"}"#,
            415,
            r#"{"message":"request body must be application/json"}"#,
        ),
        ("PUT", "/certificates/x?V", None, r#"{"pem":"hi"}"#, 201, r#"{"pem":"hi"}"#),
        (
            "PUT",
            "/certificates/x?V",
            Some("application/json; charset=utf-8"),
            r#"{"pem":"hi"}"#,
            201,
            r#"{"pem":"hi"}"#,
        ),
        ("PUT", "/certificates/x?V", None, "", 422, ""),
        ("GET", "/certificates/x?V", None, "", 200, r#"{"pem":"hi"}"#),
        ("PUT", "/certificates/x?V", None, r#"{"pem":""}"#, 201, r#"{"pem":""}"#),
        ("GET", "/certificates/x?V", None, "", 200, r#"{"pem":""}"#),
        ("DELETE", "/certificates/x?V", json, "{", 422, ""),
        ("DELETE", "/certificates/x?V", Some("text/plain"), "{", 204, ""),
        ("DELETE", "/certificates/x?V", None, "", 204, ""),
        (
            "GET",
            "/certificates/x?V",
            None,
            "",
            400,
            r#"{"message":"parameter \"id\" has an invalid value\ncaused by: not found"}"#,
        ),
        ("GET", "/certificates/%ff?V", None, "", 404, r#"{"message":"not found"}"#),
        ("GET", "/certificates/x/?V", None, "", 404, r#"{"message":"not found"}"#),
    ] {
        let what = format!("{method} {target} {content_type:?} {body}");
        let reply = send(&world, method, &target.replace("?V", &format!("?{VERSION}")), content_type, body);
        let reply = reply.with_context(|| what.clone())?;
        assert_eq!(reply.status, status, "{what}: {reply:?}");
        if !expected.is_empty() || status == 204 {
            assert_eq!(reply.body, expected, "{what}");
        }
    }
    // HEAD has no body to take apart.
    let head = raw::request("HEAD", &format!("/certificates?{VERSION}"), None);
    let answer = raw::exchange(&world.socket(Daemon::Certificates), head.as_bytes())?;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    Ok(())
}

/// 7.1: file names, and 3.1: nothing else in the folder. The bytes are those that came.
#[test]
fn certificate_files_have_the_public_names() -> Result<()> {
    let world = World::certificates("")?;
    let files = [
        ("device-id", "deviceid-bd732105ef89cf8edd2606a5309c8a26b7b5599a4e124a0fe6199b6b2f60e655.cer"),
        ("local-ca", "localca-f71a8ad7034763bddef5cd1be2038a6b758374a08a83e88a979839841e5294d4.cer"),
        ("aziot-edged-ca", "aziotedgedca-86f154be7ff14480027f0d00c59c223db6d9e4ab0b559fc523cca36a7c973d6d.cer"),
        (
            "aziot-edged%2Fmodule%2FedgeAgent:identity",
            "aziotedgedmoduleedgeAgentidentity-21389bcc8525907d45c9c4fba479c627d146903b9ba96acb7d9ae69830c54950.cer",
        ),
        ("a%2Fb%20c", "abc-0af99a609169538538d589bf108a2131d8bc212c653d45ad44dedef60988ab9f.cer"),
        ("a%00b", "ab-59b271ae1bbcb1d31d41929817f4b16fb439eb4f31520b5ad1d5ce98920a7138.cer"),
        (
            "%C3%9C%C3%B1%C3%AD-%E4%B8%AD%E6%96%87",
            "-34c289b376f0393eff77ce2906d56f58fd3872bbc0c135560a66d0822838cd63.cer",
        ),
        ("%2E%2E", "-5ec1f7e700f37c3d0b2981d04855fc34b94aaa15457b05ca571817442d228f81.cer"),
    ];
    let folder = world.path("var/lib/aziot/certd/certs");
    for (path, file) in files {
        let target = format!("/certificates/{path}?{VERSION}");
        let pem = format!("not even PEM: {path}\r\n");
        let _ = send(&world, "PUT", &target, None, &json!({ "pem": pem }).to_string())?.expect(201)?;
        assert_eq!(fs::read_to_string(folder.join(file)).with_context(|| path)?, pem);
    }
    assert_eq!(fs::read_dir(&folder)?.count(), files.len());
    // What the public service left there, without a final newline, is read as it is.
    write_private(&folder.join(files[0].1), "left")?;
    let read = send(&world, "GET", &format!("/certificates/device-id?{VERSION}"), None, "")?;
    assert_eq!(read.body, r#"{"pem":"left"}"#);
    Ok(())
}

/// A private key of P-256 as PEM (SEC 1), from its scalar.
fn key_pem(scalar: &str) -> Result<String> {
    let hex = format!("3031020101 0420 {scalar} a00a 0608 2a8648ce3d030107").replace(' ', "");
    let der = hex::decode(&hex)?;
    Ok(format!("-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n", STANDARD.encode(der)))
}

/// keyd and certd with the vector CA, as an operator would preload it.
fn vector_ca() -> Result<World> {
    let mut world = World::empty()?;
    let [ca, ca_key, leaf_key] =
        ["ca.pem", "ca.key.pem", "leaf.key.pem"].map(|name| world.path(&format!("var/secrets/{name}")));
    write_private(&ca, CA)?;
    write_private(&ca_key, key_pem(CA_SCALAR)?)?;
    write_private(&leaf_key, key_pem(LEAF_SCALAR)?)?;
    let uid = world.uid()?;
    world.configure_keys(&format!(
        "[preloaded_keys]\nlocal-ca = \"file://{}\"\nown = \"file://{}\"\n\n[[principal]]\nuid = {uid}\nkeys = [\"*\"]\n",
        ca_key.display(),
        leaf_key.display()
    ))?;
    world.configure_certificates(&format!(
        "[preloaded_certs]\nlocal-ca = \"file://{}\"\nbundle = [\"local-ca\", \"absent\", \"leaf\"]\n\n\
         [cert_issuance]\nleaf = {{ method = \"local_ca\", expiry_days = 90 }}\nown = {{ method = \"self_signed\" }}\n\
         renamed = {{ method = \"local_ca\", common_name = \"my-device\" }}\n\
         [cert_issuance.local_ca]\ncert = \"local-ca\"\npk = \"local-ca\"\n\n[[principal]]\nuid = {uid}\ncerts = [\"*\"]\n",
        ca.display()
    ))?;
    world.start(Daemon::Keys)?;
    world.start(Daemon::Certificates)?;
    Ok(world)
}

fn issue(world: &World, id: &str) -> Result<String> {
    let body = json!({ "certId": id, "csr": REQUEST }).to_string();
    send(world, "POST", &format!("/certificates?{VERSION}"), None, &body)?.expect(201)?.text("/pem")
}

fn x509(certificate: &Path, arguments: &[&str]) -> Result<String> {
    let fixed: [&std::ffi::OsStr; 4] = ["x509".as_ref(), "-in".as_ref(), certificate.as_os_str(), "-noout".as_ref()];
    openssl::run(fixed.into_iter().chain(arguments.iter().map(AsRef::as_ref)), "")
}

/// The lines of the extensions, as openssl prints them.
fn extensions(certificate: &Path) -> Result<Vec<String>> {
    let text = x509(certificate, &["-text"])?;
    let part = text.split("X509v3 extensions:\n").nth(1).context("no extensions")?;
    let lines = part.lines().take_while(|line| !line.contains("Signature Algorithm"));
    Ok(lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

const REQUESTED: [&str; 6] = [
    "X509v3 Key Usage: critical",
    "Digital Signature, Key Encipherment",
    "X509v3 Extended Key Usage:",
    "TLS Web Client Authentication",
    "X509v3 Subject Alternative Name:",
    "DNS:leaf.example",
];
const SUBJECT_KEY: [&str; 2] =
    ["X509v3 Subject Key Identifier:", "1B:1C:EF:91:16:5D:21:68:0C:65:0F:B8:85:82:63:4C:84:BF:62:EE"];
const AUTHORITY_KEY: [&str; 2] =
    ["X509v3 Authority Key Identifier:", "2D:88:DA:12:3A:94:7F:91:B5:F4:34:73:81:20:B4:F2:95:80:13:DB"];

/// 7.3, local CA: a chain of two, the leaf's fields, and exactly these extensions in this order.
#[test]
fn the_vector_request_gets_the_vector_certificate() -> Result<()> {
    let world = vector_ca()?;
    let pem = issue(&world, "leaf")?;
    let chain: Vec<&str> = pem.split_inclusive("-----END CERTIFICATE-----\n").collect();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], CA, "the issuer follows as it was stored");
    let (leaf, root) = (world.path("leaf.pem"), world.path("ca.pem"));
    write_private(&leaf, chain[0])?;
    write_private(&root, CA)?;
    assert!(openssl::verify(&root, &leaf)?.trim().ends_with("OK"));

    let expected: Vec<&str> = REQUESTED.into_iter().chain(SUBJECT_KEY).chain(AUTHORITY_KEY).collect();
    assert_eq!(extensions(&leaf)?, expected);
    assert_eq!(x509(&leaf, &["-issuer"])?.trim(), "issuer=CN = Vector CA");
    assert_eq!(x509(&leaf, &["-subject"])?.trim(), "subject=CN = vector-leaf");
    let text = x509(&leaf, &["-text"])?;
    for line in ["Version: 3 (0x2)", "Signature Algorithm: ecdsa-with-SHA256", "ASN1 OID: prime256v1"] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    // 90 days from now, whatever the back-dating of the beginning.
    let day = 86_400;
    assert!(x509(&leaf, &["-checkend", &(90 * day - 600).to_string()]).is_ok());
    assert!(x509(&leaf, &["-checkend", &(90 * day + 600).to_string()]).is_err());
    // Ours: random positive serials of 128 bits.
    let serial = |path: &Path| -> Result<String> { Ok(x509(path, &["-serial"])?.trim().replace("serial=", "")) };
    let first = serial(&leaf)?;
    assert!(first.len() > 24 && !first.starts_with('-'), "{first}");
    let again = issue(&world, "leaf")?;
    write_private(&leaf, again.split_inclusive("-----END CERTIFICATE-----\n").next().context("empty")?)?;
    assert_ne!(serial(&leaf)?, first);

    // It is what GET returns, byte for byte, and part of the bundle whose other member is absent: 3.3.
    let stored = send(&world, "GET", &format!("/certificates/leaf?{VERSION}"), None, "")?.expect(200)?;
    assert_eq!(stored.body, json!({ "pem": again }).to_string());
    let bundle = send(&world, "GET", &format!("/certificates/bundle?{VERSION}"), None, "")?.expect(200)?;
    assert_eq!(bundle.text("/pem")?, format!("{CA}{again}"));
    Ok(())
}

/// 7.3, self-signed: one certificate, issuer = subject, the first four extensions and no authority key. 7.2: a subject override.
#[test]
fn a_self_signed_vector_has_no_authority() -> Result<()> {
    let world = vector_ca()?;
    let own = world.path("own.pem");
    write_private(&own, issue(&world, "own")?)?;
    assert_eq!(fs::read_to_string(&own)?.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(openssl::verify(&own, &own)?.trim().ends_with("OK"));
    let expected: Vec<&str> = REQUESTED.into_iter().chain(SUBJECT_KEY).collect();
    assert_eq!(extensions(&own)?, expected);
    assert_eq!(x509(&own, &["-issuer"])?.trim(), "issuer=CN = vector-leaf");
    assert_eq!(x509(&own, &["-subject"])?.trim(), "subject=CN = vector-leaf");

    let renamed = world.path("renamed.pem");
    write_private(&renamed, issue(&world, "renamed")?)?;
    assert_eq!(x509(&renamed, &["-subject"])?.trim(), "subject=CN = my-device");
    // 30 days are the default: section 4.2.
    assert!(x509(&renamed, &["-checkend", &(30 * 86_400 - 600).to_string()]).is_ok());
    assert!(x509(&renamed, &["-checkend", &(30 * 86_400 + 600).to_string()]).is_err());
    Ok(())
}

/// 4.1 and 4.3: an issuer named in the request, with a key handle as the right to use it.
#[test]
fn an_issuer_in_the_request_overrides_the_configured_one() -> Result<()> {
    let world = vector_ca()?;
    let handle = world
        .call(Daemon::Keys, "GET", &format!("/keypair/local-ca?{VERSION}"), None)?
        .expect(200)?
        .text("/keyHandle")?;
    let post = |issuer: serde_json::Value| {
        let body = json!({ "certId": "elsewhere", "csr": REQUEST, "issuer": issuer }).to_string();
        send(&world, "POST", &format!("/certificates?{VERSION}"), None, &body)
    };
    let pem = post(json!({ "certId": "local-ca", "privateKeyHandle": handle }))?.expect(201)?.text("/pem")?;
    let (leaf, root) = (world.path("leaf.pem"), world.path("ca.pem"));
    write_private(&leaf, pem)?;
    write_private(&root, CA)?;
    assert!(openssl::verify(&root, &leaf)?.trim().ends_with("OK"));
    let missing = post(json!({ "certId": "nowhere", "privateKeyHandle": handle }))?.expect(400)?;
    assert_eq!(missing.message(), "parameter \"issuer.certId\" has an invalid value\ncaused by: not found");
    let target = format!("/certificates/text?{VERSION}");
    let _ = send(&world, "PUT", &target, None, r#"{"pem":"no PEM"}"#)?.expect(201)?;
    let unusable = post(json!({ "certId": "text", "privateKeyHandle": handle }))?.expect(400)?;
    assert_eq!(unusable.message(), "parameter \"issuer.certId\" has an invalid value\ncaused by: invalid issuer");
    assert_eq!(post(json!({ "certId": "local-ca", "privateKeyHandle": "forged" }))?.status, 500);
    // Ours: another key than the issuer's makes no worthless certificate.
    let other =
        world.call(Daemon::Keys, "GET", &format!("/keypair/own?{VERSION}"), None)?.expect(200)?.text("/keyHandle")?;
    assert_eq!(post(json!({ "certId": "local-ca", "privateKeyHandle": other }))?.status, 500);
    Ok(())
}

/// 1.4: a request whose signature is not by its own key is refused before anything is issued.
#[test]
fn a_tampered_request_is_refused() -> Result<()> {
    let world = vector_ca()?;
    // Another name in the signed part: "vector-leaf" becomes "vector-leag".
    let tampered = REQUEST
        .replace("dmVjdG9yLWxlYWY", "dmVjdG9yLWxlYWc")
        .replace("AAt2ZWN0b3ItbGVhZj", "AAt2ZWN0b3ItbGVhZz")
        .replace("DAt2ZWN0b3ItbGVhZj", "DAt2ZWN0b3ItbGVhZz");
    assert_ne!(tampered, REQUEST);
    let body = json!({ "certId": "leaf", "csr": tampered }).to_string();
    let refused = send(&world, "POST", &format!("/certificates?{VERSION}"), None, &body)?.expect(400)?;
    assert_eq!(
        refused.message(),
        "parameter \"csr\" has an invalid value\ncaused by: CSR failed to be verified with its public key"
    );
    let none = send(&world, "GET", &format!("/certificates/leaf?{VERSION}"), None, "")?;
    assert_eq!(none.status, 400);
    Ok(())
}
