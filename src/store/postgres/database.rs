//! The settings, pools and timeouts of a PostgreSQL database.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Postgres, Transaction};

use super::connection::{TRUSTED_WHEN_IDLE, Writers};
use super::error::store_error;
use crate::store::error::StoreError;
use crate::store::plan_cache::PlanCache;

/// The longest statement timeout that can be configured: less than [`ANSWER_TIMEOUT`](crate::store::error::ANSWER_TIMEOUT).
pub const MAX_STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections for transactions that no caller waits for.
const BACKGROUND_CONNECTIONS: u32 = 4;
/// How long a returned connection may take to answer a ping.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long migrating may take, including the wait for another replica that migrates.
pub(super) const MIGRATE_TIMEOUT: Duration = Duration::from_hours(1);
/// How long closing waits for connections that are in use.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of the database, and its timeouts.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    pub url: SecretString,
    /// Connections for write transactions of commands.
    pub max_connections: u32,
    /// Connections for everything else: reads and the publisher.
    pub read_connections: u32,
    /// How long to wait for a free or a new connection.
    pub acquire_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    /// After this an idle transaction is ended, and its locks are released.
    pub idle_in_transaction_timeout: Duration,
}

impl PostgresConfig {
    /// The defaults of the configuration.
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            max_connections: 8,
            read_connections: 8,
            acquire_timeout: Duration::from_millis(500),
            statement_timeout: Duration::from_secs(2),
            lock_timeout: Duration::from_secs(1),
            idle_in_transaction_timeout: Duration::from_secs(6),
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

/// Every statement reads few rows by an index. A generic plan for that stays right while the tables grow. A plan
/// that was chosen while they were empty would scan them until the next ANALYZE.
const PLANNING: [(&str, &str); 7] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

pub(super) static MIGRATOR: Migrator = sqlx::migrate!("migrations/postgres");

pub(super) const STATEMENTS: &[&str] = &[HAS_MIGRATIONS, APPLIED_MIGRATIONS, BEGIN_READING];

/// Begins a transaction whose statements all see the same snapshot.
pub(super) const BEGIN_READING: &str = "begin isolation level repeatable read, read only";

const HAS_MIGRATIONS: &str = "select to_regclass('_sqlx_migrations') is not null as is_there";

const APPLIED_MIGRATIONS: &str = "select version, checksum from _sqlx_migrations where success";

/// The store on a PostgreSQL database. Cheap to clone.
#[derive(Clone)]
pub struct PostgresStore {
    /// For transactions of commands only, so that slow reads do not delay them.
    pub(super) writes: Writers,
    /// For reads and the publisher.
    pub(super) reads: PgPool,
    /// For transactions that no caller waits for.
    pub(super) background: Writers,
    pub(super) plans: Arc<PlanCache>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Begins a transaction on a connection of the readers.
    ///
    /// sqlx ends a transaction that is dropped, but not one that is dropped while it begins: its connection would return to
    /// the pool within a transaction, and later reads on it would see an old snapshot. So the beginning is a task of its own,
    /// which nobody interrupts.
    pub(super) async fn begin_on_reader(
        &self,
        statement: &'static str,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        let reads = self.reads.clone();
        let begun = tokio::spawn(async move { reads.begin_with(statement).await }).await;
        begun.map_err(|error| StoreError::Unavailable(error.to_string()))?.map_err(store_error)
    }

    /// Opens the pools and the first connection for writing.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, StoreError> {
        let options = config.connect_options()?;
        let reads = Self::pool(config, config.read_connections).connect_lazy_with(options.clone());
        let background = Writers::new(options.clone(), BACKGROUND_CONNECTIONS, config.acquire_timeout)?;
        let writes = Writers::new(options, config.max_connections, config.acquire_timeout)?;
        writes.take().await?.give_back();
        Ok(Self { writes, reads, background, plans: Arc::default() })
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

    /// Whether every migration has been applied unchanged. Only reads.
    pub(super) async fn is_migrated(&self) -> Result<bool, StoreError> {
        let mut held = self.writes.take().await?;
        if !sqlx::query_scalar(HAS_MIGRATIONS).fetch_one(held.connection()).await.map_err(store_error)? {
            return Ok(false);
        }
        let applied = sqlx::query_as::<_, (i64, Vec<u8>)>(APPLIED_MIGRATIONS).fetch_all(held.connection()).await;
        let applied: HashMap<_, _> = applied.map_err(store_error)?.into_iter().collect();
        held.give_back();
        Ok(MIGRATOR.iter().all(|known| applied.get(&known.version).is_some_and(|sum| **sum == *known.checksum)))
    }
}
