//! The suite on PostgreSQL: every test clones a migrated template on the server of `DATABASE_URL`.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row, SqlSafeStr};
use tokio::sync::OnceCell;
use visionscope_billing::config::Config;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::store::postgres::{MAX_STATEMENT_TIMEOUT, PostgresConfig, PostgresStore, indexes, statements};
use visionscope_billing::store::{Cleaning, Consumption, Jobs, Operations, Store, StoreError};

use crate::database::TestDatabase;
use crate::fixtures::{at, keys_of, load, workspace, workspace_in, world_of};

suite!(PostgresDatabase);

static TEMPLATE: OnceCell<String> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A connection to the new database may have to wait for two cores that run all tests.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct PostgresDatabase {
    name: String,
    store: PostgresStore,
}

impl PostgresDatabase {
    async fn open(name: &str) -> PostgresStore {
        let url = options().database(name).to_url_lossy();
        let config = PostgresConfig {
            max_connections: 4,
            read_connections: 2,
            acquire_timeout: ACQUIRE_TIMEOUT,
            ..PostgresConfig::new(SecretString::from(url.to_string()))
        };
        PostgresStore::connect(&config).await.unwrap()
    }

    async fn connection(&self) -> PgConnection {
        options().database(&self.name).connect().await.unwrap()
    }
}

#[async_trait]
impl TestDatabase for PostgresDatabase {
    async fn create() -> Self {
        let template = TEMPLATE.get_or_init(make_template).await;
        let name = fresh_name("test");
        admin(&format!("create database {name} template {template}")).await;
        let store = Self::open(&name).await;
        Self { name, store }
    }

    async fn destroy(self) {
        self.store.close().await;
        admin(&format!("drop database {} with (force)", self.name)).await;
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
        let mut connection = self.connection().await;
        let done = connection.execute(AssertSqlSafe(sql.to_owned())).await;
        done.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn tamper(&self, sql: &str) {
        let mut connection = self.connection().await;
        connection.execute("set session_replication_role = replica").await.unwrap();
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    async fn columns(&self, table: &str) -> Vec<String> {
        let sql = "select attname::text from pg_attribute
            where attrelid = $1::regclass and attnum > 0 and attgenerated = '' order by attnum";
        sqlx::query_scalar(sql).bind(table).fetch_all(&mut self.connection().await).await.unwrap()
    }

    async fn integers(&self, sql: &str) -> Vec<Vec<i64>> {
        let mut connection = self.connection().await;
        let rows = connection.fetch_all(AssertSqlSafe(sql.to_owned())).await.unwrap();
        rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
    }
}

async fn make_template() -> String {
    let name = fresh_name("template");
    admin(&format!("create database {name}")).await;
    let store = PostgresDatabase::open(&name).await;
    store.migrate().await.unwrap();
    store.migrate().await.expect("migrating twice is migrating once");
    store.close().await;
    name
}

fn options() -> PgConnectOptions {
    let url = std::env::var("DATABASE_URL").expect(
        "DATABASE_URL names no PostgreSQL server: run the tests with scripts/test, which starts one, or set it",
    );
    PgConnectOptions::from_str(&url).expect("DATABASE_URL is a postgres:// url")
}

/// Unique on the server: the process's id, and a number within the process.
fn fresh_name(kind: &str) -> String {
    format!("conformance_{kind}_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed))
}

async fn admin(sql: &str) {
    let mut connection = options().connect().await.expect("the server of DATABASE_URL answers");
    connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn every_statement_prepares() {
    let db = PostgresDatabase::create().await;
    let mut connection = db.connection().await;
    for sql in statements() {
        let prepared = connection.prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await;
        assert!(prepared.is_ok(), "{:?}\n{sql}", prepared.err());
    }
    drop(connection);
    db.destroy().await;
}

#[tokio::test]
async fn every_list_and_look_up_uses_its_index() {
    let db = PostgresDatabase::create().await;
    let mut connection = db.connection().await;
    world_of(db.store(), 1).await;
    // Several indexes begin with the workspace. Which is better shows only where a workspace has many grants and holds.
    connection
        .execute(
            "insert into credit_grants (workspace_id, grant_id, source, amount, remaining, held, priority, effective_at,
                created_at, issued_seq)
            select workspace_id, gen_random_uuid(), 'promotion', 1, n % 2, 0, 50, created_at, created_at + n * interval '1 s', n
            from workspaces, generate_series(2, 2000) n;
            insert into credit_holds (workspace_id, hold_id, feature_code, amount, overdraft, command_id, state, expires_at,
                created_at, closed_at, captured)
            select workspace_id, gen_random_uuid(), 'render', 1, 0, gen_random_uuid(),
                case n % 9 when 0 then 'open' else 'released' end, created_at, created_at + n * interval '1 s',
                case n % 9 when 0 then null else created_at end, 0
            from workspaces, generate_series(1, 2000) n;
            analyze credit_grants, credit_holds",
        )
        .await
        .unwrap();
    // The settings of the server's own connections.
    connection.execute("set plan_cache_mode = force_generic_plan; set enable_seqscan = off").await.unwrap();
    connection.execute("set enable_hashjoin = off; set enable_mergejoin = off").await.unwrap();
    for (n, (statement, index)) in indexes().into_iter().filter(|(_, index)| !index.is_empty()).enumerate() {
        connection.execute(AssertSqlSafe(format!("prepare s{n} as {statement}"))).await.unwrap();
        let parameters = (1..20).take_while(|n| statement.contains(&format!("${n}"))).map(|_| "null");
        let parameters = parameters.collect::<Vec<_>>().join(", ");
        let parameters = if parameters.is_empty() { parameters } else { format!("({parameters})") };
        let explain = AssertSqlSafe(format!("explain execute s{n}{parameters}"));
        let steps: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut connection).await.unwrap();
        let plan = steps.join("\n");
        let is_used = plan.contains(&format!("using {index} ")) || plan.contains(&format!("on {index} "));
        let is_page = ["recorded_at", "created_at", "workspace_seq"]
            .iter()
            .any(|column| statement.contains(&format!("order by t.{column}")));
        let is_sorted = is_page && plan.contains("Sort");
        assert!(is_used && !plan.contains("Seq Scan") && !is_sorted, "{index}: {plan}\n{statement}");
    }
    drop(connection);
    db.destroy().await;
}

/// Two replicas have decided on the same head.
#[tokio::test]
async fn events_are_numbered_behind_those_of_other_replicas() {
    let db = PostgresDatabase::create().await;
    let mut world = world_of(db.store(), 2).await;
    let mut other = world.beside();
    let mut one =
        world.deduct(workspace(0), Credits::whole(1), at(1)).deduct(workspace(0), Credits::whole(1), at(2)).take();
    let mut two = other.deduct(workspace(1), Credits::whole(2), at(1)).take();
    assert_eq!(one.heads[0].version, two.heads[0].version);
    let heads = db.store().write(&one).await.unwrap();
    assert_eq!(heads, one.heads, "nobody came before it");
    let heads = db.store().write(&two).await.unwrap();
    assert_eq!((heads[0].seq, heads[0].version), (one.heads[0].seq + 1, one.heads[0].version + 1));
    one.renumber_events(&one.heads.clone());
    two.renumber_events(&heads);
    let written: Vec<_> = one.events.iter().chain(&two.events).cloned().collect();
    let events = db.store().read(heads[0].partition, 0, 100).await.unwrap();
    assert_eq!(events[events.len() - written.len()..], written);
    let loaded = load(db.store(), &keys_of([workspace(0), workspace(1)])).await;
    assert_eq!(loaded.heads.values().copied().collect::<Vec<_>>(), heads);
    assert_eq!(db.store().audit(10).await.unwrap(), []);
    db.destroy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_transactions_on_different_partitions_do_not_wait_for_each_other() {
    let db = PostgresDatabase::create().await;
    let [one, other] = [1, 2].map(|number| workspace_in(Partition::new(number).unwrap(), 0));
    let mut first = db.store().begin().await.unwrap();
    first.load(&keys_of([one])).await.unwrap();
    let mut second = db.store().begin().await.unwrap();
    let loaded = second.load(&keys_of([other])).await.unwrap();
    assert_eq!(loaded.heads.len(), 1);
    drop((first, second));
    db.destroy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_too_long_for_a_partition_is_a_conflict() {
    let db = PostgresDatabase::create().await;
    let id = workspace_in(Partition::new(1).unwrap(), 0);
    let mut first = db.store().begin().await.unwrap();
    first.load(&keys_of([id])).await.unwrap();
    let mut second = db.store().begin().await.unwrap();
    let waited = second.load(&keys_of([id])).await;
    assert!(matches!(waited, Err(StoreError::Conflict(_))), "{waited:?}");
    drop((first, second));
    db.destroy().await;
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable_and_its_password_is_not_shown() {
    let config = PostgresConfig::new(SecretString::from("postgres://u:hunter2@127.0.0.1:1/none".to_owned()));
    let error = PostgresStore::connect(&config).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(!format!("{error:?} {error} {config:?}").contains("hunter2"));
    let unreadable = PostgresConfig::new(SecretString::from("nonsense hunter2".to_owned()));
    let error = PostgresStore::connect(&unreadable).await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn the_defaults_are_those_of_the_configuration_and_each_wait_is_within_the_next() {
    let config = Config::read(Vec::new(), None).unwrap().database;
    let own = PostgresConfig::new(SecretString::from("postgres://localhost/x"));
    assert_eq!((own.max_connections, own.read_connections), (config.max_connections, config.read_connections));
    let ms = Duration::from_millis;
    assert_eq!(own.acquire_timeout, ms(config.acquire_timeout_ms));
    assert_eq!(own.statement_timeout, ms(config.statement_timeout_ms));
    assert_eq!(own.lock_timeout, ms(config.lock_timeout_ms));
    let statement = |timeout: Duration| {
        let name = "VISIONSCOPE__DATABASE__STATEMENT_TIMEOUT_MS".to_owned();
        Config::read(vec![(name, timeout.as_millis().to_string())], None)
    };
    assert!(statement(MAX_STATEMENT_TIMEOUT).is_ok());
    assert!(statement(MAX_STATEMENT_TIMEOUT + ms(1)).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reads_do_not_delay_commands() {
    let db = PostgresDatabase::create().await;
    let mut blocker = db.connection().await;
    blocker.execute("begin; lock table event_outbox in access exclusive mode").await.unwrap();
    let read = || db.store().read(Partition::new(1).unwrap(), 0, 1);
    let begun = async {
        // By now both connections for reading wait for the lock.
        tokio::time::sleep(Duration::from_millis(300)).await;
        tokio::time::timeout(Duration::from_millis(500), db.store().begin()).await.is_ok_and(|tx| tx.is_ok())
    };
    let (first, second, third, begun) = tokio::join!(read(), read(), read(), begun);
    assert!(begun);
    assert!(first.is_err() && second.is_err() && third.is_err());
    drop(blocker);
    db.destroy().await;
}

#[tokio::test]
async fn a_terminated_connection_is_unavailable_and_the_pool_recovers() {
    let db = PostgresDatabase::create().await;
    let mut tx = db.store().begin().await.unwrap();
    db.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
        .await
        .unwrap();
    let failed = tx.load(&KeySet::default()).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    drop(tx);
    let mut recovered = Err(StoreError::Unavailable(String::new()));
    for _ in 0..5 {
        recovered = db.store().ping().await;
        if recovered.is_ok() {
            break;
        }
    }
    recovered.unwrap();
    db.destroy().await;
}
