//! A schedule fires: it sends a job, once, whichever server notices first.

use std::collections::HashMap;

use super::changes::JobChanges;
use super::found::FoundJobs;
use super::schedule::{Schedule, SystemSchedule};
use super::submission::Submission;
use crate::domain::ids::JobId;
use crate::domain::text::{JobKind, QueueName, UniqueKey};
use crate::domain::time::Timestamp;

impl JobChanges {
    /// Fires the schedules that are due: each sends a job, unless its last one is not over. Schedules of other versions of the
    /// server are left to them.
    #[must_use]
    pub fn fire(
        found: FoundJobs,
        queue_of: impl Fn(&JobKind) -> QueueName,
        mut new_id: impl FnMut() -> JobId,
        now: Timestamp,
    ) -> Self {
        let mut changes = Self::default();
        for schedule in found.schedules {
            let Some(known) = SystemSchedule::of(&schedule.kind) else { continue };
            let next_at = Schedule::next_after(known.interval(), now);
            let queue = queue_of(&schedule.kind);
            let settings = found.queues.get(&queue).map(|queue| &queue.settings);
            let is_running = found.jobs.iter().any(|job| job.kind == schedule.kind);
            let Some(settings) = settings.filter(|_| !is_running) else {
                changes.schedules.push(Schedule { next_at, ..schedule });
                continue;
            };
            let job = job_of(&schedule, new_id(), &queue).into_job(settings, &mut HashMap::new(), now);
            changes.schedules.push(Schedule { next_at, fired_at: Some(now), job_id: Some(job.job_id), ..schedule });
            changes.inserted.push(job);
        }
        changes
    }
}

/// The job of a firing.
fn job_of(schedule: &Schedule, job_id: JobId, queue: &QueueName) -> Submission {
    Submission {
        job_id,
        queue: queue.clone(),
        kind: schedule.kind.clone(),
        workspace_id: None,
        args: "{}".to_owned(),
        priority: Submission::DEFAULT_PRIORITY,
        run_at: None,
        // The next firing does what this one could not.
        max_attempts: Some(1),
        unique_key: Some(UniqueKey::from_stored(Schedule::UNIQUE_KEY)),
        fingerprint: [0; 32],
        hold: None,
        replays: None,
        actor: "server".to_owned(),
        correlation_id: job_id.to_string(),
        causation_id: None,
        traceparent: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::TimeDelta;
    use uuid::Uuid;

    use super::*;
    use crate::domain::jobs::queue::{Queue, default_queues};
    use crate::domain::jobs::schedule::SystemSchedule;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_003_000_000);

    fn found(schedules: Vec<Schedule>) -> FoundJobs {
        let queue = |(queue, settings)| Queue { queue, settings, changed_by: None, changed_at: NOW };
        let queues: BTreeMap<_, _> =
            default_queues().into_iter().map(queue).map(|queue| (queue.queue.clone(), queue)).collect();
        FoundJobs { queues, schedules, ..FoundJobs::default() }
    }

    fn fire(found: FoundJobs) -> JobChanges {
        let queue = |_: &JobKind| QueueName::from_stored("default");
        JobChanges::fire(found, queue, || JobId(Uuid::from_u128(7)), NOW)
    }

    #[test]
    fn a_firing_sends_one_job_and_the_next_is_at_the_same_instant_on_all_servers() {
        let due = SystemSchedule::Periods.begin(NOW);
        let changes = fire(found(vec![due.clone()]));
        let ([job], [after]) = (&changes.inserted[..], &changes.schedules[..]) else { panic!("{changes:?}") };
        assert_eq!((job.kind.as_str(), job.workspace_id, job.state.as_str()), ("system.periods", None, "ready"));
        assert_eq!(after.next_at, NOW.plus(TimeDelta::seconds(7)));
        assert_eq!((after.fired_at, after.job_id), (Some(NOW), Some(job.job_id)));

        // Its last job is not over.
        let again = fire(FoundJobs { jobs: vec![job.clone()], ..found(vec![after.clone()]) });
        assert_eq!((again.inserted.len(), again.schedules[0].fired_at), (0, Some(NOW)));
        let unknown = Schedule { kind: JobKind::new("system.later").unwrap(), ..due };
        assert!(fire(found(vec![unknown])).is_empty());
    }

    #[test]
    fn every_schedule_has_a_kind_of_its_own() {
        for schedule in SystemSchedule::ALL {
            assert_eq!(SystemSchedule::of(&schedule.kind()), Some(schedule));
        }
        assert_eq!(SystemSchedule::of(&JobKind::new("billing.deduct_credits").unwrap()), None);
    }
}
