//! Throttling: so many requests in a second, overall and for each device or registration. Who asks for more is told to come back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::behaviour::Behaviour;

const SECOND: Duration = Duration::from_secs(1);
/// So many devices are counted at once. With more of them the rest has to wait for a second to be over.
const MAX_DEVICES: usize = 20_000;

/// A request is one too many.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("throttled: more than {limit} requests in a second{}", if *.is_of_device { " for this device" } else { "" })]
pub(crate) struct Throttled {
    limit: u32,
    is_of_device: bool,
}

/// The requests of one second, which begins with the first of them.
#[derive(Clone, Copy, Debug)]
struct Second {
    begin: Instant,
    requests: u32,
}

impl Second {
    fn at(now: Instant) -> Self {
        Self { begin: now, requests: 0 }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.begin) >= SECOND
    }
}

#[derive(Debug, Default)]
struct Counts {
    all: Option<Second>,
    each: HashMap<String, Second>,
}

/// Counts requests while there is a limit.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<Counts>);

impl Throttle {
    /// Lets a request through and counts it, or refuses it uncounted. `id` is of its device or registration.
    pub(crate) fn pass(&self, behaviour: &Behaviour, id: &str, now: Instant) -> Result<(), Throttled> {
        let (of_all, of_each) = (behaviour.requests_per_second, behaviour.requests_per_second_per_device);
        if of_all.is_none() && of_each.is_none() {
            return Ok(());
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = counts.all.filter(|second| !second.is_over(now)).unwrap_or(Second::at(now));
        let id = id.to_lowercase();
        let each = counts.each.get(&id).filter(|second| !second.is_over(now)).copied().unwrap_or(Second::at(now));
        for (second, limit, is_of_device) in [(&all, of_all, false), (&each, of_each, true)] {
            if let Some(limit) = limit.filter(|limit| second.requests >= *limit) {
                return Err(Throttled { limit, is_of_device });
            }
        }
        if let Some(limit) = of_each {
            if counts.each.len() >= MAX_DEVICES {
                counts.each.retain(|_, second| !second.is_over(now));
            }
            if counts.each.len() >= MAX_DEVICES && !counts.each.contains_key(&id) {
                return Err(Throttled { limit, is_of_device: true });
            }
            counts.each.insert(id, Second { requests: each.requests + 1, ..each });
        }
        counts.all = Some(Second { requests: all.requests + 1, ..all });
        Ok(())
    }
}

/// The registration or device that a path is about; none if it is neither of DPS nor of a hub.
pub(crate) fn subject_of(path: &str) -> Option<&str> {
    let mut segments = path.trim_start_matches('/').split('/');
    match (segments.next()?, segments.next()?) {
        ("devices", device_id) => Some(device_id),
        (_scope, "registrations") => segments.next(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::behaviour::tests::behaviour;

    #[test]
    fn so_many_in_a_second_and_then_again() {
        let (throttle, begin) = (Throttle::default(), Instant::now());
        let pass = |id: &str, milliseconds| {
            throttle.pass(&behaviour(), id, begin + Duration::from_millis(milliseconds)).is_ok()
        };
        assert!(pass("a", 0) && pass("A", 1) && !pass("a", 2));
        assert!(pass("b", 3) && pass("b", 4) && pass("c", 5) && pass("c", 6) && pass("d", 7));
        // Seven overall, and the refused one did not count.
        assert!(!pass("d", 8) && !pass("e", 999));
        assert!(pass("a", 1000) && pass("e", 1001));
    }

    #[test]
    fn a_refusal_names_the_limit() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let none = Behaviour { requests_per_second: Some(0), requests_per_second_per_device: None, ..behaviour() };
        let error = throttle.pass(&none, "a", now).unwrap_err();
        assert_eq!(error.to_string(), "throttled: more than 0 requests in a second");
        let free = Behaviour { requests_per_second: None, ..none };
        assert!((0..100).all(|_| throttle.pass(&free, "a", now).is_ok()));
    }

    #[test]
    fn paths_are_of_somebody() {
        assert_eq!(subject_of("/devices/d/modules/m"), Some("d"));
        assert_eq!(subject_of("/0ne/registrations/r/register"), Some("r"));
        for path in ["/", "/devices", "/.well-known/est/cacerts", "/a/b"] {
            assert_eq!(subject_of(path), None, "{path}");
        }
    }
}
