//! When a certificate is renewed, as configuration says it, and what the service tells about it.

use std::{fmt, num::NonZeroU64, str::FromStr};

use aziot_http::{Body, Call, Method};
use serde::{Deserialize, Serialize};

const MINUTES_PER_DAY: u64 = 24 * 60;

/// Tells when the service renews which of its certificates. Everybody who can open the socket may ask.
///
/// An extension: the public service has no such call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListRenewals {}

impl Call for ListRenewals {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/renewals";
    const BODY: Body = Body::Ignored;
    type Reply = Renewals;
}

/// The certificates that the service renews by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewals {
    /// In the order of their next attempts.
    pub renewals: Vec<Renewal>,
}

/// How the renewal of one certificate stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewal {
    /// Name of the certificate.
    pub cert_id: String,
    /// Name of its key pair in the key service.
    pub key_id: String,
    /// When the present certificate expires, RFC 3339 in UTC. Absent where there is no usable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// When the next attempt is made, RFC 3339 in UTC. Absent while none is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<String>,
    /// Attempts that failed since the last one that did not.
    pub failed_attempts: u32,
    /// Why the last attempt failed, its causes joined by `: `. Absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// How a certificate is renewed by itself. Where the table is written, all three keys must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoRenew {
    /// Whether each renewal makes a new key.
    pub rotate_key: bool,
    /// When the first attempt is made: after this part of the lifetime, or this long before its end.
    pub threshold: Period,
    /// Time between attempts, as a part of the lifetime or absolute.
    pub retry: Period,
}

impl Default for AutoRenew {
    fn default() -> Self {
        Self { rotate_key: true, threshold: Period::Percent(80), retry: Period::Percent(4) }
    }
}

/// `80%` of a certificate's lifetime, or `60min`, or `10day`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Period {
    /// 1 to 99 percent.
    Percent(u8),
    /// Whole minutes.
    Minutes(NonZeroU64),
}

/// A text that is no period.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not <n>%, <n>min or <n>day with a positive whole number, which is under 100 for percent")]
pub struct PeriodError(String);

impl FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PeriodError(text.to_owned());
        let minutes = |number: &str, factor: u64| {
            let minutes = number.parse::<u64>().ok()?.checked_mul(factor)?;
            // Seconds are what one reckons with.
            minutes.checked_mul(60)?;
            NonZeroU64::new(minutes).map(Self::Minutes)
        };
        let period = if let Some(number) = text.strip_suffix('%') {
            number.parse().ok().filter(|percent| (1..100).contains(percent)).map(Self::Percent)
        } else if let Some(number) = text.strip_suffix("min") {
            minutes(number, 1)
        } else {
            text.strip_suffix("day").and_then(|number| minutes(number, MINUTES_PER_DAY))
        };
        period.ok_or_else(error)
    }
}

impl TryFrom<String> for Period {
    type Error = PeriodError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(formatter, "{percent}%"),
            Self::Minutes(minutes) if minutes.get() % MINUTES_PER_DAY == 0 => {
                write!(formatter, "{}day", minutes.get() / MINUTES_PER_DAY)
            }
            Self::Minutes(minutes) => write!(formatter, "{minutes}min"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_and_written_as_the_table_says() {
        for (text, written) in [
            ("80%", "80%"),
            ("1%", "1%"),
            ("99%", "99%"),
            ("100min", "100min"),
            ("+100min", "100min"),
            ("10day", "10day"),
            ("1440min", "1day"),
            ("1441min", "1441min"),
        ] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), written);
        }
        assert_eq!("10day".parse::<Period>().unwrap(), Period::Minutes(NonZeroU64::new(14_400).unwrap()));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "day",
            "a%",
            "1year",
            "5 min",
            "5Min",
            "5days",
            "0%",
            "0min",
            "-1day",
            "100%",
            "101%",
            "%",
            "1.5day",
            "99999999999999999999min",
            "18446744073709551615min",
            "12810238940076077day",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text:?}");
        }
    }
}
