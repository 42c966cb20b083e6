//! Mounting calls: api-version, routes, methods and bodies in the order of the public services, then the daemon's handler.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use axum::{
    Extension, RequestExt as _, Router,
    extract::{RawPathParams, Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::Bytes;
use serde::de::IgnoredAny;
use tower::ServiceExt as _;

use crate::{
    ApiVersion, Body, Call, Peer, Status, body,
    error::{ErrorBody, Failure},
    parameters::{self, Parameters},
};

/// A service's calls over its domain `S`. Build it with [`call`](Self::call), serve it with [`Server`](crate::Server).
pub struct Service<S> {
    domain: Arc<S>,
    versions: &'static [ApiVersion],
    routes: BTreeMap<&'static str, Vec<Mounted>>,
}

/// A service whose calls are all mounted.
#[derive(Clone)]
pub struct Routes {
    versions: &'static [ApiVersion],
    router: Router,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response, Failure>> + Send>>;
type Handler = Arc<dyn Fn(Peer, Parameters, Option<Bytes>) -> Answer + Send + Sync>;

#[derive(Clone)]
struct Mounted {
    method: Method,
    since: ApiVersion,
    body: Body,
    path_names: Vec<&'static str>,
    query_names: &'static [&'static str],
    handler: Handler,
}

impl<S: Send + Sync + 'static> Service<S> {
    /// A service that answers requests for these api-versions, and for no others.
    #[must_use]
    pub fn new(domain: Arc<S>, versions: &'static [ApiVersion]) -> Self {
        Self { domain, versions, routes: BTreeMap::new() }
    }

    /// Mounts the call that `handler`'s last argument declares.
    #[must_use]
    pub fn call<C, H, F, E>(mut self, handler: H) -> Self
    where
        C: Call,
        H: Fn(Arc<S>, Peer, C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<C::Reply, E>> + Send + 'static,
        E: Status,
    {
        let domain = Arc::clone(&self.domain);
        let handler = Arc::new(handler);
        let erased: Handler = Arc::new(move |peer, parameters, body| {
            let (domain, handler) = (Arc::clone(&domain), Arc::clone(&handler));
            Box::pin(async move {
                let call = parameters::deserialize::<C>(parameters, body.as_deref()).map_err(malformed)?;
                let reply = handler(domain, peer, call).await?;
                success::<C>(&reply)
            })
        });
        self.routes.entry(C::PATH).or_default().push(Mounted {
            method: C::METHOD,
            since: C::SINCE,
            body: C::BODY,
            path_names: parameters::names(C::PATH).collect(),
            query_names: C::QUERY,
            handler: erased,
        });
        self
    }

    /// Closes the list of calls.
    #[must_use]
    pub fn into_routes(self) -> Routes {
        let mut router = Router::new();
        for (path, mounted) in self.routes {
            router = router.route(path, any(dispatch).with_state(Arc::from(mounted)));
        }
        let router = router.fallback(async || Failure::not_found());
        Routes { versions: self.versions, router }
    }
}

impl Routes {
    /// Answers one request. The peer is an extension of it.
    pub(crate) async fn answer(&self, mut request: Request) -> Response {
        let query = match Query::parse(request.uri().query().unwrap_or_default(), self.versions) {
            Ok(query) => query,
            Err(failure) => return failure.into_response(),
        };
        request.extensions_mut().insert(Arc::new(query));
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The decoded query of a request whose api-version is one of the service's.
struct Query {
    version: ApiVersion,
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Of a repeated api-version the last one counts.
    fn parse(query: &str, versions: &[ApiVersion]) -> Result<Self, Failure> {
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let Some((_, wanted)) = pairs.iter().rev().find(|(name, _)| name == "api-version") else {
            return Err(Failure::new(StatusCode::BAD_REQUEST, "api-version not specified"));
        };
        match versions.iter().find(|version| version.as_str() == wanted) {
            Some(version) => Ok(Self { version: *version, pairs }),
            None => Err(Failure::new(StatusCode::BAD_REQUEST, format!("invalid api-version {wanted:?}"))),
        }
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Bytes of a reply that holds a signature, a certificate or a kilobyte of ciphertext.
const USUAL_REPLY: usize = 1536;

async fn dispatch(
    State(mounted): State<Arc<[Mounted]>>,
    Extension(query): Extension<Arc<Query>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Result<Response, Failure> {
    if mounted.iter().all(|call| call.since > query.version) {
        return Err(Failure::not_found());
    }
    let path = request.extract_parts::<RawPathParams>().await.map_err(|_| Failure::not_found())?;
    // axum has decoded each segment once; one that is not UTF-8 was refused above.
    let decoded: Vec<String> = path.iter().map(|(_, value)| value.to_owned()).collect();
    let (head, body) = request.into_parts();
    let allowed = || allowed(&mounted, query.version);
    if ![Method::GET, Method::POST, Method::PUT, Method::DELETE].contains(&head.method) {
        return Ok(allowed());
    }
    let body = body::read(&head.method, &head.headers, body).await?;
    let Some(call) = mounted.iter().find(|call| call.method == head.method && call.since <= query.version) else {
        well_formed(body.as_deref())?;
        return Ok(allowed());
    };
    let body = match call.body {
        Body::Ignored => {
            well_formed(body.as_deref())?;
            None
        }
        Body::Required if body.is_none() => return Err(Failure::new(StatusCode::BAD_REQUEST, "missing request body")),
        Body::Required => body,
    };
    let mut parameters: Parameters = call.path_names.iter().copied().zip(decoded).collect();
    for name in call.query_names {
        parameters.extend(query.first(name).map(|value| (*name, value.to_owned())));
    }
    (call.handler)(peer, parameters, body).await
}

/// A body that nobody reads must be JSON all the same.
fn well_formed(body: Option<&[u8]>) -> Result<(), Failure> {
    body.map_or(Ok(()), |bytes| serde_json::from_slice::<IgnoredAny>(bytes).map(|_| ()).map_err(malformed))
}

/// The parser's words go to the caller alone: they may quote what it sent.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn malformed(error: serde_json::Error) -> Failure {
    let mut failure = Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
    failure.causes.push(format!("the body does not fit at line {} column {}", error.line(), error.column()));
    failure
}

/// 400 where RFC 9110 has 405: that is what the public services answer. `allow` is more than they tell.
fn allowed(mounted: &[Mounted], version: ApiVersion) -> Response {
    let methods: Vec<&str> =
        mounted.iter().filter(|call| call.since <= version).map(|call| call.method.as_str()).collect();
    let mut response = Failure::method_not_allowed().into_response();
    if let Ok(value) = HeaderValue::from_str(&methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn success<C: Call>(reply: &C::Reply) -> Result<Response, Failure> {
    if C::SUCCESS == StatusCode::NO_CONTENT {
        // Deployed blocking clients read a 204 until the connection ends (spec: they know no length of zero).
        return Ok((C::SUCCESS, [(header::CONNECTION, "close")]).into_response());
    }
    // Most replies fit: growing would copy and wipe them several times.
    let mut body = Vec::with_capacity(USUAL_REPLY);
    serde_json::to_writer(&mut body, reply).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(json(C::SUCCESS, body))
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&ErrorBody { message: self.message }).unwrap_or_default();
        let mut response = json(self.status, body);
        response.extensions_mut().insert(Causes(self.causes.into()));
        response
    }
}

/// What the log tells about an answer and the caller does not read.
#[derive(Clone)]
pub(crate) struct Causes(pub(crate) Arc<[String]>);
