//! A device whose certificates come over EST: a bootstrap identity from its factory, an EST identity of its own, and what it enrols with that.
//! Key service and certificate service are real and configured by hand; the identity service has no part in this.

use std::{
    fs,
    ops::{Deref, DerefMut},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{bn::BigNumContext, ec::PointConversionForm, sha::sha256, x509::X509};
use serde_json::{Value, json};

use super::{EstServer, Settings, echo::Pair};
use crate::{Daemon, Programs, Reply, World, calls::VERSION, hex, openssl as program, raw, token::Token};

/// Id of the device's own EST identity and of its key.
pub const IDENTITY: &str = "est-id";
/// Id of the identity from the factory and of its key.
pub const BOOTSTRAP: &str = "est-bootstrap-id";
/// Id of the certificate that is enrolled, and of its key; `device-id-temp` is enrolled as well.
pub const DEVICE: &str = "device-id";
/// Id of a certificate that the local CA issues without any network.
pub const LOCAL: &str = "local";
/// How EST identities are renewed in most tests: after 4 of 10 s, then each second.
pub const EAGER: &str = "{ rotate_key = true, threshold = \"40%\", retry = \"10%\" }";

/// The device and the server. Nothing of the device runs at first.
pub struct EstDevice {
    world: World,
    /// Where its certificates come from.
    pub server: EstServer,
    token: Option<Token>,
}

impl EstDevice {
    /// A device with a bootstrap identity in files. Its own identity is renewed as `policy` says (a table of TOML).
    pub fn new(settings: &Settings, policy: &str) -> Result<Self> {
        let world = World::empty()?;
        let server = EstServer::start(&world.path("est"), &Programs::of_this_build()?, settings)?;
        let (key, certificate) = (world.path("var/secrets/bootstrap.key.pem"), world.path("var/secrets/bootstrap.pem"));
        server.make_bootstrap("serial-0815", &key, &certificate, 3600)?;
        let device = Self { world, server, token: None };
        device.configure(&format!("{BOOTSTRAP} = \"file://{}\"\n", key.display()), "", policy)?;
        Ok(device)
    }

    /// A device whose keys are all made on a token, the one for the bootstrap identity too. The key service runs.
    pub fn with_token(settings: &Settings, policy: &str) -> Result<Self> {
        let world = World::empty()?;
        let server = EstServer::start(&world.path("est"), &Programs::of_this_build()?, settings)?;
        let token = Token::make(&world.path("token"))?;
        let lines = token.settings();
        let mut device = Self { world, server, token: Some(token) };
        device.configure("", &lines, policy)?;
        device.start_keys()?;
        Ok(device)
    }

    fn configure(&self, keys: &str, key_library: &str, policy: &str) -> Result<()> {
        let (ca_key, ca) = (self.path("var/secrets/local-ca.key.pem"), self.local_ca());
        program::make_ca(&ca_key, &ca, "local CA")?;
        let (uid, url) = (self.uid()?, self.server.url()?);
        // The table of the library comes last in the text that is made of this.
        self.drop_in(Daemon::Keys, "10-library.toml", &format!("[aziot_keys]\n{key_library}"))?;
        self.configure_keys(&format!(
            "[preloaded_keys]\n{keys}local-ca = \"file://{}\"\n\n[[principal]]\nuid = {uid}\nkeys = [\"*\"]\n",
            ca_key.display()
        ))?;
        self.configure_certificates(&format!(
            "[preloaded_certs]\n{BOOTSTRAP} = \"file://{}\"\nest-server-ca = \"file://{}\"\nlocal-ca = \"file://{}\"\n\n\
             [cert_issuance]\n{DEVICE} = {{ method = \"est\" }}\n{DEVICE}-temp = {{ method = \"est\" }}\n\
             {LOCAL} = {{ method = \"local_ca\" }}\nlocal_ca = {{ cert = \"local-ca\", pk = \"local-ca\" }}\n\n\
             [cert_issuance.est]\ntrusted_certs = [\"est-server-ca\"]\nurls = {{ default = {url:?} }}\n\
             identity_cert = \"{IDENTITY}\"\nidentity_pk = \"{IDENTITY}\"\n\
             bootstrap_identity_cert = \"{BOOTSTRAP}\"\nbootstrap_identity_pk = \"{BOOTSTRAP}\"\n\
             identity_auto_renew = {policy}\n\n[[principal]]\nuid = {uid}\ncerts = [\"*\"]\n",
            self.path("var/secrets/bootstrap.pem").display(),
            self.server.tls_root().display(),
            ca.display(),
        ))
    }

    /// Starts the key service.
    pub fn start_keys(&mut self) -> Result<()> {
        let environment = self.token.as_ref().map(Token::environment);
        self.world.start_with(Daemon::Keys, move |command| {
            if let Some((name, value)) = &environment {
                command.env(name, value);
            }
        })
    }

    /// Lets the certificate service reach the key service at another socket.
    pub fn move_keys_to(&self, socket: &std::path::Path) -> Result<()> {
        let text = format!("[endpoints]\naziot_keyd = \"unix://{}\"\n", socket.display());
        self.drop_in(Daemon::Certificates, "50-keys.toml", &text)
    }

    /// Has a certificate issued for a request in PEM, and waits for the answer.
    pub fn issue(&self, id: &str, request: &str) -> Result<Reply> {
        let body = json!({ "certId": id, "csr": request }).to_string();
        raw::call(&self.socket(Daemon::Certificates), "POST", &format!("/certificates?{VERSION}"), Some(&body))
    }

    /// A certificate as the service has it; `None` if there is none.
    pub fn certificate(&self, id: &str) -> Result<Option<String>> {
        let target = format!("/certificates/{id}?{VERSION}");
        let reply = raw::call(&self.socket(Daemon::Certificates), "GET", &target, None)?;
        match reply.status {
            400 => Ok(None),
            _ => reply.expect(200)?.text("/pem").map(Some),
        }
    }

    /// What `GET /renewals` says.
    pub fn renewals(&self) -> Result<Vec<Value>> {
        let target = format!("/renewals?{VERSION}");
        let reply = raw::call(&self.socket(Daemon::Certificates), "GET", &target, None)?.expect(200)?.json()?;
        reply["renewals"].as_array().cloned().context("no list of renewals")
    }

    /// What `GET /renewals` says about the EST identity; `None` if it is not renewed.
    pub fn identity_renewal(&self) -> Result<Option<Value>> {
        Ok(self.renewals()?.into_iter().find(|renewal| renewal["certId"] == IDENTITY))
    }

    /// Public half of a key pair on P-256 as the key service tells it, compressed; `None` if there is no such pair.
    pub fn public_key(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let Some(handle) = self.handle(id)? else { return Ok(None) };
        let body = json!({ "keyHandle": handle }).to_string();
        let target = format!("/parameters/ec-point?{VERSION}");
        let reply = raw::call(&self.socket(Daemon::Keys), "POST", &target, Some(&body))?.expect(200)?;
        Ok(Some(STANDARD.decode(reply.text("/value")?).context("the point is not base64")?))
    }

    fn handle(&self, id: &str) -> Result<Option<String>> {
        let reply = raw::call(&self.socket(Daemon::Keys), "GET", &format!("/keypair/{id}?{VERSION}"), None)?;
        match reply.status {
            400 => Ok(None),
            _ => reply.expect(200)?.text("/keyHandle").map(Some),
        }
    }

    /// Deletes a key pair if it is there.
    pub fn delete_key(&self, id: &str) -> Result<()> {
        let Some(handle) = self.handle(id)? else { return Ok(()) };
        let body = json!({ "keyHandle": handle }).to_string();
        let target = format!("/keypair?{VERSION}");
        raw::call(&self.socket(Daemon::Keys), "DELETE", &target, Some(&body))?.expect(204).map(|_| ())
    }

    /// Fails unless the stored certificate is for the key pair of the same id.
    pub fn check_pair(&self, id: &str) -> Result<()> {
        let pem = fs::read(self.certificate_file(id)).with_context(|| format!("no certificate {id}"))?;
        let leaf = X509::from_pem(&pem).with_context(|| format!("the certificate {id} is not PEM"))?;
        let key = leaf.public_key()?.ec_key().context("not an EC key")?;
        let mut context = BigNumContext::new()?;
        let point = key.public_key().to_bytes(key.group(), PointConversionForm::COMPRESSED, &mut context)?;
        let held = self.public_key(id)?.with_context(|| format!("no key pair {id}"))?;
        ensure!(point == held, "the certificate {id} is for another key than the key pair {id}");
        Ok(())
    }

    /// Certificate and key as they lie in the services' folders; fails if they do not belong together.
    pub fn pair(&self, id: &str) -> Result<Pair> {
        Pair::read(&self.certificate_file(id), &self.key_file(id))
    }

    /// File of a stored certificate: certs.md, 3.2.
    #[must_use]
    pub fn certificate_file(&self, id: &str) -> PathBuf {
        self.certificates().join(file_name(id, "cer"))
    }

    /// Where certificates are stored.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.path("var/lib/aziot/certd/certs")
    }

    /// File of a key pair that is not on a token.
    #[must_use]
    pub fn key_file(&self, id: &str) -> PathBuf {
        self.path("var/lib/aziot/keyd/keys").join(file_name(id, "key"))
    }
}

fn file_name(id: &str, extension: &str) -> String {
    let letters: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{letters}-{}.{extension}", hex::encode(&sha256(id.as_bytes())))
}

impl Deref for EstDevice {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for EstDevice {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn file_names_are_those_of_the_public_service() {
        let expected = "estid-c45f3e96a312cc524fecceddbc40dfc2aa789eae911d8bc7dd4eda19b93be900.cer";
        assert_eq!(file_name("est-id", "cer"), expected);
    }
}
