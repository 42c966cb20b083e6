//! When attempts are made: the timelines of the specification, and the jitter around them.

use super::world::{DAY, Fate, NEW_YEAR, Running, Step, TestClock, TestCredential, policy};

struct Timeline {
    lifetime: i64,
    threshold: &'static str,
    retry: &'static str,
    /// Seconds after the beginning of the certificate at which the daemon starts.
    start: i64,
    attempts: &'static [&'static str],
}

fn seconds(date: &str) -> i64 {
    date.parse::<jiff::Timestamp>().unwrap().as_second()
}

/// Every attempt fails. Dates are within 2026.
#[tokio::test(start_paused = true)]
async fn attempts_are_made_when_the_specification_says() {
    let timelines = [
        Timeline {
            lifetime: 90 * DAY,
            threshold: "80%",
            retry: "4%",
            start: 71 * DAY,
            attempts: &[
                "03-14T00:00:00",
                "03-17T14:24:00",
                "03-21T04:48:00",
                "03-24T19:12:00",
                "03-28T09:36:00",
                "04-01T00:00:00",
            ],
        },
        Timeline {
            lifetime: 30 * DAY,
            threshold: "80%",
            retry: "4%",
            start: 23 * DAY,
            attempts: &[
                "01-25T00:00:00",
                "01-26T04:48:00",
                "01-27T09:36:00",
                "01-28T14:24:00",
                "01-29T19:12:00",
                "01-31T00:00:00",
            ],
        },
        Timeline {
            lifetime: 30 * DAY,
            threshold: "10day",
            retry: "60min",
            start: 0,
            attempts: &["01-21T00:00:00", "01-21T01:00:00", "01-21T02:00:00", "01-21T03:00:00", "01-21T04:00:00"],
        },
        Timeline {
            lifetime: 365 * DAY,
            threshold: "90%",
            retry: "1%",
            start: 327 * DAY,
            attempts: &["11-25T12:00:00", "11-29T03:36:00", "12-02T19:12:00"],
        },
        Timeline {
            lifetime: 3600,
            threshold: "80%",
            retry: "4%",
            start: 0,
            attempts: &[
                "01-01T00:48:00",
                "01-01T00:50:24",
                "01-01T00:52:48",
                "01-01T00:55:12",
                "01-01T00:57:36",
                "01-01T01:00:00",
            ],
        },
        Timeline {
            lifetime: 20,
            threshold: "80%",
            retry: "4%",
            start: 3,
            attempts: &[
                "01-01T00:00:16",
                "01-01T00:00:17",
                "01-01T00:00:18",
                "01-01T00:00:19",
                "01-01T00:00:20",
                "01-01T00:00:21",
            ],
        },
        Timeline { lifetime: 7, threshold: "80%", retry: "20%", start: 0, attempts: &["01-01T00:00:05"] },
        // Longer than the lifetime: counts as 80 %.
        Timeline {
            lifetime: 30 * DAY,
            threshold: "45day",
            retry: "1day",
            start: 0,
            attempts: &["01-25T00:00:00", "01-26T00:00:00", "01-27T00:00:00"],
        },
        Timeline {
            lifetime: 30 * DAY,
            threshold: "80%",
            retry: "4%",
            start: 27 * DAY,
            attempts: &["01-28T00:00:00", "01-29T04:48:00", "01-30T09:36:00", "01-31T14:24:00"],
        },
    ];
    for Timeline { lifetime, threshold, retry, start, attempts } in timelines {
        let clock = TestClock::at(NEW_YEAR + start);
        let credential =
            TestCredential::new("certificate", &clock, policy(threshold, retry), NEW_YEAR, NEW_YEAR + lifetime);
        credential.always(Step::Renew, Fate::Retryable);
        let _running = Running::start(&clock, &[&credential]);
        let made = credential.until(Step::Renew, attempts.len()).await;
        let expected: Vec<_> = attempts.iter().map(|date| seconds(&format!("2026-{date}Z"))).collect();
        assert_eq!(made, expected, "{lifetime} s, {threshold}/{retry}");
    }
}

#[tokio::test(start_paused = true)]
async fn there_are_240_hourly_attempts_in_the_last_10_days() {
    let clock = TestClock::at(NEW_YEAR + 20 * DAY - 60);
    let end = NEW_YEAR + 30 * DAY;
    let credential = TestCredential::new("certificate", &clock, policy("10day", "60min"), NEW_YEAR, end);
    credential.always(Step::Renew, Fate::Retryable);
    let _running = Running::start(&clock, &[&credential]);
    let made = credential.until(Step::Renew, 241).await;
    assert_eq!(made.iter().filter(|time| **time < end).count(), 240);
}

#[tokio::test(start_paused = true)]
async fn certificates_of_seconds_are_renewed_again_and_again_without_a_gap() {
    let clock = TestClock::at(NEW_YEAR);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, NEW_YEAR + 20);
    let running = Running::start(&clock, &[&credential]);
    let made = credential.until(Step::Renew, 5).await;
    assert_eq!(made, [16, 32, 48, 64, 80].map(|second| NEW_YEAR + second));
    credential.until_version(6).await;
    assert_eq!(running.engine.status()[0].attempts_failed, 0);
}

/// A certificate whose beginning lies back may be past its deadline as it comes.
#[tokio::test(start_paused = true)]
async fn what_is_back_dated_is_used_for_most_of_its_life() {
    for (retry, pause) in [("4%", 12), ("50%", 16)] {
        let clock = TestClock::at(NEW_YEAR);
        let credential =
            TestCredential::new("certificate", &clock, policy("80%", retry), NEW_YEAR - 300, NEW_YEAR + 20);
        credential.always(Step::Renew, Fate::Gives(300, 20));
        let _running = Running::start(&clock, &[&credential]);
        let made = credential.until(Step::Renew, 4).await;
        assert_eq!(made, [0, 1, 2, 3].map(|turn| NEW_YEAR + turn * pause), "{retry}");
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_is_a_tenth_and_ends_no_certificate() {
    let clock = TestClock::at(NEW_YEAR + 23 * DAY).with_jitter(1.0);
    let end = NEW_YEAR + 30 * DAY;
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, end);
    credential.always(Step::Renew, Fate::Retryable);
    let _running = Running::start(&clock, &[&credential]);
    let made = credential.until(Step::Renew, 6).await;
    let (deadline, period) = (NEW_YEAR + 24 * DAY, 103_680);
    assert_eq!(made[0], deadline + period / 10);
    for pair in made[..5].windows(2) {
        assert_eq!(pair[1] - pair[0], period + period / 10);
    }
    assert!(made[4] < end && made[5] > end, "{made:?}");

    // The last attempt before the end would be on the last second without jitter.
    let clock = TestClock::at(end - period - 60).with_jitter(1.0);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "4%"), NEW_YEAR, end);
    credential.always(Step::Renew, Fate::Retryable);
    let _running = Running::start(&clock, &[&credential]);
    // At the start it was late, like all that were without power.
    assert_eq!(credential.until(Step::Renew, 2).await, [end - period, end]);

    // A deadline close to the end: a tenth of what is left, not of the retry period.
    let clock = TestClock::at(NEW_YEAR).with_jitter(1.0);
    let credential = TestCredential::new("certificate", &clock, policy("99%", "50%"), NEW_YEAR, NEW_YEAR + 100_000);
    let _running = Running::start(&clock, &[&credential]);
    assert_eq!(credential.until(Step::Renew, 1).await[0], NEW_YEAR + 99_100);
}

#[tokio::test(start_paused = true)]
async fn after_repeated_failures_there_are_seconds_between_attempts() {
    let clock = TestClock::at(NEW_YEAR);
    let credential = TestCredential::new("certificate", &clock, policy("80%", "1%"), NEW_YEAR, NEW_YEAR + 100);
    credential.always(Step::Renew, Fate::Retryable);
    let _running = Running::start(&clock, &[&credential]);
    let made = credential.until(Step::Renew, 60).await;
    let pauses: Vec<_> = made.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses[..4], [1, 1, 1, 4]);
    assert!(pauses.is_sorted() && pauses.last() == Some(&10), "{pauses:?}");
}
