//! Queues of jobs and their routes, as they are configured on top of those that every server has.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::domain::jobs::{QueueSettings, RetryDelays, Route, Routes, RoutesError, default_queues, default_routes};
use crate::domain::text::QueueName;

/// What a queue is at first. What is left out is as in the built-in queue of that name, or else as in the queue `default`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    weight: Option<i32>,
    max_running: Option<i32>,
    max_running_per_workspace: Option<i32>,
    lease_s: Option<i32>,
    timeout_s: Option<i32>,
    max_attempts: Option<i32>,
    retry_delays_s: Option<RetryDelays>,
    keep_done_h: Option<i32>,
}

/// The kinds that fit a pattern go to a queue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTo {
    pub pattern: String,
    pub queue: QueueName,
}

impl Queue {
    fn over(&self, base: QueueSettings) -> QueueSettings {
        QueueSettings {
            weight: self.weight.unwrap_or(base.weight),
            is_paused: false,
            max_running: self.max_running.or(base.max_running),
            max_running_per_workspace: self.max_running_per_workspace.or(base.max_running_per_workspace),
            lease_s: self.lease_s.unwrap_or(base.lease_s),
            timeout_s: self.timeout_s.unwrap_or(base.timeout_s),
            max_attempts: self.max_attempts.unwrap_or(base.max_attempts),
            retry_delays_s: self.retry_delays_s.clone().unwrap_or(base.retry_delays_s),
            keep_done_h: self.keep_done_h.unwrap_or(base.keep_done_h),
        }
    }
}

/// The queues that must exist, with those that are configured.
pub(super) fn all_queues(configured: &BTreeMap<QueueName, Queue>) -> BTreeMap<QueueName, QueueSettings> {
    let mut queues: BTreeMap<_, _> = default_queues().into_iter().collect();
    let Some(model) = queues.get("default").cloned() else { return queues };
    for (name, queue) in configured {
        let base = queues.get(name).unwrap_or(&model).clone();
        queues.insert(name.clone(), queue.over(base));
    }
    queues
}

/// The configured routes, and the built-in ones whose patterns are not among them.
pub(super) fn all_routes(configured: &[RouteTo]) -> Result<Routes, RoutesError> {
    let is_free = |route: &Route| configured.iter().all(|configured| configured.pattern != route.pattern);
    let own =
        configured.iter().map(|RouteTo { pattern, queue }| Route { pattern: pattern.clone(), queue: queue.clone() });
    Routes::new(own.chain(default_routes().into_iter().filter(is_free)).collect())
}
