//! How the cloud behaves: limits, delays and its clock. Set at the start, and anew over the control socket while it runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

/// The clock can be wrong by twenty years.
const MAX_CLOCK_OFFSET_SECONDS: i64 = 20 * 365 * 24 * 60 * 60;

/// The clock would be too far off.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the clock's offset is more than {MAX_CLOCK_OFFSET_SECONDS} s")]
pub struct OffsetError;

/// What can be changed while the simulator runs.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Behaviour {
    /// So many polls say `assigning` before a registration is decided.
    pub(crate) assigning_polls: u32,
    /// `retry-after` of pending registrations.
    pub(crate) retry_after_seconds: u32,
    /// For so long an expired token is still taken.
    pub(crate) clock_skew_seconds: u32,
    /// By so much the cloud's clock is ahead of the system's.
    pub(crate) clock_offset_seconds: i64,
    /// So many modules a device may have.
    pub(crate) max_modules: usize,
    /// More requests than these are throttled; no limit if absent.
    pub(crate) requests_per_second: Option<u32>,
    /// The same for each registration and each device.
    pub(crate) requests_per_second_per_device: Option<u32>,
}

impl Behaviour {
    /// What time it is in the cloud.
    pub(crate) fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        now.checked_add(SignedDuration::from_secs(self.clock_offset_seconds)).unwrap_or(now)
    }

    pub(crate) fn check(&self) -> Result<(), OffsetError> {
        if self.clock_offset_seconds.abs() <= MAX_CLOCK_OFFSET_SECONDS { Ok(()) } else { Err(OffsetError) }
    }

    /// The same with `change` in force.
    pub(crate) fn changed(&self, change: &Change) -> Result<Self, OffsetError> {
        let changed = Self {
            assigning_polls: change.assigning_polls.unwrap_or(self.assigning_polls),
            retry_after_seconds: change.retry_after_seconds.unwrap_or(self.retry_after_seconds),
            clock_skew_seconds: change.clock_skew_seconds.unwrap_or(self.clock_skew_seconds),
            clock_offset_seconds: change.clock_offset_seconds.unwrap_or(self.clock_offset_seconds),
            max_modules: change.max_modules.unwrap_or(self.max_modules),
            requests_per_second: change.requests_per_second.or(self.requests_per_second),
            requests_per_second_per_device: change
                .requests_per_second_per_device
                .or(self.requests_per_second_per_device),
        };
        changed.check()?;
        Ok(changed)
    }
}

/// Puts `change` in force and returns what is in force now.
pub(crate) fn change_shared(shared: &ArcSwap<Behaviour>, change: &Change) -> Result<Arc<Behaviour>, OffsetError> {
    let mut result = Err(OffsetError);
    shared.rcu(|current| {
        result = current.changed(change).map(Arc::new);
        result.clone().unwrap_or_else(|OffsetError| Arc::clone(current))
    });
    result
}

/// What the control API changes; what is left out stays, and `null` lifts a limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Change {
    assigning_polls: Option<u32>,
    retry_after_seconds: Option<u32>,
    clock_skew_seconds: Option<u32>,
    clock_offset_seconds: Option<i64>,
    max_modules: Option<usize>,
    requests_per_second: NewLimit,
    requests_per_second_per_device: NewLimit,
}

/// What becomes of a limit.
#[derive(Clone, Copy, Debug, Default)]
enum NewLimit {
    /// It stays as it is.
    #[default]
    LeftOut,
    /// It is set, or lifted.
    Given(Option<u32>),
}

impl NewLimit {
    fn or(self, old: Option<u32>) -> Option<u32> {
        match self {
            Self::LeftOut => old,
            Self::Given(new) => new,
        }
    }
}

impl<'de> Deserialize<'de> for NewLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::Given)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn behaviour() -> Behaviour {
        Behaviour {
            assigning_polls: 1,
            retry_after_seconds: 1,
            clock_skew_seconds: 300,
            clock_offset_seconds: 0,
            max_modules: 50,
            requests_per_second: Some(7),
            requests_per_second_per_device: Some(2),
        }
    }

    fn changed(json: &str) -> Result<Behaviour, OffsetError> {
        behaviour().changed(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_change_leaves_the_rest_and_null_lifts_a_limit() {
        assert_eq!(changed("{}"), Ok(behaviour()));
        let lifted = Behaviour { max_modules: 600, requests_per_second: None, ..behaviour() };
        assert_eq!(changed(r#"{"maxModules":600,"requestsPerSecond":null}"#), Ok(lifted));
        assert!(serde_json::from_str::<Change>(r#"{"requests_per_second":1}"#).is_err());
    }

    #[test]
    fn changes_at_once_do_not_undo_each_other() {
        let shared = ArcSwap::from_pointee(behaviour());
        let change_and_look = |name: &str, look: fn(&Behaviour) -> usize| {
            for value in 0..5000 {
                let change = serde_json::from_str(&format!(r#"{{"{name}":{value}}}"#)).unwrap();
                change_shared(&shared, &change).unwrap();
                assert_eq!(look(&shared.load()), value, "{name}");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| change_and_look("maxModules", |behaviour| behaviour.max_modules));
            scope.spawn(|| change_and_look("assigningPolls", |behaviour| behaviour.assigning_polls as usize));
        });
        let too_far = serde_json::from_str(r#"{"clockOffsetSeconds":10000000000}"#).unwrap();
        let before = shared.load_full();
        assert_eq!(change_shared(&shared, &too_far), Err(OffsetError));
        assert_eq!(shared.load_full(), before);
    }

    #[test]
    fn the_clock_is_off_by_a_year_but_not_by_centuries() {
        let year = 365 * 24 * 60 * 60;
        for offset in [year, -year] {
            let behaviour = changed(&format!(r#"{{"clockOffsetSeconds":{offset}}}"#)).unwrap();
            let difference = behaviour.now().as_second() - Timestamp::now().as_second() - offset;
            assert!((-1..=1).contains(&difference), "{difference}");
        }
        assert_eq!(changed(r#"{"clockOffsetSeconds":10000000000}"#), Err(OffsetError));
    }
}
