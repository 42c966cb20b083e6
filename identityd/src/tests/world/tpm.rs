//! A TPM service by script: it takes the blobs that a TPM would take, and signs with what is in them.

use std::sync::atomic::AtomicUsize;

use aziot_http::{Base64, Peer, Service as HttpService, Status, StatusCode, server::MaxRequests};
use aziot_simulator::tpm::testing::SoftwareTpm;
use aziot_tpmd_api::{Digest, GetTpmKeys, ImportAuthKey, Imported, SignWithAuthKey, TpmKeys};
use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer};

use super::*;

/// A TPM that can be taken out.
pub(crate) struct Chip {
    tpm: SoftwareTpm,
    key: Mutex<Option<Vec<u8>>>,
    /// Blobs that were imported.
    pub(crate) imports: AtomicUsize,
    /// After so many imports it takes no more.
    pub(crate) imports_left: AtomicUsize,
}

#[derive(Debug, thiserror::Error)]
#[error("internal error")]
pub(crate) struct Internal;

impl Status for Internal {
    fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

impl Chip {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            tpm: SoftwareTpm::new(),
            key: Mutex::default(),
            imports: AtomicUsize::new(0),
            imports_left: AtomicUsize::new(usize::MAX),
        })
    }
}

async fn keys(chip: Arc<Chip>, _peer: Peer, _call: GetTpmKeys) -> Result<TpmKeys, Internal> {
    Ok(TpmKeys {
        endorsement_key: Base64(chip.tpm.endorsement_key().to_vec()),
        storage_root_key: Base64(chip.tpm.storage_root_key().to_vec()),
    })
}

async fn import(chip: Arc<Chip>, _peer: Peer, call: ImportAuthKey) -> Result<Imported, Internal> {
    let left = chip.imports_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    left.map_err(|_| Internal)?;
    let key = chip.tpm.open(call.key.expose()).map_err(|_| Internal)?;
    *chip.key.lock().unwrap() = Some(key);
    chip.imports.fetch_add(1, Ordering::SeqCst);
    Ok(Imported {})
}

async fn sign(chip: Arc<Chip>, _peer: Peer, call: SignWithAuthKey) -> Result<Digest, Internal> {
    let key = PKey::hmac(chip.key.lock().unwrap().as_ref().ok_or(Internal)?).unwrap();
    let digest = Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(&call.data.0).unwrap();
    Ok(Digest { digest: Base64(digest) })
}

/// A running TPM service; it ends with this.
pub(crate) struct Tpmd(JoinSet<()>);

impl World {
    /// Starts the TPM service before this TPM.
    pub(crate) fn start_tpmd(&self, chip: &Arc<Chip>) -> Tpmd {
        let routes = HttpService::new(Arc::clone(chip), aziot_tpmd_api::VERSIONS)
            .call(keys)
            .call(import)
            .call(sign)
            .into_routes();
        let socket = self.folder.path().join("tpmd.sock");
        let _ = std::fs::remove_file(&socket);
        let server = Server::new(Listener::bind(&socket).unwrap(), Limits::new(MaxRequests::default()));
        let shutdown = self.shutdown.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.serve(routes, shutdown).await.unwrap() });
        Tpmd(tasks)
    }

    /// Settings of a DPS device with a TPM.
    pub(crate) fn dps_tpm(&self, more: &str) -> String {
        format!(
            "{}source = 'dps'\nglobal_endpoint = 'https://localhost:{}'\nscope_id = '0ne1'\n\
             [provisioning.attestation]\nmethod = 'tpm'\nregistration_id = 'dev-t'\n{more}",
            self.head(),
            self.port
        )
    }
}

impl Tpmd {
    /// Takes the service away.
    pub(crate) async fn stop(mut self) {
        self.0.shutdown().await;
    }
}
