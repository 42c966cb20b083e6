//! Calls on certificates. Ids are arbitrary text; whoever can open the socket may read, `[[principal]]` tables decide who
//! may change.

use std::fmt;

use aziot_http::{Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};

/// Has a certificate issued on a request, stores it under its id and returns it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateCertificate {
    /// Name of the certificate on this device; its `[cert_issuance]` entry says how it is issued.
    pub cert_id: String,
    /// The request (PKCS #10) as PEM text, not base64 alone.
    pub csr: String,
    /// Who issues it, in place of what `[cert_issuance]` says. Absent or null: as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Issuer>,
}

/// A certificate that issues others, and the handle of its key pair in the key service.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// Name of the issuer's certificate on this device.
    pub cert_id: String,
    /// Handle of its key pair: a bearer token, which goes into JSON as it is and never into a log.
    pub private_key_handle: String,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Issuer").field("cert_id", &self.cert_id).finish_non_exhaustive()
    }
}

impl Call for CreateCertificate {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/certificates";
    const SUCCESS: StatusCode = StatusCode::CREATED;
    // Each time a new certificate, but one as good as the other, and the last one stays.
    const IDEMPOTENT: bool = true;
    type Reply = Certificate;
}

/// Stores a certificate under an id, in place of any that is there. Any text is taken.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportCertificate {
    /// Name of the certificate on this device.
    pub cert_id: String,
    /// The certificate and its chain as PEM, the leaf first.
    pub pem: String,
}

impl Call for ImportCertificate {
    const METHOD: Method = Method::PUT;
    const PATH: &'static str = "/certificates/{certId}";
    const SUCCESS: StatusCode = StatusCode::CREATED;
    type Reply = Certificate;
}

/// Reads a certificate; 400 with the cause `not found` if there is none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetCertificate {
    /// Name of the certificate, or of a list in `[preloaded_certs]`.
    pub cert_id: String,
}

impl Call for GetCertificate {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/certificates/{certId}";
    const BODY: Body = Body::Ignored;
    type Reply = Certificate;
}

/// Deletes a certificate; one that is not there is no error.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteCertificate {
    /// Name of the certificate.
    pub cert_id: String,
}

impl Call for DeleteCertificate {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/certificates/{certId}";
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// A certificate as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// PEM, the leaf first, then its chain as far as it was stored or issued.
    pub pem: String,
}
