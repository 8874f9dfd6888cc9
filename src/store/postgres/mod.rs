//! The store on PostgreSQL: for production, with any number of replicas.
//!
//! Invariants: every write transaction locks its partitions first, so writers of one partition are
//! strictly serial and none ever waits in a circle. `synchronous_commit` is on: what is committed
//! survives. Every wait has an end, on the server (statement, lock and idle timeouts) and here (the
//! pools and [`ANSWER_TIMEOUT`], for a server that has gone without a word). Commands have a pool of
//! their own, so that slow reads keep none of them waiting.
//!
//! Deliberately absent: LISTEN/NOTIFY (the publisher is woken in its process and polls otherwise),
//! advisory locks (the partition's row is the lock), and statements for single rows on the write path.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};

use self::connection::Writers;
use self::error::{of_migration, store_error};
use self::write::{PostgresTx, write_hot_rows};
use crate::domain::change_set::ChangeSet;
use crate::domain::ids::WorkspaceId;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{PartitionHead, WorkspaceState};
use crate::domain::workspace::WorkspaceCredits;
use crate::store::plan_cache::PlanCache;
use crate::store::{Store, StoreError, WriteTx, within};

mod audit;
mod connection;
mod error;
mod load;
mod outbox;
mod plans;
mod rare;
mod reads;
mod row_types;
mod rows;
mod write;

/// How long one operation of the store, of a handful of statements, may take before the server is
/// given up. The waits are nested, and the inner one tells the reason: lock ≤ statement ≤
/// [`MAX_STATEMENT_TIMEOUT`] < this. The configuration holds to the same bounds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most that the server may be given for one statement: less than [`ANSWER_TIMEOUT`].
pub const MAX_STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// A connection that was idle for less is taken as it is: a ping would cost each batch a round trip.
const TRUSTED_WHEN_IDLE: Duration = Duration::from_secs(1);
/// How long a connection that comes back may take to show that it still works.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long migrating may take, and waiting for another replica that migrates.
const MIGRATE_TIMEOUT: Duration = Duration::from_hours(1);
/// How long closing waits for connections that are in use.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the database is, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    pub url: SecretString,
    /// For write transactions of commands.
    pub max_connections: u32,
    /// For everything else: reads and the publisher.
    pub read_connections: u32,
    /// For a free connection of the pool, or a new one.
    pub acquire_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    /// After this a transaction whose owner hangs loses its locks.
    pub idle_in_transaction_timeout: Duration,
}

impl PostgresConfig {
    /// The defaults for a database: those of the configuration.
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            max_connections: 8,
            read_connections: 8,
            acquire_timeout: Duration::from_millis(500),
            statement_timeout: Duration::from_secs(2),
            lock_timeout: Duration::from_secs(1),
            idle_in_transaction_timeout: Duration::from_secs(5),
        }
    }

    fn connect_options(&self) -> Result<PgConnectOptions, StoreError> {
        // The parser's error may repeat the url, and with it the password.
        let options = PgConnectOptions::from_str(self.url.expose_secret())
            .map_err(|_| StoreError::Unavailable("the database url cannot be read".into()))?;
        let ms = |timeout: Duration| timeout.as_millis().to_string();
        Ok(options
            .application_name("visionscope")
            .options([
                ("synchronous_commit", "on".to_owned()),
                ("default_transaction_isolation", "read committed".to_owned()),
                ("statement_timeout", ms(self.statement_timeout)),
                ("lock_timeout", ms(self.lock_timeout)),
                ("idle_in_transaction_session_timeout", ms(self.idle_in_transaction_timeout)),
            ])
            .options(PLANNING)
            .disable_statement_logging())
    }
}

/// Every statement reaches few rows by index. A plan made once for that stays right while the tables
/// grow; one made while they were empty would scan them until the next analyze.
const PLANNING: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

static MIGRATOR: Migrator = sqlx::migrate!("migrations/postgres");

const STATEMENTS: &[&str] = &[HAS_MIGRATIONS, APPLIED_MIGRATIONS];

const HAS_MIGRATIONS: &str = "select to_regclass('_sqlx_migrations') is not null as is_there";

const APPLIED_MIGRATIONS: &str = "select version, checksum from _sqlx_migrations where success";

/// The store on a PostgreSQL database. Cheap to clone.
#[derive(Clone)]
pub struct PostgresStore {
    /// For the transactions of commands alone, so that no read, however slow, keeps them waiting.
    writes: Writers,
    /// For reads and the publisher, whose work can wait.
    reads: PgPool,
    plans: Arc<PlanCache>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Opens the pools and the first connection for writing.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, StoreError> {
        let options = config.connect_options()?;
        let reads = Self::pool(config, config.read_connections).connect_lazy_with(options.clone());
        let writes = Writers::new(options, config.max_connections, config.acquire_timeout)?;
        writes.take().await?.put_back();
        Ok(Self { writes, reads, plans: Arc::default() })
    }

    fn pool(config: &PostgresConfig, connections: u32) -> PgPoolOptions {
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(config.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED_WHEN_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_release(|connection, _| {
                Box::pin(async move {
                    match tokio::time::timeout(RELEASE_TIMEOUT, connection.ping()).await {
                        Ok(answer) => answer.map(|()| true),
                        Err(_) => Err(sqlx::Error::PoolTimedOut),
                    }
                })
            })
    }

    /// Whether every migration has been applied, unaltered. Only reads.
    async fn is_migrated(&self) -> Result<bool, StoreError> {
        let mut held = self.writes.take().await?;
        if !sqlx::query_scalar(HAS_MIGRATIONS).fetch_one(held.connection()).await.map_err(store_error)? {
            return Ok(false);
        }
        let applied = sqlx::query_as::<_, (i64, Vec<u8>)>(APPLIED_MIGRATIONS).fetch_all(held.connection()).await;
        let applied: HashMap<_, _> = applied.map_err(store_error)?.into_iter().collect();
        held.put_back();
        Ok(MIGRATOR.iter().all(|known| applied.get(&known.version).is_some_and(|sum| **sum == *known.checksum)))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        let tx = in_time(self.writes.begin()).await?;
        Ok(Box::new(PostgresTx::new(tx, Arc::clone(&self.plans))))
    }

    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        in_time(async {
            let mut held = self.writes.take().await?;
            let states = load::workspaces(held.connection(), &self.plans, &ids).await?;
            held.put_back();
            Ok(states)
        })
        .await
    }

    async fn credits_since(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceCredits>, StoreError> {
        in_time(async {
            let mut held = self.writes.take().await?;
            let credits = load::credits_since(held.connection(), known).await?;
            held.put_back();
            Ok(credits)
        })
        .await
    }

    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        if !changes.is_usual() {
            return in_time(async {
                let mut tx = self.writes.begin().await?;
                // The heads first, here too: whoever holds them may want the other rows next.
                load::lock_partitions(tx.connection(), &changes.heads.iter().map(|head| head.partition).collect())
                    .await?;
                let heads = write::write(tx.connection(), changes).await?;
                tx.commit().await?;
                Ok(heads)
            })
            .await;
        }
        in_time(async {
            let mut held = self.writes.take().await?;
            let written = write_hot_rows(held.connection(), changes).await;
            // An answer of the server, good or bad, ends the statement; anything else leaves it open.
            if matches!(written, Ok(_) | Err(StoreError::Conflict(_))) {
                held.put_back();
            }
            written
        })
        .await
    }

    async fn put_plans(&self, plans: &[PlanVersion]) -> Result<(), StoreError> {
        in_time(async {
            let mut tx = self.writes.begin().await?;
            plans::put(tx.connection(), plans).await?;
            tx.commit().await
        })
        .await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        if in_time(self.is_migrated()).await? {
            // A user that may not create tables can run the server.
            return Ok(());
        }
        let ms = MIGRATE_TIMEOUT.as_millis().to_string();
        let options = self.writes.options().clone().options([("statement_timeout", &ms), ("lock_timeout", &ms)]);
        let work = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(self.writes.wait())
                .connect_with(options)
                .await
                .map_err(store_error)?;
            let migrated = MIGRATOR.run(&pool).await.map_err(of_migration);
            pool.close().await;
            migrated
        };
        within(MIGRATE_TIMEOUT, work).await
    }

    async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.reads.close()).await;
        self.writes.close();
    }
}

/// Every statement of this store, for the test that prepares them all.
#[doc(hidden)]
pub fn statements() -> impl Iterator<Item = &'static str> {
    [
        STATEMENTS,
        load::STATEMENTS,
        write::STATEMENTS,
        connection::STATEMENTS,
        rare::STATEMENTS,
        plans::STATEMENTS,
        reads::STATEMENTS,
        outbox::STATEMENTS,
        audit::STATEMENTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Waits for an operation, but not for ever.
async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>> + Send) -> Result<T, StoreError> {
    within(ANSWER_TIMEOUT, work).await
}
