//! The suite on SQLite: every test has a file of its own.

use std::path::PathBuf;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tempfile::TempDir;
use visionscope_billing::store::Store;
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore};

use crate::database::TestDatabase;

suite!(SqliteDatabase);

pub struct SqliteDatabase {
    folder: TempDir,
    store: SqliteStore,
}

impl SqliteDatabase {
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
        let folder = TempDir::new().unwrap();
        let config = SqliteConfig { path: folder.path().join("test.db"), readers: 2 };
        let store = SqliteStore::open(&config).await.unwrap();
        store.migrate().await.unwrap();
        Self { folder, store }
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

    async fn integers(&self, sql: &str) -> Vec<Vec<i64>> {
        let mut connection = self.connection(true).await;
        let rows = connection.fetch_all(AssertSqlSafe(sql.to_owned())).await.unwrap();
        rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
    }
}
