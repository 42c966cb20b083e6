//! Sessions of one token with one PIN: a few, opened when needed, kept open, and opened anew when the token was gone.
//!
//! A session belongs to one call at a time. Logging in is tried with a PIN that was not refused before, and never when the token
//! says that one more wrong PIN locks it. A call into the library cannot be interrupted; waiting for a session ends after [`PATIENCE`].

use std::collections::HashSet;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aziot_log::{chain, fields};
use cryptoki::error::{Error, RvError};
use cryptoki::object::ObjectClass;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::error::{Pkcs11Error, TokenError, refuses_pin};
use super::module::{Module, SlotLocks};
use crate::error::{Failure, Problem};
use crate::uri::{Pkcs11Uri, TokenIdentifier};

/// Sessions of one token at once. Small tokens have fewer; what they say counts.
const MOST_SESSIONS: usize = 8;

/// How long a call waits for a session.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a token that opens no further session is not asked for one.
const CROWDED: Duration = Duration::from_secs(60);

/// A token and the PIN to use it with.
pub(crate) struct Token {
    module: Arc<Module>,
    identifier: TokenIdentifier,
    pin: Option<Zeroizing<String>>,
    /// `identifier` as text, for errors and logs.
    name: String,
    pool: Mutex<Pool>,
    returned: Condvar,
    /// Class and label of objects of which there were several.
    doubles: Mutex<HashSet<String>>,
}

struct Pool {
    slot: Option<Slot>,
    idle: Vec<Session>,
    /// Idle ones and those in use.
    open: usize,
    /// How many sessions the token turned out to have, and when.
    limit: Option<(usize, Instant)>,
    /// Counts how often the token was lost; sessions from before are not kept.
    generation: u64,
    /// The start of the library that the sessions are from.
    start: u64,
}

impl Pool {
    fn empty(generation: u64, start: u64) -> Pool {
        Pool { slot: None, idle: Vec::new(), open: 0, limit: None, generation, start }
    }

    fn has_room(&self) -> bool {
        match self.limit {
            Some((limit, since)) if since.elapsed() < CROWDED => self.open < limit,
            _ => self.open < MOST_SESSIONS,
        }
    }
}

impl Token {
    /// Opens nothing yet.
    pub(crate) fn new(module: Arc<Module>, uri: &Pkcs11Uri) -> Token {
        let pool = Pool::empty(0, 0);
        Token {
            module,
            identifier: uri.token.clone(),
            pin: uri.pin.clone(),
            name: uri.token.to_string(),
            pool: Mutex::new(pool),
            returned: Condvar::new(),
            doubles: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the token and the PIN of `uri`.
    pub(crate) fn is_of(&self, uri: &Pkcs11Uri) -> bool {
        self.identifier == uri.token && self.pin == uri.pin
    }

    /// The slot that the token is in. Asks for it unless a session is known to be open there.
    pub(super) fn slot(&self) -> Result<Slot, TokenError> {
        let find = |start: u64| {
            let pool = self.pool();
            match pool.slot {
                Some(slot) if pool.start == start => Ok(slot),
                _ => {
                    drop(pool);
                    self.module.slot(&self.identifier)
                }
            }
        };
        let start = self.module.running();
        let (found, seen) = (find(*start), *start);
        drop(start);
        match found {
            Err(error) if error.is_not_initialized() => {
                self.module.restart(seen)?;
                find(*self.module.running())
            }
            found => found,
        }
    }

    /// Whether both names mean one token.
    pub(super) fn is_same(&self, other: &Token) -> Result<bool, TokenError> {
        if std::ptr::eq(self, other) {
            return Ok(true);
        }
        let is_absent = |error: &TokenError| matches!(error, TokenError::NoToken { .. });
        match other.slot() {
            Ok(slot) => Ok(self.slot()? == slot),
            // One that is in no slot is not this one, which is about to be used.
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a session, so that a missing token shows at the start. A refused PIN is logged, and is an error for whoever uses the token.
    pub(crate) fn open_at_start(&self) -> Result<(), TokenError> {
        let start = self.module.running();
        let session = self.take(*start)?;
        let login = session.login();
        session.give_back();
        match login {
            Err(TokenError::PinRefused { .. }) => Ok(()),
            Err(error @ TokenError::PinAtRisk { .. }) => {
                tracing::error!("{error}");
                Ok(())
            }
            other => other,
        }
    }

    /// Runs `work` on a logged-in session, beside others. It runs once more on a new session if the token was gone: what changes
    /// something must look at what is there first.
    pub(super) fn run<T>(&self, work: impl Fn(&TokenSession) -> Result<T, Problem>) -> Result<T, Problem> {
        self.repeat(|| {
            self.attempt(|session| {
                let _beside_others = session.locks.objects.read().unwrap_or_else(PoisonError::into_inner);
                work(session)
            })
        })
    }

    /// As [`Token::run`], while nothing else happens on the token if its library needs that.
    pub(super) fn run_making_keys<T>(&self, work: impl Fn(&TokenSession) -> Result<T, Problem>) -> Result<T, Problem> {
        if self.module.makes_keys_alone() { self.run_alone(work) } else { self.run(work) }
    }

    /// As [`Token::run`], while nothing else happens on the token.
    pub(super) fn run_alone<T>(&self, work: impl Fn(&TokenSession) -> Result<T, Problem>) -> Result<T, Problem> {
        self.repeat(|| self.run_alone_once(&work))
    }

    /// As [`Token::run_alone`], but never repeated.
    pub(super) fn run_alone_once<T>(
        &self,
        work: impl FnOnce(&TokenSession) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        self.attempt(|session| {
            let _alone = session.locks.objects.write().unwrap_or_else(PoisonError::into_inner);
            work(session)
        })
    }

    fn repeat<T>(&self, attempt: impl Fn() -> Result<T, Problem>) -> Result<T, Problem> {
        match attempt() {
            Err(problem) if token_error(&problem).is_some_and(|error| self.may_succeed_later(error)) => {
                tracing::info!(
                    { fields::TOKEN } = self.name,
                    { fields::ERROR } = %chain(&problem),
                    "the token or an object on it was gone; trying once more"
                );
                attempt()
            }
            outcome => outcome,
        }
    }

    fn attempt<T>(&self, work: impl FnOnce(&TokenSession) -> Result<T, Problem>) -> Result<T, Problem> {
        let start = self.module.running();
        let outcome = self.take(*start).map_err(Problem::from).and_then(|session| {
            let generation = session.generation;
            let outcome = session.login().map_err(Problem::from).and_then(|()| work(&session));
            match outcome.as_ref().err().and_then(token_error) {
                Some(error) if self.is_transient(error) => {
                    drop(session);
                    self.forget(generation);
                }
                Some(error) if error.spoils_session() => drop(session),
                _ => session.give_back(),
            }
            outcome
        });
        let seen = *start;
        // Starting again waits until no call is under way, this one included.
        drop(start);
        if outcome.as_ref().err().and_then(token_error).is_some_and(TokenError::is_not_initialized)
            && let Err(error) = self.module.restart(seen)
        {
            tracing::error!({ fields::TOKEN } = self.name, { fields::ERROR } = %chain(&error), "could not start the PKCS#11 library again");
        }
        outcome
    }

    /// With a PIN, being logged out passes: it means that sessions were closed between the login and the operation.
    fn is_transient(&self, error: &TokenError) -> bool {
        error.is_lost() || (error.is_logged_out() && self.pin.is_some())
    }

    fn may_succeed_later(&self, error: &TokenError) -> bool {
        self.is_transient(error) || error.is_stale_object()
    }

    /// `start` is that of the library, which stays as it is until the session is given back.
    fn take(&self, start: u64) -> Result<TokenSession<'_>, TokenError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pool = self.pool();
        if pool.start != start {
            // None of them is in use, and none is closed: their handles may be those of new sessions.
            let generation = pool.generation + 1;
            *pool = Pool::empty(generation, start);
        }
        loop {
            let generation = pool.generation;
            if let Some(slot) = pool.slot
                && let Some(session) = pool.idle.pop()
            {
                return Ok(self.session(session, slot, generation));
            }
            if pool.has_room() {
                pool.open += 1;
                let known = pool.slot;
                // Not under the lock: a token can take its time.
                drop(pool);
                let opened = self.open(known);
                pool = self.pool();
                match opened {
                    Ok((slot, session)) => {
                        if pool.generation == generation {
                            pool.slot = Some(slot);
                        }
                        return Ok(self.session(session, slot, generation));
                    }
                    Err(error) => {
                        pool.open -= 1;
                        // Where others are open there are no more, whatever this token calls that.
                        if pool.open > 0 && !error.is_absent() {
                            if pool.generation == generation {
                                pool.limit = Some((pool.open, Instant::now()));
                            }
                            continue;
                        }
                        if pool.open == 0 && pool.generation == generation {
                            pool.slot = None;
                            pool.limit = None;
                        }
                        drop(pool);
                        self.returned.notify_one();
                        return Err(error);
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (token, sessions) = (self.name.clone(), pool.open);
                return Err(TokenError::Busy { token, sessions, seconds: PATIENCE.as_secs() });
            }
            pool = self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn session(&self, session: Session, slot: Slot, generation: u64) -> TokenSession<'_> {
        TokenSession { token: self, session: Some(session), slot, locks: self.module.locks(slot), generation }
    }

    fn open(&self, known: Option<Slot>) -> Result<(Slot, Session), TokenError> {
        let slot = match known {
            Some(slot) => slot,
            None => self.module.slot(&self.identifier)?,
        };
        let session = self.module.context().open_rw_session_no_drop(slot).map_err(|error| self.failed(error))?;
        Ok((slot, session))
    }

    /// Closes what is idle and looks for the slot again, unless somebody else did since `generation`.
    fn forget(&self, generation: u64) {
        let mut pool = self.pool();
        if pool.generation != generation {
            return;
        }
        let stale = std::mem::take(&mut pool.idle);
        pool.open -= stale.len();
        pool.slot = None;
        pool.limit = None;
        pool.generation += 1;
        drop(pool);
        stale.into_iter().for_each(close);
        self.returned.notify_all();
    }

    fn failed(&self, error: Error) -> TokenError {
        TokenError::Call { token: self.name.clone(), source: Pkcs11Error(error) }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Counts are changed one at a time.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session of a token that is gone cannot be closed, and need not be.
fn close(session: Session) {
    if let Err(error) = session.close() {
        tracing::debug!({ fields::ERROR } = %Pkcs11Error(error), "could not close a session");
    }
}

fn token_error(problem: &Problem) -> Option<&TokenError> {
    match problem {
        Problem::Failure(Failure::Token(error)) => Some(error),
        _ => None,
    }
}

/// A session for one call. Closed when dropped; see [`TokenSession::give_back`].
pub(super) struct TokenSession<'a> {
    token: &'a Token,
    /// There until given back or closed.
    session: Option<Session>,
    slot: Slot,
    locks: Arc<SlotLocks>,
    generation: u64,
}

impl Deref for TokenSession<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("a session is given back only when it is no longer used")
    }
}

impl TokenSession<'_> {
    /// Names the token in the error of a call.
    pub(super) fn check<T>(&self, outcome: Result<T, Error>) -> Result<T, TokenError> {
        outcome.map_err(|error| self.token.failed(error))
    }

    /// Whether the token or its sessions are gone for the moment, which says nothing about what was asked for.
    pub(super) fn is_transient(&self, error: &TokenError) -> bool {
        self.token.is_transient(error)
    }

    /// Whether several objects of this class and label are found for the first time.
    pub(super) fn is_first_double(&self, class: ObjectClass, label: &str) -> bool {
        let mut doubles = self.token.doubles.lock().unwrap_or_else(PoisonError::into_inner);
        doubles.insert(format!("{class} {label}"))
    }

    pub(super) fn token_name(&self) -> String {
        self.token.name.clone()
    }

    /// An answer of the token that is none.
    pub(super) fn nonsense(&self, what: &'static str) -> TokenError {
        TokenError::Nonsense { token: self.token_name(), what }
    }

    /// Keeps the session open for the next call.
    fn give_back(mut self) {
        let mut pool = self.token.pool();
        if pool.generation == self.generation
            && let Some(session) = self.session.take()
        {
            pool.idle.push(session);
            drop(pool);
            self.token.returned.notify_one();
        }
    }

    /// Logs in, unless the process is: being logged in is a matter of process and token, not of the session.
    fn login(&self) -> Result<(), TokenError> {
        let Some(pin) = &self.token.pin else { return Ok(()) };
        if self.is_logged_in()? {
            return Ok(());
        }
        let module = &self.token.module;
        // Held while the token checks the PIN: nobody else may try it meanwhile.
        let _turn = self.locks.login.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_logged_in()? {
            return Ok(());
        }
        let info = self.token_info()?;
        if module.is_refused(info.serial_number(), pin) {
            return Err(self.pin_refused());
        }
        if info.user_pin_locked() || info.user_pin_final_try() {
            return Err(TokenError::PinAtRisk { token: self.token_name() });
        }
        let outcome = Session::login(self, UserType::User, Some(&AuthPin::new(Box::from(pin.as_str()))));
        let value = match outcome {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(()),
            Err(Error::Pkcs11(value, _)) => value,
            Err(error) => return Err(self.token.failed(error)),
        };
        // Some tokens have their own word for a wrong PIN, but they count it.
        if refuses_pin(value) || self.token_info().is_ok_and(|after| has_counted_a_wrong_pin(&info, &after)) {
            module.remember_refused(info.serial_number(), pin);
            let error = self.pin_refused();
            tracing::error!({ fields::TOKEN } = self.token.name, value = ?value, "{error}");
            return Err(error);
        }
        self.check(outcome)
    }

    fn is_logged_in(&self) -> Result<bool, TokenError> {
        let state = self.check(self.get_session_info())?.session_state();
        Ok(matches!(state, SessionState::RoUser | SessionState::RwUser | SessionState::RwSecurityOfficer))
    }

    fn token_info(&self) -> Result<TokenInfo, TokenError> {
        self.check(self.token.module.context().get_token_info(self.slot))
    }

    fn pin_refused(&self) -> TokenError {
        TokenError::PinRefused { token: self.token_name() }
    }
}

/// What the token says of the PIN can be of wrong ones from before.
fn has_counted_a_wrong_pin(before: &TokenInfo, after: &TokenInfo) -> bool {
    (after.user_pin_count_low() && !before.user_pin_count_low())
        || (after.user_pin_final_try() && !before.user_pin_final_try())
        || (after.user_pin_locked() && !before.user_pin_locked())
}

impl Drop for TokenSession<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            close(session);
            self.token.pool().open -= 1;
            self.token.returned.notify_one();
        }
    }
}
