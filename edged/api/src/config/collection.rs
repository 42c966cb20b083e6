//! `[image_garbage_collection]`: when images that nobody uses are removed.

use std::{fmt, num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

use crate::duration;

const SECONDS_PER_DAY: u64 = 86_400;

/// When images that nobody uses are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageGarbageCollection {
    /// Whether it is done at all. Default true.
    pub enabled: bool,
    /// Time between two runs. Default one day.
    pub cleanup_recurrence: Days,
    /// How long an image must have been unused. Default 7 days.
    pub image_age_cleanup_threshold: Span,
    /// Local time of day of each run. Default midnight.
    pub cleanup_time: CleanupTime,
}

impl ImageGarbageCollection {
    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ImageGarbageCollection {
    fn default() -> Self {
        Self {
            enabled: true,
            cleanup_recurrence: Days(NonZeroU32::MIN),
            image_age_cleanup_threshold: Span(Duration::from_secs(7 * SECONDS_PER_DAY)),
            cleanup_time: CleanupTime::default(),
        }
    }
}

/// A number of whole days, at least one: `1d`, `1week`, `48h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Days(NonZeroU32);

/// A time that is not a number of whole days.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDays {
    /// No length of time at all.
    #[error(transparent)]
    Unreadable(#[from] duration::DurationError),
    /// Less than a day, or with a part of a day.
    #[error("{0:?} is not a whole number of days, of which there must be at least one: 1d, 3d, 1week")]
    NotWhole(String),
}

impl Days {
    /// How many.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<String> for Days {
    type Error = InvalidDays;

    fn try_from(text: String) -> Result<Self, InvalidDays> {
        let time = duration::parse(&text)?;
        let is_whole = time.subsec_nanos() == 0 && time.as_secs().is_multiple_of(SECONDS_PER_DAY);
        let days = u32::try_from(time.as_secs() / SECONDS_PER_DAY).ok().filter(|_| is_whole).and_then(NonZeroU32::new);
        days.map(Self).ok_or(InvalidDays::NotWhole(text))
    }
}

impl From<Days> for String {
    fn from(days: Days) -> Self {
        format!("{}d", days.0)
    }
}

/// A length of time: `7d`, `12 hours`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = duration::DurationError;

    fn try_from(text: String) -> Result<Self, duration::DurationError> {
        duration::parse(&text).map(Self)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        duration::display(span.0)
    }
}

/// A local time of day, `HH:MM` in 24 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CleanupTime {
    hour: u8,
    minute: u8,
}

/// A text that is no time of day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time of day between 00:00 and 23:59")]
pub struct InvalidTime(String);

impl CleanupTime {
    /// 0 to 23.
    #[must_use]
    pub fn hour(self) -> u8 {
        self.hour
    }

    /// 0 to 59.
    #[must_use]
    pub fn minute(self) -> u8 {
        self.minute
    }
}

impl TryFrom<String> for CleanupTime {
    type Error = InvalidTime;

    fn try_from(text: String) -> Result<Self, InvalidTime> {
        let number = |text: &str, above: u8| {
            let is_plain = (1..=2).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse().ok().filter(|number| is_plain && *number < above)
        };
        let parts = text.split_once(':');
        let time = parts.and_then(|(hour, minute)| Some(Self { hour: number(hour, 24)?, minute: number(minute, 60)? }));
        time.ok_or(InvalidTime(text))
    }
}

impl From<CleanupTime> for String {
    fn from(time: CleanupTime) -> Self {
        time.to_string()
    }
}

impl fmt::Display for CleanupTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02}:{:02}", self.hour, self.minute)
    }
}
