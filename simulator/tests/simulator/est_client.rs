//! An EST client made of `curl` and `openssl`, which know nothing of our code, and the simulator it talks to.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Running, curl, program, wait_for};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// The program with an EST server, and a folder for the client's files.
pub(crate) struct Server {
    folder: TempDir,
    port: String,
    pub(crate) running: Running,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: String,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Server {
    /// Starts the program with these settings.
    pub(crate) fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("sim");
        std::fs::create_dir(&dir).unwrap();
        aziot_files::write(dir.join("est.toml"), aziot_files::Mode::PRIVATE, settings).unwrap();
        // Nobody reads its log, so it must not fill a pipe.
        let running = Running(program().arg("--dir").arg(&dir).stderr(Stdio::null()).spawn().unwrap());
        let address = wait_for(|| std::fs::read_to_string(dir.join("address")).ok());
        let port = address.trim().rsplit(':').next().unwrap().to_owned();
        Self { folder, port, running }
    }

    /// A file of the client's.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        aziot_files::write(PathBuf::from(self.path(name)), aziot_files::Mode::PRIVATE, bytes).unwrap();
    }

    pub(crate) fn url(&self, operation: &str) -> String {
        format!("https://localhost:{}/.well-known/est/{operation}", self.port)
    }

    pub(crate) fn port(&self) -> &str {
        &self.port
    }

    /// Runs `openssl` in the client's folder, and returns what it printed.
    pub(crate) fn openssl(&self, arguments: &str) -> String {
        let output = self.try_openssl(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_openssl(&self, arguments: &str) -> Output {
        let arguments = arguments.split(' ').filter(|argument| !argument.is_empty());
        let output = Command::new("openssl").args(arguments).current_dir(self.folder.path()).output();
        output.expect("openssl is installed")
    }

    /// Makes `NAME.key` and `NAME.csr` (base64 of DER, as EST has it). `extension` is one of openssl's, without blanks.
    pub(crate) fn make_request(&self, name: &str, subject: &str, extension: &str) {
        let extension = if extension.is_empty() { String::new() } else { format!("-addext {extension}") };
        self.openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"));
        self.openssl(&format!("req -new -key {name}.key -subj {subject} {extension} -outform DER -out {name}.der"));
        self.openssl(&format!("base64 -in {name}.der -out {name}.csr"));
    }

    /// One call of curl over TLS that trusts the simulator's CA alone.
    pub(crate) fn get(&self, url: &str, arguments: &[&str]) -> Answer {
        let (head, body) = (self.path("head"), self.path("body"));
        let authority = self.path("sim/ca.pem");
        let fixed = ["--cacert", &authority, "--dump-header", &head, "-o", &body, "-w", "%{http_code}", url];
        let output = curl(&[&fixed, arguments].concat());
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        let status = String::from_utf8(output.stdout).unwrap();
        let body = std::fs::read(&body).unwrap_or_default();
        let _none_where_the_body_was_empty = std::fs::remove_file(self.path("body"));
        Answer { status, head: self.read("head").to_lowercase(), body }
    }

    /// Sends `NAME.csr` to `operation`.
    pub(crate) fn post(&self, operation: &str, name: &str, arguments: &[&str]) -> Answer {
        let body = format!("@{}", self.path(&format!("{name}.csr")));
        let fixed = ["-H", "content-type: application/pkcs10", "--data-binary", &body];
        self.get(&self.url(operation), &[&fixed, arguments].concat())
    }

    /// The same as the holder of `CLIENT.pem` and `CLIENT.key`.
    pub(crate) fn post_as(&self, client: &str, operation: &str, name: &str) -> Answer {
        let (certificate, key) = (self.path(&format!("{client}.pem")), self.path(&format!("{client}.key")));
        self.post(operation, name, &["--cert", &certificate, "--key", &key])
    }

    /// The certificates of an answer, as `openssl pkcs7` finds them.
    pub(crate) fn certificates(&self, answer: &Answer) -> Vec<String> {
        assert_eq!(answer.status, "200", "{}", answer.text());
        self.write("answer.b64", &answer.body);
        self.openssl("base64 -d -in answer.b64 -out answer.p7");
        let text = self.openssl("pkcs7 -inform DER -in answer.p7 -print_certs");
        let (_, rest) = text.split_once(BEGIN).unwrap_or_default();
        let blocks = rest.split(BEGIN).filter(|block| !block.is_empty());
        blocks
            .map(|block| format!("{BEGIN}{}-----END CERTIFICATE-----\n", block.split("-----END").next().unwrap()))
            .collect()
    }

    /// Enrols `NAME.csr` as `CLIENT`, and leaves `NAME.pem`: the certificate and then the issuers, as a client sends them.
    pub(crate) fn enroll(&self, client: &str, operation: &str, name: &str) {
        let granted = self.certificates(&self.post_as(client, operation, name));
        assert_eq!(granted.len(), 1, "certs-only holds the certificate alone");
        self.write(&format!("{name}.leaf"), &granted[0]);
        self.write(&format!("{name}.pem"), granted[0].clone() + &self.read("sim/est/issuing-ca.pem"));
    }

    pub(crate) fn control(&self, method: &str, path: &str, body: &str) -> Output {
        let socket = self.path("sim/control.sock");
        let output = curl(&[
            "--fail",
            "--unix-socket",
            &socket,
            "-X",
            method,
            &format!("http://simulator{path}"),
            "--data-binary",
            body,
        ]);
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    pub(crate) fn fault(&self, fault: &str) {
        self.control("PUT", "/fault", fault);
    }

    pub(crate) fn issued(&self) -> Value {
        serde_json::from_slice(&self.control("GET", "/est/issued", "").stdout).unwrap()
    }

    /// Why the last request was refused.
    pub(crate) fn reason(&self) -> String {
        let journal: Value = serde_json::from_slice(&self.control("GET", "/journal", "").stdout).unwrap();
        journal.as_array().unwrap().last().unwrap()["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Leaves `factory.pem` and `factory.key`, as a device brings them.
    pub(crate) fn make_factory_identity(&self) {
        self.make_request("factory", "/CN=serial-0815", "extendedKeyUsage=clientAuth");
        self.openssl("req -inform DER -in factory.der -out factory.request");
        let request = format!("@{}", self.path("factory.request"));
        let made = self.control("POST", "/est/bootstrap?lifetimeSeconds=600", &request);
        self.write("factory.pem", &made.stdout);
    }
}
