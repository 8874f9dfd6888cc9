//! The suite on SQLite: every test has a file of its own.

use std::path::PathBuf;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tempfile::TempDir;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore, indexes};
use visionscope_billing::store::{Cleaning, Consumption, Jobs, Operations, Reads, Store, StoreError};

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

    fn consumption(&self) -> &dyn Consumption {
        &self.store
    }

    fn operations(&self) -> &dyn Operations {
        &self.store
    }

    fn jobs(&self) -> &dyn Jobs {
        &self.store
    }

    fn cleaning(&self) -> &dyn Cleaning {
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
    for (statement, index) in indexes().into_iter().filter(|(_, index)| !index.is_empty()) {
        let explain = AssertSqlSafe(format!("explain query plan {statement}"));
        let steps = connection.fetch_all(explain).await.unwrap();
        let plan: Vec<String> = steps.iter().map(|row| row.get("detail")).collect();
        // The rows of a parameter, or of a subquery that has a step of its own.
        let is_given = |step: &str| {
            let of_subquery = |name: &str| plan.contains(&format!("CO-ROUTINE {name}"));
            step.contains("VIRTUAL TABLE") || step.strip_prefix("SCAN ").is_some_and(of_subquery)
        };
        let scans = plan.iter().any(|step| step.starts_with("SCAN") && !is_given(step));
        let is_page = statement.contains("order by t.recorded_at") || statement.contains("order by t.workspace_seq");
        let sorts = is_page && plan.iter().any(|step| step.contains("TEMP B-TREE"));
        // A primary key has no index of that name: the table itself is ordered by it, or SQLite has named one.
        let names = match index.strip_suffix("_pkey") {
            Some(table) => vec!["PRIMARY KEY".to_owned(), format!("sqlite_autoindex_{table}_1")],
            None => vec![index.to_owned()],
        };
        let is_used = plan.iter().any(|step| names.iter().any(|name| step.contains(name)));
        assert!(is_used && !scans && !sorts, "{index}: {plan:?}\n{statement}");
    }
}

#[tokio::test]
async fn another_process_that_writes_is_waited_for_and_then_reported_as_unavailable() {
    let db = SqliteDatabase::create().await;
    let other = SqliteStore::open(&SqliteConfig::new(db.path())).await.unwrap();
    let held = other.begin().await.unwrap();
    let refused = db.store().begin().await.map(|_| ());
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    drop(held);
    other.close().await;
    db.store().begin().await.unwrap();
}

#[tokio::test]
async fn a_second_server_is_refused_until_the_first_has_closed_and_others_are_not() {
    let folder = TempDir::new().unwrap();
    let (path, link) = (folder.path().join("data/billing.db"), folder.path().join("link.db"));
    let first = SqliteStore::open_to_serve(&SqliteConfig::new(&path)).await.unwrap();
    first.migrate().await.unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let refused = SqliteStore::open_to_serve(&SqliteConfig::new(name)).await.map(|_| ());
        let Err(StoreError::Unavailable(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("another server") && text.contains(&*name.to_string_lossy()), "{text}");
    }
    let beside = SqliteStore::open(&SqliteConfig::new(&path)).await.unwrap();
    assert!(beside.audit(1).await.unwrap().is_empty());
    beside.close().await;
    first.close().await;
    let second = SqliteStore::open_to_serve(&SqliteConfig::new(&link)).await.unwrap();
    second.ping().await.unwrap();
}
