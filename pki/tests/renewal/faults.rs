//! What becomes of a credential whose renewal fails, hangs, is cut off or overtaken.

use std::time::Duration;

use aziot_pki::renewal::{Engine, NotAvailable};
use tokio::time::sleep;

use super::world::{DAY, Fate, NEW_YEAR, Running, Step, TestClock, TestCredential, certificate, list, policy};

const END: i64 = NEW_YEAR + 100_000;
const DEADLINE: i64 = NEW_YEAR + 80_000;
const PERIOD: i64 = 4000;

/// 80 %/4 % of 100,000 seconds; the deadline is in a minute.
fn world() -> (TestClock, std::sync::Arc<TestCredential>) {
    let clock = TestClock::at(DEADLINE - 60);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    (clock, credential)
}

#[tokio::test(start_paused = true)]
async fn a_renewal_replaces_the_pair_and_shows_in_the_status() {
    let (clock, credential) = world();
    let running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(1)).await;
    let status = running.engine.status().remove(0);
    assert_eq!((status.certificate_id.as_str(), status.key_id.as_str()), ("certificate", "key"));
    assert_eq!((status.not_after, status.next_attempt), (Some(END), DEADLINE));
    credential.until_version(2).await;
    sleep(Duration::from_secs(1)).await;
    let status = running.engine.status().remove(0);
    assert_eq!((status.not_after, status.next_attempt), (Some(DEADLINE + 100_000), DEADLINE + 80_000));
    assert_eq!((status.last_error, status.attempts_failed), (None, 0));
}

/// The public system updates its state before the commit, then takes the old certificate for a foreign one and gives up.
#[tokio::test(start_paused = true)]
async fn a_failed_commit_leaves_digest_and_schedule() {
    let (clock, credential) = world();
    credential.once(Step::Commit, Fate::Retryable);
    credential.once(Step::Commit, Fate::Retryable);
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Commit, 1).await;
    sleep(Duration::from_secs(1)).await;
    let status = running.engine.status().remove(0);
    assert_eq!((status.not_after, status.next_attempt), (Some(END), DEADLINE + PERIOD));
    assert_eq!((status.last_error.as_deref(), status.attempts_failed), (Some("Commit failed"), 1));
    let made = credential.until(Step::Commit, 3).await;
    assert_eq!(made, [0, 1, 2].map(|turn| DEADLINE + turn * PERIOD));
    credential.until_version(4).await;
    // Whatever the commit has left was looked at before the next attempt.
    assert_eq!(credential.times(Step::Repair).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_fatal_failure_is_tried_again_slowly() {
    let clock = TestClock::at(NEW_YEAR);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, NEW_YEAR + 1000);
    credential.once(Step::Renew, Fate::Fatal);
    credential.once(Step::Renew, Fate::Fatal);
    let running = Running::start(&clock, &[&credential]);
    let made = credential.until(Step::Renew, 3).await;
    assert_eq!(made, [800, 4400, 8000].map(|second| NEW_YEAR + second));
    credential.until_version(2).await;
    assert_eq!(running.engine.status()[0].last_error, None);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_read_again_and_not_renewed_for_it() {
    for fate in [Fate::Retryable, Fate::Fatal] {
        let (clock, credential) = world();
        clock.set(NEW_YEAR);
        for _ in 0..3 {
            credential.once(Step::Current, fate);
        }
        let running = Running::start(&clock, &[&credential]);
        credential.until(Step::Current, 1).await;
        sleep(Duration::from_secs(1)).await;
        let status = running.engine.status().remove(0);
        assert_eq!((status.not_after, status.attempts_failed), (None, 1));
        assert!(status.next_attempt > NEW_YEAR);
        assert_eq!(credential.until(Step::Renew, 1).await, [DEADLINE]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_that_is_of_no_use_is_discarded() {
    let (clock, credential) = world();
    credential.once(Step::Renew, Fate::Gives(100, -10));
    credential.once(Step::Renew, Fate::Gives(-10, 5));
    let _running = Running::start(&clock, &[&credential]);
    assert_eq!(credential.until(Step::Renew, 3).await, [0, 1, 2].map(|turn| DEADLINE + turn * PERIOD));
    credential.until_version(4).await;
    assert_eq!(credential.times(Step::Commit).len(), 1);
}

/// Peers would refuse it, while the old one serves.
#[tokio::test(start_paused = true)]
async fn a_new_certificate_that_is_not_valid_yet_waits_while_the_old_one_is_good() {
    let (clock, credential) = world();
    credential.once(Step::Renew, Fate::Gives(-301, 100_000));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    sleep(Duration::from_secs(1)).await;
    let error = running.engine.status().remove(0).last_error.unwrap();
    let expected = "the new certificate is not valid before 2026-01-01T22:18:21Z, and the old one still is";
    assert_eq!((error.as_str(), credential.versions()), (expected, (Some(1), 1)));
    // Clocks differ by a little.
    credential.once(Step::Renew, Fate::Gives(-300, 100_000));
    credential.until_version(3).await;

    // Better than none: it is valid by the clocks of others, perhaps.
    let (clock, credential) = world();
    clock.set(END);
    credential.once(Step::Renew, Fate::Gives(-4000, 100_000));
    let _running = Running::start(&clock, &[&credential]);
    credential.until_version(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_decided_is_asked_when_it_wants() {
    let (clock, credential) = world();
    credential.once(Step::Renew, Fate::NotYet(100));
    credential.once(Step::Renew, Fate::Busy(5000));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    sleep(Duration::from_secs(1)).await;
    let status = running.engine.status().remove(0);
    assert_eq!((status.attempts_failed, status.next_attempt), (0, DEADLINE + 100));
    assert_eq!(status.last_error.as_deref(), Some("Renew takes time"));
    // The old one serves.
    assert!(running.engine.hold("certificate", "key").await.is_ok());
    assert_eq!(credential.until(Step::Renew, 2).await[1], DEADLINE + 100);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.engine.status()[0].attempts_failed, 1);
    assert_eq!(credential.until(Step::Renew, 3).await[2], DEADLINE + 5100);
    credential.until_version(2).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_asks_a_server_before_its_time_but_for_a_few_minutes() {
    for (fate, pause) in [(Fate::NotYet(60), 60), (Fate::Busy(60), 60), (Fate::NotYet(86_400), 300)] {
        let (clock, credential) = world();
        clock.set(END);
        credential.once(Step::Renew, fate);
        let engine = Engine::new(clock.clone());
        engine.replace(list(&[&credential]));
        for moment in [0, 1, pause - 1] {
            clock.set(END + moment);
            let refused = engine.hold("certificate", "key").await.err().unwrap();
            assert!(matches!(refused, NotAvailable::Unusable { source: Some(_), .. }), "{refused:?}");
        }
        assert_eq!(credential.times(Step::Renew).len(), 1, "{fate:?}");
        clock.set(END + pause);
        assert!(engine.hold("certificate", "key").await.is_ok(), "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_works_in_another_way_is_tried_at_once_but_not_for_ever() {
    let (clock, credential) = world();
    credential.once(Step::Commit, Fate::AtOnce);
    let running = Running::start(&clock, &[&credential]);
    credential.until_version(3).await;
    assert_eq!((credential.times(Step::Commit), clock.seconds()), (vec![DEADLINE; 2], DEADLINE));
    assert_eq!(running.engine.status()[0].attempts_failed, 0);

    let (clock, credential) = world();
    credential.always(Step::Commit, Fate::AtOnce);
    let running = Running::start(&clock, &[&credential]);
    let made = credential.until(Step::Commit, 4).await;
    assert_eq!(made, [0, 0, PERIOD, PERIOD].map(|second| DEADLINE + second));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.engine.status()[0].attempts_failed, 2);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_delays_no_other_and_is_tried_again() {
    let (clock, due) = world();
    let hung = TestCredential::new("hung", &clock, policy("80%", "4%"), NEW_YEAR, END);
    hung.once(Step::Renew, Fate::Hangs);
    let running = Running::start(&clock, &[&hung, &due]);
    hung.until(Step::Renew, 1).await;
    assert_eq!(due.until(Step::Commit, 1).await, [DEADLINE]);
    // The other's is not held up by it, nor is the use of its own.
    assert!(running.engine.hold("hung", "key").await.is_ok());
    assert_eq!(clock.seconds(), DEADLINE);
    assert_eq!(hung.until(Step::Renew, 2).await[1], DEADLINE + 600 + PERIOD);
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_attempt() {
    let (clock, credential) = world();
    credential.once(Step::Renew, Fate::Panics);
    let running = Running::start(&clock, &[&credential]);
    assert_eq!(credential.until(Step::Renew, 2).await, [DEADLINE, DEADLINE + PERIOD]);
    credential.until_version(2).await;
    assert_eq!(running.engine.status()[0].attempts_failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_certificate_and_key_is_repaired_before_any_use() {
    let (clock, credential) = world();
    clock.set(NEW_YEAR);
    credential.leave(Some(certificate(7, NEW_YEAR, END)), 1, Some(7));
    let engine = Engine::new(clock.clone());
    engine.replace(list(&[&credential]));
    let held = engine.hold("certificate", "key").await.unwrap();
    assert_eq!(super::world::version(held.chain()), 7);
    assert_eq!(credential.versions(), (Some(7), 7));
    assert_eq!(credential.times(Step::Renew), [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pair_beyond_repair_is_renewed_at_once_and_given_to_nobody() {
    let (clock, credential) = world();
    clock.set(NEW_YEAR);
    credential.leave(Some(certificate(7, NEW_YEAR, END)), 1, None);
    credential.once(Step::Renew, Fate::Retryable);
    credential.once(Step::Renew, Fate::Retryable);
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    let refused = running.engine.hold("certificate", "key").await.err().unwrap();
    assert!(matches!(refused, NotAvailable::Unusable { source: Some(_), .. }), "{refused:?}");
    // Somebody who needs it does not wait for the next date.
    let held = running.engine.hold("certificate", "key").await.unwrap();
    assert_eq!(super::world::version(held.chain()), 2);
    assert_eq!(credential.versions(), (Some(2), 2));
    assert_eq!(clock.seconds(), NEW_YEAR);
}

#[tokio::test(start_paused = true)]
async fn an_imported_certificate_is_taken_as_it_is() {
    let (clock, credential) = world();
    let running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(1)).await;
    credential.import(50, NEW_YEAR + 50_000, NEW_YEAR + 150_000);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(credential.times(Step::Renew), [0; 0], "the new one is not due");
    let status = running.engine.status().remove(0);
    assert_eq!((status.not_after, status.next_attempt), (Some(NEW_YEAR + 150_000), NEW_YEAR + 130_000));
    assert_eq!((status.last_error, status.attempts_failed), (None, 0));
    assert_eq!(credential.until(Step::Commit, 1).await, [NEW_YEAR + 130_000]);
}

/// A reload is how operators have changed files read.
#[tokio::test(start_paused = true)]
async fn a_reload_finds_what_was_imported_and_whether_its_key_is_there() {
    let (clock, credential) = world();
    clock.set(NEW_YEAR);
    let running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(1)).await;
    credential.import(50, NEW_YEAR + 10, NEW_YEAR + 200_010);
    running.engine.replace(list(&[&credential]));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.engine.status()[0].next_attempt, NEW_YEAR + 160_010);
    assert_eq!((credential.times(Step::Repair).len(), credential.times(Step::Renew)), (2, Vec::new()));
    // Unchanged: nothing is asked of the key service.
    running.engine.replace(list(&[&credential]));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(credential.times(Step::Repair).len(), 2);
    // Without its key.
    credential.leave(Some(certificate(60, NEW_YEAR, END)), 50, None);
    running.engine.replace(list(&[&credential]));
    credential.until_version(2).await;
    assert!(clock.seconds() < NEW_YEAR + 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_imported_during_a_renewal_is_not_overwritten() {
    let (clock, credential) = world();
    credential.once(Step::Renew, Fate::Slow(30));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    credential.import(50, NEW_YEAR + 50_000, NEW_YEAR + 150_000);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((credential.versions(), credential.times(Step::Commit).len()), ((Some(50), 50), 0));
    assert_eq!(running.engine.status()[0].next_attempt, NEW_YEAR + 130_000);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_shutdown_cuts_off_is_repaired_by_the_next_user() {
    for (step, expected) in [(Step::Renew, 1), (Step::Commit, 2)] {
        let (clock, credential) = world();
        credential.once(step, Fate::Hangs);
        let mut running = Running::start(&clock, &[&credential]);
        credential.until(step, 1).await;
        running.stop().await;
        credential.always(Step::Renew, Fate::Retryable);
        if step == Step::Commit {
            assert_eq!(credential.versions(), (Some(2), 1), "cut off between certificate and key");
        }
        // In the same process.
        let held = running.engine.hold("certificate", "key").await.unwrap();
        assert_eq!(super::world::version(held.chain()), expected);
        assert_eq!(credential.versions(), (Some(expected), expected));
        drop(held);
        // And in the next one.
        credential.always(Step::Renew, Fate::Works);
        let _next = Running::start(&clock, &[&credential]);
        credential.until_version(expected.max(2) + 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_run_again_goes_on() {
    let (clock, credential) = world();
    let mut running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(1)).await;
    running.stop().await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(credential.times(Step::Renew), [0; 0]);
    running.run();
    credential.until_version(2).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_certificate_and_key_have_one_place() {
    let (clock, credential) = world();
    let running = Running::start(&clock, &[&credential, &credential]);
    let generation = running.engine.generation();
    running.engine.add(list(&[&credential]).remove(0), generation);
    running.engine.add(list(&[&credential.with_policy(policy("80%", "5%"))]).remove(0), generation);
    assert_eq!(running.engine.status().len(), 1);
    credential.until_version(2).await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(credential.times(Step::Commit).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn new_settings_count_at_once() {
    let (clock, credential) = world();
    let running = Running::start(&clock, &[&credential]);
    sleep(Duration::from_secs(1)).await;
    running.engine.replace(list(&[&credential.with_policy(policy("90%", "4%"))]));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.engine.status()[0].next_attempt, NEW_YEAR + 90_000);
    // One that has failed is tried again: the new settings may mend it.
    credential.always(Step::Renew, Fate::Fatal);
    assert_eq!(credential.until(Step::Renew, 1).await, [NEW_YEAR + 90_000]);
    sleep(Duration::from_secs(60)).await;
    credential.always(Step::Renew, Fate::Works);
    running.engine.replace(list(&[&credential.with_policy(policy("90%", "4%"))]));
    assert_eq!(credential.until(Step::Renew, 2).await[1], NEW_YEAR + 90_060);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_under_way_is_finished_when_all_is_replaced() {
    let (clock, credential) = world();
    let other = TestCredential::new("other", &clock, policy("80%", "4%"), NEW_YEAR, NEW_YEAR + 300 * DAY);
    credential.once(Step::Renew, Fate::Slow(50));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    running.engine.replace(list(&[&other]));
    let ids = |engine: &Engine| engine.status().into_iter().map(|status| status.certificate_id).collect::<Vec<_>>();
    assert_eq!(ids(&running.engine), ["other"]);
    assert!(matches!(running.engine.hold("certificate", "key").await, Err(NotAvailable::Unknown { .. })));
    sleep(Duration::from_secs(10)).await;
    // Back again before the first renewal is over: nobody begins a second one beside it.
    running.engine.replace(list(&[&credential, &other]));
    credential.until_version(2).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(credential.times(Step::Renew).len(), 1);
    assert_eq!(ids(&running.engine), ["certificate", "other"]);
    // And out for good.
    running.engine.replace(Vec::new());
    sleep(Duration::from_secs(200_000)).await;
    assert_eq!((credential.times(Step::Renew).len(), running.engine.status().len()), (1, 0));
}
