//! Starts what runs beside the API until the server stops, as far as it belongs to the roles of this server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::StartError;
use crate::background::Background;
use crate::cleaning::Cleaner;
use crate::clock::Clock;
use crate::config::{Config, Role};
use crate::consumers::{self, ConsumersConfig, Wakeup};
use crate::domain::jobs::{Queue, SystemSchedule};
use crate::engine::Engine;
use crate::http::auth::{AuthConfig, AuthConfigError, Verifier};
use crate::http::{Health, JobCommands};
use crate::publisher::{PublisherHandle, PublisherHealth};
use crate::queues::{self, OwnWork, Queues, ScheduledWork};
use crate::scheduler::{Due, Scheduler};
use crate::store::{ServerStore, Store};

/// How often a replica looks which plans are offered.
const OFFERED_PLANS_INTERVAL: Duration = Duration::from_secs(10);

/// What the tasks need.
pub(super) struct Tasks<'a> {
    pub(super) config: &'a Config,
    pub(super) database: &'a Arc<dyn ServerStore>,
    pub(super) engine: &'a Engine,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) health: &'a Arc<Health>,
    pub(super) background: &'a Background,
}

impl Tasks<'_> {
    /// Starts all tasks that nothing waits for.
    pub(super) fn start(&self, wakeup: &Wakeup, publisher: Option<&PublisherHandle>) {
        let (store, engine) = (Arc::clone(self.database), self.engine.clone());
        self.background.run("plans", move |stop| follow_offered_plans(Arc::clone(&store) as _, engine.clone(), stop));
        if self.config.server.has_role(Role::Consume) {
            self.start_consumers(wakeup);
        }
        if let Some(publisher) = publisher {
            self.watch_publisher(publisher);
        }
        self.watch_database();
    }

    /// Creates the queues that the database does not have, and starts what serves them.
    pub(super) async fn start_queues(&self) -> Result<Queues, StartError> {
        let now = self.clock.now();
        let new = |(queue, settings)| Queue { queue, settings, changed_by: None, changed_at: now };
        let all: Vec<_> = self.config.job_queues().into_iter().map(new).collect();
        self.database.create_queues(&all).await?;
        self.database.create_schedules(&SystemSchedule::ALL.map(|schedule| schedule.begin(now))).await?;
        let parts = queues::Parts {
            jobs: Arc::clone(self.database) as _,
            store: Arc::clone(self.database) as _,
            engine: Arc::new(self.engine.clone()),
            routes: self.config.job_routes()?,
            clock: Arc::clone(self.clock),
        };
        let queues = Queues::start(parts).await?;
        let stored = queues.settings();
        for Queue { queue, settings, .. } in all {
            if stored.get(&queue).is_some_and(|stored| *stored != settings) {
                tracing::warn!(%queue, "the queue has other settings than the configuration, which does not change it: an operator can");
            }
        }
        if self.config.server.has_role(Role::Work) {
            let (all, own, work) = (queues.clone(), queues.clone(), self.own_work());
            self.background.run("jobs", move |stop| all.clone().run(stop));
            self.background.run("own_jobs", move |stop| own.clone().work(work.clone(), stop));
        }
        Ok(queues)
    }

    pub(super) fn start_verifier(&self, auth: &AuthConfig) -> Result<Arc<Verifier>, AuthConfigError> {
        let verifier = Arc::new(Verifier::new(auth, Arc::clone(self.clock))?);
        if let Some(jwks) = verifier.jwks().cloned() {
            self.background.run("keys", move |stop| {
                let jwks = jwks.clone();
                async move { jwks.run(stop).await }
            });
        }
        Ok(verifier)
    }

    fn start_consumers(&self, wakeup: &Wakeup) {
        let is_shared = self.config.database.url.is_some();
        let paces = if is_shared { ConsumersConfig::shared() } else { ConsumersConfig::embedded() };
        let (store, clock, wakeup) = (Arc::clone(self.database), Arc::clone(self.clock), wakeup.clone());
        self.background.run("consumers", move |stop| {
            consumers::run(Arc::clone(&store) as _, Arc::clone(&clock), wakeup.clone(), paces, stop)
        });
    }

    fn own_work(&self) -> OwnWork {
        let scheduler = Scheduler {
            max_workspaces: Scheduler::MAX_WORKSPACES,
            store: Arc::clone(self.database) as _,
            engine: self.engine.clone(),
            clock: Arc::clone(self.clock),
        };
        let store = Arc::clone(self.database) as _;
        let cleaner = Cleaner { max_rows: Cleaner::MAX_ROWS, store, clock: Arc::clone(self.clock) };
        OwnWork { commands: Arc::new(JobCommands), scheduled: Arc::new(Scheduled { scheduler, cleaner }) }
    }

    fn watch_publisher(&self, publisher: &PublisherHandle) {
        let (reports, health) = (publisher.health(), Arc::clone(self.health));
        self.background
            .run("publisher_health", move |stop| follow_publisher(reports.clone(), Arc::clone(&health), stop));
    }

    /// Carries the database's health to the readiness probe.
    fn watch_database(&self) {
        let (store, health) = (Arc::clone(self.database), Arc::clone(self.health));
        self.background.run("database_health", move |stop| {
            let (store, health): (Arc<dyn Store>, _) = (Arc::clone(&store) as _, Arc::clone(&health));
            async move { health.watch_database(&*store, stop).await }
        });
    }
}

/// What the schedules of the server are for.
struct Scheduled {
    scheduler: Scheduler,
    cleaner: Cleaner,
}

#[async_trait]
impl ScheduledWork for Scheduled {
    async fn run(&self, schedule: SystemSchedule) -> Result<(), String> {
        let due = match schedule {
            SystemSchedule::Periods => Due::Boundaries,
            SystemSchedule::Holds => Due::Holds,
            SystemSchedule::Expiries => Due::Expiries,
            SystemSchedule::ExpiryWarnings => Due::Warnings,
            SystemSchedule::Cleaning => return self.cleaner.clean().await.map(drop).map_err(|error| error.to_string()),
        };
        self.scheduler.book_all(due).await.map(drop).map_err(|error| error.to_string())
    }
}

/// Tells the engine which plans are offered: another replica may offer others.
async fn follow_offered_plans(store: Arc<dyn Store>, engine: Engine, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(OFFERED_PLANS_INTERVAL) => {}
        }
        match store.plans().await {
            Ok(plans) => engine.offer_plans(plans),
            Err(error) => tracing::warn!(%error, "the offered plans could not be read; trying again"),
        }
    }
}

/// Carries the publisher's health to the readiness probe.
async fn follow_publisher(mut reports: watch::Receiver<PublisherHealth>, health: Arc<Health>, stop: CancellationToken) {
    loop {
        health.set_stream_degraded(reports.borrow_and_update().is_degraded());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = reports.changed() => if changed.is_err() {
                health.set_stream_degraded(true);
                return;
            }
        }
    }
}
