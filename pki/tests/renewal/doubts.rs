//! What others tell the engine: that a pair is broken, that a certificate was replaced, or that they are at it themselves.

use std::{sync::Arc, time::Duration};

use aziot_pki::renewal::{Engine, Generation, NotAvailable};
use tokio::time::{sleep, timeout};

use super::world::{Fate, NEW_YEAR, Running, Step, TestClock, TestCredential, certificate, list, policy, version};

const END: i64 = NEW_YEAR + 100_000;
const DEADLINE: i64 = NEW_YEAR + 80_000;
const SECOND: Duration = Duration::from_secs(1);

fn world(now: i64) -> (TestClock, Arc<TestCredential>) {
    let clock = TestClock::at(now);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, END);
    (clock, credential)
}

async fn held_version(engine: &Engine) -> Result<u32, NotAvailable> {
    engine.hold("certificate", "key").await.map(|held| version(held.chain()))
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_lost_is_renewed_around_as_soon_as_somebody_tells() {
    let (clock, credential) = world(NEW_YEAR);
    let engine = Engine::new(clock.clone());
    engine.replace(list(&[&credential]));
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    credential.lose_key();
    assert_eq!(held_version(&engine).await.unwrap(), 1, "nobody looks at the key each time");
    engine.doubt("certificate", "key");
    assert_eq!((held_version(&engine).await.unwrap(), credential.versions()), (2, (Some(2), 2)));

    // The next use may be far away.
    let (clock, credential) = world(NEW_YEAR);
    let running = Running::start(&clock, &[&credential]);
    sleep(SECOND).await;
    credential.lose_key();
    running.engine.doubt("certificate", "key");
    credential.until_version(2).await;
    assert_eq!(clock.seconds(), NEW_YEAR + 1);

    // What is only half done is finished, and what is whole is left alone.
    credential.leave(Some(certificate(7, NEW_YEAR, END)), 1, Some(7));
    running.engine.doubt("certificate", "key");
    assert_eq!((held_version(&running.engine).await.unwrap(), credential.versions()), (7, (Some(7), 7)));
    running.engine.doubt("certificate", "key");
    running.engine.doubt("other", "key");
    assert_eq!((held_version(&running.engine).await.unwrap(), credential.times(Step::Renew).len()), (7, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pair_that_breaks_does_not_wait_for_the_pause_of_a_renewal() {
    let (clock, credential) = world(DEADLINE);
    credential.once(Step::Renew, Fate::Busy(4000));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    sleep(SECOND).await;
    // Nothing is wrong: the pause stays.
    running.engine.doubt("certificate", "key");
    running.engine.look_again("certificate");
    sleep(SECOND).await;
    assert_eq!((credential.times(Step::Repair).len(), credential.times(Step::Renew).len()), (2, 1));
    assert_eq!(running.engine.status()[0].attempts_failed, 1);
    credential.lose_key();
    running.engine.doubt("certificate", "key");
    credential.until_version(2).await;
    assert_eq!(clock.seconds(), DEADLINE + 2);
}

#[tokio::test(start_paused = true)]
async fn a_doubt_during_a_repair_or_a_commit_is_not_lost() {
    for step in [Step::Repair, Step::Commit] {
        let (clock, credential) = world(DEADLINE);
        credential.once(step, Fate::Slow(5));
        let running = Running::start(&clock, &[&credential]);
        credential.until(step, 1).await;
        let before = credential.times(Step::Repair).len();
        running.engine.doubt("certificate", "key");
        credential.until(Step::Repair, before + 1).await;
        assert_eq!(clock.seconds(), DEADLINE + 5, "{step:?}");
        sleep(SECOND).await;
        assert_eq!((credential.versions(), credential.times(Step::Renew).len()), ((Some(2), 2), 1), "{step:?}");
        assert_eq!(running.engine.status()[0].attempts_failed, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn imports_and_deletions_count_at_once() {
    let (clock, credential) = world(NEW_YEAR);
    let running = Running::start(&clock, &[&credential]);
    sleep(SECOND).await;
    credential.import(50, NEW_YEAR, NEW_YEAR + 200_000);
    running.engine.look_again("certificate");
    sleep(SECOND).await;
    assert_eq!(running.engine.status()[0].next_attempt, NEW_YEAR + 160_000);
    // Its key is looked at, too.
    assert_eq!((credential.times(Step::Repair).len(), credential.times(Step::Renew).len()), (2, 0));

    credential.leave(None, 50, None);
    running.engine.look_again("other");
    sleep(SECOND).await;
    assert_eq!(running.engine.status()[0].last_error, None);
    running.engine.look_again("certificate");
    sleep(SECOND).await;
    assert_eq!(running.engine.status()[0].last_error.as_deref(), Some("no certificate"));
    credential.import(51, NEW_YEAR, NEW_YEAR + 300_000);
    running.engine.look_again("certificate");
    sleep(SECOND).await;
    let status = running.engine.status().remove(0);
    assert_eq!((status.next_attempt, status.last_error), (NEW_YEAR + 240_000, None));
    assert_eq!(clock.seconds(), NEW_YEAR + 5);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_is_so_before_and_after_the_pair_is_registered() {
    let (clock, credential) = world(NEW_YEAR);
    credential.leave(None, 1, None);
    let running = Running::start(&clock, &[]);
    let engine = &running.engine;
    let first = engine.alone("certificate", "key", async {
        sleep(SECOND * 5).await;
        // A reload in the middle registers what is there so far.
        engine.add(list(&[&credential]).remove(0), engine.generation());
        sleep(SECOND * 5).await;
        assert_eq!(credential.times(Step::Repair).len(), 0, "nobody looks at it meanwhile");
        credential.import(5, NEW_YEAR, END);
        clock.seconds()
    });
    let second = engine.alone("certificate", "key", async { clock.seconds() });
    let other = engine.alone("other", "key", async { clock.seconds() });
    let (first, second, other) = tokio::join!(first, second, other);
    let times = [first.unwrap(), second.unwrap(), other.unwrap()].map(|time| time - NEW_YEAR);
    assert_eq!(times, [10, 10, 0]);
    assert_eq!(held_version(engine).await.unwrap(), 5);
    assert_eq!((credential.times(Step::Renew).len(), engine.status()[0].attempts_failed), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_waits_for_others_and_others_wait() {
    let (clock, credential) = world(DEADLINE);
    credential.once(Step::Renew, Fate::Slow(10));
    let running = Running::start(&clock, &[&credential]);
    credential.until(Step::Renew, 1).await;
    let engine = &running.engine;
    let work = async {
        credential.leave(Some(certificate(70, clock.seconds(), END)), 1, Some(70));
        sleep(SECOND * 10).await;
        clock.seconds()
    };
    let held = async {
        sleep(SECOND * 11).await;
        (held_version(engine).await, clock.seconds())
    };
    let (done, held) = tokio::join!(engine.alone("certificate", "key", work), held);
    assert_eq!(done.unwrap(), DEADLINE + 20);
    // Repaired before it is given to anybody.
    assert_eq!((held.0.unwrap(), held.1), (70, DEADLINE + 20));
    assert_eq!(credential.versions(), (Some(70), 70));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_alone_leaves_half_done_is_repaired() {
    let (clock, credential) = world(NEW_YEAR);
    let engine = Engine::new(clock.clone());
    engine.replace(list(&[&credential]));
    assert_eq!(held_version(&engine).await.unwrap(), 1);
    let work = async {
        credential.lose_key();
        sleep(SECOND * 100).await;
    };
    assert!(timeout(SECOND, engine.alone("certificate", "key", work)).await.is_err());
    assert_eq!((held_version(&engine).await.unwrap(), credential.versions()), (2, (Some(2), 2)));

    // Nobody waits for ever.
    let held = engine.hold("certificate", "key").await.unwrap();
    let refused = engine.alone("certificate", "key", async {}).await.unwrap_err();
    assert!(matches!(refused, NotAvailable::Busy { .. }), "{refused:?}");
    drop(held);
    engine.alone("certificate", "key", async {}).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_older_settings_have_made_is_not_added() {
    let (clock, credential) = world(NEW_YEAR);
    let engine = Engine::new(clock);
    assert_eq!(engine.generation(), Generation::default());
    assert!(engine.add(list(&[&credential]).remove(0), Generation::default()));
    let first = engine.replace(list(&[&credential]));
    let second = engine.replace(Vec::new());
    assert!(Generation::default() < first && first < second && second == engine.generation());
    for older in [Generation::default(), first] {
        assert!(!engine.add(list(&[&credential]).remove(0), older));
        assert_eq!(engine.status().len(), 0);
    }
    assert!(engine.add(list(&[&credential]).remove(0), second));
    assert_eq!(held_version(&engine).await.unwrap(), 1);
}
