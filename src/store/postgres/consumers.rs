//! The background writer of PostgreSQL: a small pool of its own.

use sqlx::postgres::PgConnection;

use super::connection::Transaction;
use super::database::PostgresStore;
use crate::store::consumption::{Background, BackgroundTx};
use crate::store::error::StoreError;

pub(super) const STATEMENTS: &[&str] = &[TAKE_LEASES, RELEASE_LEASES];

const TAKE_LEASES: &str = "
update consumer_leases
set owner = $1, leased_until = clock_timestamp() + $2 * interval '1 microsecond'
where owner is null or owner = $1 or leased_until <= clock_timestamp()
returning partition_id";

const RELEASE_LEASES: &str = "
update consumer_leases set owner = null, leased_until = '-infinity' where owner = $1";

impl Background for PostgresStore {
    type Tx = Transaction;

    async fn begin_background(&self) -> Result<Transaction, StoreError> {
        self.background.begin().await
    }

    fn lease_statements(&self) -> [&'static str; 2] {
        [TAKE_LEASES, RELEASE_LEASES]
    }
}

impl BackgroundTx for Transaction {
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        Self::connection(self)
    }

    async fn commit(self) -> Result<(), StoreError> {
        Self::commit(self).await
    }
}
