//! Requests that are repeated when the network or the service fails, each attempt with a token of its own and a limit.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aziot_http::Retry;
use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{
    Error, Exchange, Refusal, Signer,
    error::{Subject, is_transient},
    sas::{self, Audience},
};

/// All but the unreserved characters of RFC 3986: an id can never reach beyond its segment.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Pause after a 429 that asks for none: the services count requests by the minute, and an early repetition is counted as well.
const THROTTLED_PAUSE: Duration = Duration::from_secs(30);

/// A clock further off than this makes tokens fail.
const TOLERATED_SKEW_SECONDS: u64 = 300;

/// An id as one segment of a path.
pub(crate) fn segment(id: &str) -> impl std::fmt::Display {
    utf8_percent_encode(id, COMPONENT)
}

/// The way to the cloud, with the patience that is spent on it.
#[derive(Clone)]
pub struct Transport {
    exchange: Arc<dyn Exchange>,
    retry: Retry,
}

/// One call; it can be written as a request as often as it has to be sent.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Host, and port unless it is 443.
    pub(crate) host: &'a str,
    /// Path and query, encoded.
    pub(crate) target: String,
    pub(crate) if_match: Option<String>,
    pub(crate) body: Option<Bytes>,
}

/// Who calls, and for what.
pub(crate) struct Credentials<'a> {
    pub(crate) audience: &'a Audience,
    pub(crate) signer: &'a dyn Signer,
}

impl Transport {
    /// Sends over `exchange`, and repeats as `retry` says.
    #[must_use]
    pub fn new(exchange: Arc<dyn Exchange>, retry: Retry) -> Self {
        Self { exchange, retry }
    }

    /// The patience of the configuration: `retries` repetitions of attempts of `attempt` each, with room for pauses that the
    /// service asks for.
    #[must_use]
    pub fn patience(attempt: Duration, retries: u32) -> Retry {
        let pauses = aziot_http::retry::LONGEST_RETRY_AFTER.saturating_mul(retries).saturating_mul(2);
        Retry { retries, attempt, total: attempt.saturating_mul(retries.saturating_add(1)).saturating_add(pauses) }
    }

    pub(crate) fn retry(&self) -> Retry {
        self.retry
    }

    /// Sends the call until an answer comes that another attempt would not change. Its status may be any; beside it stands how many
    /// attempts it took, as an earlier one may have been served and its answer lost.
    pub(crate) async fn send(
        &self,
        call: &Call<'_>,
        credentials: &Credentials<'_>,
    ) -> Result<(Response<Bytes>, u32), Error> {
        let begun = Instant::now();
        let mut done = 0;
        loop {
            let attempt = tokio::time::timeout(self.retry.attempt, self.attempt(call, credentials));
            let outcome = attempt
                .await
                .unwrap_or_else(|_| Err(Error::TimedOut { host: call.host.to_owned(), limit: self.retry.attempt }));
            done += 1;
            let (why, asked) = match &outcome {
                Ok(answer) if is_transient(answer.status()) => {
                    let throttled = answer.status() == StatusCode::TOO_MANY_REQUESTS;
                    let asked = retry_after(answer).or(throttled.then_some(THROTTLED_PAUSE));
                    (answer.status().to_string(), asked)
                }
                Err(error) if error.is_offline() => (error.to_string(), None),
                _ => return outcome.map(|answer| (answer, done)),
            };
            let Some(pause) = self.retry.pause(done, begun.elapsed(), asked) else {
                return outcome.map(|answer| (answer, done));
            };
            tracing::warn!(
                host = call.host,
                attempt = done,
                delay_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "Failed to send HTTP request (attempt {done} of {}): {why}",
                self.retry.retries.saturating_add(1)
            );
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, call: &Call<'_>, credentials: &Credentials<'_>) -> Result<Response<Bytes>, Error> {
        let unsendable = |source: http::Error| Error::Unsendable { host: call.host.to_owned(), source: source.into() };
        let expiry = unix_seconds().saturating_add(sas::LIFETIME_SECONDS);
        let token = sas::authorization(credentials.audience, credentials.signer, expiry).await?;
        let mut token = HeaderValue::from_str(&token).map_err(|error| unsendable(error.into()))?;
        token.set_sensitive(true);
        let uri = http::Uri::builder().scheme("https").authority(call.host).path_and_query(call.target.as_str());
        let mut request = http::Request::builder()
            .method(call.method.clone())
            .uri(uri.build().map_err(unsendable)?)
            .header(header::AUTHORIZATION, token);
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(etag) = &call.if_match {
            request = request.header(header::IF_MATCH, etag);
        }
        let request = request.body(call.body.clone().unwrap_or_default()).map_err(unsendable)?;
        let answer = self.exchange.exchange(request).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            warn_of_wrong_clock(call.host, &answer);
        }
        Ok(answer)
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds of a `Retry-After` header, the only form these services send.
pub(crate) fn retry_after(answer: &Response<Bytes>) -> Option<Duration> {
    answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Tokens carry a time; the most common reason for a refused one is a device without a battery for its clock.
fn warn_of_wrong_clock(host: &str, answer: &Response<Bytes>) {
    let date = answer.headers().get(header::DATE).and_then(|value| value.to_str().ok());
    let skew_seconds = date.and_then(seconds_of_date).map_or(0, |theirs| theirs.abs_diff(unix_seconds()));
    if skew_seconds > TOLERATED_SKEW_SECONDS {
        tracing::warn!(host, skew_seconds, "the token was refused, and this device's clock differs from the service's");
    }
}

/// A `Date` header as seconds since 1970.
fn seconds_of_date(date: &str) -> Option<u64> {
    u64::try_from(jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second()).ok()
}

/// The answer's body if its status is one of `expected`, else the service's own error.
pub(crate) fn success(
    host: &str,
    subject: Subject,
    expected: &[StatusCode],
    answer: Response<Bytes>,
) -> Result<Bytes, Error> {
    let status = answer.status();
    if status.is_client_error() || status.is_server_error() {
        return Err(Error::Refused(Refusal::read(status, subject, answer.body())));
    }
    if !expected.contains(&status) {
        return Err(Error::Unexpected { expected: expected.iter().map(StatusCode::as_u16).collect(), status });
    }
    let content_type = answer.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    if content_type.is_some_and(|text| !text.contains("application/json")) {
        return Err(Error::NotJson { host: host.to_owned() });
    }
    Ok(answer.into_body())
}

/// Parses the body of a success.
pub(crate) fn parse<T: DeserializeOwned>(host: &str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::malformed(host, error))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::sas::tests::VectorKey;

    type Script = Mutex<Vec<Result<Response<Bytes>, Error>>>;

    /// Answers in order; fails the test when asked more often. Returns what was answered and how long it took.
    async fn run(
        retries: u32,
        answers: Vec<Result<Response<Bytes>, Error>>,
    ) -> (Result<Response<Bytes>, Error>, Duration) {
        let script: Arc<Script> = Arc::new(Mutex::new(answers.into_iter().rev().collect()));
        let exchange = {
            let script = Arc::clone(&script);
            move |request: http::Request<Bytes>| {
                assert!(request.headers().contains_key(header::AUTHORIZATION));
                let answer = script.lock().unwrap().pop().expect("no more requests than the script has answers");
                async move { answer }
            }
        };
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), retries));
        let audience = Audience::device("hub", "device");
        let call = Call { method: Method::GET, host: "hub", target: "/devices".to_owned(), if_match: None, body: None };
        let begun = Instant::now();
        let outcome = transport.send(&call, &Credentials { audience: &audience, signer: &VectorKey }).await;
        assert!(script.lock().unwrap().is_empty(), "answers were left over");
        (outcome.map(|(answer, _)| answer), begun.elapsed())
    }

    fn answer(status: u16, retry_after: Option<&str>) -> Response<Bytes> {
        let mut answer = Response::builder().status(status);
        if let Some(seconds) = retry_after {
            answer = answer.header(header::RETRY_AFTER, seconds);
        }
        answer.body(Bytes::new()).unwrap()
    }

    fn broken() -> Result<Response<Bytes>, Error> {
        Err(Error::Interrupted { host: "hub".into(), source: "reset".into() })
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_repeated_and_nothing_else() {
        let (outcome, took) = run(1, vec![broken(), Ok(answer(200, None))]).await;
        assert_eq!(outcome.unwrap().status(), 200);
        assert!((3.0..3.7).contains(&took.as_secs_f64()), "{took:?}");
        let (outcome, _) = run(2, vec![Ok(answer(503, None)), Ok(answer(500, None)), Ok(answer(200, None))]).await;
        assert_eq!(outcome.unwrap().status(), 200);
        let (outcome, _) = run(1, vec![broken(), broken()]).await;
        assert!(outcome.unwrap_err().is_offline());
        for status in [401, 403, 404, 409, 412] {
            let (outcome, took) = run(5, vec![Ok(answer(status, None))]).await;
            assert_eq!((outcome.unwrap().status().as_u16(), took), (status, Duration::ZERO));
        }
        let untrusted = Err(Error::Untrusted { host: "hub".into(), source: "expired".into() });
        assert!(run(5, vec![untrusted]).await.0.unwrap_err().is_untrusted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_service_says_how_long_to_wait_within_reason() {
        let (_, took) = run(1, vec![Ok(answer(429, Some("7"))), Ok(answer(200, None))]).await;
        assert!((7.0..8.5).contains(&took.as_secs_f64()), "{took:?}");
        // Nothing said: the hub counts by the minute.
        let (_, took) = run(1, vec![Ok(answer(429, None)), Ok(answer(200, None))]).await;
        assert!((30.0..36.5).contains(&took.as_secs_f64()), "{took:?}");
        let (_, took) = run(1, vec![Ok(answer(503, None)), Ok(answer(200, None))]).await;
        assert!((3.0..4.0).contains(&took.as_secs_f64()), "{took:?}");
        let (_, took) = run(1, vec![Ok(answer(429, Some("86400"))), Ok(answer(200, None))]).await;
        assert!((60.0..73.0).contains(&took.as_secs_f64()), "{took:?}");
    }

    #[test]
    fn the_services_clock_is_read() {
        assert_eq!(seconds_of_date("Sat, 21 Nov 2026 16:22:14 GMT"), Some(1_795_278_134));
        assert_eq!(seconds_of_date("yesterday"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let exchange = |_| std::future::pending::<Result<Response<Bytes>, Error>>();
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), 1));
        let audience = Audience::device("hub", "device");
        let call = Call { method: Method::GET, host: "hub", target: "/".to_owned(), if_match: None, body: None };
        let begun = Instant::now();
        let outcome = transport.send(&call, &Credentials { audience: &audience, signer: &VectorKey }).await;
        assert!(matches!(outcome, Err(Error::TimedOut { .. })));
        assert!(begun.elapsed() < Duration::from_secs(150));
    }
}
