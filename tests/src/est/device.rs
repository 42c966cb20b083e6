//! A device whose certificates come over EST: a bootstrap identity from its factory, an EST identity of its own, and what it enrols with that.
//! Key service and certificate service are real and configured by hand; the identity service has no part in this.

use std::ops::{Deref, DerefMut};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{EstServer, Settings, echo::Pair};
use crate::{Daemon, Programs, Reply, World, calls::VERSION, openssl as program, raw, token::Token};

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

    /// Certificate and key as they lie in the services' folders; fails if they do not belong together.
    pub fn pair(&self, id: &str) -> Result<Pair> {
        Pair::read(&self.certificate_file(id), &self.key_file(id))
    }
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
