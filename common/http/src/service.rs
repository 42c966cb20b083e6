//! Mounting calls: api-version, routes, methods and bodies in the order of the public services, then the daemon's handler.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use axum::{
    Extension, RequestExt as _, Router,
    extract::{RawPathParams, Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Bytes;
use serde::de::IgnoredAny;
use tower::ServiceExt as _;

use crate::{
    ApiVersion, Body, Call, Peer, Status, Streamed, body,
    error::{ErrorBody, Failure},
    parameters::{self, Parameters},
};

/// A service's calls over its domain `S`. Build it with [`call`](Self::call), serve it with [`Server`](crate::Server).
pub struct Service<S> {
    domain: Arc<S>,
    versions: &'static [ApiVersion],
    routes: BTreeMap<&'static str, Vec<Mounted>>,
    rewrite: Option<Rewrite>,
}

/// Another path for one that a service takes for it; `None` for all others.
type Rewrite = fn(&str) -> Option<String>;

/// A service whose calls are all mounted.
#[derive(Clone)]
pub struct Routes {
    versions: &'static [ApiVersion],
    router: Router,
    rewrite: Option<Rewrite>,
}

/// What a request asks for, as far as that is known before its body is.
#[derive(Debug)]
pub struct Target(Parameters);

impl Target {
    /// A member that travels in the path or the query.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

type Outcome<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;
type Handler = Arc<dyn Fn(Peer, Parameters, Option<Bytes>) -> Outcome<Response> + Send + Sync>;
type Guard = Arc<dyn Fn(Peer, &Target) -> Outcome<()> + Send + Sync>;

#[derive(Clone)]
struct Mounted {
    method: Method,
    since: ApiVersion,
    body: Body,
    missing_body: &'static str,
    path_names: Vec<&'static str>,
    query_names: &'static [&'static str],
    guard: Option<Guard>,
    handler: Handler,
}

impl<S: Send + Sync + 'static> Service<S> {
    /// A service that answers requests for these api-versions, and for no others.
    #[must_use]
    pub fn new(domain: Arc<S>, versions: &'static [ApiVersion]) -> Self {
        Self { domain, versions, routes: BTreeMap::new(), rewrite: None }
    }

    /// Has each path looked at before it is routed: some clients write one in several ways.
    #[must_use]
    pub fn rewrite(mut self, rewrite: fn(&str) -> Option<String>) -> Self {
        self.rewrite = Some(rewrite);
        self
    }

    /// Mounts the call that `handler`'s last argument declares.
    #[must_use]
    pub fn call<C, H, F, E>(self, handler: H) -> Self
    where
        C: Call,
        H: Fn(Arc<S>, Peer, C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<C::Reply, E>> + Send + 'static,
        E: Status,
    {
        self.mount::<C, _, _, _, _>(None, handler, |reply| success::<C>(&reply))
    }

    /// As [`call`](Self::call), for callers alone that `guard` lets through. Strangers read its refusal, whatever their body is like. The guard
    /// takes what it needs out of the target before its first wait.
    #[must_use]
    pub fn guarded<C, G, P, Q, H, F, E>(self, guard: G, handler: H) -> Self
    where
        C: Call,
        G: Fn(Arc<S>, Peer, &Target) -> P + Send + Sync + 'static,
        P: Future<Output = Result<(), Q>> + Send + 'static,
        Q: Status,
        H: Fn(Arc<S>, Peer, C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<C::Reply, E>> + Send + 'static,
        E: Status,
    {
        let guard = self.erase(guard);
        self.mount::<C, _, _, _, _>(Some(guard), handler, |reply| success::<C>(&reply))
    }

    /// As [`call`](Self::call), for an answer that comes piece by piece.
    #[must_use]
    pub fn stream<C, H, F, E>(self, handler: H) -> Self
    where
        C: Call,
        H: Fn(Arc<S>, Peer, C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Streamed, E>> + Send + 'static,
        E: Status,
    {
        self.mount::<C, _, _, _, _>(None, handler, |reply: Streamed| Ok(reply.into_response(C::SUCCESS)))
    }

    fn erase<G, P, Q>(&self, guard: G) -> Guard
    where
        G: Fn(Arc<S>, Peer, &Target) -> P + Send + Sync + 'static,
        P: Future<Output = Result<(), Q>> + Send + 'static,
        Q: Status,
    {
        let domain = Arc::clone(&self.domain);
        Arc::new(move |peer, target| {
            let passed = guard(Arc::clone(&domain), peer, target);
            Box::pin(async move { Ok(passed.await?) })
        })
    }

    fn mount<C, H, F, T, E>(
        mut self,
        guard: Option<Guard>,
        handler: H,
        answer: fn(T) -> Result<Response, Failure>,
    ) -> Self
    where
        C: Call,
        H: Fn(Arc<S>, Peer, C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Status,
    {
        let domain = Arc::clone(&self.domain);
        let handler = Arc::new(handler);
        let erased: Handler = Arc::new(move |peer, parameters, body| {
            let (domain, handler) = (Arc::clone(&domain), Arc::clone(&handler));
            Box::pin(async move {
                let call = parameters::deserialize::<C>(parameters, body.as_deref()).map_err(malformed)?;
                answer(handler(domain, peer, call).await?)
            })
        });
        self.routes.entry(C::PATH).or_default().push(Mounted {
            method: C::METHOD,
            since: C::SINCE,
            body: C::BODY,
            missing_body: C::MISSING_BODY,
            path_names: parameters::names(C::PATH).collect(),
            query_names: C::QUERY,
            guard,
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
        Routes { versions: self.versions, router, rewrite: self.rewrite }
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
        if let Some(path) = self.rewrite.and_then(|rewrite| rewrite(request.uri().path())) {
            // The query has been read.
            match Uri::try_from(path) {
                Ok(uri) => *request.uri_mut() = uri,
                Err(_) => return Failure::not_found().into_response(),
            }
        }
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
    let body = body::read(&head.method, &head.headers, body).await;
    let Some(call) = mounted.iter().find(|call| call.method == head.method && call.since <= query.version) else {
        well_formed(body?.as_deref())?;
        return Ok(allowed());
    };
    let mut parameters: Parameters = call.path_names.iter().copied().zip(decoded).collect();
    for name in call.query_names {
        parameters.extend(query.first(name).map(|value| (*name, value.to_owned())));
    }
    let parameters = match &call.guard {
        None => parameters,
        Some(guard) => {
            let target = Target(parameters);
            guard(peer.clone(), &target).await?;
            target.0
        }
    };
    let body = body?;
    let body = match call.body {
        Body::Ignored => {
            well_formed(body.as_deref())?;
            None
        }
        Body::Required if body.is_none() => return Err(Failure::new(StatusCode::BAD_REQUEST, call.missing_body)),
        Body::Required => body,
    };
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
