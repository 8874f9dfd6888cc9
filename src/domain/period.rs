//! Billing periods: half-open `[start, end)`, always computed from the original anchor.
//!
//! A period begins at `anchor + n months` in the workspace's time zone, clamped to the month's last
//! day: Jan 31 → Feb 28 → Mar 31. It is never computed from the previous period's end, which would
//! drift (Jan 31 → Feb 28 → Mar 28).

use chrono::{DateTime, Datelike, LocalResult, Months, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time::Timestamp;

/// One billing period of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Period {
    /// The first instant of the period.
    pub start: Timestamp,
    /// The first instant after the period.
    pub end: Timestamp,
}

/// A schedule of periods: their anchor, and the time zone of their calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub anchor: Timestamp,
    pub zone: Tz,
}

impl Schedule {
    /// The period of `length_months` that starts `offset_months` after the anchor.
    #[must_use]
    pub fn period(&self, offset_months: u32, length_months: u32) -> Period {
        Period { start: self.boundary(offset_months), end: self.boundary(offset_months.saturating_add(length_months)) }
    }

    /// The period of `next_length_months` right after one of `length_months`.
    #[must_use]
    pub fn after(&self, period: Period, length_months: u32, next_length_months: u32) -> Period {
        self.period(self.offset_months(period.start).saturating_add(length_months), next_length_months)
    }

    /// How many months after the anchor a boundary lies.
    fn offset_months(&self, boundary: Timestamp) -> u32 {
        let month = |at: Timestamp| {
            let local = at.to_datetime().with_timezone(&self.zone);
            i64::from(local.year()) * 12 + i64::from(local.month0())
        };
        let months = u32::try_from(month(boundary) - month(self.anchor)).unwrap_or(0);
        // A change of the clocks can move a boundary across midnight into a neighbouring month.
        let near = months.saturating_sub(1)..=months.saturating_add(1);
        near.into_iter().find(|offset| self.boundary(*offset) == boundary).unwrap_or(months)
    }

    /// The period of `length_months` that contains `at`, or the first period if `at` is before the anchor.
    #[must_use]
    pub fn containing(&self, at: Timestamp, length_months: u32) -> Period {
        let length_months = length_months.max(1);
        let days = (at.to_datetime() - self.anchor.to_datetime()).num_days().max(0);
        // No month has more than 31 days, so this many whole periods have certainly begun.
        let begun = u32::try_from(days / 31).unwrap_or(0) / length_months;
        let mut offset_months = begun * length_months;
        loop {
            let period = self.period(offset_months, length_months);
            if period.end > at || period.end <= period.start {
                return period;
            }
            offset_months = offset_months.saturating_add(length_months);
        }
    }

    fn boundary(&self, offset_months: u32) -> Timestamp {
        if offset_months == 0 {
            // The anchor may lie in the second of two equal hours, which its local time does not show.
            return self.anchor;
        }
        let local = self.anchor.to_datetime().with_timezone(&self.zone).naive_local();
        let moved = local.checked_add_months(Months::new(offset_months)).unwrap_or(NaiveDateTime::MAX);
        resolve(moved, self.zone).map_or(Timestamp::from_micros(i64::MAX), Timestamp::from_datetime)
    }
}

/// The instant of a local time. If the clocks go back and the time occurs twice, the first. If they go forward and
/// the time is skipped, the instant that it would be without the change, which lies right after the gap.
fn resolve(local: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => Some(at.to_utc()),
        LocalResult::None => {
            let before = local.checked_sub_signed(TimeDelta::days(1))?;
            let at = zone.from_local_datetime(&before).earliest()?;
            Some((at + TimeDelta::days(1)).to_utc())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(anchor: &str, zone: &str) -> Schedule {
        Schedule { anchor: anchor.parse().unwrap(), zone: zone.parse().unwrap() }
    }

    #[test]
    fn short_months_end_on_their_last_day_and_later_ones_return_to_the_anchor_day() {
        let schedule = schedule("2026-01-31T00:00:00Z", "UTC");
        let starts: Vec<_> = (0..5).map(|n| schedule.period(n, 1).start.to_string()[..10].to_owned()).collect();
        assert_eq!(starts, ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]);
    }

    #[test]
    fn a_leap_day_anchor_keeps_its_day_every_fourth_year() {
        let schedule = schedule("2024-02-29T12:00:00Z", "UTC");
        assert_eq!(schedule.period(12, 12).start.to_string(), "2025-02-28T12:00:00.000000Z");
        assert_eq!(schedule.period(48, 12).start.to_string(), "2028-02-29T12:00:00.000000Z");
    }

    #[test]
    fn consecutive_periods_have_no_gap_or_overlap() {
        for zone in ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"] {
            let schedule = schedule("2011-10-30T00:30:00Z", zone);
            for n in 0..60 {
                let (one, next) = (schedule.period(n, 1), schedule.period(n + 1, 1));
                assert_eq!(one.end, next.start, "{zone} {n}");
                assert!(one.start < one.end, "{zone} {n}");
            }
        }
    }

    #[test]
    fn a_change_of_the_clocks_keeps_the_local_time() {
        let schedule = schedule("2026-01-15T08:00:00Z", "Europe/Berlin");
        assert_eq!(schedule.period(3, 1).start.to_string(), "2026-04-15T07:00:00.000000Z");
    }

    #[test]
    fn a_skipped_local_time_lies_right_after_the_gap() {
        // 2026-03-29 02:30 does not exist in Berlin.
        let schedule = schedule("2026-01-29T01:30:00Z", "Europe/Berlin");
        assert_eq!(schedule.period(2, 1).start.to_string(), "2026-03-29T01:30:00.000000Z");
    }

    #[test]
    fn the_first_period_begins_at_its_anchor_even_in_a_repeated_hour() {
        let schedule = schedule("2026-10-25T01:30:00Z", "Europe/Berlin");
        assert_eq!(schedule.period(0, 1).start, schedule.anchor);
        assert!(schedule.period(0, 1).end > schedule.anchor);
    }

    #[test]
    fn the_containing_period_is_found_at_and_around_every_boundary() {
        let schedule = schedule("2020-01-31T00:00:00Z", "Europe/Berlin");
        for n in 0..100 {
            let period = schedule.period(n, 1);
            let last = Timestamp::from_micros(period.end.micros() - 1);
            assert_eq!(schedule.containing(period.start, 1), period);
            assert_eq!(schedule.containing(last, 1), period);
        }
        let before = schedule.containing("2019-01-01T00:00:00Z".parse().unwrap(), 1);
        assert_eq!(before, schedule.period(0, 1));
    }

    #[test]
    fn the_next_period_is_computed_from_the_current_one() {
        for (anchor, zone) in [
            ("2024-01-31T00:30:00Z", "Europe/Berlin"),
            ("2011-10-30T10:30:00Z", "Pacific/Apia"),
            ("2024-02-29T23:59:59.999999Z", "America/New_York"),
            ("2020-03-31T22:30:00Z", "Europe/Berlin"),
        ] {
            let schedule = schedule(anchor, zone);
            for (length, next) in [(1, 1), (1, 12), (12, 1), (3, 36)] {
                for n in 0..120 {
                    let after = schedule.after(schedule.period(n, length), length, next);
                    assert_eq!(after, schedule.period(n + length, next), "{anchor} {zone} {n} {length} {next}");
                }
            }
        }
    }
}
