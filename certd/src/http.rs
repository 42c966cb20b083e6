//! Routes of the certificate service. Nothing is decided about certificates here.

use std::sync::Arc;

use aziot_certd_api::{
    VERSIONS,
    certificate::{Certificate, CreateCertificate, DeleteCertificate, GetCertificate, ImportCertificate},
    renewal::{ListRenewals, Renewal, Renewals},
};
use aziot_http::{Peer, Service, Status, StatusCode, service::Routes, with_causes};
use aziot_pki::renewal;
use jiff::Timestamp;

use crate::certificates::{Certificates, Error};

/// All calls of the service.
pub(crate) fn routes(certificates: Arc<Certificates>) -> Routes {
    Service::new(certificates, VERSIONS)
        .call(create_certificate)
        .call(import_certificate)
        .call(get_certificate)
        .call(delete_certificate)
        .call(list_renewals)
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

/// Everybody may ask, as everybody may read.
async fn list_renewals(certificates: Arc<Certificates>, _peer: Peer, _call: ListRenewals) -> Result<Renewals, Error> {
    Ok(Renewals { renewals: certificates.renewals().into_iter().map(renewal).collect() })
}

fn renewal(status: renewal::Status) -> Renewal {
    // What is beyond the year 9999 has no text.
    let date = |seconds| Timestamp::from_second(seconds).ok().map(|date| date.to_string());
    Renewal {
        cert_id: status.certificate_id,
        key_id: status.key_id,
        not_after: status.not_after.and_then(date),
        next_attempt: date(status.next_attempt),
        failed_attempts: status.attempts_failed,
        last_error: status.last_error,
    }
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
