//! The calls: who may make them, and what each asks of the TPM. Knows no HTTP and no TPM commands.

use arc_swap::ArcSwap;
use aziot_http::Peer;
use zeroize::Zeroizing;

use crate::chip::{Chip, PublicKeys};
use crate::error::Error;
use crate::principals::Principals;
use crate::worker::Worker;

/// Largest blob. What DPS sends has under a kilobyte.
const BLOB_BYTES: usize = 64 * 1024;

/// One TPM and those who may use it.
pub(crate) struct Tpm {
    worker: Worker,
    principals: ArcSwap<Principals>,
}

impl Tpm {
    pub(crate) fn new(worker: Worker, principals: Principals) -> Tpm {
        Tpm { worker, principals: ArcSwap::from_pointee(principals) }
    }

    /// Replaces the principals; calls under way go on under the old ones.
    pub(crate) fn set_principals(&self, principals: Principals) {
        self.principals.store(principals.into());
    }

    /// The public keys by which the cloud knows the TPM; made where there are none yet.
    pub(crate) async fn public_keys(&self, peer: &Peer) -> Result<PublicKeys, Error> {
        self.authorize(peer)?;
        self.worker.ask("get TPM keys", Chip::public_keys).await
    }

    /// Replaces the key that signs by the one in `blob`. When that fails, the one before it signs on.
    pub(crate) async fn import(&self, peer: &Peer, blob: Zeroizing<Vec<u8>>) -> Result<(), Error> {
        self.authorize(peer)?;
        if blob.len() > BLOB_BYTES {
            return Err(Error::TooLarge { what: "a key", length: blob.len(), most: BLOB_BYTES });
        }
        self.worker.ask("import auth key", move |chip, deadline| chip.import(&blob, deadline)).await
    }

    /// HMAC-SHA256 of `data`, of any length that a request can have and the TPM can take before the caller's time is over.
    pub(crate) async fn sign(&self, peer: &Peer, data: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.authorize(peer)?;
        self.worker.ask("sign with auth key", move |chip, deadline| chip.sign(&data, deadline)).await
    }

    fn authorize(&self, peer: &Peer) -> Result<(), Error> {
        if self.principals.load().allow(peer.uid) { Ok(()) } else { Err(Error::Unauthorized) }
    }
}
