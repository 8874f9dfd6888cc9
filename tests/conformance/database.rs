//! What the suite needs from a kind of database, beyond the store on it.

use async_trait::async_trait;
use visionscope_billing::store::Store;

#[async_trait]
pub trait TestDatabase: Send + Sync + Sized {
    /// A fresh, migrated database of its own.
    async fn create() -> Self;

    /// Another one that holds the same rows under the first of all migrations, as a server of then would have left
    /// them. The store on this one may be closed for it.
    async fn in_first_schema(&self) -> Self;

    async fn destroy(self);

    fn store(&self) -> &dyn Store;

    /// Runs a statement as anybody could who has the database.
    async fn execute(&self, sql: &str) -> Result<(), String>;

    /// Runs a statement with triggers and foreign keys off, as a fault would.
    async fn tamper(&self, sql: &str);

    /// Rows of integers; every column is cast to `bigint` by the statement.
    async fn integers(&self, sql: &str) -> Vec<Vec<i64>>;
}
