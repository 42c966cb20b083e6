//! An EST server (RFC 7030) for system tests: the simulator as a process of its own, apart from the device's cloud, with its own folder,
//! authorities and faults.
//!
//! [`device`] is a device that is its client. [`echo`] has the other half of a test of renewal: a service that lets only holders of issued
//! certificates in, and a client that connects to it again and again.

pub mod device;
pub mod echo;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Programs, Reply, curl,
    device::write_private,
    openssl,
    process::{Process, Ready, Restart},
};

/// A user that every server knows.
pub const USER: &str = "pump";
/// Password of [`USER`].
pub const PASSWORD: &str = "p@ss:word";

/// How the server is to be. What is not here is written as lines of its file, in `more`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For so long certificates are valid.
    pub lifetime_seconds: u32,
    /// For so long EST identities are (requests for client authentication alone, without further names).
    pub identity_lifetime_seconds: u32,
    /// `any`, `basic`, `certificate` or `both`.
    pub authentication: &'static str,
    /// Labels in paths, beside the path without one.
    pub labels: Vec<&'static str>,
    /// Further lines of `est.toml`; `docs/simulator.md` lists the keys.
    pub more: &'static str,
}

impl Default for Settings {
    /// An hour for each certificate, any credential, the label `devices`.
    fn default() -> Self {
        Self {
            lifetime_seconds: 3600,
            identity_lifetime_seconds: 3600,
            authentication: "any",
            labels: vec!["devices"],
            more: "",
        }
    }
}

/// One certificate that the server issued.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// `simpleenroll` or `simplereenroll`.
    pub operation: String,
    /// Label in the path.
    pub label: Option<String>,
    /// Lower-case hex.
    pub serial: String,
    /// As in `CN=pump, O=Contoso`.
    pub subject: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// SHA-256 over the certificate, lower-case hex.
    pub fingerprint: String,
    /// SHA-256 over the public key, lower-case hex: a rotated key shows here.
    pub key_fingerprint: String,
    /// Whether it is an EST identity: client authentication alone, without further names.
    pub is_identity: bool,
    /// Who asked with a password.
    pub user: Option<String>,
    /// Who asked with a certificate.
    pub client: Option<Client>,
    /// What was odd about the answer, on demand.
    pub form: Option<String>,
    /// The certificate alone.
    pub pem: String,
}

/// The certificate with which somebody asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// Whether the bootstrap CA made it.
    pub is_bootstrap: bool,
    /// Lower-case hex.
    pub serial: String,
    /// As in `CN=pump`.
    pub subject: String,
}

/// A running EST server. Dropping it ends the process.
pub struct EstServer {
    folder: PathBuf,
    programs: Programs,
    /// `127.0.0.1:PORT`, the same over restarts.
    address: String,
    process: Option<Process>,
}

impl EstServer {
    /// Starts a server in `folder`, which is made.
    pub fn start(folder: &Path, programs: &Programs, settings: &Settings) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        let folder = folder.canonicalize().context("could not resolve the folder of the EST server")?;
        let Settings { lifetime_seconds, identity_lifetime_seconds, authentication, labels, more } = settings;
        let text = format!(
            "lifetime_seconds = {lifetime_seconds}\nidentity_lifetime_seconds = {identity_lifetime_seconds}\n\
             authentication = {authentication:?}\nlabels = {labels:?}\n{more}\n\n[users]\n{USER} = {PASSWORD:?}\n"
        );
        write_private(&folder.join("est.toml"), text)?;
        let mut server = Self { folder, programs: programs.clone(), address: "127.0.0.1:0".to_owned(), process: None };
        server.start_again()?;
        Ok(server)
    }

    /// Starts it anew after [`kill`](Self::kill), on the same port and with the same authorities. What it issued before is not listed any more.
    pub fn start_again(&mut self) -> Result<()> {
        let program = self.programs.path("aziot-simulator");
        let (folder, listen) = (self.folder.clone(), self.address.clone());
        let command = move || {
            let mut command = Command::new(&program);
            command.arg("--dir").arg(&folder).args(["--listen", &listen]).stdin(Stdio::null());
            command
        };
        let address = self.folder.join("address");
        let log = self.folder.join("simulator.log");
        let ready = Ready::File(address.clone());
        self.process = Some(Process::start("EST server", &log, Restart::Never, &ready, command)?);
        let text = fs::read_to_string(address).context("could not read the EST server's address")?;
        text.trim().clone_into(&mut self.address);
        Ok(())
    }

    /// Ends it as a power cut would: connections are refused from then on.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the EST server is not running")?.kill()
    }

    /// Base URL for `est.urls` and the like, without a slash at its end.
    pub fn url(&self) -> Result<String> {
        Ok(format!("https://localhost:{}/.well-known/est", self.port()?))
    }

    /// The same in clear; `plain_http = true` in [`Settings::more`] serves it.
    pub fn plain_url(&self) -> Result<String> {
        Ok(format!("http://localhost:{}/.well-known/est", self.port()?))
    }

    fn port(&self) -> Result<&str> {
        Ok(self.address.rsplit_once(':').with_context(|| format!("no port in {}", self.address))?.1)
    }

    /// PEM: the root of the server's own TLS certificate, for `trusted_certs`.
    #[must_use]
    pub fn tls_root(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// PEM: the root of what it issues.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("est/ca.pem")
    }

    /// PEM: the authority between root and what is issued.
    #[must_use]
    pub fn issuing(&self) -> PathBuf {
        self.folder.join("est/issuing-ca.pem")
    }

    /// Makes a key of EC P-256 and a bootstrap certificate with its issuer for it, as a device brings them from the factory.
    pub fn make_bootstrap(&self, name: &str, key: &Path, certificate: &Path, lifetime_seconds: u32) -> Result<()> {
        openssl::make_key(key)?;
        self.certify_bootstrap(&openssl::request_for(key, name)?, certificate, lifetime_seconds)
    }

    /// The same for a request (PEM), whose key may lie in a token.
    pub fn certify_bootstrap(&self, request: &str, certificate: &Path, lifetime_seconds: u32) -> Result<()> {
        let target = format!("/est/bootstrap?lifetimeSeconds={lifetime_seconds}");
        write_private(certificate, self.control("POST", &target, Some(request))?.expect(200)?.body)
    }

    /// Calls the control socket.
    pub fn control(&self, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
        curl::on_socket(&self.folder.join("control.sock"), None, method, target, body)
    }

    /// Changes settings while it runs, such as `{"lifetimeSeconds": 20}`.
    pub fn change(&self, change: &Value) -> Result<()> {
        self.control("PUT", "/est", Some(&change.to_string()))?.expect(204).map(|_| ())
    }

    /// Sets a fault, such as `{"kind": "status", "status": 503, "matching": "/cacerts"}`; one at a time.
    pub fn fault(&self, fault: &Value) -> Result<()> {
        self.control("PUT", "/fault", Some(&fault.to_string()))?.expect(204).map(|_| ())
    }

    /// The next `count` answers to enrolments have this form (`docs/simulator.md` lists them), or all if absent.
    pub fn answer_enrolments(&self, form: &str, count: Option<u32>) -> Result<()> {
        self.fault(&json!({ "kind": "answer", "form": form, "matching": "enroll", "count": count }))
    }

    /// Whether a fault is set; one with a count is over when the last request has met it.
    pub fn is_faulty(&self) -> Result<bool> {
        Ok(self.control("GET", "/fault", None)?.expect(200)?.json()?["kind"] != "none")
    }

    /// Ends each fault.
    pub fn be_well(&self) -> Result<()> {
        self.control("DELETE", "/fault", None)?.expect(204).map(|_| ())
    }

    /// What was issued since the start, the oldest first.
    pub fn issued(&self) -> Result<Vec<Issued>> {
        let body = self.control("GET", "/est/issued", None)?.expect(200)?.body;
        serde_json::from_str(&body).context("the list of issued certificates has another shape")
    }

    /// The requests on the TLS port since the start, the oldest first: `method`, `path`, `status`, `reason`.
    pub fn requests(&self) -> Result<Vec<Value>> {
        let journal = self.control("GET", "/journal", None)?.expect(200)?.json()?;
        journal.as_array().cloned().context("the journal is no list")
    }

    /// Verifies a certificate (PEM; further certificates behind it are not looked at) as another program would, given root and issuer.
    pub fn verify(&self, pem: &str) -> Result<()> {
        let (root, issuing) = (self.root(), self.issuing());
        let arguments: [&std::ffi::OsStr; 6] = [
            "verify".as_ref(),
            "-x509_strict".as_ref(),
            "-CAfile".as_ref(),
            root.as_os_str(),
            "-untrusted".as_ref(),
            issuing.as_os_str(),
        ];
        let said = openssl::run(arguments, pem)?;
        ensure!(said.trim() == "stdin: OK", "openssl says {said}");
        Ok(())
    }

    /// All that it has logged.
    pub fn log(&self) -> Result<String> {
        let path = self.folder.join("simulator.log");
        fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        echo::{EchoServer, Pair, or_last},
        *,
    };
    use crate::curl::feed;

    /// Enrols a new key with the user's password, by curl: the certificate, PEM.
    fn enroll(server: &EstServer, key: &Path) -> Result<String> {
        let request = openssl::make_request(key, "pump")?;
        let base64: String =
            request.lines().filter(|line| !line.starts_with('-')).flat_map(|line| [line, "\n"]).collect();
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--user", &format!("{USER}:{PASSWORD}"), "--cacert"]);
        command.arg(server.tls_root()).args(["--header", "content-type: application/pkcs10", "--data-binary", "@-"]);
        let output = feed(command.arg(server.url()? + "/devices/simpleenroll"), &base64)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer = format!("-----BEGIN PKCS7-----\n{}-----END PKCS7-----\n", String::from_utf8(output.stdout)?);
        openssl::run(["pkcs7", "-print_certs"], &answer)
    }

    #[test]
    fn who_was_enrolled_is_let_in_and_nobody_else() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let server = EstServer::start(&folder.path().join("est"), &Programs::of_this_build()?, &Settings::default())?;
        let key = folder.path().join("pump.key.pem");
        let leaf = enroll(&server, &key)?;
        server.verify(&leaf)?;
        let issued = server.issued()?;
        assert_eq!(
            (issued.len(), issued[0].user.as_deref(), issued[0].label.as_deref()),
            (1, Some(USER), Some("devices"))
        );
        assert!(!issued[0].is_identity && issued[0].client.is_none() && issued[0].form.is_none());

        let key_pem = fs::read(&key)?;
        let whole = Pair::from_pem((leaf.clone() + &fs::read_to_string(server.issuing())?).as_bytes(), &key_pem)?;
        assert_eq!(whole.fingerprint()?, issued[0].fingerprint);
        let echo = EchoServer::start(folder.path(), &server.root())?;
        let again = whole.clone();
        let mut turns = 0;
        let good = echo.connect_in_a_loop(move || {
            turns += 1;
            ensure!(turns <= 3, "three are enough");
            Ok(again.clone())
        });
        crate::eventually("the end of the loop", std::time::Duration::from_secs(20), || {
            Ok((!good.is_running()).then_some(()))
        })?;
        assert_eq!(format!("{:#}", good.stop().unwrap_err()), "no pair for connection 4: three are enough");
        echo.connect(&whole)?;
        // Without its issuer nobody can tell whose it is.
        assert!(echo.connect(&Pair::from_pem(leaf.as_bytes(), &key_pem)?).is_err());
        let (factory, factory_key) = (folder.path().join("factory.pem"), folder.path().join("factory.key.pem"));
        server.make_bootstrap("serial-0815", &factory_key, &factory, 60)?;
        assert!(echo.connect(&Pair::read(&factory, &factory_key)?).is_err());
        assert!(Pair::read(&factory, &key).is_err());

        let mut pairs = vec![Err(anyhow::anyhow!("in between")), Ok(whole), Err(anyhow::anyhow!("at first"))];
        let mut load = or_last(move || pairs.pop().context("none left")?);
        assert!(load().is_err());
        assert_eq!(load()?.fingerprint()?, load()?.fingerprint()?);
        let looped = echo.connect_in_a_loop(load);
        crate::eventually("a second connection", std::time::Duration::from_secs(20), || {
            ensure!(looped.is_running(), "the loop ended");
            Ok((looped.connections() > 1).then_some(()))
        })?;
        assert_eq!(looped.stop()?.certificates, [issued[0].fingerprint.clone()].into());
        Ok(())
    }

    #[test]
    fn faults_come_and_go_and_a_restart_keeps_the_address() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut server =
            EstServer::start(&folder.path().join("est"), &Programs::of_this_build()?, &Settings::default())?;
        let key = folder.path().join("pump.key.pem");
        server.fault(&json!({ "kind": "status", "status": 503, "matching": "enroll" }))?;
        assert!(enroll(&server, &key).is_err());
        assert_eq!(server.requests()?.last().map(|request| request["status"].clone()), Some(json!(503)));
        server.answer_enrolments("expired", Some(1))?;
        let expired = enroll(&server, &key)?;
        assert!(server.verify(&expired).is_err());
        assert_eq!(server.issued()?.last().and_then(|issued| issued.form.clone()).as_deref(), Some("expired"));
        server.be_well()?;
        server.change(&json!({ "lifetimeSeconds": 20 }))?;
        let (url, root) = (server.url()?, fs::read(server.root())?);
        server.verify(&enroll(&server, &key)?)?;
        server.kill()?;
        assert!(enroll(&server, &key).is_err());
        server.start_again()?;
        assert_eq!((server.url()?, fs::read(server.root())?), (url, root));
        server.verify(&enroll(&server, &key)?)
    }
}
