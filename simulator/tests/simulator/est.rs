//! The EST server (RFC 7030) as an independent client meets it.

use crate::est_client::Server;
use crate::program::{curl, program, terminate, wait_for};

const IDENTITY: &str = "extendedKeyUsage=clientAuth";

#[test]
fn from_the_factory_to_a_device_certificate() {
    let server = Server::start("lifetime_seconds = 3600\nidentity_lifetime_seconds = 900\nlabels = ['devices']");
    server.make_factory_identity();
    server.make_request("identity", "/CN=pump", IDENTITY);
    server.make_request("device", "/CN=pump", "subjectAltName=DNS:pump.example");

    assert_eq!(server.post_as("factory", "simpleenroll", "device").status, "403");
    assert!(server.reason().contains("an identity only"), "{}", server.reason());
    server.enroll("factory", "devices/simpleenroll", "identity");
    server.enroll("identity", "simpleenroll", "device");
    let verify = "verify -CAfile sim/est/ca.pem -untrusted sim/est/issuing-ca.pem";
    for (name, purpose) in [("identity", "sslclient"), ("device", "sslclient")] {
        server.openssl(&format!("{verify} -x509_strict -purpose {purpose} {name}.leaf"));
    }
    let text = server.openssl("x509 -in device.leaf -noout -text");
    for part in ["CN = pump\n", "DNS:pump.example", "CA:FALSE", "Digital Signature", "TLS Web Client Authentication"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }

    // The leaf alone proves nothing: the server knows roots only.
    server.write("alone.pem", server.read("identity.leaf"));
    server.write("alone.key", server.read("identity.key"));
    assert_eq!(server.post_as("alone", "simpleenroll", "device").status, "401");
    assert!(server.reason().contains("unable to get local issuer certificate"), "{}", server.reason());

    // A new key for the same names.
    server.make_request("renewed", "/CN=pump", IDENTITY);
    server.enroll("identity", "simplereenroll", "renewed");
    server.enroll("renewed", "simpleenroll", "device");
    let refused = server.post_as("renewed", "simplereenroll", "device");
    assert_eq!((refused.status.as_str(), refused.text().contains("keeps subject and names")), ("403", true));

    let issued = server.issued();
    let summary: Vec<_> = issued
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["operation"].as_str().unwrap(),
                entry["isIdentity"].as_bool().unwrap(),
                entry["client"]["isBootstrap"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        summary,
        [
            ("simpleenroll", true, true),
            ("simpleenroll", false, false),
            ("simplereenroll", true, false),
            ("simpleenroll", false, false)
        ]
    );
    assert_eq!((&issued[0]["label"], &issued[0]["subject"]), (&"devices".into(), &"CN=pump".into()));
    assert_ne!(issued[0]["keyFingerprint"], issued[2]["keyFingerprint"]);
    assert_eq!(issued[1]["client"]["serial"], issued[0]["serial"]);
    assert_eq!(issued[3]["pem"], server.read("device.leaf"));
    assert_eq!(terminate(server.running), 0);
}

#[test]
fn a_certificate_of_seconds_ends_after_seconds() {
    let server = Server::start("lifetime_seconds = 3\n[users]\nu = 'p'");
    server.make_request("device", "/CN=pump", "");
    let granted = server.certificates(&server.post("simpleenroll", "device", &["-u", "u:p"]));
    server.write("device.pem", granted[0].clone() + &server.read("sim/est/issuing-ca.pem"));
    server.enroll("device", "simplereenroll", "device");
    wait_for(|| {
        let refused = server.post_as("device", "simplereenroll", "device");
        (refused.status == "401" && server.reason().contains("has expired")).then_some(())
    });
    server.control("PUT", "/est", r#"{"lifetimeSeconds":3600,"backdateSeconds":300}"#);
    server.certificates(&server.post("simpleenroll", "device", &["-u", "u:p"]));
    let issued = server.issued();
    let last = issued.as_array().unwrap().last().unwrap();
    let time = |name: &str| last[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    assert_eq!(time("notAfter") - time("notBefore"), 3900);
    assert!((time("time") - time("notBefore") - 300).abs() <= 1);
}

#[test]
fn credentials_are_checked_as_a_real_server_does() {
    let server = Server::start("labels = ['devices']\n[users]\npump = 'p@ss:word'");
    server.make_factory_identity();
    server.make_request("device", "/CN=pump", "");
    let refused = server.post("simpleenroll", "device", &[]);
    assert_eq!(refused.status, "401");
    assert!(refused.head.contains("www-authenticate: basic realm=\"est\""), "{}", refused.head);
    assert!(refused.body.is_empty(), "{}", refused.text());
    for wrong in ["pump:p@ss", "valve:p@ss:word"] {
        assert_eq!(server.post("simpleenroll", "device", &["-u", wrong]).status, "401", "{wrong}");
        assert!(!server.reason().contains("p@ss"), "{}", server.reason());
    }
    let right = ["-u", "pump:p@ss:word"];
    for version in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        let answer = server.post("simpleenroll", "device", &[&right[..], &version].concat());
        assert_eq!(server.certificates(&answer).len(), 1);
        assert!(answer.head.contains("content-type: application/pkcs7-mime; smime-type=certs-only"), "{}", answer.head);
        let (certificate, key) = (server.path("factory.pem"), server.path("factory.key"));
        let arguments = [&["--cert", &certificate, "--key", &key], &version[..]].concat();
        assert_eq!(server.post("simpleenroll", "factory", &arguments).status, "200");
    }
    assert_eq!(server.issued()[0]["user"], "pump");

    // A stranger's certificate is not made better by the right password.
    server.openssl("req -x509 -new -key factory.key -subj /CN=stranger -days 1 -out stranger.pem");
    let (certificate, key) = (server.path("stranger.pem"), server.path("factory.key"));
    let stranger = ["--cert", &certificate, "--key", &key, "-u", "pump:p@ss:word"];
    assert_eq!(server.post("simpleenroll", "device", &stranger).status, "401");
    assert!(server.reason().contains("stranger"), "{}", server.reason());
    assert_eq!(server.post("simplereenroll", "device", &right).status, "403");

    server.control("PUT", "/est", r#"{"authentication":"both"}"#);
    assert_eq!(server.post("simpleenroll", "factory", &right).status, "401");
    assert_eq!(server.post_as("factory", "simpleenroll", "factory").status, "401");
    let (certificate, key) = (server.path("factory.pem"), server.path("factory.key"));
    let both = ["--cert", &certificate, "--key", &key, "-u", "pump:p@ss:word"];
    assert_eq!(server.post("simpleenroll", "factory", &both).status, "200");
}

#[test]
fn requests_are_checked_as_a_real_server_does() {
    let server = Server::start("labels = ['devices']\n[users]\nu = 'p'");
    server.make_request("device", "/CN=pump", "");
    let user = ["-u", "u:p"];
    let text = ["-u", "u:p", "-H", "content-type: text/plain", "--data-binary", "x"];
    assert_eq!(server.get(&server.url("simpleenroll"), &text).status, "415");
    assert_eq!(server.post("devices/simpleenroll", "device", &user).status, "200");
    assert_eq!(server.post("device/simpleenroll", "device", &user).status, "404");
    assert_eq!(server.get(&server.url("simpleenroll"), &user).status, "405");
    assert_eq!(server.get(&server.url("csrattrs"), &user).status, "404");

    server.openssl("req -inform DER -in device.der -out device.csr");
    assert_eq!(server.post("simpleenroll", "device", &user).status, "400");
    assert!(server.reason().contains("PEM armour"), "{}", server.reason());
    server.openssl("genrsa -out weak.key 1024");
    server.openssl("req -new -key weak.key -subj /CN=weak -outform DER -out weak.der");
    server.openssl("base64 -in weak.der -out weak.csr");
    assert_eq!(server.post("simpleenroll", "weak", &user).status, "400");
    assert!(server.reason().contains("RSA with 1024 bits"), "{}", server.reason());
    server.make_request("ca", "/CN=gateway", "basicConstraints=critical,CA:TRUE");
    assert_eq!(server.post("simpleenroll", "ca", &user).status, "403");
}

#[test]
fn authorities_are_for_everybody_unless_protected() {
    let server = Server::start("labels = ['devices']\n[users]\nu = 'p'");
    for operation in ["cacerts", "devices/cacerts"] {
        let issuers = server.certificates(&server.get(&server.url(operation), &[]));
        assert_eq!(issuers, [server.read("sim/est/issuing-ca.pem"), server.read("sim/est/ca.pem")]);
    }
    server.control("PUT", "/est", r#"{"protectCacerts":true}"#);
    assert_eq!(server.get(&server.url("cacerts"), &[]).status, "401");
    assert_eq!(server.get(&server.url("cacerts"), &["-u", "u:p"]).status, "200");
}

#[test]
fn a_server_that_is_not_well() {
    let server = Server::start("pending_polls = 1\nretry_after_seconds = 1\n[users]\nu = 'p'");
    server.make_request("device", "/CN=pump", "");
    let user = ["-u", "u:p"];
    let pending = server.post("simpleenroll", "device", &user);
    assert_eq!((pending.status.as_str(), pending.head.contains("retry-after: 1")), ("202", true));
    wait_for(|| (server.post("simpleenroll", "device", &user).status == "200").then_some(()));
    server.control("PUT", "/est", r#"{"pendingPolls":0}"#);

    server.fault(r#"{"kind":"status","status":503,"retryAfter":9,"matching":"/cacerts"}"#);
    let down = server.get(&server.url("cacerts"), &[]);
    assert_eq!((down.status.as_str(), down.head.contains("retry-after: 9")), ("503", true));
    assert_eq!(server.post("simpleenroll", "device", &user).status, "200");

    let authority = server.path("sim/ca.pem");
    for (fault, exit_code) in [("hang", 28), ("stall", 28), ("plain", 35)] {
        server.fault(&format!(r#"{{"kind":"{fault}","count":1}}"#));
        let output = curl(&["--cacert", &authority, "--max-time", "1", &server.url("cacerts")]);
        assert_eq!(output.status.code(), Some(exit_code), "{fault}");
        assert_eq!(server.get(&server.url("cacerts"), &[]).status, "200");
    }
    server.fault(r#"{"kind":"hang"}"#);
    let _hung = curl(&["--cacert", &authority, "--max-time", "1", &server.url("cacerts")]);
    let begin = std::time::Instant::now();
    assert_eq!(terminate(server.running), 0);
    assert!(begin.elapsed() < std::time::Duration::from_secs(4), "a hanging call does not hold up the end");
}

#[test]
fn odd_answers_on_demand() {
    let server = Server::start("[users]\nu = 'p'");
    server.make_request("device", "/CN=pump", "");
    let answer = |form: &str| {
        server.fault(&format!(r#"{{"kind":"answer","form":"{form}","matching":"/simpleenroll","count":1}}"#));
        server.post("simpleenroll", "device", &["-u", "u:p"])
    };
    for (form, count) in [
        ("no-certificates", 0),
        ("no-content", 0),
        ("ca-only", 2),
        ("wrong-key", 1),
        ("other-ca", 1),
        ("expired", 1),
        ("unordered", 3),
        ("extra", 5),
        ("many", 150),
        ("crlf", 1),
        ("odd-media-type", 1),
        ("wrong-media-type", 1),
    ] {
        assert_eq!(server.certificates(&answer(form)).len(), count, "{form}");
        assert!(server.reason().starts_with("answer on demand"), "{form}: {}", server.reason());
    }
    assert!(answer("odd-media-type").head.contains("content-type: application/pkcs7-mime ; smime"));
    assert!(!answer("no-media-type").head.contains("content-type:"));
    assert!(answer("huge").body.len() > 2 << 20);
    server.write("der.p7", &answer("der").body);
    server.write("pem.p7", &answer("pem").body);
    for arguments in ["pkcs7 -inform DER -in der.p7 -noout", "pkcs7 -in pem.p7 -noout"] {
        server.openssl(arguments);
    }
    server.write("plain.pem", &answer("plain-pem").body);
    server.openssl("x509 -in plain.pem -noout");
    for nonsense in ["garbage", "garbage-der", "empty"] {
        server.write("nonsense.b64", &answer(nonsense).body);
        let _fails_for_some = server.try_openssl("base64 -d -in nonsense.b64 -out nonsense.p7");
        assert!(!server.try_openssl("pkcs7 -inform DER -in nonsense.p7 -noout").status.success(), "{nonsense}");
    }
    let issued = server.issued();
    assert_eq!(issued[3]["form"], "wrong-key");
}

#[test]
fn plain_http_where_it_is_asked_for() {
    for (settings, code) in [("plain_http = true", "200"), ("", "000")] {
        let server = Server::start(settings);
        let url = format!("http://localhost:{}/.well-known/est/cacerts", server.port());
        let output = curl(&["-o", "/dev/null", "-w", "%{http_code}", &url]);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), code);
        assert_eq!(server.get(&server.url("cacerts"), &[]).status, "200");
    }
}

#[test]
fn settings_with_a_slip_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("est.toml");
    aziot_files::write(&path, aziot_files::Mode::PRIVATE, "[users]\nu = 4711\n").unwrap();
    let output = program().arg("--dir").arg(folder.path()).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(log.contains("est.toml") && log.contains("line 2") && !log.contains("u = 4711"), "{log}");
}

/// strongSwan's EST client is by other people altogether. Version 5.9.8 takes base64 in a single line only.
#[test]
#[ignore = "needs `pki` of Debian's strongswan-pki, which nothing else here needs"]
fn strongswan_enrolls_and_renews() {
    let server = Server::start("pending_polls = 1\n[users]\nu = 'p'");
    server.make_request("device", "/CN=pump", IDENTITY);
    server.make_request("renewed", "/CN=pump", IDENTITY);
    let authority = server.path("sim/ca.pem");
    let url = format!("https://localhost:{}", server.port());
    let pki = |arguments: &[&str]| {
        let output = std::process::Command::new("pki").args(arguments).output().expect("strongswan-pki is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    server.fault(r#"{"kind":"answer","form":"one-line"}"#);
    let common = ["--url", &url, "--cacert", &authority, "--outform", "pem"];
    let (first, second) = (server.path("device.der"), server.path("renewed.der"));
    let enroll = [&["--est", "--in", &first, "--userpass", "u:p", "--interval", "2"], &common[..]].concat();
    server.write("device.leaf", pki(&enroll));
    server.control("PUT", "/est", r#"{"pendingPolls":0}"#);
    let (certificate, key) = (server.path("device.leaf"), server.path("device.key"));
    let issuers = [server.path("sim/est/issuing-ca.pem"), server.path("sim/est/ca.pem")];
    let renew = [
        "--est",
        "--in",
        &second,
        "--cert",
        &certificate,
        "--key",
        &key,
        "--cacert",
        &issuers[0],
        "--cacert",
        &issuers[1],
    ];
    server.write("renewed.leaf", pki(&[&renew, &common[..]].concat()));
    let operations: Vec<_> = (0..2).map(|index| server.issued()[index]["operation"].clone()).collect();
    assert_eq!(operations, ["simpleenroll", "simplereenroll"]);
    let out = server.path("found");
    pki(&["--estca", "--url", &url, "--cacert", &authority, "--outform", "pem", "--caout", &out]);
    for name in ["device", "renewed"] {
        server.openssl(&format!("verify -CAfile sim/est/ca.pem -untrusted sim/est/issuing-ca.pem {name}.leaf"));
    }
}
