//! Requests that wait for somebody's approval (RFC 7030, section 4.2.3): the same request has to come again, and not too early.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::settings::Settings;

/// So many requests can wait at once; of more, the oldest begins anew.
const MAX_PENDING: usize = 256;

struct Waiting {
    /// SHA-256 over the request.
    digest: [u8; 32],
    remaining: u32,
    /// An attempt before does not count.
    earliest: Instant,
}

#[derive(Default)]
pub(crate) struct Pending(Mutex<VecDeque<Waiting>>);

impl Pending {
    /// Whether this request (DER) has to come again, which is then remembered.
    pub(crate) fn is_to_wait(&self, request: &[u8], settings: &Settings) -> bool {
        let digest = openssl::sha::sha256(request);
        let pause = Duration::from_secs(settings.retry_after_seconds.into());
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = queue.iter().position(|waiting| waiting.digest == digest) else {
            if settings.pending_polls == 0 {
                return false;
            }
            if queue.len() >= MAX_PENDING {
                queue.pop_front();
            }
            let remaining = settings.pending_polls - 1;
            queue.push_back(Waiting { digest, remaining, earliest: Instant::now() + pause });
            return true;
        };
        let known = &mut queue[index];
        if Instant::now() < known.earliest {
            tracing::info!("a pending request came again too early");
            return true;
        }
        if known.remaining > 0 {
            known.remaining -= 1;
            known.earliest = Instant::now() + pause;
            return true;
        }
        queue.remove(index);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pending_polls: u32, retry_after_seconds: u32) -> Settings {
        Settings { pending_polls, retry_after_seconds, ..Settings::default() }
    }

    #[test]
    fn a_request_is_granted_when_the_same_one_has_come_often_enough() {
        let (pending, twice) = (Pending::default(), settings(2, 0));
        let waits = |request: &[u8]| pending.is_to_wait(request, &twice);
        assert!(waits(b"a") && waits(b"b") && waits(b"a"));
        assert!(!waits(b"a"));
        // Then it is a new request.
        assert!(waits(b"a"));
        assert!(waits(b"b") && !waits(b"b"));
        assert!(!pending.is_to_wait(b"c", &settings(0, 0)));
    }

    #[test]
    fn who_comes_too_early_gets_no_further() {
        let (pending, hourly) = (Pending::default(), settings(1, 3600));
        assert!((0..5).all(|_| pending.is_to_wait(b"a", &hourly)));
    }

    #[test]
    fn the_oldest_of_too_many_begins_anew() {
        let (pending, once) = (Pending::default(), settings(1, 0));
        for number in 0..=MAX_PENDING {
            assert!(pending.is_to_wait(&number.to_be_bytes(), &once));
        }
        assert!(!pending.is_to_wait(&MAX_PENDING.to_be_bytes(), &once));
        assert!(pending.is_to_wait(&0_usize.to_be_bytes(), &once));
    }
}
