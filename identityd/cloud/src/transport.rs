//! Requests that are repeated when the network or the service fails, each attempt with a token of its own and a limit.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aziot_http::{Retry, retry::LONGEST_RETRY_AFTER};
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

/// Pause before a repetition where the service asks for none: at least this, and up to a span that doubles each time.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const FIRST_SPAN: Duration = Duration::from_secs(8);
const LONGEST_SPAN: Duration = Duration::from_secs(60);
/// What is added to a pause that the service asks for is spread over a quarter of it, and at least over this.
const LEAST_SPREAD: Duration = Duration::from_secs(5);

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

/// Who calls, and for what, where that is proved by a token.
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
        let pauses = LONGEST_RETRY_AFTER.saturating_mul(retries).saturating_mul(2);
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
        credentials: Option<&Credentials<'_>>,
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
                Ok(answer) if is_transient(answer.status()) => (answer.status().to_string(), retry_after(answer)),
                Err(error) if error.is_offline() => (error.to_string(), None),
                _ => return outcome.map(|answer| (answer, done)),
            };
            let Some(pause) = self.pause(done, begun.elapsed(), asked) else {
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

    /// The pause before the next attempt, or `None` when the call has failed for good.
    ///
    /// Spread widely, and the more the longer it goes wrong: a fleet that lost its power or its hub in the same moment must not come back in
    /// step. A wish of the service is a minimum.
    fn pause(&self, done: u32, spent: Duration, asked: Option<Duration>) -> Option<Duration> {
        if done > self.retry.retries {
            return None;
        }
        let (least, span) = if let Some(asked) = asked.map(|asked| asked.min(LONGEST_RETRY_AFTER)) {
            (asked, asked.div_f64(4.0).max(LEAST_SPREAD))
        } else {
            (SHORTEST_PAUSE, FIRST_SPAN.saturating_mul(1 << (done - 1).min(10)).min(LONGEST_SPAN))
        };
        let pause = least + span.mul_f64(fastrand::f64());
        (spent + pause < self.retry.total).then_some(pause)
    }

    async fn attempt(&self, call: &Call<'_>, credentials: Option<&Credentials<'_>>) -> Result<Response<Bytes>, Error> {
        let unsendable = |source: http::Error| Error::Unsendable { host: call.host.to_owned(), source: source.into() };
        let uri = http::Uri::builder().scheme("https").authority(call.host).path_and_query(call.target.as_str());
        let mut request = http::Request::builder().method(call.method.clone()).uri(uri.build().map_err(unsendable)?);
        if let Some(credentials) = credentials {
            let expiry = unix_seconds().saturating_add(sas::LIFETIME_SECONDS);
            let token = sas::authorization(credentials.audience, credentials.signer, expiry).await?;
            let mut token = HeaderValue::from_str(&token).map_err(|error| unsendable(error.into()))?;
            token.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, token);
        }
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(etag) = &call.if_match {
            request = request.header(header::IF_MATCH, etag);
        }
        let request = request.body(call.body.clone().unwrap_or_default()).map_err(unsendable)?;
        let mut answer = self.exchange.exchange(request).await?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(skew) = ClockSkew::of(&answer, credentials.is_some())
        {
            answer.extensions_mut().insert(skew);
        }
        Ok(answer)
    }
}

/// How far this device's clock is from the service's. Stands beside the refusal of a token or a certificate: a common reason for one is a device
/// without a battery for its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSkew {
    /// Seconds that this device is behind; negative: ahead.
    pub seconds_behind: i64,
    /// Whether a token was refused, which is good by this device's clock.
    pub(crate) is_of_token: bool,
}

impl ClockSkew {
    /// What the answer's `Date` tells, if that is more than tokens tolerate.
    fn of(answer: &Response<Bytes>, is_of_token: bool) -> Option<Self> {
        let date = answer.headers().get(header::DATE)?.to_str().ok()?;
        let seconds_behind = seconds_of_date(date)?.checked_sub(i64::try_from(unix_seconds()).ok()?)?;
        (seconds_behind.unsigned_abs() > TOLERATED_SKEW_SECONDS).then_some(Self { seconds_behind, is_of_token })
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// For how long the service wants to be left alone. Seconds are the only form of `Retry-After` that these services send.
pub(crate) fn retry_after(answer: &Response<Bytes>) -> Option<Duration> {
    let value = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let asked = value.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
    asked.or_else(|| (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(THROTTLED_PAUSE))
}

/// A `Date` header as seconds since 1970.
fn seconds_of_date(date: &str) -> Option<i64> {
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second())
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
        return Err(Error::Refused(Refusal::of(&answer, subject)));
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
        let outcome = transport.send(&call, Some(&Credentials { audience: &audience, signer: &VectorKey })).await;
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
        assert!((1.0..9.1).contains(&took.as_secs_f64()), "{took:?}");
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
        assert!((7.0..12.1).contains(&took.as_secs_f64()), "{took:?}");
        // Nothing said: the hub counts by the minute.
        let (_, took) = run(1, vec![Ok(answer(429, None)), Ok(answer(200, None))]).await;
        assert!((30.0..37.6).contains(&took.as_secs_f64()), "{took:?}");
        let (_, took) = run(1, vec![Ok(answer(503, None)), Ok(answer(200, None))]).await;
        assert!((1.0..9.1).contains(&took.as_secs_f64()), "{took:?}");
        let (_, took) = run(1, vec![Ok(answer(429, Some("86400"))), Ok(answer(200, None))]).await;
        assert!((60.0..75.1).contains(&took.as_secs_f64()), "{took:?}");
    }

    #[test]
    fn a_fleet_does_not_come_back_in_step() {
        let exchange = |_| std::future::pending::<Result<Response<Bytes>, Error>>();
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), 5));
        let pauses = |done, asked| {
            let of_one = |_| transport.pause(done, Duration::ZERO, asked).unwrap().as_secs_f64();
            let mut all: Vec<f64> = (0..1000).map(of_one).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        // So much lies between the first tenth and the last.
        for (done, asked, least, spread, cap) in [
            (1, None, 1.0, 5.0, 9.0),
            (2, None, 1.0, 10.0, 17.0),
            (5, None, 1.0, 40.0, 61.0),
            (1, Some(7), 7.0, 3.0, 12.0),
            (1, Some(0), 0.0, 3.0, 5.0),
            (1, Some(86_400), 60.0, 10.0, 75.0),
        ] {
            let all = pauses(done, asked.map(Duration::from_secs));
            assert!(all[0] >= least && all[999] <= cap, "{done} {asked:?}: {} to {}", all[0], all[999]);
            assert!(all[900] - all[100] >= spread, "{done} {asked:?}: {} to {}", all[100], all[900]);
        }
        assert!(transport.pause(6, Duration::ZERO, None).is_none());
    }

    #[test]
    fn the_services_clock_is_read() {
        assert_eq!(seconds_of_date("Sat, 21 Nov 2026 16:22:14 GMT"), Some(1_795_278_134));
        assert_eq!(seconds_of_date("yesterday"), None);
    }

    #[tokio::test]
    async fn a_wrong_clock_is_told_beside_the_refusal_of_a_token_and_of_a_certificate() {
        let exchange = |_| async {
            let answer = Response::builder().status(401).header(header::DATE, "Wed, 21 Nov 2096 16:22:14 GMT");
            Ok(answer.body(Bytes::new()).unwrap())
        };
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), 1));
        let audience = Audience::device("hub", "device");
        let token = Credentials { audience: &audience, signer: &VectorKey };
        let call = Call { method: Method::GET, host: "hub", target: "/".to_owned(), if_match: None, body: None };
        // Which certificate is good, this device's clock does not decide.
        for (credentials, is_rejected) in [(Some(&token), false), (None, true)] {
            let (answer, _) = transport.send(&call, credentials).await.unwrap();
            let error = success("hub", Subject::Device, &[StatusCode::OK], answer).unwrap_err();
            assert!(error.to_string().contains("; this device's clock is "), "{error}");
            assert_eq!(error.is_device_rejected(), is_rejected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let exchange = |_| std::future::pending::<Result<Response<Bytes>, Error>>();
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), 1));
        let audience = Audience::device("hub", "device");
        let call = Call { method: Method::GET, host: "hub", target: "/".to_owned(), if_match: None, body: None };
        let begun = Instant::now();
        let outcome = transport.send(&call, Some(&Credentials { audience: &audience, signer: &VectorKey })).await;
        assert!(matches!(outcome, Err(Error::TimedOut { .. })));
        assert!(begun.elapsed() < Duration::from_secs(150));
    }
}
