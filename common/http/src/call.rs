//! The declaration of a call: method, path, first api-version and reply, written once and read by server and client.

use http::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::ApiVersion;

/// A request of some service's API; the implementing type holds its parameters and body.
///
/// Members named in [`PATH`](Self::PATH) (`"/key/{keyId}"`) and [`QUERY`](Self::QUERY) travel there as text, all others
/// in the JSON body.
pub trait Call: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// GET, POST, PUT or DELETE; the public servers know no other.
    const METHOD: Method;
    /// Path template; `{name}` stands for one percent-encoded segment.
    const PATH: &'static str;
    /// Members that travel in the query; of a repeated one the first counts.
    const QUERY: &'static [&'static str] = &[];
    /// The api-version that introduced the call; for older ones the route does not exist.
    const SINCE: ApiVersion = ApiVersion::V2020_09_01;
    /// What the call wants of the request's body.
    const BODY: Body = Body::Required;
    /// What a caller reads that sent no body where one is required.
    const MISSING_BODY: &'static str = "missing request body";
    /// Status of success.
    const SUCCESS: StatusCode = StatusCode::OK;
    /// Whether sending the call twice does no more than sending it once; others are repeated only if nothing was sent.
    const IDEMPOTENT: bool = true;
    /// Body of a successful answer; `()` for 204, and for an answer that is a [stream](crate::Streamed).
    type Reply: Reply;
}

/// What a call wants of the request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The call has none; one that comes all the same must be well-formed, and is ignored.
    Ignored,
    /// A JSON object; without it the answer is 400.
    Required,
}

/// A body of a successful answer.
pub trait Reply: Serialize + DeserializeOwned + Send + 'static {}
impl<T: Serialize + DeserializeOwned + Send + 'static> Reply for T {}
