//! `SoftHSM2` for tests: tokens in a temporary folder, each test in a process of its own.
//!
//! SoftHSM reads its configuration from an environment variable and keeps global state, so a test runs the test program again, with the
//! variable set and itself as the only test.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aziot_keys::{Keys, Settings, SettingsError, file_name};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

pub(crate) const LABEL: &str = "Key pairs";
pub(crate) const OTHER_LABEL: &str = "other";
pub(crate) const PIN: &str = "1234";
pub(crate) const SO_PIN: &str = "8765";

const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

const FOLDER: &str = "AZIOT_TOKEN_TEST_FOLDER";
const PHASE: &str = "AZIOT_TOKEN_TEST_PHASE";

/// Runs `test` on a device of its own, in a new process for each phase. `name` is that of the test function.
pub(crate) fn run(name: &str, phases: usize, test: impl FnOnce(&Device, usize)) {
    if let Some(folder) = env::var_os(FOLDER) {
        let phase = env::var(PHASE).unwrap().parse().unwrap();
        return test(&Device { folder: folder.into() }, phase);
    }
    let folder = tempfile::tempdir().unwrap();
    let device = Device { folder: folder.path().to_owned() };
    device.prepare();
    for phase in 0..phases {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env("SOFTHSM2_CONF", device.path("softhsm2.conf"))
            .env(FOLDER, &device.folder)
            .env(PHASE, phase.to_string())
            .output()
            .unwrap();
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "phase {phase}: {}\n{stdout}\n{stderr}", output.status);
        // A name that matches no test would pass for the wrong reason.
        assert!(stdout.contains("1 passed"), "{stdout}");
    }
}

/// A home directory, two tokens, and a folder for preloaded files.
pub(crate) struct Device {
    folder: PathBuf,
}

impl Device {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn prepare(&self) {
        fs::create_dir(self.path("tokens")).unwrap();
        fs::create_dir(self.path("preloaded")).unwrap();
        let config = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            self.path("tokens").display()
        );
        aziot_files::write(self.path("softhsm2.conf"), aziot_files::Mode::PRIVATE, config).unwrap();
        for label in [LABEL, OTHER_LABEL] {
            let status = Command::new("softhsm2-util")
                .args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN])
                .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
                .output()
                .expect("softhsm2-util runs; it is in Debian's package softhsm2");
            assert!(status.status.success(), "{status:?}");
        }
    }

    /// Keys on the first token, and in files.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            homedir_path: Some(self.path("home")),
            pkcs11_lib_path: Some(module()),
            pkcs11_base_slot: Some(format!("pkcs11:token={LABEL}?pin-value={PIN}")),
            ..Settings::default()
        }
    }

    /// Keys as in [`Device::settings`], with preloaded ones.
    pub(crate) fn keys(&self, preloaded: &[(&str, &str)]) -> Keys {
        self.try_keys(preloaded).unwrap()
    }

    pub(crate) fn try_keys(&self, preloaded: &[(&str, &str)]) -> Result<Keys, SettingsError> {
        let preloaded = preloaded.iter().map(|(id, uri)| ((*id).to_owned(), (*uri).to_owned())).collect();
        Keys::new(Settings { preloaded_keys: preloaded, ..self.settings() })
    }

    /// Keys of the same home without a token.
    pub(crate) fn files(&self) -> Keys {
        Keys::new(Settings { homedir_path: Some(self.path("home")), ..Settings::default() }).unwrap()
    }

    pub(crate) fn key_file(&self, id: &str) -> PathBuf {
        self.path("home/keys").join(file_name(id).unwrap())
    }

    pub(crate) fn has_file(&self, id: &str) -> bool {
        self.key_file(id).exists()
    }

    /// Takes the tokens away or gives them back. SoftHSM looks for tokens when it starts, so it is stopped as well.
    pub(crate) fn move_tokens(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
        if !self.path("tokens").exists() {
            fs::create_dir(self.path("tokens")).unwrap();
        }
        stop();
    }

    pub(crate) fn return_tokens(&self, from: &str) {
        fs::remove_dir_all(self.path("tokens")).unwrap();
        self.move_tokens(from, "tokens");
    }
}

pub(crate) fn module() -> PathBuf {
    let found = MODULES.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("SoftHSM2 is installed; it is in Debian's package softhsm2")
}

/// The module as another user of the same process sees it: the one state of SoftHSM in it is shared.
pub(crate) fn context() -> Pkcs11 {
    let context = Pkcs11::new(module()).unwrap();
    // Usually the library under test has started it.
    let _ = context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    context
}

/// Ends SoftHSM under the library's feet: all sessions are gone, and no call works until it is started again.
pub(crate) fn stop() {
    context().finalize().unwrap();
}

pub(crate) fn slot(context: &Pkcs11, label: &str) -> Slot {
    let slots = context.get_slots_with_initialized_token().unwrap();
    slots.into_iter().find(|slot| context.get_token_info(*slot).unwrap().label() == label).unwrap()
}

/// An operator at the token, logged in.
pub(crate) struct Operator {
    pub(crate) session: Session,
}

impl Operator {
    pub(crate) fn at(label: &str) -> Operator {
        let context = context();
        let session = context.open_rw_session(slot(&context, label)).unwrap();
        // The library under test may have logged the process in.
        let _ = session.login(UserType::User, Some(&AuthPin::new(PIN.into())));
        Operator { session }
    }

    pub(crate) fn find(&self, class: ObjectClass, label: &str) -> Vec<ObjectHandle> {
        self.session.find_objects(&[Attribute::Class(class), Attribute::Label(label.into())]).unwrap()
    }

    pub(crate) fn counts(&self, label: &str) -> (usize, usize, usize) {
        let count = |class| self.find(class, label).len();
        (count(ObjectClass::SECRET_KEY), count(ObjectClass::PUBLIC_KEY), count(ObjectClass::PRIVATE_KEY))
    }

    pub(crate) fn put(&self, template: &[Attribute]) -> ObjectHandle {
        self.session.create_object(template).unwrap()
    }
}

/// Whether any file below `folder` is a key file.
pub(crate) fn has_key_files(folder: &Path) -> bool {
    fs::read_dir(folder)
        .is_ok_and(|mut entries| entries.any(|entry| entry.unwrap().path().extension() == Some(OsStr::new("key"))))
}
