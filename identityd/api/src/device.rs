//! Calls about the device and about whoever asks.

use aziot_http::{Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// Gives the caller's own identity: the device's if it may have that, else that of the module it is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetIdentity {}

impl Call for GetIdentity {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/identities/identity";
    const BODY: Body = Body::Ignored;
    type Reply = Identity;
}

/// Gives the device's identity.
#[derive(Debug, Serialize, Deserialize)]
pub struct GetDevice {
    /// Any text: it must be there, and nobody reads it. `aziot` is usual.
    pub r#type: String,
}

impl Call for GetDevice {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/identities/device";
    type Reply = Identity;
}

/// Registers the device anew and brings its modules in order. What is there stays until the new registration has succeeded.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reprovision {}

impl Call for Reprovision {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/identities/device/reprovision";
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}
