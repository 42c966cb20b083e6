//! The call for a module's log, and what its query means. The answer is the engine's stream of frames.

use aziot_http::{ApiVersion, Body, Call, Method};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::duration;

/// Asks for what a module wrote to its outputs. The answer is text/plain, one chunk for each frame: stream (1 standard output, 2 standard
/// error), three zero bytes, length as four bytes with the greatest first, then so many bytes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetLogs {
    /// Name of the module.
    pub module: String,
    /// `true`: stay and wait for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<String>,
    /// `true`: a time before each line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamps: Option<String>,
    /// How many lines from the end: `all` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<String>,
    /// No lines before; a time, see [`seconds`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// No lines after; a time, see [`seconds`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl Call for GetLogs {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/modules/{module}/logs";
    const QUERY: &'static [&'static str] = &["follow", "timestamps", "tail", "since", "until"];
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    /// Stands for the stream, which is no JSON.
    type Reply = ();
}

/// What part of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Stay and wait for more.
    pub follow: bool,
    /// Put a time before each line.
    pub timestamps: bool,
    /// How many lines from the end.
    pub tail: Tail,
    /// No lines before this time, in seconds since 1970.
    pub since: Option<i64>,
    /// No lines after this time, in seconds since 1970.
    pub until: Option<i64>,
}

/// How many lines from the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// All there are.
    #[default]
    All,
    /// So many.
    Lines(u64),
}

/// A member of the query has a value that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid parameter: {0}")]
pub struct InvalidParameter(pub &'static str);

impl GetLogs {
    /// What the query asks for, with times reckoned from `now`.
    pub fn options(&self, now: Timestamp) -> Result<LogOptions, InvalidParameter> {
        let time =
            |name, text: Option<&String>| text.map(|text| seconds(text, now).ok_or(InvalidParameter(name))).transpose();
        Ok(LogOptions {
            follow: flag("follow", self.follow.as_deref())?,
            timestamps: flag("timestamps", self.timestamps.as_deref())?,
            tail: match self.tail.as_deref() {
                None | Some("all") => Tail::All,
                Some(lines) => Tail::Lines(lines.parse().map_err(|_| InvalidParameter("tail"))?),
            },
            since: time("since", self.since.as_ref())?,
            until: time("until", self.until.as_ref())?,
        })
    }
}

/// Reads `true` or `false`; absent is false.
pub fn flag(name: &'static str, text: Option<&str>) -> Result<bool, InvalidParameter> {
    match text {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(InvalidParameter(name)),
    }
}

/// Seconds since 1970, 64 bits of them: a time of RFC 3339, a number of seconds, or a duration before `now` (`1d`, `90m`, `1 hour 20 minutes`).
#[must_use]
pub fn seconds(text: &str, now: Timestamp) -> Option<i64> {
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_second());
    }
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let ago = i64::try_from(duration::parse(text).ok()?.as_secs()).ok()?;
    now.as_second().checked_sub(ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn at(text: &str) -> Option<i64> {
        seconds(text, Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn times_of_all_three_forms_are_read() {
        for (text, expected) in [
            ("2024-05-01T10:00:00Z", 1_714_557_600),
            ("2024-05-01T12:00:00.999+02:00", 1_714_557_600),
            ("2040-01-01T00:00:00Z", 2_208_988_800),
            ("0", 0),
            ("1", 1),
            ("-5", -5),
            ("4102444800", 4_102_444_800),
            ("1d", NOW - 86_400),
            ("90m", NOW - 5_400),
            ("1h30m", NOW - 5_400),
            ("1 hour 20 minutes", NOW - 4_800),
            ("2 days 3 hours", NOW - 2 * 86_400 - 3 * 3_600),
            ("1 week", NOW - 7 * 86_400),
            ("15min", NOW - 900),
            ("1 day 4 hr 5s", NOW - 86_400 - 4 * 3_600 - 5),
            ("1 month", NOW - 2_630_016),
            ("1 year", NOW - 31_557_600),
        ] {
            assert_eq!(at(text), Some(expected), "{text}");
        }
        for text in
            ["", " ", "yesterday", "1 fortnight", "-1h", "1h ago", "P1D", "1d1", "99999999999999999999", "2024-05-01"]
        {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn the_query_is_checked_member_by_member() {
        let now = Timestamp::from_second(NOW).unwrap();
        assert_eq!(GetLogs::default().options(now), Ok(LogOptions::default()));
        let text = |text: &str| Some(text.to_owned());
        let full = GetLogs {
            module: "m".to_owned(),
            follow: text("true"),
            timestamps: text("false"),
            tail: text("12"),
            since: text("1d"),
            until: text("5"),
        };
        assert_eq!(
            full.options(now),
            Ok(LogOptions {
                follow: true,
                timestamps: false,
                tail: Tail::Lines(12),
                since: Some(NOW - 86_400),
                until: Some(5)
            })
        );
        let bad = |change: fn(&mut GetLogs)| {
            let mut call = GetLogs::default();
            change(&mut call);
            call.options(now).unwrap_err().to_string()
        };
        assert_eq!(bad(|call| call.follow = Some("1".to_owned())), "invalid parameter: follow");
        assert_eq!(bad(|call| call.timestamps = Some(String::new())), "invalid parameter: timestamps");
        assert_eq!(bad(|call| call.tail = Some("-1".to_owned())), "invalid parameter: tail");
        assert_eq!(bad(|call| call.since = Some("x".to_owned())), "invalid parameter: since");
        assert_eq!(bad(|call| call.until = Some("x".to_owned())), "invalid parameter: until");
    }
}
