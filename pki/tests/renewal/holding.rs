//! Using a credential while it is renewed.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use aziot_pki::renewal::{Engine, Generation, NotAvailable};
use futures_util::future::join_all;
use tokio::time::sleep;

use super::world::{Fate, NEW_YEAR, Running, Step, TestClock, TestCredential, list, policy, version};

const END: i64 = NEW_YEAR + 100_000;
const DEADLINE: i64 = NEW_YEAR + 80_000;

fn world(now: i64) -> (TestClock, Arc<TestCredential>, Engine) {
    let clock = TestClock::at(now);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    let engine = Engine::new(clock.clone());
    engine.add(list(&[&credential]).remove(0), Generation::default());
    (clock, credential, engine)
}

async fn held_version(engine: &Engine) -> Result<u32, NotAvailable> {
    engine.hold("certificate", "key").await.map(|held| version(held.chain()))
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_renewed_on_the_spot() {
    let (_, credential, engine) = world(DEADLINE);
    assert_eq!(held_version(&engine).await.unwrap(), 2);
    assert_eq!(held_version(&engine).await.unwrap(), 2);
    assert_eq!(credential.times(Step::Renew), [DEADLINE]);

    let (_, credential, engine) = world(DEADLINE - 1);
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    assert_eq!(credential.times(Step::Renew), [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_until_it_is_over() {
    let (clock, credential, engine) = world(DEADLINE);
    credential.always(Step::Renew, Fate::Retryable);
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    // What has just failed does not keep the next one waiting.
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    assert_eq!(credential.times(Step::Renew).len(), 1);
    clock.set(END - 1);
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    clock.set(END);
    let refused = held_version(&engine).await.unwrap_err();
    assert!(matches!(refused, NotAvailable::Unusable { .. }), "{refused:?}");
    // Of no use: each one who needs it has it tried.
    credential.always(Step::Renew, Fate::Works);
    assert_eq!(held_version(&engine).await.unwrap(), 2);
    assert_eq!(engine.status()[0].attempts_failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_fatal_failure_loses_nothing() {
    let (_, credential, engine) = world(DEADLINE);
    credential.once(Step::Renew, Fate::Fatal);
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    assert_eq!(engine.status()[0].last_error.as_deref(), Some("Renew failed for good"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told_apart_from_what_is_of_no_use() {
    let (_, credential, engine) = world(NEW_YEAR);
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    credential.once(Step::Current, Fate::Retryable);
    let refused = held_version(&engine).await.unwrap_err();
    assert!(matches!(&refused, NotAvailable::Unreadable { source, .. } if !source.is_fatal()), "{refused:?}");
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    credential.leave(None, 1, None);
    let refused = held_version(&engine).await.unwrap_err();
    assert!(matches!(&refused, NotAvailable::Unreadable { source, .. } if source.is_fatal()), "{refused:?}");
    let unknown = engine.hold("certificate", "other key").await.unwrap_err();
    assert!(matches!(unknown, NotAvailable::Unknown { .. }));
    assert_eq!(unknown.to_string(), "no certificate certificate with the key other key is kept renewed");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_in_the_background_holds_nobody_up() {
    let clock = TestClock::at(DEADLINE);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    credential.once(Step::Renew, Fate::Slow(30));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    let held = running.engine.hold("certificate", "key").await.unwrap();
    assert_eq!((version(held.chain()), clock.seconds()), (1, DEADLINE));
    // Certificate and key stay as they are while somebody uses them, though the renewal has brought new ones.
    sleep(Duration::from_secs(50)).await;
    assert_eq!((credential.versions(), credential.times(Step::Commit).len()), ((Some(1), 1), 0));
    drop(held);
    assert_eq!(credential.until(Step::Commit, 1).await, [DEADLINE + 50]);
    assert_eq!(held_version(&running.engine).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_a_certificate_in_the_middle_of_its_replacement() {
    let clock = TestClock::at(DEADLINE);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    credential.once(Step::Commit, Fate::Slow(5));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Commit, 1).await;
    assert_eq!(credential.versions(), (Some(2), 1), "between certificate and key");
    assert_eq!(held_version(&running.engine).await.unwrap(), 2);
    assert_eq!((credential.versions(), clock.seconds()), ((Some(2), 2), DEADLINE + 5));
}

#[tokio::test(start_paused = true)]
async fn many_may_use_it_and_one_renews_it() {
    let (clock, credential, engine) = world(END);
    credential.once(Step::Renew, Fate::Slow(10));
    let all = join_all((0..20).map(|_| engine.hold("certificate", "key"))).await;
    assert!(all.iter().all(|held| version(held.as_ref().unwrap().chain()) == 2));
    assert_eq!((credential.times(Step::Renew).len(), clock.seconds()), (1, END + 10));
    drop(all);

    // And of one failure all learn.
    let (clock, credential, engine) = world(END);
    credential.always(Step::Renew, Fate::Hangs);
    let all = join_all((0..20).map(|_| held_version(&engine))).await;
    assert!(all.iter().all(Result::is_err));
    assert_eq!((credential.times(Step::Renew).len(), clock.seconds()), (1, END + 600));
}

#[tokio::test(start_paused = true)]
async fn a_user_who_leaves_in_the_middle_leaves_a_pair_that_is_repaired() {
    for step in [Step::Repair, Step::Renew, Step::Commit] {
        let (_, credential, engine) = world(DEADLINE);
        credential.once(step, Fate::Hangs);
        {
            let mut leaving = pin!(engine.hold("certificate", "key"));
            let mut context = Context::from_waker(Waker::noop());
            assert!(matches!(leaving.as_mut().poll(&mut context), Poll::Pending));
            assert_eq!(credential.times(step).len(), 1);
        }
        assert_eq!(held_version(&engine).await.unwrap(), 2, "{step:?}");
        assert_eq!(credential.versions(), (Some(2), 2), "{step:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_is_seen_by_the_next_user() {
    let (_, credential, engine) = world(NEW_YEAR);
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    credential.import(50, NEW_YEAR, END);
    assert_eq!(held_version(&engine).await.unwrap(), 50);
    assert_eq!((credential.times(Step::Renew), credential.times(Step::Repair).len()), (Vec::new(), 2));
    // One that is over is renewed before it is given to anybody.
    credential.import(51, NEW_YEAR - 10, NEW_YEAR);
    assert_eq!(held_version(&engine).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_holds_for_ever_does_not_stop_renewals_for_ever() {
    let clock = TestClock::at(DEADLINE);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    credential.once(Step::Renew, Fate::Slow(1));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    let held = running.engine.hold("certificate", "key").await.unwrap();
    credential.until(Step::Renew, 2).await;
    assert_eq!(running.engine.status()[0].attempts_failed, 1);
    drop(held);
    credential.until(Step::Commit, 1).await;
    credential.until_version(3).await;
}
