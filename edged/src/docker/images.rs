//! Calls on images.
//!
//! A pull answers 200 and tells in the middle of the answer how it goes; only its last word counts.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Docker, Error, Reference,
    transport::{self, Call},
};

/// How long a pull may be silent. The engine is when other pulls come first (it takes three layers at a time), before its first word while it looks
/// for the registry, and while a large layer is checked.
const PULL_SILENCE: Duration = Duration::from_secs(600);
/// Bytes of one line about a pull; they have a few hundred.
const PROGRESS_LIMIT: usize = 64 * 1024;
/// Removing the layers of a large image on a slow disk.
const REMOVE_LIMIT: Duration = Duration::from_secs(240);

/// What the engine says of one image.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Image {
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) id: String,
    /// Its names with a tag.
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    /// Its names with a digest.
    #[serde(default)]
    pub(crate) repo_digests: Option<Vec<String>>,
}

impl Docker {
    /// Pulls an image; `auth` is an object as the registry header has it, with whatever members.
    pub(crate) async fn pull(&self, image: &Reference, auth: Option<&Value>) -> Result<(), Error> {
        let call = Call::new(Method::POST, "/images/create").query("fromImage", &image.with_tag());
        let mut call = call.limit(PULL_SILENCE);
        if let Some(auth) = auth {
            let encoded = HeaderValue::try_from(URL_SAFE.encode(auth.to_string()));
            call =
                call.auth(encoded.map_err(|source| Error::Unsendable {
                    call: "the credentials".to_owned(),
                    source: source.into(),
                })?);
        }
        let mut body = self.0.head(&call).await?.into_body();
        let mut progress = Progress::default();
        while let Some(piece) = transport::next(&call, &mut body, Some(PULL_SILENCE)).await? {
            progress.push(&piece).map_err(|error| call.malformed(error))?;
        }
        progress.end(&call)
    }

    /// One image, by any of its names or its id.
    pub(crate) async fn image(&self, reference: &Reference) -> Result<Image, Error> {
        self.0.json(&Call::get("/images/").segment(reference.as_str()).then("/json")).await
    }

    /// Removes an image, or one of its names. Refused with 409 where a container, another image or, for an id, several names need it.
    pub(crate) async fn remove_image(&self, reference: &Reference) -> Result<(), Error> {
        let call = Call::new(Method::DELETE, "/images/").segment(reference.as_str());
        self.0.nothing(&call.query("force", "false").query("noprune", "false").limit(REMOVE_LIMIT)).await
    }
}

/// Reads what the engine tells about a pull: JSON objects, one after the other, cut anywhere.
#[derive(Debug, Default)]
struct Progress {
    unread: Vec<u8>,
    last: Option<Event>,
}

/// One of them. All but errors is for people.
#[derive(Debug, Default, Deserialize)]
struct Event {
    #[serde(rename = "errorDetail", default)]
    detail: Option<Detail>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    code: Option<u16>,
    message: Option<String>,
}

/// What is wrong with a pull's answer.
#[derive(Debug, thiserror::Error)]
enum BadProgress {
    #[error("not JSON")]
    Json(#[source] serde_json::Error),
    #[error("a message over {PROGRESS_LIMIT} bytes")]
    Long,
    #[error("it ends within a message")]
    Cut,
    #[error("it is empty")]
    Empty,
}

impl Progress {
    fn push(&mut self, piece: &[u8]) -> Result<(), BadProgress> {
        self.unread.extend_from_slice(piece);
        let mut events = serde_json::Deserializer::from_slice(&self.unread).into_iter::<Event>();
        let mut read = 0;
        for event in events.by_ref() {
            match event {
                Ok(event) => self.last = Some(event),
                Err(error) if error.is_eof() => break,
                Err(error) => return Err(BadProgress::Json(error)),
            }
        }
        read += events.byte_offset();
        self.unread.drain(..read);
        if self.unread.len() > PROGRESS_LIMIT { Err(BadProgress::Long) } else { Ok(()) }
    }

    fn end(self, call: &Call) -> Result<(), Error> {
        if !self.unread.iter().all(u8::is_ascii_whitespace) {
            return Err(call.malformed(BadProgress::Cut));
        }
        let event = self.last.ok_or_else(|| call.malformed(BadProgress::Empty))?;
        if event.detail.is_none() && event.error.is_none() {
            return Ok(());
        }
        let detail = event.detail.unwrap_or_default();
        let message = detail.message.or(event.error).unwrap_or_else(|| "the pull failed".to_owned());
        let told = detail.code.and_then(|code| StatusCode::from_u16(code).ok()).filter(|code| code.as_u16() >= 400);
        Err(Error::Refused { status: told.unwrap_or_else(|| status_of(&message)), message })
    }
}

/// The status with which the engine would have answered, had it known in time: it does so for images that are not there, or not for these credentials.
fn status_of(message: &str) -> StatusCode {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["manifest unknown", "name unknown", "not found", "access denied", "access to the resource is denied"]) {
        StatusCode::NOT_FOUND
    } else if says(&["unauthorized", "authentication required"]) {
        StatusCode::UNAUTHORIZED
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}
