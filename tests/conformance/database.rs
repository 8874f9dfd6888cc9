//! What the suite needs from a database besides its store.

use async_trait::async_trait;
use visionscope_billing::store::{Cleaning, Consumption, Jobs, Operations, Store};

#[async_trait]
pub trait TestDatabase: Send + Sync + Sized {
    /// A fresh, migrated database of its own.
    async fn create() -> Self;

    async fn destroy(self);

    fn store(&self) -> &dyn Store;

    /// The same store, as the consumers of the server see it.
    fn consumption(&self) -> &dyn Consumption;

    /// The same store, as operators see it.
    fn operations(&self) -> &dyn Operations;

    /// The same store, as queues and workers see it.
    fn jobs(&self) -> &dyn Jobs;

    /// The same store, as the cleaning sees it.
    fn cleaning(&self) -> &dyn Cleaning;

    /// Runs a statement with the rights of a user of the database.
    async fn execute(&self, sql: &str) -> Result<(), String>;

    /// Runs a statement without triggers and foreign keys, to introduce a fault.
    async fn tamper(&self, sql: &str);

    /// The columns of a table in order, without generated ones.
    async fn columns(&self, table: &str) -> Vec<String>;

    /// Rows of integers; every column is cast to `bigint` by the statement.
    async fn integers(&self, sql: &str) -> Vec<Vec<i64>>;
}
