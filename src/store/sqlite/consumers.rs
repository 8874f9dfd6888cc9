//! The background writer of SQLite: the one connection that writes, behind the commands.

use sqlx::sqlite::SqliteConnection;

use super::connection::Transaction;
use super::database::SqliteStore;
use crate::store::consumption::{Background, BackgroundTx};
use crate::store::error::StoreError;

pub(super) const STATEMENTS: &[&str] = &[TAKE_LEASES, RELEASE_LEASES];

const TAKE_LEASES: &str = "
update consumer_leases
set owner = ?1, leased_until = cast(round(unixepoch('subsec') * 1000) as integer) * 1000 + ?2
where owner is null or owner = ?1 or leased_until <= cast(round(unixepoch('subsec') * 1000) as integer) * 1000
returning partition_id";

const RELEASE_LEASES: &str = "update consumer_leases set owner = null, leased_until = 0 where owner = ?1";

impl Background for SqliteStore {
    type Tx = Transaction;

    async fn begin_background(&self) -> Result<Transaction, StoreError> {
        self.writer.begin_background().await
    }

    fn lease_statements(&self) -> [&'static str; 2] {
        [TAKE_LEASES, RELEASE_LEASES]
    }
}

impl BackgroundTx for Transaction {
    type Connection = SqliteConnection;

    fn connection(&mut self) -> &mut SqliteConnection {
        Self::connection(self)
    }

    async fn commit(self) -> Result<(), StoreError> {
        Self::commit(self).await
    }
}
