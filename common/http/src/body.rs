//! Reading a request's body under the rules that the public services have for each method.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Bytes;

use crate::error::Failure;

/// Bytes of a body; no real request comes near it.
pub const LIMIT: usize = 1024 * 1024;
/// How long a body may take to arrive once its head was read.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The body that counts: `None` when there is none, or when its content type makes the public services look away.
pub(crate) async fn read(method: &Method, headers: &HeaderMap, body: Body) -> Result<Option<Bytes>, Failure> {
    let put = *method == Method::PUT;
    if !put && *method != Method::POST && *method != Method::DELETE {
        return Ok(None);
    }
    let json = is_json(headers);
    if put && !json {
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "request body must be application/json"));
    }
    let bytes = collect(headers, body).await?;
    Ok((put || (json && !bytes.is_empty())).then_some(bytes))
}

/// No content type counts as JSON. The comparison is case-sensitive, as the public services compare.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let media_type = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    media_type.trim() == "application/json"
}

async fn collect(headers: &HeaderMap, body: Body) -> Result<Bytes, Failure> {
    let too_large = || Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("request body is over {LIMIT} bytes"));
    // A client that announces too much and then stalls is told at once.
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > LIMIT as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(TIMEOUT, Limited::new(body, LIMIT).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            let mut failure = Failure::new(StatusCode::BAD_REQUEST, "could not read the request body");
            failure.causes.push(error.to_string());
            Err(failure)
        }
        Err(_) => Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "deadline has elapsed")),
    }
}
