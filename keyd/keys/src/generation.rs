//! Where RSA keys are generated: on threads of lower priority, fewer than there are processors, so that other callers do not feel it.
//!
//! A key takes from a tenth of a second to many seconds of one processor, and half a dozen at once would hold up every signature.
//! The priority is not the lowest: on a device whose modules keep it busy, a key for a renewal would take a minute then.

use std::panic::resume_unwind;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

/// By how much a thread is nicer than others, as of `nice`(2): a third of their share where all want the same processor.
const NICER: i32 = 5;

/// How many keys are being generated.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ONE_LESS: Condvar = Condvar::new();

/// Runs `work` on such a thread once there is room for it, and waits for it.
pub(crate) fn generate<T: Send>(work: impl Fn() -> T + Sync) -> T {
    let _place = Place::take(places());
    let on_thread = || {
        // At the usual priority it does the same.
        let _ = rustix::process::nice(NICER);
        work()
    };
    thread::scope(|scope| match thread::Builder::new().name("generation".to_owned()).spawn_scoped(scope, on_thread) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
        // No more threads for this process: this one will do.
        Err(_) => work(),
    })
}

/// One processor is for everybody else, if there are two.
fn places() -> usize {
    thread::available_parallelism().map_or(1, |processors| processors.get().saturating_sub(1).max(1))
}

/// A place among those who generate.
struct Place;

impl Place {
    fn take(places: usize) -> Place {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |running: &mut usize| *running >= places;
        *ONE_LESS.wait_while(running, full).unwrap_or_else(PoisonError::into_inner) += 1;
        Place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ONE_LESS.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn priority() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn work_runs_at_lower_priority_and_leaves_a_processor_free() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let priority = priority();
            now.fetch_sub(1, Ordering::SeqCst);
            priority
        };
        let own = priority();
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| assert_eq!(generate(work), (own + NICER).min(19)));
            }
        });
        assert!(most.into_inner() <= places());
        assert_eq!(priority(), own);
    }

    #[test]
    fn a_panic_gives_the_place_back() {
        for _ in 0..=places() {
            let outcome = thread::scope(|scope| scope.spawn(|| generate(|| panic!("on purpose"))).join());
            assert!(outcome.is_err());
        }
        assert_eq!(generate(|| 1), 1);
    }
}
