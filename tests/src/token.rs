//! A token for private keys in a folder: `SoftHSM2`, which the key service uses as it would a security chip.
//!
//! `SoftHSM` reads its configuration from an environment variable, so it is set for the processes that use the token, not for the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::device::write_private;

const LABEL: &str = "device";
/// Its PIN.
pub const PIN: &str = "1234";
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// A token that is set up and empty.
pub struct Token {
    config: PathBuf,
    module: &'static str,
}

impl Token {
    /// Makes it in `folder`, which is made.
    pub fn make(folder: &Path) -> Result<Self> {
        let Some(module) = MODULES.into_iter().find(|path| Path::new(path).exists()) else {
            bail!("SoftHSM2 is not installed; it is in Debian's package softhsm2");
        };
        let tokens = folder.join("tokens");
        fs::create_dir_all(&tokens).with_context(|| format!("could not make {}", tokens.display()))?;
        let config = folder.join("softhsm2.conf");
        let text =
            format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
        write_private(&config, text)?;
        let token = Self { config, module };
        let mut make = Command::new("softhsm2-util");
        make.args(["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", "8765"]);
        let (name, value) = token.environment();
        let output = make.env(name, value).output().context("could not run softhsm2-util")?;
        if !output.status.success() {
            bail!("softhsm2-util failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(token)
    }

    /// Name and value of the variable by which a process finds the token.
    #[must_use]
    pub fn environment(&self) -> (&'static str, PathBuf) {
        ("SOFTHSM2_CONF", self.config.clone())
    }

    /// The PKCS#11 library.
    #[must_use]
    pub fn module(&self) -> &Path {
        Path::new(self.module)
    }

    /// Puts a private key from a file (PEM) on the token, and tells the URI by which the key service finds it there.
    pub fn import(&self, key: &Path, label: &str) -> Result<String> {
        let mut import = Command::new("softhsm2-util");
        import.arg("--import").arg(key).args(["--token", LABEL, "--label", label, "--id", "0815", "--pin", PIN]);
        let (name, value) = self.environment();
        let output = import.env(name, value).output().context("could not run softhsm2-util")?;
        if !output.status.success() {
            bail!("softhsm2-util failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(format!("pkcs11:token={LABEL};object={label}?pin-value={PIN}"))
    }

    /// Lines of `[aziot_keys]` with which the key service makes its keys on the token.
    #[must_use]
    pub fn settings(&self) -> String {
        settings(self.module(), PIN)
    }
}

/// The same for another library that leads to the token, and whatever PIN.
#[must_use]
pub fn settings(module: &Path, pin: &str) -> String {
    let module = module.display();
    format!("pkcs11_lib_path = \"{module}\"\npkcs11_base_slot = \"pkcs11:token={LABEL}?pin-value={pin}\"\n")
}
