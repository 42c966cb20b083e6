//! Lengths of time as people write them: `1d`, `90m`, `1 hour 20 minutes`, `1week`.
//!
//! In any order, and with a unit more than once. A day has 24 hours, a month is a twelfth of 365.25 days, as the public daemon reckons them. A number without a unit is none.

use std::time::Duration;

use jiff::{SignedDuration, SpanRelativeTo, fmt::friendly::SpanParser};

const MONTH: SignedDuration = SignedDuration::from_secs(2_630_016);
const YEAR: SignedDuration = SignedDuration::from_secs(31_557_600);

/// A text that is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length of time such as 90m, 1d, 1week or 1 hour 20 minutes")]
pub struct DurationError(String);

/// Reads a sum of numbers with units. One with a sign is none.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    sum(text.trim()).ok_or_else(|| DurationError(text.to_owned()))
}

fn sum(text: &str) -> Option<Duration> {
    let (first, mut rest) = next(text)?;
    let mut total = first;
    while !rest.is_empty() {
        let (length, after) = next(rest)?;
        total = total.checked_add(length)?;
        rest = after;
    }
    Some(total)
}

/// The first number with its unit, and what comes after them.
fn next(text: &str) -> Option<(Duration, &str)> {
    let (number, rest) = text.split_at(text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.'))?);
    let rest = rest.trim_start();
    let (unit, rest) = rest.split_at(rest.find(|letter: char| !letter.is_alphabetic()).unwrap_or(rest.len()));
    // The parser knows all other units of the public daemon.
    let unit = if unit == "M" { "months" } else { unit };
    Some((one(&format!("{number}{unit}"))?, rest.trim_start()))
}

/// Reads one number with its unit.
fn one(text: &str) -> Option<Duration> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let span = SpanParser::new().parse_span(text).ok()?;
    let long = [(span.get_months(), MONTH), (span.get_years().into(), YEAR)];
    let days = span.months(0).years(0).to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    let total = long.into_iter().try_fold(days, |sum, (count, length)| sum.checked_add(length.checked_mul(count)?))?;
    Duration::try_from(total).ok()
}

/// The duration in one unit of whole days, hours, minutes or seconds, the largest that fits; parts of a second are left out.
#[must_use]
pub fn display(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let fitting = units.iter().find(|(length, _)| seconds > 0 && seconds.is_multiple_of(*length));
    fitting.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_time_in_many_ways() {
        for (text, seconds) in [
            ("1d", 86_400),
            ("90m", 5_400),
            ("1week", 604_800),
            ("1 hour 20 minutes", 4_800),
            ("2 days 3 hours", 183_600),
            ("1h20m5s", 4_805),
            ("0s", 0),
            (" 1 y ", 31_557_600),
            ("1 month", 2_630_016),
            ("1m", 60),
            ("2000ms", 2),
            ("1M", 2_630_016),
            ("2 M 1m", 5_260_092),
            ("20 minutes 1 hour", 4_800),
            ("1m 1d", 86_460),
            ("1h1h 30m 30m", 10_800),
            ("1000msec 1hr 2wk", 1_213_201),
            ("2yrs 1months", 65_745_216),
            ("1.5h", 5_400),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            " ",
            "1",
            "d",
            "-1d",
            "1d ago",
            "1 fortnight",
            "1d2",
            "1d -1h",
            "1d+1h",
            "1d, 1h",
            "d1",
            "1 2d",
            "99999999999999999999s",
            "9999999999999999999y",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (5_400, "90m"), (86_400, "1d"), (604_800, "7d"), (90_000, "25h")]
        {
            assert_eq!(display(Duration::from_secs(seconds)), text);
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
    }
}
