//! Routes of the certificate service. Nothing is decided about certificates here.

use std::sync::Arc;

use aziot_certd_api::{
    VERSIONS,
    certificate::{Certificate, CreateCertificate, DeleteCertificate, GetCertificate, ImportCertificate},
};
use aziot_http::{Peer, Service, Status, StatusCode, service::Routes, with_causes};

use crate::certificates::{Certificates, Error};

/// All calls of the service.
pub(crate) fn routes(certificates: Arc<Certificates>) -> Routes {
    Service::new(certificates, VERSIONS)
        .call(create_certificate)
        .call(import_certificate)
        .call(get_certificate)
        .call(delete_certificate)
        .into_routes()
}

async fn create_certificate(
    certificates: Arc<Certificates>,
    peer: Peer,
    call: CreateCertificate,
) -> Result<Certificate, Error> {
    Ok(Certificate { pem: certificates.create(peer.uid, call).await? })
}

async fn import_certificate(
    certificates: Arc<Certificates>,
    peer: Peer,
    call: ImportCertificate,
) -> Result<Certificate, Error> {
    Ok(Certificate { pem: certificates.import(peer.uid, call.cert_id, call.pem).await? })
}

/// Everybody may read: whoever can open the socket is trusted so far.
async fn get_certificate(
    certificates: Arc<Certificates>,
    _peer: Peer,
    call: GetCertificate,
) -> Result<Certificate, Error> {
    Ok(Certificate { pem: certificates.get(call.cert_id).await? })
}

async fn delete_certificate(certificates: Arc<Certificates>, peer: Peer, call: DeleteCertificate) -> Result<(), Error> {
    certificates.delete(peer.uid, call.cert_id).await
}

impl Status for Error {
    fn status(&self) -> StatusCode {
        match self {
            // The public API says 401 where others say 403, and 400 for what is not there.
            Error::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Error::Parameter { .. } => StatusCode::BAD_REQUEST,
            Error::Read { .. } | Error::Write { .. } | Error::Remove { .. } | Error::Issue { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn message(&self) -> String {
        with_causes(self)
    }
}
