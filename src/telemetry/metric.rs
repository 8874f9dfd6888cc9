//! The names and descriptions of all metrics. Names are written only here.
//!
//! Labels have few values (a route, a command's type, an outcome), never a workspace, a user or a key: each value
//! makes a time series of its own.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    /// The names of the labels, in order.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident = $name:literal, $kind:ident, $unit:ident, [$($label:literal),*], $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// All metrics.
        pub const METRICS: &[Metric] = &[
            $(Metric { name: $constant, kind: Kind::$kind, unit: Unit::$unit, labels: &[$($label),*], help: $help }),+
        ];
    };
}

metrics_table! {
    HTTP_REQUESTS = "visionscope_http_requests_total", Counter, Count, ["method", "route", "status"],
        "Requests answered.";
    HTTP_REQUEST_SECONDS = "visionscope_http_request_seconds", Histogram, Seconds, ["method", "route"],
        "Time from a request's head to its answer.";
    HTTP_REFUSAL_SECONDS = "visionscope_http_refusal_seconds", Histogram, Seconds, ["reason"],
        "Time from a request's head to its refusal, of requests refused to protect the server: the workspace's requests per second (`rate`), its commands in flight (`in-flight`), its share of a lane's queue (`over-share`), or a queue that is full (`overloaded`).";

    ENGINE_BATCH_SIZE = "visionscope_engine_batch_size", Histogram, Count, [],
        "Commands in one transaction.";
    ENGINE_BATCH_SECONDS = "visionscope_engine_batch_seconds", Histogram, Seconds, [],
        "Time of one transaction, from begin to commit.";
    ENGINE_QUEUE_DEPTH = "visionscope_engine_queue_depth", Gauge, Count, ["lane"],
        "Commands queued in a lane.";
    ENGINE_COMMANDS = "visionscope_engine_commands_total", Counter, Count, ["type", "outcome"],
        "Commands answered, by type and outcome.";
    ENGINE_DRY_RUNS = "visionscope_engine_dry_runs_total", Counter, Count, ["type", "outcome"],
        "Dry runs answered, by the type of the command and the outcome that it would have. They are not commands.";

    STORE_ERRORS = "visionscope_store_errors_total", Counter, Count, ["kind"],
        "Failed transactions of commands, by kind of error.";

    OUTBOX_LAG_EVENTS = "visionscope_outbox_lag_events", Gauge, Count, [],
        "Events that are stored but not published, of all partitions.";
    OUTBOX_LAG_SECONDS = "visionscope_outbox_lag_seconds", Gauge, Seconds, [],
        "Age of the oldest event that is not published.";
    OUTBOX_PUBLISHED = "visionscope_outbox_published_total", Counter, Count, [],
        "Events that this process appended to a stream, or found there already.";

    PUBLISHER_APPEND_SECONDS = "visionscope_publisher_append_seconds", Histogram, Seconds, [],
        "Time of one append to a stream.";
    PUBLISHER_BREAKER_STATE = "visionscope_publisher_breaker_state", Gauge, Count, [],
        "Circuit breaker around Redis: 0 closed, 1 failing, 2 open.";
    PUBLISHER_DIVERGED_PARTITIONS = "visionscope_publisher_diverged_partitions", Gauge, Count, [],
        "Partitions whose stream differs from the outbox.";

    STREAM_EVENTS = "visionscope_stream_events", Gauge, Count, [],
        "Published events from the floor on, of all partitions: what the streams must hold.";
    GROUP_LAG_EVENTS = "visionscope_group_lag_events", Gauge, Count, ["group"],
        "Events after the last one that was delivered to a consumer group, summed over the partitions in which the group was seen. A group that is lost with its stream keeps its position and falls behind. At most 100 groups have a series of their own; the others together are `_others`.";

    CONSUMER_LAG_EVENTS = "visionscope_consumer_lag_events", Gauge, Count, ["consumer"],
        "Stored events that a consumer of this server has not taken yet, of all partitions.";
    CONSUMER_LAG_SECONDS = "visionscope_consumer_lag_seconds", Gauge, Seconds, ["consumer"],
        "Age of the oldest event that a consumer of this server has not taken yet.";
    CONSUMER_BEAT_SECONDS = "visionscope_consumer_beat_seconds", Histogram, Seconds, [],
        "How long it took to take the events of one beat, of all consumers.";
    CONSUMER_EVENTS = "visionscope_consumer_events_total", Counter, Count, ["consumer"],
        "Events that a consumer of this process has taken, or left out because it does not read their type.";
    CONSUMER_PARKED_WORKSPACES = "visionscope_consumer_parked_workspaces", Gauge, Count, ["consumer"],
        "Workspaces whose events a consumer leaves out, because it could not take one of them.";
    CONSUMER_WAITING_PARTITIONS = "visionscope_consumer_waiting_partitions", Gauge, Count, ["consumer"],
        "Partitions in which a consumer waits for a newer version of the server, because the next event has a newer type or schema.";
    CONSUMER_RUNS = "visionscope_consumer_runs", Gauge, Count, ["consumer"],
        "1 if a consumer runs, 0 if it is paused or was tripped.";
    CONSUMER_DEAD_LETTERS = "visionscope_consumer_dead_letters_total", Counter, Count, ["consumer"],
        "Events that a consumer of this process could not take.";

    JOBS = "visionscope_jobs_total", Counter, Count, ["queue", "event"],
        "What this process has done with jobs: taken (`submitted`), refused because their hold was (`rejected`), ended (`completed`, `failed`, `canceled`), to be tried again after an attempt that has failed (`retried`), and taken from workers that were not heard of (`lost`).";
    JOBS_DUE = "visionscope_jobs_due", Gauge, Count, ["queue"],
        "Jobs that are ready, up to 10,000: for workers (`worker`), commands (`server`), and those of schedules (`system`). Told by servers with the role `work`, as are the next two.";
    JOBS_RUNNING = "visionscope_jobs_running", Gauge, Count, ["queue"],
        "Jobs that workers have.";
    JOBS_OLDEST_DUE_SECONDS = "visionscope_jobs_oldest_due_seconds", Gauge, Seconds, ["queue"],
        "How long the job has waited that is taken next.";
    JOB_WAIT_SECONDS = "visionscope_job_wait_seconds", Histogram, Seconds, ["queue"],
        "From the instant that a job is planned for to the beginning of an attempt.";
    JOB_RUN_SECONDS = "visionscope_job_run_seconds", Histogram, Seconds, ["queue"],
        "How long an attempt has taken, of those that were ended by their worker or lost.";

    TASK_PANICS = "visionscope_task_panics_total", Counter, Count, ["task"],
        "How often a background task of this process has panicked and begun again: a fault of the server, or of what a person has written into the database.";

    CLEANED_ROWS = "visionscope_cleaned_rows_total", Counter, Count, ["leftover"],
        "Rows that this process has deleted because nobody needs them any more: of figures that a rebuild has replaced (`old_builds`), of usage by the hour and notifications after 400 days (`usage_hours`, `notifications`), dead letters 90 days after they were resolved (`dead_letters`), jobs that are over (`jobs`), and workers that are gone (`workers`).";

    SCHEDULER_COMMANDS = "visionscope_scheduler_commands_total", Counter, Count, ["work"],
        "Commands of the scheduler that took effect: periods begun (`boundary`), expiries booked (`expiry`), expiries announced (`expiry_warning`).";

    PROCESS_RESIDENT_MEMORY_BYTES = "process_resident_memory_bytes", Gauge, Bytes, [],
        "Memory of this process that is in use.";
    PROCESS_THREADS = "process_threads", Gauge, Count, [],
        "Threads of this process.";
}

/// Registers the descriptions of all metrics.
pub(super) fn describe() {
    for Metric { name, kind, unit, help, .. } in METRICS {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
}

/// The table of `docs/OPERATIONS.md`.
#[must_use]
pub fn to_markdown() -> String {
    let rows = METRICS.iter().map(|Metric { name, kind, labels, help, .. }| {
        let labels = if labels.is_empty() { "–".to_owned() } else { format!("`{}`", labels.join("`, `")) };
        let kind = format!("{kind:?}").to_lowercase();
        format!("| `{name}` | {kind} | {labels} | {help} |\n")
    });
    std::iter::once("| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned()).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_ends_with_its_kind_or_unit() {
        for metric in METRICS {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert_eq!(metric.name.ends_with("_seconds"), metric.unit == Unit::Seconds, "{}", metric.name);
            assert!(metric.name.starts_with("visionscope_") || metric.name.starts_with("process_"), "{}", metric.name);
        }
        let histograms = METRICS.iter().filter(|metric| metric.kind == Kind::Histogram);
        for metric in histograms {
            let has_buckets = metric.name.ends_with("_seconds") || metric.name.ends_with("_size");
            assert!(has_buckets, "{} would be rendered as a summary", metric.name);
        }
    }
}
