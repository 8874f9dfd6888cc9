//! The connections that write: a small pool that does not ping a connection when it is returned.
//!
//! The pool for reads pings each connection that is returned. For a batch of one statement that would
//! double the round trips. Here a connection is returned only after its last statement has ended; any
//! other connection is closed, which ends its transaction and releases its locks.

use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolConfig, PoolError, RecycleError, RecycleResult, Timeouts};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};

use super::error::store_error;
use crate::store::error::StoreError;

/// A connection that was idle for less is used without a ping, which would cost each batch a round trip.
pub(super) const TRUSTED_WHEN_IDLE: Duration = Duration::from_secs(1);
/// An older connection is replaced, so that sessions are balanced again after a failover.
const MAX_AGE: Duration = Duration::from_mins(30);
/// How long a rollback may take before the connection is closed.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Manager(PgConnectOptions);

impl managed::Manager for Manager {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        // Connecting takes a large future, and is rare.
        Box::pin(self.0.connect()).await
    }

    async fn recycle(&self, connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() > MAX_AGE {
            return Err(RecycleError::message("the connection has reached its maximum age"));
        }
        if metrics.last_used() > TRUSTED_WHEN_IDLE {
            Box::pin(connection.ping()).await?;
        }
        Ok(())
    }
}

/// The connections that write. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Writers {
    pool: managed::Pool<Manager>,
    wait: Duration,
}

impl Writers {
    /// A pool of at most so many connections. Each is opened when it is first needed.
    pub(super) fn new(options: PgConnectOptions, connections: u32, wait: Duration) -> Result<Self, StoreError> {
        let config = PoolConfig {
            max_size: usize::try_from(connections).unwrap_or(usize::MAX),
            timeouts: Timeouts { wait: Some(wait), create: Some(wait), recycle: Some(wait) },
            ..PoolConfig::default()
        };
        let pool = managed::Pool::builder(Manager(options)).config(config).runtime(Runtime::Tokio1).build();
        let pool = pool.map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Self { pool, wait })
    }

    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.pool.manager().0
    }

    /// How long it waits for a free or a new connection.
    pub(super) const fn wait(&self) -> Duration {
        self.wait
    }

    pub(super) async fn take(&self) -> Result<Held, StoreError> {
        match self.pool.get().await {
            Ok(object) => Ok(Held(Some(object))),
            Err(PoolError::Backend(error)) => Err(store_error(error)),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }

    /// Takes a connection and begins a transaction on it.
    pub(super) async fn begin(&self) -> Result<Transaction, StoreError> {
        let mut held = self.take().await?;
        held.connection().execute(BEGIN).await.map_err(store_error)?;
        Ok(Transaction(Some(held)))
    }

    /// Closes the idle connections now, and the others when they are returned.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

pub(super) const STATEMENTS: &[&str] = &[BEGIN, COMMIT, ROLLBACK];

pub(super) const BEGIN: &str = "begin";
const COMMIT: &str = "commit";
const ROLLBACK: &str = "rollback";

/// A connection in use. Dropping it closes it.
pub(super) struct Held(Option<Object<Manager>>);

impl Held {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is held until it is consumed")
    }

    /// Returns the connection. To be called after its last statement has ended, and outside a transaction.
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

/// A connection in a transaction. Dropping it rolls back.
pub(in crate::store) struct Transaction(Option<Held>);

impl Transaction {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is held until the transaction is consumed").connection()
    }

    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        self.connection().execute(COMMIT).await.map_err(store_error)?;
        if let Some(held) = self.0.take() {
            held.give_back();
        }
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let (Some(mut held), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else { return };
        runtime.spawn(async move {
            let rollback = held.connection().execute(ROLLBACK);
            if let Ok(Ok(_)) = tokio::time::timeout(ROLLBACK_TIMEOUT, rollback).await {
                held.give_back();
            }
        });
    }
}
