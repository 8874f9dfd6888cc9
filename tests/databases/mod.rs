//! Fresh, migrated databases for tests that run on both kinds.
//!
//! PostgreSQL: a database of its own per test, cloned from a migrated template on the server of
//! `DATABASE_URL`. SQLite: a file of its own in a temporary folder.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::store::postgres::{PostgresConfig, PostgresStore};
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore};
use visionscope_billing::store::{ServerStore, Store};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

/// A database for one test, and the store on it.
pub struct TestDatabase {
    pub store: Arc<dyn Store>,
    /// The same store, for what only the server itself does.
    pub server_store: Arc<dyn ServerStore>,
    kind: Kind,
}

enum Kind {
    Sqlite(TempDir),
    Postgres(String),
}

static TEMPLATE: OnceCell<String> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Long, because opening a connection can take seconds while all tests share two cores.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

impl Database {
    pub const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub async fn create(self) -> TestDatabase {
        match self {
            Self::Sqlite => {
                let folder = TempDir::new().unwrap();
                let config = SqliteConfig { readers: 2, ..SqliteConfig::new(folder.path().join("test.db")) };
                let store = SqliteStore::open(&config).await.unwrap();
                store.migrate().await.unwrap();
                TestDatabase::new(Arc::new(store), Kind::Sqlite(folder))
            }
            Self::Postgres => {
                let template = TEMPLATE.get_or_init(make_template).await;
                let name = fresh_name("test");
                admin(&format!("create database {name} template {template}")).await;
                let store = connect(&name).await;
                TestDatabase::new(Arc::new(store), Kind::Postgres(name))
            }
        }
    }
}

impl TestDatabase {
    fn new(store: Arc<dyn ServerStore>, kind: Kind) -> Self {
        Self { store: Arc::clone(&store) as Arc<dyn Store>, server_store: store, kind }
    }

    /// A second store on the same database: another replica.
    pub async fn replica(&self) -> Arc<dyn Store> {
        match &self.kind {
            Kind::Sqlite(folder) => {
                let config = SqliteConfig { readers: 2, ..SqliteConfig::new(folder.path().join("test.db")) };
                Arc::new(SqliteStore::open(&config).await.unwrap())
            }
            Kind::Postgres(name) => Arc::new(connect(name).await),
        }
    }

    /// For a test that speaks to PostgreSQL itself.
    pub fn postgres_options(&self) -> PgConnectOptions {
        match &self.kind {
            Kind::Postgres(name) => server().database(name),
            Kind::Sqlite(_) => panic!("it is an SQLite database"),
        }
    }

    /// For a test that opens the file itself.
    pub fn sqlite_file(&self) -> PathBuf {
        match &self.kind {
            Kind::Sqlite(folder) => folder.path().join("test.db"),
            Kind::Postgres(_) => panic!("it is a PostgreSQL database"),
        }
    }

    /// Runs these statements on one connection.
    pub async fn execute(&self, statements: &[&str]) {
        let sql = |text: &&str| AssertSqlSafe((*text).to_owned());
        match &self.kind {
            Kind::Sqlite(_) => {
                let options = SqliteConnectOptions::new().filename(self.sqlite_file()).busy_timeout(ACQUIRE_TIMEOUT);
                let mut connection = options.connect().await.unwrap();
                for statement in statements.iter().map(sql) {
                    connection.execute(statement).await.unwrap();
                }
            }
            Kind::Postgres(_) => {
                let mut connection = self.postgres_options().connect().await.unwrap();
                for statement in statements.iter().map(sql) {
                    connection.execute(statement).await.unwrap();
                }
            }
        }
    }

    /// Changes a stored event, which the database refuses to everybody else.
    pub async fn change_event(&self, event: &EventRecord, change: &str) {
        self.tamper(event, &format!("update event_outbox set {change}")).await;
    }

    /// Runs a statement on a stored event, whatever triggers and constraints say.
    pub async fn tamper(&self, event: &EventRecord, statement: &str) {
        let place = format!("where partition_id = {} and seq = {}", event.partition.number(), event.seq);
        let before: &[&str] = match &self.kind {
            Kind::Sqlite(_) => &[
                "drop trigger if exists event_outbox_refuse_update",
                "drop trigger if exists event_outbox_refuse_delete",
                "pragma ignore_check_constraints = on",
            ],
            Kind::Postgres(_) => &["set session_replication_role = replica"],
        };
        self.execute(&[before, &[&format!("{statement} {place}")]].concat()).await;
    }

    pub async fn close(&self) {
        self.store.close().await;
        if let Kind::Postgres(name) = &self.kind {
            admin(&format!("drop database {name} with (force)")).await;
        }
    }
}

async fn make_template() -> String {
    let name = fresh_name("template");
    admin(&format!("create database {name}")).await;
    let store = connect(&name).await;
    store.migrate().await.unwrap();
    store.close().await;
    name
}

async fn connect(name: &str) -> PostgresStore {
    let url = server().database(name).to_url_lossy().to_string();
    let config = PostgresConfig {
        max_connections: 8,
        acquire_timeout: ACQUIRE_TIMEOUT,
        ..PostgresConfig::new(SecretString::from(url))
    };
    PostgresStore::connect(&config).await.unwrap()
}

fn server() -> PgConnectOptions {
    let url = std::env::var("DATABASE_URL")
        .expect("DATABASE_URL is not set: run the tests with scripts/test, which starts a PostgreSQL server");
    PgConnectOptions::from_str(&url).expect("DATABASE_URL is a postgres:// url")
}

/// A name that is unique on the server: the process's id, and a number within the process.
fn fresh_name(kind: &str) -> String {
    format!("vs_{kind}_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

async fn admin(sql: &str) {
    let mut connection: PgConnection = server().connect().await.expect("the server of DATABASE_URL answers");
    connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    connection.close().await.unwrap();
}
