//! Worlds for tests: a device in a temporary folder that is taken down again at the end, in the states that tests begin with.

use std::{
    fs,
    ops::{Deref, DerefMut},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{Daemon, Device, Programs, openssl, process::Restart};

/// Certificate id that the local CA issues.
pub const SERVER_CERTIFICATE: &str = "sampler-server";
/// Id of a self-signed certificate and of the preloaded key pair that signs it.
pub const SELF_SIGNED: &str = "sampler-self";

/// A device that is alone in its folder.
pub struct World {
    // Dropped first: processes end before their files go.
    device: Device,
    _folder: TempDir,
}

impl World {
    /// Folders and programs, no configuration, nothing running.
    pub fn empty() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("aziot-").tempdir().context("could not make a folder")?;
        // Other users come to the sockets, whose own mode decides.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).context("could not open the folder")?;
        let device = Device::new(folder.path(), Programs::of_this_build()?, Restart::Never)?;
        Ok(Self { device, _folder: folder })
    }

    /// Key service alone, running, with these lines added to its configuration.
    pub fn keys(extra: &str) -> Result<Self> {
        let mut world = Self::empty()?;
        world.configure_keys(extra)?;
        let principal = format!("[[principal]]\nuid = {}\nkeys = [\"*\"]\n", world.uid()?);
        world.drop_in(Daemon::Keys, "10-own.toml", &principal)?;
        world.start(Daemon::Keys)?;
        Ok(world)
    }

    /// Configures the key service by hand, without any principal.
    pub fn configure_keys(&self, extra: &str) -> Result<()> {
        let (home, socket) = (self.path("var/lib/aziot/keyd"), self.socket(Daemon::Keys));
        let config = format!(
            "{extra}\n[aziot_keys]\nhomedir_path = \"{}\"\n\n[endpoints]\naziot_keyd = \"unix://{}\"\n",
            home.display(),
            socket.display(),
        );
        self.drop_in(Daemon::Keys, "00-super.toml", &config)
    }

    /// Certificate service alone, running, with these lines added to its configuration.
    pub fn certificates(extra: &str) -> Result<Self> {
        let mut world = Self::empty()?;
        world.configure_certificates(extra)?;
        let principal = format!("[[principal]]\nuid = {}\ncerts = [\"*\"]\n", world.uid()?);
        world.drop_in(Daemon::Certificates, "10-own.toml", &principal)?;
        world.start(Daemon::Certificates)?;
        Ok(world)
    }

    /// Configures the certificate service by hand, without any principal.
    pub fn configure_certificates(&self, extra: &str) -> Result<()> {
        let home = self.path("var/lib/aziot/certd");
        let (own, keys) = (self.socket(Daemon::Certificates), self.socket(Daemon::Keys));
        let config = format!(
            "homedir_path = \"{}\"\n{extra}\n[endpoints]\naziot_certd = \"unix://{}\"\naziot_keyd = \"unix://{}\"\n",
            home.display(),
            own.display(),
            keys.display(),
        );
        self.drop_in(Daemon::Certificates, "00-super.toml", &config)
    }

    /// The cloud runs, and `aziotctl config apply` has been run for provisioning through DPS. No daemon runs.
    pub fn configured() -> Result<Self> {
        let mut world = Self::empty()?;
        world.start_cloud()?;
        let provisioning = world.dps_provisioning()?;
        world.apply(&provisioning)?;
        Ok(world)
    }

    /// All daemons run. Their first provisioning may be under way.
    pub fn started() -> Result<Self> {
        let mut world = Self::configured()?;
        world.start_all()?;
        Ok(world)
    }

    /// Applies a super-config of this provisioning and whatever else it says, with a local CA and issuers for two certificates.
    pub fn apply(&self, provisioning: &str) -> Result<()> {
        let (ca_key, ca) = (self.path("var/secrets/local-ca.key.pem"), self.local_ca());
        let own_key = self.path("var/secrets/self.key.pem");
        self.make_local_ca()?;
        openssl::make_key(&own_key)?;
        let local_ca = format!(
            "\n[cert_issuance.local_ca]\ncert = \"file://{}\"\npk = \"file://{}\"\n",
            ca.display(),
            ca_key.display()
        );
        self.configure(&format!("hostname = \"pump\"\n\n{provisioning}{local_ca}"))?;
        let uid = self.uid()?;
        let keys = format!(
            "[preloaded_keys]\n{SELF_SIGNED} = \"file://{}\"\n\n[[principal]]\nuid = {uid}\nkeys = [\"*\"]\n",
            own_key.display()
        );
        self.drop_in(Daemon::Keys, "20-test.toml", &keys)?;
        let certificates = format!(
            "[cert_issuance.{SERVER_CERTIFICATE}]\nmethod = \"local_ca\"\nexpiry_days = 7\n\n\
             [cert_issuance.{SELF_SIGNED}]\nmethod = \"self_signed\"\n\n\
             [[principal]]\nuid = {uid}\ncerts = [\"*\"]\n"
        );
        self.drop_in(Daemon::Certificates, "20-test.toml", &certificates)?;
        let identity = format!("[[principal]]\nuid = {uid}\nname = \"agent\"\n");
        self.drop_in(Daemon::Identity, "20-test.toml", &identity)
    }

    /// Lets identityd try each call to the cloud once: tests without a cloud would otherwise spend their time in the pauses before repetitions.
    pub fn be_impatient(&self) -> Result<()> {
        self.drop_in(Daemon::Identity, "30-impatient.toml", "cloud_retries = 0\n")
    }

    /// Makes the local CA, unless there is one.
    pub fn make_local_ca(&self) -> Result<()> {
        let (key, certificate) = (self.path("var/secrets/local-ca.key.pem"), self.local_ca());
        if certificate.exists() { Ok(()) } else { openssl::make_ca(&key, &certificate, "local CA") }
    }

    /// Certificate of the local CA.
    #[must_use]
    pub fn local_ca(&self) -> std::path::PathBuf {
        self.path("var/secrets/local-ca.pem")
    }

    /// The user that runs this test, and so all daemons.
    pub fn uid(&self) -> Result<u32> {
        Ok(fs::metadata(self.folder()).context("could not see whose folder it is")?.uid())
    }

    /// A user without any rights, to be called with [`Device::call_as`]. Root can be anybody; another user only itself, whose rights are then taken away.
    pub fn stranger(&self) -> Result<u32> {
        const NOBODY: u32 = 65534;
        let uid = self.uid()?;
        Ok(if uid == 0 { NOBODY } else { uid })
    }
}

impl Deref for World {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Device {
        &mut self.device
    }
}
