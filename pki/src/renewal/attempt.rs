//! Looking after one credential: repair, a look at what is stored, renewal, commit.

use std::{future::Future, sync::Arc, time::Duration};

use aziot_log::fields;

use super::{
    Credential, Failure,
    clock::{date, remaining},
    credential::Renewed,
    engine::Shared,
    entry::{Check, Entry, Known, State},
};
use crate::certificate::Chain;

/// Time for each step of a credential. It has limits of its own; this one is for when they fail.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(600);

/// How far a certificate may begin in the future: clocks differ.
const EARLIEST: i64 = 300;

/// How often a certificate that others replace is looked at before one lets it be for a while.
pub(super) const LOOKS: u32 = 3;

/// Why the engine itself lets an attempt fail.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{step} took more than {} s", STEP_LIMIT.as_secs())]
    TooLong { step: &'static str },
    #[error("the new certificate ended on {not_after}, or before it begins")]
    Over { not_after: String },
    #[error("the new certificate is not valid before {not_before}, and the old one still is")]
    Early { not_before: String },
    #[error("the new certificate is the old one")]
    Same,
    #[error("the certificate is replaced from outside all the time")]
    Restless,
}

/// What has become of a renewal that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Renewed,
    /// Somebody has stored another certificate meanwhile, which stays.
    Overtaken,
}

/// Who wants the credential to be looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// Its date has come, or the clock has been set.
    Schedule,
    /// Somebody wants to use it now, and it is of no use as it is.
    Need,
}

impl Occasion {
    fn is_held_off(self, state: &State, now: i64) -> bool {
        match self {
            Self::Schedule => state.is_held_off(now),
            Self::Need => state.is_refused(now),
        }
    }
}

impl Shared {
    /// Does what the credential needs now, if anything; failures go into its state. The caller holds its `attempt`.
    pub(super) async fn tend(&self, entry: &Entry, occasion: Occasion) {
        {
            let state = entry.state();
            if state.retired || (occasion.is_held_off(&state, self.now()) && !state.is_in_doubt()) {
                return;
            }
        }
        if let Err(failure) = self.tend_now(entry, occasion).await {
            let now = self.now();
            let mut state = entry.state();
            state.failed(failure, self.clock.jitter(), now);
            report(entry, &state, now);
        }
    }

    async fn tend_now(&self, entry: &Entry, occasion: Occasion) -> Result<(), Failure> {
        let credential = entry.credential();
        let mut may_repeat = true;
        // Once more when somebody imports a certificate meanwhile: its key may be another, and it need not be due.
        let mut looks = 0;
        while looks < LOOKS {
            self.examine(entry, &*credential).await?;
            let known = {
                let mut state = entry.state();
                let now = self.now();
                if state.check == Check::Nothing {
                    if state.is_usable(now) && state.next_attempt(now) > now {
                        if !state.is_held_off(now) {
                            state.calm();
                        }
                        return Ok(());
                    }
                    if occasion.is_held_off(&state, now) {
                        return Ok(());
                    }
                }
                state.known.filter(|_| state.check == Check::Nothing)
            };
            looks += 1;
            // Otherwise somebody has doubted it meanwhile.
            let Some(known) = known else { continue };
            let old = limited("reading the certificate", credential.current()).await?;
            let stored = Known::of(&old).map_err(Failure::fatal)?;
            if known != stored {
                self.take_imported(entry, stored);
                continue;
            }
            match self.renew(entry, &*credential, old, stored).await {
                Ok(Outcome::Renewed) => return Ok(()),
                Ok(Outcome::Overtaken) => {}
                Err(Failure::AtOnce(error)) if may_repeat => {
                    tracing::info!(
                        { fields::CERTIFICATE_ID } = entry.certificate_id,
                        { fields::ERROR } = %aziot_log::chain(&*error),
                        "the renewal is tried again in another way"
                    );
                    (may_repeat, looks) = (false, 0);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::retryable(Refused::Restless))
    }

    /// Repairs the pair and reads the certificate, where either is in doubt.
    async fn examine(&self, entry: &Entry, credential: &dyn Credential) -> Result<(), Failure> {
        let check = entry.state().begin_check();
        if check == Check::Nothing {
            return Ok(());
        }
        if check == Check::Pair {
            let _alone = limited("waiting for the users of the key", alone(entry)).await?;
            match limited("repairing certificate and key", credential.repair()).await {
                Ok(()) => entry.state().set_mismatched(false),
                Err(Failure::Fatal(error)) => {
                    tracing::warn!(
                        { fields::CERTIFICATE_ID } = entry.certificate_id,
                        { fields::KEY_ID } = entry.key_id,
                        { fields::ERROR } = %aziot_log::chain(&*error),
                        "certificate and key do not belong together; renewing now"
                    );
                    entry.state().set_mismatched(true);
                }
                Err(failure) => return Err(failure),
            }
        }
        let chain = limited("reading the certificate", credential.current()).await?;
        let known = Known::of(&chain).map_err(Failure::fatal)?;
        if check == Check::Certificate && entry.state().known.is_some_and(|old| old != known) {
            self.take_imported(entry, known);
            return Box::pin(self.examine(entry, credential)).await;
        }
        let mut state = entry.state();
        let is_first = state.known.is_none();
        if state.known != Some(known) {
            state.know(known, self.clock.jitter(), self.now());
        }
        state.end_check();
        if is_first && !state.mismatched {
            self.announce(entry, &mut state, "will be renewed");
        }
        Ok(())
    }

    /// Somebody has stored another certificate: it counts from now on.
    pub(super) fn take_imported(&self, entry: &Entry, known: Known) {
        let mut state = entry.state();
        state.know(known, self.clock.jitter(), self.now());
        state.doubt(Check::Pair);
        self.announce(entry, &mut state, "certificate was replaced from outside; the new one will be renewed");
    }

    async fn renew(
        &self,
        entry: &Entry,
        credential: &dyn Credential,
        old: Chain,
        known: Known,
    ) -> Result<Outcome, Failure> {
        tracing::info!(
            { fields::CERTIFICATE_ID } = entry.certificate_id,
            { fields::KEY_ID } = entry.key_id,
            { fields::NOT_AFTER } = date(known.validity.not_after),
            "renewing the certificate"
        );
        let renewed = limited("the renewal", credential.renew(old.clone())).await?;
        let new = Known::of(&renewed.chain).map_err(Failure::retryable)?;
        let now = self.now();
        if new.validity.is_over(now) {
            return Err(Failure::retryable(Refused::Over { not_after: date(new.validity.not_after) }));
        }
        let is_old_good = known.validity.not_before <= now && entry.state().is_usable(now);
        if is_old_good && new.validity.not_before > now.saturating_add(EARLIEST) {
            return Err(Failure::retryable(Refused::Early { not_before: date(new.validity.not_before) }));
        }
        if new.fingerprint == known.fingerprint {
            return Err(Failure::retryable(Refused::Same));
        }
        self.commit(entry, credential, (old, known), (renewed, new)).await
    }

    async fn commit(
        &self,
        entry: &Entry,
        credential: &dyn Credential,
        (old, known): (Chain, Known),
        (renewed, new): (Renewed, Known),
    ) -> Result<Outcome, Failure> {
        let alone = limited("waiting for the users of the key", alone(entry)).await?;
        // What somebody has imported meanwhile is not lost.
        let stored = limited("reading the certificate", credential.current()).await?;
        let stored = Known::of(&stored).map_err(Failure::fatal)?;
        if stored != known {
            self.take_imported(entry, stored);
            return Ok(Outcome::Overtaken);
        }
        // From here to the end of the commit anything may be true, also if this is never continued.
        {
            let mut state = entry.state();
            state.check = Check::Pair;
            state.begin_check();
        }
        let committed = limited("the replacement of certificate and key", credential.commit(old, renewed)).await;
        drop(alone);
        if let Err(failure) = committed {
            self.find_out(entry, credential).await;
            // What was cut off may have been finished by the repair.
            let is_new = |state: &State| state.known == Some(new) && state.is_usable(self.now());
            if !is_new(&entry.state()) {
                return Err(failure);
            }
        }
        let mut state = entry.state();
        state.renewed(new, self.clock.jitter(), self.now());
        self.announce(entry, &mut state, "certificate was renewed");
        Ok(Outcome::Renewed)
    }

    /// After a failed commit: whether the old pair still serves.
    async fn find_out(&self, entry: &Entry, credential: &dyn Credential) {
        if let Err(failure) = self.examine(entry, credential).await {
            tracing::debug!(
                { fields::CERTIFICATE_ID } = entry.certificate_id,
                { fields::ERROR } = %aziot_log::chain(&failure),
                "could not see what a failed renewal has left; it will be looked at before the next use"
            );
        }
    }

    fn announce(&self, entry: &Entry, state: &mut State, what: &'static str) {
        let now = self.now();
        let not_after = state.known.map(|known| date(known.validity.not_after)).unwrap_or_default();
        tracing::info!(
            { fields::CERTIFICATE_ID } = entry.certificate_id,
            { fields::KEY_ID } = entry.key_id,
            { fields::NOT_AFTER } = not_after,
            { fields::NEXT_RENEWAL } = date(state.next_attempt(now)),
            "{what}"
        );
        if state.must_warn_of_threshold() {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = entry.certificate_id,
                "the threshold {} is longer than the certificate's lifetime; it is renewed after 80% of it",
                state.credential.policy().threshold
            );
        }
    }

    /// Time until the credential needs to be tended.
    pub(super) fn wait(&self, entry: &Entry) -> Duration {
        let now = self.clock.now();
        remaining(now, entry.state().next_attempt(super::clock::seconds(now)))
    }
}

fn report(entry: &Entry, state: &State, now: i64) {
    let Some(failure) = &state.last_failure else { return };
    let next = date(state.next_attempt(now));
    let (certificate_id, key_id, attempt) = (&entry.certificate_id, &entry.key_id, state.failures);
    let error = aziot_log::chain(&**failure);
    if let Failure::NotYet(..) = **failure {
        tracing::info!(
            { fields::CERTIFICATE_ID } = certificate_id,
            { fields::KEY_ID } = key_id,
            { fields::NEXT_RENEWAL } = next,
            { fields::ERROR } = %error,
            "the certificate is not issued yet, will be asked for again"
        );
    } else if failure.is_fatal() {
        tracing::error!(
            { fields::CERTIFICATE_ID } = certificate_id,
            { fields::KEY_ID } = key_id,
            { fields::ATTEMPT } = attempt,
            { fields::NEXT_RENEWAL } = next,
            { fields::ERROR } = %error,
            "could not renew the certificate, and it will not succeed by itself"
        );
    } else {
        tracing::warn!(
            { fields::CERTIFICATE_ID } = certificate_id,
            { fields::KEY_ID } = key_id,
            { fields::ATTEMPT } = attempt,
            { fields::NEXT_RENEWAL } = next,
            { fields::ERROR } = %error,
            "could not renew the certificate, will be tried again"
        );
    }
}

/// The right to replace certificate and key.
async fn alone(entry: &Entry) -> Result<tokio::sync::OwnedRwLockWriteGuard<()>, Failure> {
    Ok(Arc::clone(&entry.locks.pair).write_owned().await)
}

pub(super) async fn limited<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(STEP_LIMIT, work).await.unwrap_or_else(|_| Err(Failure::retryable(Refused::TooLong { step })))
}
