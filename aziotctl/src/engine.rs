//! The one thing that the command line asks the container engine: which modules there are.
//!
//! Docker and Podman answer on a Unix socket as our own services do; what they do not know in a request, the api-version, they pass over.

use std::time::Duration;

use aziot_edged_api::{
    config::EngineUri,
    module::{OWNER, OWNER_LABEL},
};
use aziot_http::{ApiVersion, Body, Call, Client, ClientError, Endpoint, Method, Retry};
use serde::{Deserialize, Serialize};

/// An engine with a thousand containers takes a fraction of it.
const LIMIT: Duration = Duration::from_secs(30);

/// Modules that could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It listens on TCP, where this tool does not go.
    #[error("the container engine at {0} cannot be asked: only unix:// is understood here")]
    NotASocket(String),
    /// There is no thread or descriptor to ask with.
    #[error("the container engine could not be asked")]
    Runtime(#[source] std::io::Error),
    /// It did not answer, or not with a list.
    #[error("the container engine could not list the modules")]
    Call(#[source] Box<ClientError>),
}

/// `GET /containers/json` of the Docker Engine API, 1.41 and before.
#[derive(Serialize, Deserialize)]
struct ListContainers {
    all: bool,
    filters: String,
}

impl Call for ListContainers {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/containers/json";
    const QUERY: &'static [&'static str] = &["all", "filters"];
    const BODY: Body = Body::Ignored;
    type Reply = Vec<Container>;
}

#[derive(Serialize, Deserialize)]
struct Container {
    #[serde(rename = "Names")]
    names: Vec<String>,
}

/// The names of all modules, running or not.
pub fn modules(engine: &EngineUri) -> Result<Vec<String>, EngineError> {
    let not_a_socket = || EngineError::NotASocket(engine.to_string());
    let endpoint: Endpoint = engine.as_str().parse().map_err(|_| not_a_socket())?;
    let retry = Retry { retries: 0, attempt: LIMIT, total: LIMIT };
    let client = Client::new(&endpoint, ApiVersion::V2020_09_01, retry).map_err(|_| not_a_socket())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(EngineError::Runtime)?;
    let call = ListContainers { all: true, filters: format!(r#"{{"label":["{OWNER_LABEL}={OWNER}"]}}"#) };
    let containers = runtime.block_on(client.send(&call)).map_err(|error| EngineError::Call(error.into()))?;
    let name = |container: Container| container.names.into_iter().next();
    Ok(containers.into_iter().filter_map(name).map(|name| name.trim_start_matches('/').to_owned()).collect())
}
