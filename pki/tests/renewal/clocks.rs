//! A wall clock that is wrong at first, and set later.

use super::world::{DAY, Fate, NEW_YEAR, Running, Step, TestClock, TestCredential, policy};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const END: i64 = NEW_YEAR + 30 * DAY;
/// 2100-01-01T00:00:00Z.
const YEAR_2100: i64 = 4_102_444_800;

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_makes_due_at_once() {
    for (clock, latest) in [(TestClock::at(NEW_YEAR), 1), (TestClock::silent(NEW_YEAR), 61)] {
        let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
        let _running = Running::start(&clock, &[&credential]);
        sleep(Duration::from_secs(3600)).await;
        let set = Instant::now();
        clock.set(NEW_YEAR + 25 * DAY);
        credential.until(Step::Renew, 1).await;
        assert!(set.elapsed() <= Duration::from_secs(latest), "{:?}", set.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_starts_in_1970_renews_when_it_learns_the_date() {
    let clock = TestClock::at(0);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    let running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(7200)).await;
    assert_eq!(credential.times(Step::Renew), [0; 0]);
    assert_eq!(running.engine.status()[0].next_attempt, NEW_YEAR + 24 * DAY);
    assert!(running.engine.hold("certificate", "key").await.is_ok());
    clock.set(NEW_YEAR + 24 * DAY);
    assert_eq!(credential.until(Step::Renew, 1).await, [NEW_YEAR + 24 * DAY]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_1970_is_renewed_when_the_date_is_known() {
    let clock = TestClock::at(100);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), 0, 30 * DAY);
    let _running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(600)).await;
    clock.set(NEW_YEAR);
    assert_eq!(credential.until(Step::Renew, 1).await, [NEW_YEAR]);
    credential.until_version(2).await;
}

#[tokio::test(start_paused = true)]
async fn failures_of_a_clock_in_2100_are_void_when_it_is_set_back() {
    for fate in [Fate::Retryable, Fate::Fatal] {
        let clock = TestClock::at(YEAR_2100);
        let credential = TestCredential::new("certificate", &clock, policy("80%", "10day"), NEW_YEAR, END);
        credential.always(Step::Renew, fate);
        let running = Running::start(&clock, &[&credential]);
        credential.until(Step::Renew, 1).await;
        assert!(running.engine.hold("certificate", "key").await.is_err());
        sleep(Duration::from_secs(10)).await;
        credential.always(Step::Renew, Fate::Works);
        clock.set(NEW_YEAR + DAY);
        sleep(Duration::from_secs(1)).await;
        let status = running.engine.status().remove(0);
        assert_eq!((status.attempts_failed, status.next_attempt), (0, NEW_YEAR + 24 * DAY));
        assert!(running.engine.hold("certificate", "key").await.is_ok());
        let renewed = credential.until(Step::Commit, 1).await;
        assert_eq!(renewed, [NEW_YEAR + 24 * DAY]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_delays_no_retry() {
    let clock = TestClock::at(NEW_YEAR + 26 * DAY);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    credential.once(Step::Renew, Fate::Retryable);
    let _running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    sleep(Duration::from_secs(10)).await;
    clock.set(NEW_YEAR + 25 * DAY);
    // It is still due, and what was noted a day later says nothing.
    assert_eq!(credential.until(Step::Renew, 2).await[1], NEW_YEAR + 25 * DAY);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_a_clock_that_was_ahead_is_not_renewed_before_its_time() {
    let clock = TestClock::at(YEAR_2100);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), YEAR_2100, YEAR_2100 + 30 * DAY);
    let _running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(10)).await;
    clock.set(NEW_YEAR);
    sleep(Duration::from_secs(7200)).await;
    assert_eq!(credential.times(Step::Renew), [0; 0]);
}
