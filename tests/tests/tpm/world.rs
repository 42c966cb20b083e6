//! A device with a TPM and the TPM service, and what its callers do.

use std::{
    fs,
    ops::{Deref, DerefMut},
};

use anyhow::{Context as _, Result, ensure};
use aziot_simulator::tpm::challenge;
use aziot_tests::{Daemon, Reply, World, calls::VERSION, raw, tpm::SoftwareTpm};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer};
use serde_json::json;

/// Handles of the TPM's own keys and of the key that signs.
pub(crate) const STORAGE_ROOT_KEY: &str = "0x81000001";
pub(crate) const ENDORSEMENT_KEY: &str = "0x81010001";
pub(crate) const AUTH_KEY: &str = "0x81000100";
pub(crate) const SPARE: &str = "0x81400100";

/// The TPM service and its TPM.
pub(crate) struct TpmWorld {
    // Dropped first: the service ends before its TPM does.
    pub(crate) world: World,
    pub(crate) tpm: SoftwareTpm,
}

impl TpmWorld {
    /// A TPM that was never used, and a service that is configured with these lines and does not run.
    pub(crate) fn configured(extra: &str) -> Result<Self> {
        let world = World::empty()?;
        let tpm = SoftwareTpm::start(&world.path("tpm"))?;
        let world = Self { world, tpm };
        world.configure(&world.tpm.tcti(), extra)?;
        Ok(world)
    }

    /// The same, and the service runs.
    pub(crate) fn started() -> Result<Self> {
        let mut world = Self::configured("")?;
        world.start_service()?;
        Ok(world)
    }

    /// The same, with a TPM that may lose power often.
    pub(crate) fn with_power_cuts() -> Result<Self> {
        let mut world = Self::configured("")?;
        world.tpm.allow_power_cuts()?;
        world.start_service()?;
        Ok(world)
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, tcti: &str, extra: &str) -> Result<()> {
        let socket = self.socket(Daemon::Tpm);
        let endpoints = format!("[endpoints]\naziot_tpmd = \"unix://{}\"\n", socket.display());
        self.drop_in(Daemon::Tpm, "00-super.toml", &format!("tcti = {tcti:?}\n{extra}\n{endpoints}"))
    }

    /// Starts the service, with the TSS libraries' own diagnostics off: what is wrong has to be in the service's log.
    pub(crate) fn start_service(&mut self) -> Result<()> {
        self.world.start_with(Daemon::Tpm, |command| {
            command.env("TSS2_LOG", "all+NONE");
        })
    }

    /// Stops the service in order, so that others can use the TPM.
    pub(crate) fn stop_service(&mut self) -> Result<()> {
        let status = self.world.stop(Daemon::Tpm)?;
        ensure!(status.success(), "the service ended with {status}");
        Ok(())
    }

    /// A call, tried once.
    pub(crate) fn post(&self, call: &str, body: &str) -> Result<Reply> {
        raw::call(&self.socket(Daemon::Tpm), "POST", &format!("/{call}?{VERSION}"), Some(body))
    }

    /// The public keys: endorsement key, storage root key.
    pub(crate) fn public_keys(&self) -> Result<[Vec<u8>; 2]> {
        let reply =
            raw::call(&self.socket(Daemon::Tpm), "GET", &format!("/get_tpm_keys?{VERSION}"), None)?.expect(200)?;
        Ok([decode(&reply.text("/endorsement_key")?)?, decode(&reply.text("/storage_root_key")?)?])
    }

    /// What DPS sends to deliver `key`.
    pub(crate) fn challenge(&self, key: &[u8]) -> Result<Vec<u8>> {
        let [endorsement, storage] = self.public_keys()?;
        Ok(challenge(&endorsement, &storage, key)?)
    }

    /// Imports a blob, whatever it is.
    pub(crate) fn import_blob(&self, blob: &[u8]) -> Result<Reply> {
        self.post("import_auth_key", &json!({ "key": STANDARD.encode(blob) }).to_string())
    }

    /// Has DPS deliver `key`.
    pub(crate) fn import(&self, key: &[u8]) -> Result<()> {
        let reply = self.import_blob(&self.challenge(key)?)?.expect(200)?;
        ensure!(reply.body == "{}", "{reply:?}");
        Ok(())
    }

    /// Signs, whatever comes of it.
    pub(crate) fn try_to_sign(&self, data: &[u8]) -> Result<Reply> {
        self.post("sign_with_auth_key", &json!({ "data": STANDARD.encode(data) }).to_string())
    }

    /// Signs.
    pub(crate) fn sign(&self, data: &[u8]) -> Result<Vec<u8>> {
        let reply = self.try_to_sign(data)?;
        let reply = reply.expect(200).with_context(|| self.service_log().unwrap_or_default())?;
        decode(&reply.text("/digest")?)
    }

    /// Fails unless this is the key that signs.
    pub(crate) fn expect_key(&self, key: &[u8]) -> Result<()> {
        ensure!(self.sign(b"data")? == hmac(key, b"data")?, "another key signs");
        Ok(())
    }

    /// What the log says, as one text.
    pub(crate) fn service_log(&self) -> Result<String> {
        self.log(Daemon::Tpm)
    }

    /// Persistent handles, sorted; and a proof that nothing else was left in the TPM. Only while the service is stopped.
    pub(crate) fn persistent_handles(&self) -> Result<Vec<String>> {
        for kind in ["transient", "loaded-session", "saved-session"] {
            let left = self.tpm.handles(kind)?;
            ensure!(left.is_empty(), "{kind} handles were left: {left:?}");
        }
        let mut handles = self.tpm.handles("persistent")?;
        handles.sort();
        Ok(handles)
    }

    /// Puts an object of somebody else at a persistent handle. Only while the service is stopped.
    pub(crate) fn put_foreign_object(&self, handle: &str) -> Result<()> {
        let context = fs::canonicalize(self.path("tpm")).context("no folder")?.join("foreign.ctx");
        let context = context.to_str().context("a path that is no text")?;
        let _ = self.tpm.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-c", context])?;
        let _ = self.tpm.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", context, handle])?;
        let _ = self.tpm.tool("tpm2_flushcontext", &["-t"])?;
        Ok(())
    }
}

impl Deref for TpmWorld {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for TpmWorld {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

fn decode(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).context("no base64")
}

/// HMAC-SHA256 in software.
pub(crate) fn hmac(key: &[u8], data: &[u8]) -> Result<Vec<u8>> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    Ok(signer.sign_oneshot_to_vec(data)?)
}
