//! Routes of the TPM service, and the status of each error. Nothing is decided about keys here.

use std::sync::Arc;

use aziot_http::service::Routes;
use aziot_http::{Base64, Peer, Service, Status, StatusCode};
use aziot_tpmd_api::{Digest, GetTpmKeys, ImportAuthKey, Imported, SignWithAuthKey, TpmKeys, VERSIONS};

use crate::error::Error;
use crate::tpm::Tpm;

/// All calls of the service over `tpm`.
pub(crate) fn routes(tpm: Arc<Tpm>) -> Routes {
    Service::new(tpm, VERSIONS).call(get_tpm_keys).call(import_auth_key).call(sign_with_auth_key).into_routes()
}

async fn get_tpm_keys(tpm: Arc<Tpm>, peer: Peer, _: GetTpmKeys) -> Result<TpmKeys, Error> {
    let keys = tpm.public_keys(&peer).await?;
    Ok(TpmKeys { endorsement_key: Base64(keys.endorsement_key), storage_root_key: Base64(keys.storage_root_key) })
}

async fn import_auth_key(tpm: Arc<Tpm>, peer: Peer, call: ImportAuthKey) -> Result<Imported, Error> {
    tpm.import(&peer, call.key.into_exposed()).await.map(|()| Imported {})
}

async fn sign_with_auth_key(tpm: Arc<Tpm>, peer: Peer, call: SignWithAuthKey) -> Result<Digest, Error> {
    let digest = tpm.sign(&peer, call.data.0).await?;
    Ok(Digest { digest: Base64(digest) })
}

impl Status for Error {
    // No `_` arm: a new error does not compile until somebody has chosen its status.
    fn status(&self) -> StatusCode {
        match self {
            // The public services say 401, not 403.
            Error::Unauthorized => StatusCode::UNAUTHORIZED,
            Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            // A blob that is damaged, too: existing clients know nothing else.
            Error::Chip { .. } | Error::TimedOut { .. } | Error::Overloaded { .. } | Error::Stopping => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}
