//! The suite on SQLite: every test has a file of its own.

use std::path::PathBuf;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tempfile::TempDir;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore, indexes};
use visionscope_billing::store::{Store, StoreError};

use crate::database::TestDatabase;
use crate::fixtures::{at, workspace, world_of};

suite!(SqliteDatabase);

pub struct SqliteDatabase {
    folder: TempDir,
    store: SqliteStore,
}

impl SqliteDatabase {
    /// An empty file, and the store on it.
    async fn open() -> Self {
        let folder = TempDir::new().unwrap();
        let config = SqliteConfig { path: folder.path().join("test.db"), readers: 2 };
        let store = SqliteStore::open(&config).await.unwrap();
        Self { folder, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("test.db")
    }

    async fn connection(&self, foreign_keys: bool) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.path()).foreign_keys(foreign_keys).connect().await.unwrap()
    }
}

#[async_trait]
impl TestDatabase for SqliteDatabase {
    async fn create() -> Self {
        let db = Self::open().await;
        db.store.migrate().await.unwrap();
        db
    }

    async fn destroy(self) {
        self.store.close().await;
    }

    fn store(&self) -> &dyn Store {
        &self.store
    }

    async fn execute(&self, sql: &str) -> Result<(), String> {
        let mut connection = self.connection(true).await;
        let done = connection.execute(AssertSqlSafe(sql.to_owned())).await;
        done.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn tamper(&self, sql: &str) {
        let mut connection = self.connection(false).await;
        let triggers = connection.fetch_all("select name from sqlite_master where type = 'trigger'").await.unwrap();
        for trigger in triggers {
            let drop = format!("drop trigger {}", trigger.get::<String, _>(0));
            connection.execute(AssertSqlSafe(drop)).await.unwrap();
        }
        connection.execute("pragma ignore_check_constraints = on").await.unwrap();
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    async fn columns(&self, table: &str) -> Vec<String> {
        let sql = AssertSqlSafe(format!("select name from pragma_table_info('{table}') order by cid"));
        sqlx::query_scalar(sql).fetch_all(&mut self.connection(true).await).await.unwrap()
    }

    async fn integers(&self, sql: &str) -> Vec<Vec<i64>> {
        let mut connection = self.connection(true).await;
        let rows = connection.fetch_all(AssertSqlSafe(sql.to_owned())).await.unwrap();
        rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
    }
}

#[tokio::test]
async fn a_batch_that_was_decided_on_another_head_is_a_conflict() {
    let db = SqliteDatabase::create().await;
    let mut world = world_of(db.store(), 2).await;
    let mut other = world.beside();
    let one = world.deduct(workspace(0), Credits::whole(1), at(1)).take();
    let two = other.deduct(workspace(1), Credits::whole(2), at(1)).take();
    assert_eq!(db.store().write(&one).await.unwrap(), one.heads);
    let refused = db.store().write(&two).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(db.store().audit(10).await.unwrap(), []);
    db.destroy().await;
}

#[tokio::test]
async fn every_list_and_look_up_uses_its_index() {
    let db = SqliteDatabase::create().await;
    let mut connection = db.connection(true).await;
    for (statement, index) in indexes() {
        let explain = AssertSqlSafe(format!("explain query plan {statement}"));
        let steps = connection.fetch_all(explain).await.unwrap();
        let plan: Vec<String> = steps.iter().map(|row| row.get("detail")).collect();
        let is_rows_of_parameter = |step: &str| step.contains("VIRTUAL TABLE") || step.contains("CONSTANT");
        let scans = plan.iter().any(|step| step.starts_with("SCAN") && !is_rows_of_parameter(step));
        let sorts = plan.iter().any(|step| step.contains("TEMP B-TREE"));
        let is_used = plan.iter().any(|step| step.contains(index));
        assert!(is_used && !scans && !sorts, "{index}: {plan:?}\n{statement}");
    }
}
