//! The suite on SQLite: every test has a file of its own.

use std::path::PathBuf;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use tempfile::TempDir;
use visionscope_billing::store::Store;
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore};

use crate::database::TestDatabase;
use crate::migrations::copy_from_later;

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

    async fn in_first_schema(&self) -> Self {
        let other = Self::open().await;
        let mut connection = other.connection(false).await;
        let first = sqlx::migrate!("migrations/sqlite").migrations[0].clone();
        Migrator::with_migrations(vec![first]).run_direct(None, &mut connection, false).await.unwrap();
        let attach = format!("attach '{}' as later", self.path().display());
        connection.execute(AssertSqlSafe(attach)).await.unwrap();
        let tables = "select m.name, group_concat(c.name) from sqlite_schema m, pragma_table_xinfo(m.name) c
            where m.type = 'table' and m.name <> '_sqlx_migrations' group by m.name";
        for row in connection.fetch_all(tables).await.unwrap() {
            let (table, columns): (String, String) = (row.get(0), row.get(1));
            connection.execute(AssertSqlSafe(copy_from_later(&table, &columns))).await.unwrap();
        }
        connection.close().await.unwrap();
        other
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
