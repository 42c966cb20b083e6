//! The service as `aziotd` runs it: configuration in, socket out, and what survives a restart.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use aziot_config::Sources;
use aziot_files::Mode;
use aziot_http::{Activation, Base64, Client, ClientError, DaemonError, Endpoint, Retry, Shutdown};
use aziot_keyd_api::key::{CreateKey, Handle, KeyUsage};
use aziot_keyd_api::operation::{Sign, SignMechanism};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Well above what any step takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Device {
    folder: TempDir,
}

impl Device {
    /// A folder whose configuration lets the tests' own user use every key.
    fn new() -> Device {
        let device = Device { folder: tempfile::tempdir().unwrap() };
        let config = format!(
            "[aziot_keys]\nhomedir_path = \"{}\"\n[endpoints]\naziot_keyd = \"unix://{}\"\n",
            device.folder.path().join("home").display(),
            device.socket().display()
        );
        device.put("config.toml", &config);
        let uid = device.folder.path().metadata().unwrap().uid();
        device.put("config.d/principal.toml", &format!("[[principal]]\nuid = {uid}\nkeys = [\"*\"]\n"));
        device
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        let _ = aziot_files::create_directory(path.parent().unwrap(), Mode::PRIVATE_DIRECTORY).unwrap();
        aziot_files::write(path, Mode::PRIVATE, text).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("keyd.sock")
    }

    fn sources(&self) -> Sources {
        Sources { main: self.folder.path().join("config.toml"), directory: self.folder.path().join("config.d") }
    }

    fn client(&self) -> Client {
        aziot_keyd_api::client(&Endpoint::Unix(self.socket()), Retry::local(0)).unwrap()
    }

    /// Starts the service and waits until its socket is there.
    async fn start(&self) -> Running {
        let running = self.launch();
        let listening = async {
            while UnixStream::connect(self.socket()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, listening).await.unwrap();
        running
    }

    fn launch(&self) -> Running {
        let shutdown = Shutdown::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(aziot_keyd::run(self.sources(), Activation::from_environment().unwrap(), shutdown.clone()));
        Running { shutdown, tasks }
    }

    /// Starts a service that is to give up at once.
    async fn failure(&self) -> DaemonError {
        let mut running = self.launch();
        tokio::time::timeout(PATIENCE, running.tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap_err()
    }
}

struct Running {
    shutdown: Shutdown,
    tasks: JoinSet<Result<(), DaemonError>>,
}

impl Running {
    async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap();
    }
}

async fn create(client: &Client, id: &str) -> Result<Handle, ClientError> {
    client.send(&CreateKey { key_id: id.to_owned(), usage: KeyUsage::DERIVE_SIGN, key_bytes: None }).await
}

async fn sign(client: &Client, handle: &Handle) -> Vec<u8> {
    let mechanism = SignMechanism::HmacSha256 { message: Base64(b"message".to_vec()) };
    client.send(&Sign { key_handle: handle.key_handle.clone(), mechanism }).await.unwrap().signature.0
}

#[tokio::test]
async fn keys_and_handles_survive_a_restart() {
    let device = Device::new();
    let client = device.client();
    let running = device.start().await;
    let handle = create(&client, "k").await.unwrap();
    let signature = sign(&client, &handle).await;
    running.stop().await;
    assert!(!device.socket().exists());

    let running = device.start().await;
    assert_eq!(sign(&device.client(), &handle).await, signature);
    running.stop().await;
}

/// The library of this build, as a vendor's.
#[tokio::test]
async fn a_key_library_of_its_own_takes_over_the_home() {
    let device = Device::new();
    let running = device.start().await;
    let handle = create(&device.client(), "k").await.unwrap();
    let signature = sign(&device.client(), &handle).await;
    running.stop().await;

    let library = std::env::current_exe().unwrap().with_file_name("libaziot_keys.so");
    device.put("config.d/library.toml", &format!("keys_library = \"{}\"\n", library.display()));
    let running = device.start().await;
    assert_eq!(sign(&device.client(), &handle).await, signature);
    create(&device.client(), "new").await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn unusable_settings_end_the_service_for_good() {
    let device = Device::new();
    for (text, named) in [
        ("[aziot_keys]\nhomedir = \"/x\"", "z.toml:2:1: unknown parameter \"homedir\""),
        ("[aziot_keys]\n\"preloaded_key:\" = \"x\"", "z.toml:2:1: a preloaded key has an empty id"),
        (
            "[aziot_keys]\npkcs11_base_slot = \"pkcs11:object=o?pin-value=4711\"",
            "z.toml:2:1: the value of the parameter \"pkcs11_base_slot\" is not usable: a `pkcs11:` URI needs",
        ),
        ("[aziot_keys]\npkcs11_lib_path = \"/x.so\"", "z.toml:2:1: pkcs11_lib_path in [aziot_keys] is not usable: "),
        ("a = 1\n[preloaded_keys]\nk = \"http:4711\"", "z.toml:3:1: the place of the key \"k\" in [preloaded_keys]"),
        ("[preloaded_keys]\n\"\" = \"file:///x\"", "z.toml:2:1: a key in [preloaded_keys] has an empty id"),
        ("[preloaded_keys]\nk = 5", "preloaded_keys"),
        ("keys_library = \"vendor.so\"", "z.toml:1:1: the path of the key library is vendor.so, but must start with"),
        (
            "keys_library = \"/nonexistent/vendor.so\"",
            "z.toml:1:1: could not find the key library /nonexistent/vendor.so",
        ),
        ("keys_library = \"/\"", "z.toml:1:1: the key library / is not a regular file"),
        ("keys_library = \"/proc/self/exe\"", "z.toml:1:1: could not load the key library /proc/self/exe"),
        ("max_requests = ", "z.toml"),
    ] {
        device.put("config.d/z.toml", text);
        let error = device.failure().await;
        assert_eq!(error.exit_code(), 153, "{text}");
        let causes = aziot_http::with_causes(&error);
        assert!(causes.contains(named), "{causes}");
        assert!(!causes.contains("4711"), "{causes}");
    }
    assert!(!device.socket().exists());
}
