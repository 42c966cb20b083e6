//! The TPM: opened when it is needed, opened anew when the way to it broke, and asked again when it was busy.
//!
//! All of this blocks, and belongs to one thread. `keys` are the TPM's own, `import` brings the key that signs, `auth_key` keeps it and signs;
//! `session` and `connection` are what they stand on.

mod auth_key;
mod code;
mod connection;
mod error;
mod import;
mod keys;
mod objects;
mod sequence;
mod session;

use std::thread;
use std::time::{Duration, Instant};

use aziot_log::chain;
use aziot_tpmd_api::config::{AuthKeyIndex, Config, HierarchyAuthorization, Tcti};

pub(crate) use error::Error;
pub(crate) use keys::PublicKeys;

use code::Code;
use connection::Connection;
use import::Blob;

/// How long the start waits for a TPM that is there and cannot be opened: in use by another program, or a simulator that is itself starting.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pauses before a TPM is asked again, the first and the longest one.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// How often a TPM that is busy is asked, at most.
const ATTEMPTS: u32 = 8;

/// A TPM, and how to reach it.
pub(crate) struct Chip {
    tcti: Tcti,
    authorization: HierarchyAuthorization,
    index: AuthKeyIndex,
    connection: Option<Connection>,
    /// Whether the TPM's keys were compared with what they should be.
    looked_at_keys: bool,
}

impl Chip {
    /// The TPM that `config` names. Nothing is opened yet.
    pub(crate) fn new(config: &Config) -> Chip {
        Chip {
            tcti: config.tcti.clone(),
            authorization: config.hierarchy_authorization.clone(),
            index: config.auth_key_index,
            connection: None,
            looked_at_keys: false,
        }
    }

    /// Opens the TPM. Fails at once if there is none, and after a while if it cannot be opened.
    pub(crate) fn open(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        for attempt in 0.. {
            let Err(error) = self.connect() else { break };
            let pause = pause(attempt);
            if !error.may_pass() || begun.elapsed() + pause > PATIENCE {
                return Err(error);
            }
            if attempt == 0 {
                tracing::warn!("{}; trying again for {} s", chain(&error), PATIENCE.as_secs());
            }
            thread::sleep(pause);
        }
        Ok(())
    }

    /// Public parts of the TPM's own keys, which are made if there are none.
    pub(crate) fn public_keys(&mut self, deadline: Instant) -> Result<PublicKeys, Error> {
        let keys = self.attempt(deadline, |chip| chip.connect()?.public_keys())?;
        if !std::mem::replace(&mut self.looked_at_keys, true) {
            keys.warn_of_others();
        }
        Ok(keys)
    }

    /// Brings the key in `blob` into the TPM and makes it the one that signs. Until that is done the one before it is kept.
    pub(crate) fn import(&mut self, blob: &[u8], deadline: Instant) -> Result<(), Error> {
        let blob = Blob::new(blob)?;
        let index = self.index;
        self.attempt(deadline, |chip| chip.connect()?.import(&blob, index))
    }

    /// HMAC-SHA256 of `data` by the imported key.
    pub(crate) fn sign(&mut self, data: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
        let index = self.index;
        self.attempt(deadline, |chip| {
            let key = chip.connect()?.auth_key(index)?;
            if data.len() <= sequence::BUFFER {
                return chip.connect()?.hmac(key, data);
            }
            // Where the TPM takes one program at a time, the other connection needs this one's place.
            chip.connection = None;
            sequence::hmac(&connection::loader_text(&chip.tcti)?, key.persistent, data, deadline)
        })
    }

    /// Works on the TPM; once more on a new connection if the old one broke, and again after a pause if the TPM was busy. Work must be
    /// such that doing it again does no harm. After the deadline nothing is done again.
    fn attempt<T>(&mut self, deadline: Instant, work: impl Fn(&mut Chip) -> Result<T, Error>) -> Result<T, Error> {
        let (mut reconnected, mut made_room, mut attempt) = (false, false, 0);
        loop {
            let outcome = work(self);
            if self.connection.as_ref().is_some_and(Connection::is_untidy) {
                self.connection = None;
            }
            let error = match outcome {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !error.is_harmless() {
                // What it knows about handles may be wrong now, and a broken one stays broken.
                self.connection = None;
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            if error.is_stale() && !reconnected {
                reconnected = true;
                tracing::info!("{}: opening the TPM anew", chain(&error));
                continue;
            }
            if error.is_full() && !made_room && self.make_room(&error) {
                made_room = true;
                continue;
            }
            let pause = pause(attempt);
            if !error.is_busy() || attempt >= ATTEMPTS || Instant::now() + pause >= deadline {
                return Err(error);
            }
            thread::sleep(pause);
            attempt += 1;
        }
    }

    /// Whether there is room now in a TPM that had none. What goes wrong here is not what the caller asks about.
    fn make_room(&mut self, full: &Error) -> bool {
        let saved = full.code().is_some_and(Code::is_out_of_session_handles);
        match self.connect().and_then(|connection| connection.make_room(saved)) {
            Ok(removed) => removed > 0,
            Err(error) => {
                tracing::warn!("could not make room in the TPM: {}", chain(&error));
                self.connection = None;
                false
            }
        }
    }

    fn connect(&mut self) -> Result<&mut Connection, Error> {
        if self.connection.is_none() {
            self.connection = Some(Connection::open(&self.tcti, &self.authorization)?);
        }
        Ok(self.connection.as_mut().expect("it was opened above"))
    }
}

/// The pause after so many attempts, jittered: several daemons may be waiting for one TPM.
fn pause(attempt: u32) -> Duration {
    let [first, longest] = PAUSES;
    first.saturating_mul(1 << attempt.min(16)).min(longest).mul_f64(0.5 + fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT_FAILURE: u32 = 0xa_000a;
    const BUSY: u32 = 0x922;
    const WRONG_PASSWORD: u32 = 0x9a2;

    /// Has a TPM fail with these codes before it does its work; how often it was asked, and whether it did.
    fn asked(failures: &[u32]) -> (usize, bool) {
        asked_until(Instant::now() + Duration::from_secs(60), failures)
    }

    fn asked_until(deadline: Instant, failures: &[u32]) -> (usize, bool) {
        let asked = std::cell::Cell::new(0);
        let outcome = Chip::new(&Config::default()).attempt(deadline, |_| {
            let failure = failures.get(asked.get()).and_then(|code| Code::of(*code));
            asked.set(asked.get() + 1);
            failure.map_or(Ok(()), |code| Err(Error::Tpm(code)))
        });
        (asked.get(), outcome.is_ok())
    }

    #[test]
    fn a_broken_connection_is_tried_once_more_and_a_busy_tpm_several_times() {
        assert_eq!(asked(&[]), (1, true));
        assert_eq!(asked(&[OUTPUT_FAILURE]), (2, true));
        assert_eq!(asked(&[OUTPUT_FAILURE, OUTPUT_FAILURE]), (2, false));
        assert_eq!(asked(&[BUSY, BUSY, OUTPUT_FAILURE]), (4, true));
        assert_eq!(asked(&[WRONG_PASSWORD]), (1, false), "it would be wrong again, and may count");
    }

    #[test]
    fn nothing_is_tried_again_for_a_caller_who_has_given_up() {
        for code in [BUSY, OUTPUT_FAILURE] {
            assert_eq!(asked_until(Instant::now(), &[code]), (1, false));
        }
        assert_eq!(asked_until(Instant::now(), &[]), (1, true), "what was begun is done");
    }

    /// The TPM that this config names is not there, so that no room can be made; what is told is what was wrong first.
    #[test]
    fn why_no_room_was_made_does_not_hide_that_there_was_none() {
        let tcti = "swtpm:host=127.0.0.1,port=1".parse().unwrap();
        let outcome = Chip::new(&Config { tcti, ..Config::default() })
            .attempt(Instant::now() + Duration::from_secs(60), |_| Err::<(), _>(Error::Tpm(Code::of(0x902).unwrap())));
        assert!(outcome.unwrap_err().to_string().contains("0x902"));
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        for attempt in [0, 3, 6, 40] {
            assert!(pause(attempt) <= PAUSES[1].mul_f64(1.5), "{attempt}");
        }
        assert!(pause(0) >= PAUSES[0].mul_f64(0.5) && pause(40) >= PAUSES[1].mul_f64(0.5));
    }
}
