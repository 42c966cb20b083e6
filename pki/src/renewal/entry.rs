//! A credential's place in the engine: what is known of it, who may touch it, and when it is tried next.
//!
//! Nothing is done here: no certificate is read and no network touched.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_certd_api::renewal::{AutoRenew, Period};
use tokio::sync::{Mutex as AsyncMutex, Notify, RwLock};

use super::{Credential, Failure, timetable::Timetable};
use crate::certificate::{Chain, Validity};

/// Pause after a failure that needs somebody to act.
const SLOW: i64 = 3600;
/// Failures in a row after which the floor counts.
const PATIENT_AFTER: u32 = 4;
/// Least pause after repeated failures, unless the certificate is so young that this would be much of its life.
const FLOOR: i64 = 10;
/// The floor's part of the certificate's age: one that lives for 20 seconds is tried each second until it is over.
const FLOOR_PART_OF_AGE: i64 = 20;
/// Pause after a first failure where no certificate has been read yet and the policy counts in percent of its lifetime.
const BLIND: i64 = 5;
const LONGEST_BLIND: i64 = 600;
/// A certificate that is found past its deadline waits a tenth of this at most.
const LATE_SPAN: i64 = 600;
/// Longest time for which a server may ask to be left alone; more is a fault of it.
const LONGEST_ASKED: i64 = 86_400;
/// For so long at most those who need the credential now are kept from asking the server, too.
const LONGEST_REFUSAL: i64 = 300;
/// Jitter is a tenth.
const JITTER_PART: i64 = 10;

/// A credential in the engine. Its parts are locked in the order in which they stand here.
pub(super) struct Entry {
    pub(super) certificate_id: String,
    pub(super) key_id: String,
    pub(super) locks: Arc<Locks>,
    state: Mutex<State>,
    /// Whoever waits for the credential's next date looks at it again.
    pub(super) wake: Notify,
}

/// Who may do what to a pair of certificate and key.
#[derive(Default)]
pub(super) struct Locks {
    /// Held while the credential is looked after: one task at a time.
    pub(super) attempt: AsyncMutex<()>,
    /// Shared by those who use certificate and key, alone for those who replace them: a handle follows its key's name, so a
    /// key that is moved during somebody's handshake would make that one sign with the wrong key.
    pub(super) pair: Arc<RwLock<()>>,
}

/// What is known of a credential.
pub(super) struct State {
    pub(super) credential: Arc<dyn Credential>,
    /// Taken out of the engine while somebody still worked on it.
    pub(super) retired: bool,
    pub(super) check: Check,
    /// How often somebody else had a look asked for, and how often when the last look began.
    doubts: u64,
    doubts_seen: u64,
    /// Certificate and key do not belong together.
    pub(super) mismatched: bool,
    pub(super) known: Option<Known>,
    pause: Option<Pause>,
    /// Part of the longest jitter, from 0 to 1, that this certificate is renewed after its deadline.
    jitter: f64,
    pub(super) failures: u32,
    pub(super) last_failure: Option<Arc<Failure>>,
    /// Attempts that ended, however.
    pub(super) attempts: u64,
    warned: bool,
}

/// What must be looked at before the credential is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Check {
    /// Nothing: it is as it was left.
    Nothing,
    /// The certificate, which may have been replaced.
    Certificate,
    /// Whether the key belongs to it, too.
    Pair,
}

/// The leaf that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// SHA-256 of its DER.
    pub(super) fingerprint: [u8; 32],
    pub(super) validity: Validity,
}

/// No attempt from `since` until `until`. Void when the clock shows an earlier time than `since`: it was wrong then.
#[derive(Clone, Copy, Debug)]
struct Pause {
    since: i64,
    until: i64,
    reason: Reason,
}

#[derive(Clone, Copy, Debug)]
enum Reason {
    /// It is not yet time.
    Date,
    Failure,
    /// The server asked for it; those who need the credential do not ask it before this time either.
    Server {
        refused_until: i64,
    },
}

/// The leaf cannot be examined, or there is none.
#[derive(Debug, thiserror::Error)]
#[error("the chain has no certificate whose dates can be read")]
pub(super) struct NoLeaf;

impl Known {
    pub(super) fn of(chain: &Chain) -> Result<Self, NoLeaf> {
        let fingerprint = chain.fingerprint().ok_or(NoLeaf)?;
        Ok(Self { fingerprint, validity: chain.validity().ok_or(NoLeaf)? })
    }

    pub(super) fn timetable(&self, policy: &AutoRenew) -> Timetable {
        Timetable::new(self.validity, policy)
    }
}

impl Entry {
    pub(super) fn new(credential: Arc<dyn Credential>, locks: Arc<Locks>, jitter: f64) -> Self {
        Self {
            certificate_id: credential.certificate_id().to_owned(),
            key_id: credential.key_id().to_owned(),
            locks,
            state: Mutex::new(State {
                credential,
                retired: false,
                check: Check::Pair,
                doubts: 0,
                doubts_seen: 0,
                mismatched: false,
                known: None,
                pause: None,
                jitter,
                failures: 0,
                last_failure: None,
                attempts: 0,
                warned: false,
            }),
            wake: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn credential(&self) -> Arc<dyn Credential> {
        Arc::clone(&self.state().credential)
    }

    /// Whether somebody works on it or uses it.
    pub(super) fn is_busy(&self) -> bool {
        self.locks.attempt.try_lock().is_err() || self.locks.pair.try_write().is_err()
    }
}

impl State {
    /// Puts newly configured settings in place of the old ones. What has failed is tried again at once: maybe they mend it.
    pub(super) fn reconfigure(&mut self, credential: Arc<dyn Credential>) {
        self.credential = credential;
        self.retired = false;
        self.doubt(Check::Certificate);
        if self.pause.is_some_and(|pause| !matches!(pause.reason, Reason::Date)) {
            self.pause = None;
        }
    }

    /// Somebody has reason to believe that this needs to be looked at, whenever the next attempt may be.
    pub(super) fn doubt(&mut self, check: Check) {
        self.check = self.check.max(check);
        self.doubts = self.doubts.wrapping_add(1);
    }

    /// Whether nobody has looked since somebody doubted.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubts != self.doubts_seen
    }

    /// What is to be looked at now.
    pub(super) fn begin_check(&mut self) -> Check {
        self.doubts_seen = self.doubts;
        self.check
    }

    /// All that was to be looked at is seen, unless somebody has doubted again meanwhile.
    pub(super) fn end_check(&mut self) {
        if !self.is_in_doubt() {
            self.check = Check::Nothing;
        }
    }

    /// Whether the repair says that certificate and key belong together.
    pub(super) fn set_mismatched(&mut self, mismatched: bool) {
        if mismatched && !self.mismatched {
            // What failed was the renewal of a pair that could still be used.
            self.pause = None;
        }
        self.mismatched = mismatched;
    }

    /// Takes a certificate as the one that is stored, with all of the old one's failures forgotten.
    pub(super) fn know(&mut self, known: Known, jitter: f64, now: i64) {
        self.known = Some(known);
        self.jitter = jitter;
        self.pause = None;
        self.calm();
        // A fleet whose power comes back finds itself late in one moment; those that can wait a little do.
        if !known.validity.is_over(now) && self.date(now) <= now {
            let span = known.timetable(&self.credential.policy()).retry_period().min(LATE_SPAN);
            let rest = known.validity.not_after.saturating_sub(now);
            let until = now.saturating_add(share(span, jitter).min(rest / 2));
            self.pause = Some(Pause { since: now, until, reason: Reason::Date });
        }
    }

    /// A renewal has succeeded.
    pub(super) fn renewed(&mut self, known: Known, jitter: f64, now: i64) {
        self.know(known, jitter, now);
        self.end_check();
        self.mismatched = false;
        self.attempts = self.attempts.wrapping_add(1);
        let table = known.timetable(&self.credential.policy());
        // What is back-dated may be past its deadline as it comes; then most of the rest of its life is used.
        if let Ok(next) = table.next_renewal(now)
            && table.deadline() <= now
        {
            let rest = known.validity.not_after.saturating_sub(now);
            let until = next.min(now.saturating_add((rest - rest / 5).max(1)));
            self.pause = Some(Pause { since: now, until, reason: Reason::Date });
        }
    }

    /// An attempt, or a look at the credential, has failed, or the server puts it off. `jitter` is from 0 to 1.
    pub(super) fn failed(&mut self, failure: Failure, jitter: f64, now: i64) {
        self.attempts = self.attempts.wrapping_add(1);
        let rest = self.known.filter(|known| !known.validity.is_over(now) && !self.mismatched);
        let rest = rest.map_or(i64::MAX, |known| known.validity.not_after.saturating_sub(now));
        // There must be time for another attempt, and for more if that fails.
        let longest = (rest / 2).max(1);
        let asked = failure.asked_pause().map(|pause| whole_seconds(pause).clamp(1, LONGEST_ASKED).min(longest));
        let mut pause = asked.unwrap_or(0);
        if !matches!(failure, Failure::NotYet(..)) {
            self.failures = self.failures.saturating_add(1);
            pause = pause.max(self.retry_period());
            if self.failures >= PATIENT_AFTER {
                pause = pause.max(self.floor(now));
            }
            if failure.is_fatal() {
                pause = pause.max(SLOW);
            }
            if asked.is_some() && pause >= rest {
                pause = longest;
            }
        }
        let until = now.saturating_add(pause);
        // Jitter alone never lets a certificate end.
        let room = self.known.map(|known| known.validity.not_after.saturating_sub(until)).filter(|room| *room >= 0);
        let jitter = share(pause, jitter).min(room.map_or(i64::MAX, |room| room / 2));
        let reason = match asked {
            Some(asked) => Reason::Server { refused_until: now.saturating_add(asked.min(LONGEST_REFUSAL)) },
            None => Reason::Failure,
        };
        self.pause = Some(Pause { since: now, until: until.saturating_add(jitter), reason });
        self.last_failure = Some(Arc::new(failure));
    }

    fn retry_period(&self) -> i64 {
        let policy = self.credential.policy();
        match (self.known, policy.retry) {
            (Some(known), _) => known.timetable(&policy).retry_period(),
            (None, Period::Minutes(minutes)) => i64::try_from(minutes.get().saturating_mul(60)).unwrap_or(i64::MAX),
            (None, Period::Percent(_)) => {
                let doubled = BLIND.saturating_mul(1_i64.checked_shl(self.failures.min(30) - 1).unwrap_or(1));
                doubled.min(LONGEST_BLIND)
            }
        }
    }

    fn floor(&self, now: i64) -> i64 {
        let age = self.known.map_or(i64::MAX, |known| now.saturating_sub(known.validity.not_before));
        (age / FLOOR_PART_OF_AGE).clamp(1, FLOOR)
    }

    /// Whether a failure, or the server, keeps the engine from trying.
    pub(super) fn is_held_off(&self, now: i64) -> bool {
        let pause = self.pause_at(now).filter(|pause| !matches!(pause.reason, Reason::Date));
        pause.is_some_and(|pause| now < pause.until)
    }

    /// Whether the server has just asked to be left alone, by all.
    pub(super) fn is_refused(&self, now: i64) -> bool {
        let pause = self.pause_at(now);
        pause.is_some_and(|pause| matches!(pause.reason, Reason::Server { refused_until } if now < refused_until))
    }

    fn pause_at(&self, now: i64) -> Option<Pause> {
        self.pause.filter(|pause| pause.since <= now)
    }

    /// Forgets failures.
    pub(super) fn calm(&mut self) {
        self.failures = 0;
        self.last_failure = None;
    }

    /// When the credential is renewed, or read again; what has passed is now.
    pub(super) fn next_attempt(&self, now: i64) -> i64 {
        let pause = self.pause_at(now).map_or(i64::MIN, |pause| pause.until);
        self.date(now).max(pause)
    }

    /// The date of the next renewal, pauses left aside.
    fn date(&self, now: i64) -> i64 {
        let usable = self.known.filter(|known| !self.mismatched && !known.validity.is_over(now));
        let Some(known) = usable else { return now };
        let table = known.timetable(&self.credential.policy());
        let deadline = table.deadline();
        let not_after = known.validity.not_after;
        let span = table.retry_period().min(not_after.saturating_sub(deadline));
        deadline.saturating_add(share(span, self.jitter)).min(not_after)
    }

    /// Whether the certificate, with its key, is good for those who ask for it.
    pub(super) fn is_usable(&self, now: i64) -> bool {
        let is_good = |known: Known| !known.validity.is_over(now);
        self.check != Check::Pair && !self.mismatched && self.known.is_some_and(is_good)
    }

    /// Whether the policy's threshold does not fit the certificate; true once.
    pub(super) fn must_warn_of_threshold(&mut self) -> bool {
        let policy = self.credential.policy();
        let substituted = self.known.is_some_and(|known| known.timetable(&policy).is_substituted());
        substituted && !std::mem::replace(&mut self.warned, true)
    }
}

fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// A tenth of `span`, times `jitter`.
fn share(span: i64, jitter: f64) -> i64 {
    let thousandths = (jitter.clamp(0.0, 1.0) * 1000.0).round();
    #[expect(clippy::cast_possible_truncation, reason = "from 0 to 1000")]
    let thousandths = thousandths as i64;
    // Nobody's pauses are so long that the factor matters.
    (span / JITTER_PART).saturating_mul(thousandths) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::renewal::{Doing, Renewed};

    const DAY: i64 = 86_400;

    struct Settings(AutoRenew);

    impl Credential for Settings {
        fn certificate_id(&self) -> &'static str {
            "certificate"
        }

        fn key_id(&self) -> &'static str {
            "key"
        }

        fn policy(&self) -> AutoRenew {
            self.0
        }

        fn repair(&self) -> Doing<'_, ()> {
            Box::pin(async { Ok(()) })
        }

        fn current(&self) -> Doing<'_, Chain> {
            Box::pin(async { Ok(Chain::default()) })
        }

        fn renew(&self, _old: Chain) -> Doing<'_, Renewed> {
            Box::pin(async { Err(Failure::fatal("not here")) })
        }

        fn commit(&self, _old: Chain, _new: Renewed) -> Doing<'_, ()> {
            Box::pin(async { Err(Failure::fatal("not here")) })
        }
    }

    fn known(first: u8, not_before: i64, not_after: i64) -> Known {
        Known { fingerprint: [first; 32], validity: Validity { not_before, not_after } }
    }

    fn entry(threshold: &str, retry: &str) -> Entry {
        let policy =
            AutoRenew { rotate_key: true, threshold: threshold.parse().unwrap(), retry: retry.parse().unwrap() };
        Entry::new(Arc::new(Settings(policy)), Arc::default(), 0.0)
    }

    #[test]
    fn a_threshold_that_does_not_fit_is_told_once() {
        let entry = entry("45day", "1day");
        let mut state = entry.state();
        assert!(!state.must_warn_of_threshold(), "no certificate is known yet");
        state.know(known(1, 0, 90 * DAY), 0.0, 0);
        assert!(!state.must_warn_of_threshold());
        state.know(known(2, 0, 30 * DAY), 0.0, 0);
        assert!(state.must_warn_of_threshold());
        state.know(known(3, DAY, 31 * DAY), 0.0, 0);
        assert!(!state.must_warn_of_threshold());
    }

    #[test]
    fn pauses_grow_to_a_limit_where_no_certificate_was_read() {
        for (retry, expected) in [("4%", [5, 10, 20, 40, 80, 160, 320, 600, 600]), ("3min", [180; 9])] {
            let entry = entry("80%", retry);
            let mut state = entry.state();
            for pause in expected {
                state.failed(Failure::retryable("no answer"), 0.0, 1000);
                assert_eq!(state.next_attempt(1000), 1000 + pause);
            }
        }
    }

    #[test]
    fn one_that_is_found_late_is_renewed_well_before_its_end() {
        let entry = entry("80%", "60min");
        let mut state = entry.state();
        state.know(known(1, 0, 1000), 1.0, 980);
        assert_eq!(state.next_attempt(980), 990);
        state.know(known(2, 0, 1000), 1.0, 500);
        assert_eq!(state.next_attempt(500), 820);
        state.know(known(3, 0, 100_000), 1.0, 90_000);
        assert_eq!(state.next_attempt(90_000), 90_060);
    }

    #[test]
    fn jitter_leaves_time_for_another_attempt() {
        let entry = entry("80%", "1min");
        let mut state = entry.state();
        state.know(known(1, 0, 1000), 0.0, 900);
        state.failed(Failure::retryable("no answer"), 1.0, 936);
        assert_eq!(state.next_attempt(936), 998);
    }

    /// Not before the server's time, but early enough.
    #[test]
    fn servers_say_when_they_are_asked_again() {
        let not_yet = |seconds| Failure::NotYet(Duration::from_secs(seconds), "undecided".into());
        let busy = |seconds| Failure::Busy(Duration::from_secs(seconds), "busy".into());
        // Valid until 100,000; the policy's period is 4,000.
        for (now, failure, next, failures) in [
            (80_000, not_yet(100), 80_100, 0),
            (80_000, not_yet(0), 80_001, 0),
            (80_000, not_yet(90_000), 90_000, 0),
            (99_990, not_yet(90_000), 99_995, 0),
            (99_999, not_yet(90_000), 100_000, 0),
            (80_000, busy(100), 84_000, 1),
            (80_000, busy(5000), 85_000, 1),
            (80_000, busy(90_000), 90_000, 1),
            (97_000, busy(1), 98_500, 1),
            // Nothing is lost any more.
            (100_000, not_yet(100), 100_100, 0),
            (100_000, not_yet(1_000_000), 186_400, 0),
            (100_000, busy(100), 104_000, 1),
            (100_000, busy(5000), 105_000, 1),
        ] {
            let entry = entry("80%", "4%");
            let mut state = entry.state();
            state.know(known(1, 0, 100_000), 0.0, 0);
            state.failed(failure, 0.0, now);
            assert_eq!((state.next_attempt(now), state.failures), (next, failures), "at {now}");
            assert!(state.is_held_off(now) && state.last_failure.is_some());
            assert!(state.is_refused(now) && !state.is_refused(now + LONGEST_REFUSAL));
        }
    }

    #[test]
    fn no_date_overflows() {
        let entry = entry("99%", "307445734561825860min");
        let mut state = entry.state();
        state.know(known(1, i64::MIN, i64::MAX), 1.0, 0);
        for now in [i64::MIN, 0, i64::MAX] {
            state.failed(Failure::fatal("no"), 1.0, now);
            state.failed(Failure::Busy(Duration::MAX, "no".into()), 1.0, now);
            let known = state.known.unwrap();
            state.renewed(known, 1.0, now);
            let _ = (state.next_attempt(now), state.is_usable(now), state.is_held_off(now));
        }
    }
}
