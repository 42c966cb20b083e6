//! When unused images are removed: at a time of day, every so many days, by the wall clock of the device.
//!
//! Days are counted, not hours, so the changes to and from summer time shift nothing. Knows no images.

use std::time::Duration;

use aziot_edged_api::config::ImageGarbageCollection;
use jiff::{Timestamp, ToSpan as _, Zoned, civil::Date, tz::TimeZone};

/// The longest sleep at a stretch: a clock that was set, as most devices do after their start, is noticed then.
const STRETCH: Duration = Duration::from_secs(15 * 60);
/// Later than this after the time planned, the clock was set or the device asleep, and the plan is void.
const LATE: Duration = Duration::from_secs(3_600);

/// The plan of the next run.
pub(super) struct Schedule {
    hour: u8,
    minute: u8,
    days: u32,
    next: Zoned,
}

impl Schedule {
    /// Plans the first run for the next time that it is that time of day; not for this very minute.
    pub(super) fn new(settings: &ImageGarbageCollection, now: &Zoned) -> Self {
        let (hour, minute) = (settings.cleanup_time.hour(), settings.cleanup_time.minute());
        let days = settings.cleanup_recurrence.number();
        let next = first(hour, minute, now);
        Self { hour, minute, days, next }
    }

    /// When the next run is planned.
    pub(super) fn next(&self) -> &Zoned {
        &self.next
    }

    /// Plans the run after the one planned, never for a time that is over.
    pub(super) fn advance(&mut self, now: &Zoned) {
        let following = self.next.date().checked_add(i64::from(self.days).days());
        let following = following.ok().and_then(|date| at(date, self.hour, self.minute, now.time_zone()));
        self.next = following.filter(|next| next > now).unwrap_or_else(|| first(self.hour, self.minute, now));
    }

    /// Waits for the time planned. `false` if it was missed: then another one is planned.
    pub(super) async fn wait(&mut self) -> bool {
        loop {
            let now = Timestamp::now();
            let left = self.next.timestamp().duration_since(now);
            match Duration::try_from(left) {
                Ok(left) if !left.is_zero() => tokio::time::sleep(left.min(STRETCH)).await,
                _ if left.unsigned_abs() > LATE => {
                    self.next = first(self.hour, self.minute, &now.to_zoned(TimeZone::system()));
                    return false;
                }
                _ => return true,
            }
        }
    }
}

fn first(hour: u8, minute: u8, now: &Zoned) -> Zoned {
    let today = at(now.date(), hour, minute, now.time_zone());
    let begun = now.with().second(0).subsec_nanosecond(0).build().unwrap_or_else(|_| now.clone());
    if let Some(today) = today.filter(|today| *today > begun) {
        return today;
    }
    let tomorrow = now.date().tomorrow().ok().and_then(|date| at(date, hour, minute, now.time_zone()));
    tomorrow.unwrap_or_else(|| now.saturating_add(1.day()))
}

/// A time that the clock skips that day is taken as much later; of one that comes twice the first is taken.
fn at(date: Date, hour: u8, minute: u8, zone: &TimeZone) -> Option<Zoned> {
    let time = date.at(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0);
    time.to_zoned(zone.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(time: &str, recurrence: &str) -> ImageGarbageCollection {
        ImageGarbageCollection {
            cleanup_time: time.to_owned().try_into().unwrap(),
            cleanup_recurrence: recurrence.to_owned().try_into().unwrap(),
            ..ImageGarbageCollection::default()
        }
    }

    fn zoned(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    /// The next runs after `now`, each of which takes a minute.
    fn runs(time: &str, recurrence: &str, now: &str) -> Vec<String> {
        let mut schedule = Schedule::new(&settings(time, recurrence), &zoned(now));
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(schedule.next().strftime("%m-%d %H:%M").to_string());
            let ended = schedule.next().saturating_add(1.minute());
            schedule.advance(&ended);
        }
        runs
    }

    #[test]
    fn runs_are_at_the_time_of_day_so_many_days_apart() {
        assert_eq!(runs("00:00", "1d", "2026-05-01T13:00:00[UTC]"), ["05-02 00:00", "05-03 00:00", "05-04 00:00"]);
        assert_eq!(runs("13:05", "3d", "2026-05-01T13:00:00[UTC]"), ["05-01 13:05", "05-04 13:05", "05-07 13:05"]);
        assert_eq!(runs("13:00", "1week", "2026-05-01T13:00:59[UTC]"), ["05-02 13:00", "05-09 13:00", "05-16 13:00"]);
    }

    #[test]
    fn summer_time_shifts_nothing() {
        let spring = runs("02:30", "1d", "2026-03-27T12:00:00[Europe/Berlin]");
        assert_eq!(spring, ["03-28 02:30", "03-29 03:30", "03-30 02:30"]);
        let autumn = runs("02:30", "1d", "2026-10-23T12:00:00[Europe/Berlin]");
        assert_eq!(autumn, ["10-24 02:30", "10-25 02:30", "10-26 02:30"]);
    }

    #[test]
    fn a_run_that_took_days_is_followed_by_the_next_time_of_day() {
        let mut schedule = Schedule::new(&settings("01:00", "1d"), &zoned("2026-05-01T00:00:00[UTC]"));
        schedule.advance(&zoned("2026-05-04T00:30:00[UTC]"));
        assert_eq!(schedule.next(), &zoned("2026-05-04T01:00:00[UTC]"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_was_missed_by_far_is_planned_anew() {
        let long_ago = Zoned::now().saturating_sub(3.days());
        let mut schedule = Schedule::new(&settings("00:00", "1d"), &long_ago);
        assert!(!schedule.wait().await);
        assert!(*schedule.next() > Zoned::now());
        schedule.next = Zoned::now().saturating_sub(1.second());
        assert!(schedule.wait().await);
    }
}
