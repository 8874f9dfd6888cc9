//! The Prometheus recorder of the process.
//!
//! Histogram samples stay in memory until they are drained. A thread drains them, so that memory is bounded even if
//! `/metrics` is never read.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::metric;

/// How often samples are drained. At 100,000 per second, some megabytes gather in between.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// From 100 microseconds (an answer from memory) to ten seconds (the longest timeout).
const SECONDS_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Commands in a batch, from one to the largest useful batch.
const SIZE_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Renders all metrics in the Prometheus text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The metrics of this process. The first call installs the recorder. Later calls return the same one, so that
/// tests can start many servers in one process.
#[must_use]
pub fn metrics() -> RenderMetrics {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = RECORDER.get_or_init(install).clone();
    Arc::new(move || {
        set_process_metrics();
        handle.render()
    })
}

fn install() -> PrometheusHandle {
    let recorder = builder().build_recorder();
    let handle = recorder.handle();
    if ::metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is already installed: /metrics will be empty");
        return handle;
    }
    metric::describe();
    let drained = handle.clone();
    let upkeep = std::thread::Builder::new().name("metrics-upkeep".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP_INTERVAL);
            drained.run_upkeep();
        }
    });
    if let Err(error) = upkeep {
        tracing::warn!(error = %error, "no thread for metrics: samples are drained only when /metrics is read");
    }
    handle
}

fn builder() -> PrometheusBuilder {
    let buckets = [("_seconds", SECONDS_BUCKETS), ("_size", SIZE_BUCKETS)];
    buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (suffix, values)| {
        builder
            .set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), values)
            .expect("the bucket lists are not empty")
    })
}

/// Reads memory and threads of this process from `/proc`. Does nothing on systems other than Linux.
fn set_process_metrics() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    if let Some(kib) = number("VmRSS") {
        ::metrics::gauge!(metric::PROCESS_RESIDENT_MEMORY_BYTES).set(f64::from(kib) * 1024.0);
    }
    if let Some(threads) = number("Threads") {
        ::metrics::gauge!(metric::PROCESS_THREADS).set(f64::from(threads));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_rendered_with_descriptions_and_buckets() {
        let render = metrics();
        ::metrics::histogram!(metric::ENGINE_BATCH_SECONDS).record(0.002);
        ::metrics::histogram!(metric::ENGINE_BATCH_SIZE).record(3.0);
        ::metrics::counter!(metric::ENGINE_COMMANDS, "type" => "DeductCredits", "outcome" => "accepted").increment(1);
        let text = metrics()();
        for line in [
            "# HELP visionscope_engine_batch_size Commands in one transaction.",
            "# TYPE visionscope_engine_batch_size histogram",
            "visionscope_engine_batch_size_bucket{le=\"4\"} 1",
            "visionscope_engine_batch_seconds_bucket{le=\"0.001\"} 0",
            "visionscope_engine_batch_seconds_bucket{le=\"0.0025\"} 1",
            "visionscope_engine_commands_total{type=\"DeductCredits\",outcome=\"accepted\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert_eq!(render().matches("# TYPE process_resident_memory_bytes gauge").count(), 1);
    }
}
