//! A folder with a super-config, to which `config apply --root` is applied.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::running::{Program, Run, run_program};

/// A folder with a super-config where the command looks for it.
pub(crate) struct Device {
    folder: tempfile::TempDir,
    program: Program,
}

impl Device {
    pub(crate) fn new(program: Program, super_config: &str) -> Self {
        let device = Self { folder: tempfile::tempdir().unwrap(), program };
        device.write(super_config);
        device
    }

    pub(crate) fn write(&self, super_config: &str) {
        fs::create_dir_all(self.path("etc/aziot")).unwrap();
        aziot_files::write(self.path("etc/aziot/config.toml"), aziot_files::Mode::PRIVATE, super_config).unwrap();
    }

    pub(crate) fn folder(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// What was made for a service.
    pub(crate) fn config(&self, service: &str) -> String {
        fs::read_to_string(self.path(&format!("etc/aziot/{service}/config.d/00-super.toml"))).unwrap()
    }

    pub(crate) fn apply(&self, more: &[&str]) -> Run {
        let arguments = ["config", "apply", "--root", self.folder()];
        run_program(self.program, &[&arguments, more].concat(), b"")
    }

    /// Applies, which must succeed.
    pub(crate) fn applied(&self) -> Run {
        let run = self.apply(&[]);
        assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{}", run.stderr);
        run
    }
}

/// A file's or folder's permissions.
pub(crate) fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}
