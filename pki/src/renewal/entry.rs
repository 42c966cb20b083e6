//! A credential's place in the engine: what is known of it, who may touch it, and when it is tried next.
//!
//! Nothing is done here: no certificate is read and no network touched.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aziot_certd_api::renewal::{AutoRenew, Period};
use tokio::sync::{Mutex as AsyncMutex, Notify, RwLock};

use super::{Credential, Failure, timetable::Timetable};
use crate::certificate::Chain;

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
/// Jitter is a tenth.
const JITTER_PART: i64 = 10;

/// A credential in the engine. Its parts are locked in the order in which they stand here.
pub(super) struct Entry {
    pub(super) certificate_id: String,
    pub(super) key_id: String,
    /// Held while the credential is looked after: one task at a time.
    pub(super) attempt: AsyncMutex<()>,
    /// Shared by those who use certificate and key, alone for those who replace them: a handle follows its key's name, so a
    /// key that is moved during somebody's handshake would make that one sign with the wrong key.
    pub(super) pair: Arc<RwLock<()>>,
    state: Mutex<State>,
    /// Whoever waits for the credential's next date looks at it again.
    pub(super) wake: Notify,
}

/// What is known of a credential.
pub(super) struct State {
    pub(super) credential: Arc<dyn Credential>,
    /// Taken out of the engine while somebody still worked on it.
    pub(super) retired: bool,
    pub(super) check: Check,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

/// No attempt from `since` until `until`. Void when the clock shows an earlier time than `since`: it was wrong then.
#[derive(Clone, Copy, Debug)]
struct Pause {
    since: i64,
    until: i64,
}

/// The leaf cannot be examined, or there is none.
#[derive(Debug, thiserror::Error)]
#[error("the chain has no certificate whose dates can be read")]
pub(super) struct NoLeaf;

impl Known {
    pub(super) fn of(chain: &Chain) -> Result<Self, NoLeaf> {
        let fingerprint = chain.fingerprint().ok_or(NoLeaf)?;
        let validity = chain.validity().ok_or(NoLeaf)?;
        Ok(Self { fingerprint, not_before: validity.not_before, not_after: validity.not_after })
    }

    pub(super) fn timetable(&self, policy: &AutoRenew) -> Timetable {
        Timetable::new(self.not_before, self.not_after, policy)
    }

    pub(super) fn is_over(&self, now: i64) -> bool {
        self.not_before >= self.not_after || self.not_after <= now
    }
}

impl Entry {
    pub(super) fn new(credential: Arc<dyn Credential>, jitter: f64) -> Self {
        Self {
            certificate_id: credential.certificate_id().to_owned(),
            key_id: credential.key_id().to_owned(),
            attempt: AsyncMutex::new(()),
            pair: Arc::default(),
            state: Mutex::new(State {
                credential,
                retired: false,
                check: Check::Pair,
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
        self.attempt.try_lock().is_err() || self.pair.try_write().is_err()
    }
}

impl State {
    /// Puts newly configured settings in place of the old ones. What has failed is tried again at once: maybe they mend it.
    pub(super) fn reconfigure(&mut self, credential: Arc<dyn Credential>) {
        self.credential = credential;
        self.retired = false;
        if self.check == Check::Nothing {
            self.check = Check::Certificate;
        }
        if self.failures > 0 {
            self.pause = None;
        }
    }

    /// Takes a certificate as the one that is stored, with all of the old one's failures forgotten.
    pub(super) fn know(&mut self, known: Known, jitter: f64, now: i64) {
        self.known = Some(known);
        self.jitter = jitter;
        self.pause = None;
        self.calm();
        // A fleet whose power comes back finds itself late in one moment; those that can wait a little do.
        if !known.is_over(now) && self.date(now) <= now {
            let span = known.timetable(&self.credential.policy()).retry_period().min(LATE_SPAN);
            self.pause = Some(Pause { since: now, until: now.saturating_add(share(span, jitter)) });
        }
    }

    /// A renewal has succeeded.
    pub(super) fn renewed(&mut self, known: Known, jitter: f64, now: i64) {
        self.know(known, jitter, now);
        self.check = Check::Nothing;
        self.mismatched = false;
        self.attempts = self.attempts.wrapping_add(1);
        let table = known.timetable(&self.credential.policy());
        // What is back-dated may be past its deadline as it comes; then most of the rest of its life is used.
        if let Ok(next) = table.next_renewal(now)
            && table.deadline() <= now
        {
            let rest = known.not_after.saturating_sub(now);
            let until = next.min(now.saturating_add((rest - rest / 5).max(1)));
            self.pause = Some(Pause { since: now, until });
        }
    }

    /// An attempt, or a look at the credential, has failed. `jitter` is from 0 to 1.
    pub(super) fn failed(&mut self, failure: Failure, jitter: f64, now: i64) {
        self.attempts = self.attempts.wrapping_add(1);
        self.failures = self.failures.saturating_add(1);
        let mut pause = self.retry_period();
        if self.failures >= PATIENT_AFTER {
            pause = pause.max(self.floor(now));
        }
        if failure.is_fatal() {
            pause = pause.max(SLOW);
        }
        let until = now.saturating_add(pause);
        let jittered = until.saturating_add(share(pause, jitter));
        // Jitter alone never lets a certificate end.
        let end = self.known.map(|known| known.not_after).filter(|end| until <= *end);
        self.pause = Some(Pause { since: now, until: end.map_or(jittered, |end| jittered.min(end)) });
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
        let age = self.known.map_or(i64::MAX, |known| now.saturating_sub(known.not_before));
        (age / FLOOR_PART_OF_AGE).clamp(1, FLOOR)
    }

    /// Whether a failure keeps the engine from trying.
    pub(super) fn is_held_off(&self, now: i64) -> bool {
        self.failures > 0 && self.pause_at(now).is_some_and(|pause| now < pause.until)
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
        let Some(known) = self.known.filter(|known| !self.mismatched && !known.is_over(now)) else { return now };
        let table = known.timetable(&self.credential.policy());
        let deadline = table.deadline();
        let span = table.retry_period().min(known.not_after.saturating_sub(deadline));
        deadline.saturating_add(share(span, self.jitter)).min(known.not_after)
    }

    /// Whether the certificate, with its key, is good for those who ask for it.
    pub(super) fn is_usable(&self, now: i64) -> bool {
        self.check != Check::Pair && !self.mismatched && self.known.is_some_and(|known| !known.is_over(now))
    }

    /// Whether the policy's threshold does not fit the certificate; true once.
    pub(super) fn must_warn_of_threshold(&mut self) -> bool {
        let policy = self.credential.policy();
        let substituted = self.known.is_some_and(|known| known.timetable(&policy).is_substituted());
        substituted && !std::mem::replace(&mut self.warned, true)
    }
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

    fn entry(threshold: &str, retry: &str) -> Entry {
        let policy =
            AutoRenew { rotate_key: true, threshold: threshold.parse().unwrap(), retry: retry.parse().unwrap() };
        Entry::new(Arc::new(Settings(policy)), 0.0)
    }

    #[test]
    fn a_threshold_that_does_not_fit_is_told_once() {
        let entry = entry("45day", "1day");
        let mut state = entry.state();
        assert!(!state.must_warn_of_threshold(), "no certificate is known yet");
        state.know(Known { fingerprint: [1; 32], not_before: 0, not_after: 90 * DAY }, 0.0, 0);
        assert!(!state.must_warn_of_threshold());
        state.know(Known { fingerprint: [2; 32], not_before: 0, not_after: 30 * DAY }, 0.0, 0);
        assert!(state.must_warn_of_threshold());
        state.know(Known { fingerprint: [3; 32], not_before: DAY, not_after: 31 * DAY }, 0.0, 0);
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
    fn no_date_overflows() {
        let entry = entry("99%", "307445734561825860min");
        let mut state = entry.state();
        state.know(Known { fingerprint: [1; 32], not_before: i64::MIN, not_after: i64::MAX }, 1.0, 0);
        for now in [i64::MIN, 0, i64::MAX] {
            state.failed(Failure::fatal("no"), 1.0, now);
            let known = state.known.unwrap();
            state.renewed(known, 1.0, now);
            let _ = (state.next_attempt(now), state.is_usable(now), state.is_held_off(now));
        }
    }
}
