//! Queues: how the jobs of one are run, and how often.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job::Runner;
use crate::domain::text::QueueName;
use crate::domain::time::Timestamp;

/// How the jobs of a queue are run. An operator can change it at any time; what runs by then goes on as it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueSettings {
    /// Whoever takes jobs of several queues takes them in the proportion of the weights.
    pub weight: i32,
    /// No job is taken. Those that run go on, and new ones wait.
    pub is_paused: bool,
    /// How many of its jobs may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<i32>,
    /// How many jobs of one workspace may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running_per_workspace: Option<i32>,
    /// How long a worker has a job without a heartbeat.
    pub lease_s: i32,
    /// How long an attempt may take.
    pub timeout_s: i32,
    /// After so many attempts a job fails. A job may be sent with fewer.
    pub max_attempts: i32,
    /// How long a job waits after its first, second and every later attempt. The last delay holds for all after it. The
    /// real delay is between half of it and all of it.
    pub retry_delays_s: RetryDelays,
    /// How long a job is kept that has not failed, after its end.
    pub keep_done_h: i32,
}

/// A queue with its settings. The database is what counts; the configuration only creates queues that it does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub queue: QueueName,
    pub settings: QueueSettings,
    pub changed_by: Option<String>,
    pub changed_at: Timestamp,
}

/// Delays in seconds: at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Vec<i32>, min_items = 1, max_items = 32)]
pub struct RetryDelays(Vec<i32>);

impl RetryDelays {
    pub const MAX: usize = 32;
    /// A day: longer than that, nobody waits for a job.
    pub const MAX_DELAY_S: i32 = 86_400;

    #[must_use]
    pub fn new(delays: Vec<i32>) -> Option<Self> {
        let are_bounded = delays.iter().all(|delay| (0..=Self::MAX_DELAY_S).contains(delay));
        ((1..=Self::MAX).contains(&delays.len()) && are_bounded).then_some(Self(delays))
    }

    /// How long a job waits after so many attempts, from 1. `share` is drawn between 0 and 1: jobs that have failed together
    /// are not tried together.
    #[must_use]
    pub fn after(&self, attempts: i32, share: f64) -> TimeDelta {
        let place = usize::try_from(attempts.max(1) - 1).unwrap_or_default();
        let delay_s = self.0.get(place).or(self.0.last()).copied().unwrap_or_default();
        jittered(TimeDelta::seconds(i64::from(delay_s)), share)
    }
}

/// Between half of the delay and all of it.
fn jittered(delay: TimeDelta, share: f64) -> TimeDelta {
    #[allow(clippy::cast_possible_truncation, reason = "a part from 0 to 1000")]
    let part = (share.clamp(0.0, 1.0) * 1000.0) as i32;
    delay / 2 + delay / 2000 * part
}

impl<'de> Deserialize<'de> for RetryDelays {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refuse = || {
            let (max, longest) = (Self::MAX, Self::MAX_DELAY_S);
            serde::de::Error::custom(format_args!("must be 1 to {max} delays from 0 to {longest} seconds"))
        };
        Self::new(Vec::deserialize(deserializer)?).ok_or_else(refuse)
    }
}

impl QueueSettings {
    pub const MAX_WEIGHT: i32 = 100;
    pub const MAX_RUNNING: i32 = 100_000;
    /// Longer than the clocks of two servers may differ.
    pub const LEASE_S: std::ops::RangeInclusive<i32> = 15..=3600;
    pub const TIMEOUT_S: std::ops::RangeInclusive<i32> = 1..=86_400;
    pub const MAX_ATTEMPTS: i32 = 100;
    pub const MAX_KEEP_H: i32 = 24 * 365;

    /// The field that is out of its bounds, and what it must be.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let from = |field: &'static str, value: i32, low: i32, high: i32| {
            let is_refused = !(low..=high).contains(&value);
            is_refused.then(|| (field, format!("must be a whole number from {low} to {high}")))
        };
        from("weight", self.weight, 1, Self::MAX_WEIGHT)
            .or_else(|| from("max_running", self.max_running.unwrap_or(1), 1, Self::MAX_RUNNING))
            .or_else(|| {
                let most = self.max_running_per_workspace.unwrap_or(1);
                from("max_running_per_workspace", most, 1, Self::MAX_RUNNING)
            })
            .or_else(|| from("lease_s", self.lease_s, *Self::LEASE_S.start(), *Self::LEASE_S.end()))
            .or_else(|| from("timeout_s", self.timeout_s, *Self::TIMEOUT_S.start(), *Self::TIMEOUT_S.end()))
            .or_else(|| from("max_attempts", self.max_attempts, 1, Self::MAX_ATTEMPTS))
            .or_else(|| from("keep_done_h", self.keep_done_h, 1, Self::MAX_KEEP_H))
    }

    /// The settings as they hold for a runner: neither a pause nor a cap holds up what the schedules of the server are for.
    #[must_use]
    pub fn for_runner(&self, runner: Runner) -> Self {
        let mut settings = self.clone();
        if runner == Runner::System {
            (settings.is_paused, settings.max_running, settings.max_running_per_workspace) = (false, None, None);
        }
        settings
    }

    /// Whether a claim must know what runs.
    #[must_use]
    pub const fn has_caps(&self) -> bool {
        self.max_running.is_some() || self.max_running_per_workspace.is_some()
    }

    #[must_use]
    pub fn lease(&self) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.lease_s))
    }

    #[must_use]
    pub fn timeout(&self) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.timeout_s))
    }

    fn of(weight: i32, [lease_s, timeout_s, max_attempts]: [i32; 3], retry_delays_s: &[i32]) -> Self {
        Self {
            weight,
            is_paused: false,
            max_running: None,
            max_running_per_workspace: None,
            lease_s,
            timeout_s,
            max_attempts,
            retry_delays_s: RetryDelays(retry_delays_s.to_vec()),
            keep_done_h: 7 * 24,
        }
    }
}

/// The queues of a server without configuration.
#[must_use]
pub fn default_queues() -> Vec<(QueueName, QueueSettings)> {
    // The delays of notifications are those of Standard Webhooks: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
    let to_receivers = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
    [
        ("billing", QueueSettings::of(8, [30, 60, 20], &[1, 2, 4, 8, 16, 32, 64, 128, 256, 300])),
        ("default", QueueSettings::of(4, [30, 300, 12], &[5, 13, 31, 78, 195, 488, 1221, 3052, 3600])),
        ("notifications", QueueSettings::of(3, [30, 60, 10], &to_receivers)),
        ("video_processing", QueueSettings::of(4, [60, 7200, 5], &[30, 120, 480, 1800])),
    ]
    .map(|(name, settings)| (QueueName::from_stored(name), settings))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_that_of_the_attempt_and_the_last_one_repeats() {
        let delays = RetryDelays::new(vec![1, 10, 100]).unwrap();
        let ms = |attempts, share| delays.after(attempts, share).num_milliseconds();
        for (attempts, share, expected) in [
            (1, 0.0, 500),
            (1, 1.0, 1000),
            (2, 0.5, 7500),
            (3, 1.0, 100_000),
            (9, 1.0, 100_000),
            (0, 1.0, 1000),
            (1, 7.0, 1000),
            (1, -1.0, 500),
        ] {
            assert_eq!(ms(attempts, share), expected, "{attempts} {share}");
        }
        assert_eq!(RetryDelays::new(vec![0]).unwrap().after(1, 1.0), TimeDelta::zero());
        for bad in [vec![], vec![-1], vec![86_401], vec![1; 33]] {
            assert_eq!(RetryDelays::new(bad.clone()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_default_queues_are_within_their_bounds_and_span_what_the_docs_say() {
        for (queue, settings) in default_queues() {
            assert_eq!(settings.problem(), None, "{queue}");
            let delays = (1..settings.max_attempts).map(|attempts| settings.retry_delays_s.after(attempts, 1.0));
            let minutes = delays.fold(TimeDelta::zero(), |sum, delay| sum + delay).num_minutes();
            let expected = match queue.as_str() {
                "billing" => 58,
                "default" => 264,
                "notifications" => 75 * 60 + 35,
                _ => 40,
            };
            assert_eq!(minutes, expected, "{queue}");
        }
        let (_, good) = default_queues().remove(0);
        for (bad, field) in [
            (QueueSettings { weight: 0, ..good.clone() }, "weight"),
            (QueueSettings { weight: 101, ..good.clone() }, "weight"),
            (QueueSettings { max_running: Some(0), ..good.clone() }, "max_running"),
            (QueueSettings { max_running_per_workspace: Some(0), ..good.clone() }, "max_running_per_workspace"),
            (QueueSettings { lease_s: 14, ..good.clone() }, "lease_s"),
            (QueueSettings { timeout_s: 0, ..good.clone() }, "timeout_s"),
            (QueueSettings { max_attempts: 0, ..good.clone() }, "max_attempts"),
            (QueueSettings { keep_done_h: 0, ..good.clone() }, "keep_done_h"),
        ] {
            assert_eq!(bad.problem().map(|(field, _)| field), Some(field));
        }
    }
}
