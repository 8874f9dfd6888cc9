//! The tasks that run beside the API until the server stops.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use metrics::counter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::metric;

/// The pause before a task that has panicked begins again.
const PAUSE: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Background {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Background {
    /// Runs a task until the server stops. One that panics begins again, with nothing that it held in memory.
    pub fn run<F>(&self, name: &'static str, task: impl Fn(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            keep_running(name, move || task(stop.clone())).await;
        });
    }

    /// Lets all tasks end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all have ended. To be called after [`Self::stop`].
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs a task until it ends. One that panics begins again.
pub async fn keep_running<F: Future<Output = ()>>(name: &'static str, task: impl Fn() -> F) {
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a background task has panicked; it begins again");
        counter!(metric::TASK_PANICS, "task" => name).increment(1);
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_begins_again_and_ends_when_it_is_told_to() {
        let (background, begun) = (Background::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&begun);
        background.run("test", move |stop| {
            let nth = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(nth == 2, "it panics the first and the second time");
                stop.cancelled().await;
            }
        });
        for _ in 0..100 {
            tokio::time::sleep(PAUSE / 10).await;
            if begun.load(Ordering::SeqCst) == 3 {
                break;
            }
        }
        assert_eq!(begun.load(Ordering::SeqCst), 3);
        background.stop();
        background.ended().await;
    }
}
