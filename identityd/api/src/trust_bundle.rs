//! The trust bundle: certificates that modules are to trust. The public service never filled it.

use aziot_http::{Body, Call, Method};
use serde::{Deserialize, Serialize};

/// Gives the trust bundle.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetTrustBundle {}

impl Call for GetTrustBundle {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/trust-bundle";
    const BODY: Body = Body::Ignored;
    type Reply = TrustBundle;
}

/// Certificates to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// PEM; empty where none are configured.
    pub certificate: String,
}
