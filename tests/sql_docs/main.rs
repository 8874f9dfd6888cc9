//! What the pages say about the database is tried on one. The statements of `docs/SQL.md` are run as they stand there:
//! the role is created by the page's own statements, and asks the page's questions.

#![allow(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

#[path = "../databases/mod.rs"]
mod databases;
mod page;
mod world;

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::databases::{Database, TestDatabase};
use crate::page::{Question, map, questions, recommended_settings, role_statements, sqlite_questions};
use crate::world::{DEDUCTIONS, OTHERS, fill};

/// Tables that only grow. No question may read one of them whole, unless it says so.
const GROWING: [&str; 10] = [
    "commands",
    "ledger_entries",
    "usage_logs",
    "usage_refunds",
    "purchase_reversals",
    "event_outbox",
    "stream_batches",
    "credit_grants",
    "credit_holds",
    "credit_hold_grants",
];
/// What PostgreSQL says to a user without the privilege, and in a transaction that only reads.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const READ_ONLY_TRANSACTION: &str = "25006";

/// A database with data and with the role of the page, under a name of its own: roles are the whole server's.
struct Page {
    database: TestDatabase,
    owner: PgConnection,
    role: String,
    analyst: PgConnection,
}

impl Page {
    async fn open(test: &str) -> Self {
        let database = Database::Postgres.create().await;
        fill(&*database.store).await;
        let mut owner = database.postgres_options().connect().await.unwrap();
        let role = format!("analyst_{test}_{}", std::process::id());
        let statements = role_statements().replace("analyst", &role);
        owner.execute(AssertSqlSafe(format!("{statements}\nalter role {role} password 'secret'"))).await.unwrap();
        let analyst = database.postgres_options().username(&role).password("secret").connect().await.unwrap();
        Self { database, owner, role, analyst }
    }

    async fn ask(&mut self, sql: &str) -> Vec<Value> {
        let rows = format!("select to_jsonb(q) from ({sql}) q");
        let answered = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_all(&mut self.analyst).await;
        answered.unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    async fn plan(&mut self, sql: &str) -> Value {
        let explain = AssertSqlSafe(format!("explain (format json) {sql}"));
        sqlx::query_scalar(explain).fetch_one(&mut self.analyst).await.unwrap()
    }

    /// The code of the error that the role gets.
    async fn refusal_of(&mut self, sql: &str) -> String {
        match self.analyst.execute(AssertSqlSafe(sql.to_owned())).await {
            Ok(_) => format!("nobody refused {sql}"),
            Err(error) => error.as_database_error().and_then(DatabaseError::code).unwrap().into_owned(),
        }
    }

    async fn close(self) {
        let Self { database, mut owner, role, analyst } = self;
        analyst.close().await.unwrap();
        owner.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.unwrap();
        owner.close().await.unwrap();
        database.close().await;
    }
}

/// Every step of a plan, from the top.
fn steps<'p>(plan: &'p Value, found: &mut Vec<&'p Value>) {
    match plan {
        Value::Array(items) => items.iter().for_each(|item| steps(item, found)),
        Value::Object(members) => {
            if members.contains_key("Node Type") {
                found.push(plan);
            }
            members.values().for_each(|member| steps(member, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn every_question_of_the_page_is_answered_to_its_role() {
    let mut page = Page::open("asks").await;
    let mut answers = BTreeMap::new();
    for Question { sql, .. } in questions() {
        let rows = page.ask(&sql).await;
        assert!(!rows.is_empty(), "the data should give some rows:\n{sql}");
        answers.insert(sql, rows);
    }
    let of = |words: &str| answers.iter().find(|(sql, _)| sql.contains(words)).map(|(_, rows)| rows).unwrap();
    assert_eq!(of("is_equal")[0]["is_equal"], true, "{:?}", of("is_equal"));
    for words in ["count(*) as deductions\nfrom usage_logs\n", "usage_daily", "group by u.user_id"] {
        let sum = |column: &str| of(words).iter().map(|row| row[column].as_f64().unwrap()).sum::<f64>();
        let is_right = |sum: f64| (sum - f64::from(DEDUCTIONS)).abs() < 1e-9;
        assert!(is_right(sum("deductions")) && is_right(sum("credits")), "{words}: {:?}", of(words));
    }
    let what: Vec<_> = of("with command as").iter().map(|row| row["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["command", "ledger entry", "usage log", "event"]);
    page.close().await;
}

/// With much data in the tables and the planner free to choose.
#[tokio::test]
async fn every_question_uses_the_indexes_that_it_names_and_one_of_a_workspace_reads_no_whole_history() {
    let mut page = Page::open("plans").await;
    page.owner.execute(OTHERS).await.unwrap();
    for Question { sql, indexes, is_of_one_workspace } in questions() {
        assert!(!is_of_one_workspace || !indexes.is_empty(), "a question of one workspace names its index:\n{sql}");
        let plan = page.plan(&sql).await;
        let mut found = Vec::new();
        steps(&plan, &mut found);
        let text = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
        for index in &indexes {
            let is_used = found.iter().any(|step| text(step, "Index Name") == *index);
            assert!(is_used, "{index} is not used:\n{sql}\n{plan:#}");
        }
        for step in found.iter().filter(|step| GROWING.contains(&text(step, "Relation Name").as_str())) {
            let is_whole = text(step, "Node Type") == "Seq Scan";
            assert!(indexes.is_empty() || !is_whole, "a whole table is read:\n{sql}\n{step:#}");
            let condition = text(step, "Index Cond") + &text(step, "Recheck Cond");
            let is_narrow = !is_of_one_workspace || condition.contains("workspace_id");
            assert!(is_narrow, "it is not found by its workspace:\n{sql}\n{step:#}");
        }
    }
    page.close().await;
}

#[tokio::test]
async fn the_role_of_the_page_can_change_nothing() {
    let mut page = Page::open("writes").await;
    let insert = "insert into plans (plan_code, source) values ('own', 'api')";
    assert_eq!(page.refusal_of(insert).await, READ_ONLY_TRANSACTION);
    page.analyst.execute("set default_transaction_read_only = off").await.unwrap();
    let tables = "select tablename::text from pg_tables where schemaname = 'public'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut page.owner).await.unwrap();
    assert!(tables.len() > 17, "{tables:?}");
    for table in tables {
        let column =
            format!("select attname::text from pg_attribute where attrelid = '{table}'::regclass and attnum = 1");
        let column: String = sqlx::query_scalar(AssertSqlSafe(column)).fetch_one(&mut page.owner).await.unwrap();
        for change in [
            format!("insert into {table} default values"),
            format!("update {table} set {column} = {column}"),
            format!("delete from {table}"),
            format!("truncate {table}"),
            format!("drop table {table}"),
            format!("alter table {table} disable trigger all"),
            format!("do $$ begin lock table {table} in row exclusive mode; end $$"),
        ] {
            assert_eq!(page.refusal_of(&change).await, INSUFFICIENT_PRIVILEGE, "{change}");
        }
    }
    assert_eq!(page.refusal_of("create table own (id integer)").await, INSUFFICIENT_PRIVILEGE);
    page.close().await;
}

#[tokio::test]
async fn the_role_of_the_page_sees_the_tables_of_later_migrations() {
    let mut page = Page::open("later").await;
    page.owner.execute("create table later (id integer); insert into later values (1)").await.unwrap();
    assert_eq!(page.ask("select id from later").await.len(), 1);
    page.close().await;
}

#[tokio::test]
async fn the_map_of_the_page_names_every_table_and_no_column_that_is_not_there() {
    let database = Database::Postgres.create().await;
    let mut connection = database.postgres_options().connect().await.unwrap();
    let columns = "select table_name::text, array_agg(column_name::text) from information_schema.columns
        where table_schema = 'public' and table_name <> '_sqlx_migrations' group by table_name";
    let tables: Vec<(String, Vec<String>)> = sqlx::query_as(columns).fetch_all(&mut connection).await.unwrap();
    let tables: BTreeMap<_, _> = tables.into_iter().collect();
    let map: BTreeMap<_, _> = map().into_iter().collect();
    assert_eq!(map.keys().collect::<Vec<_>>(), tables.keys().collect::<Vec<_>>());
    for (table, columns) in map {
        for column in columns {
            assert!(tables[&table].contains(&column), "{table} has no column {column}");
        }
    }
    connection.close().await.unwrap();
    database.close().await;
}

#[tokio::test]
async fn every_setting_that_the_page_on_operations_recommends_is_one_of_postgresql() {
    let database = Database::Postgres.create().await;
    let mut connection = database.postgres_options().connect().await.unwrap();
    let known: Vec<String> =
        sqlx::query_scalar("select name from pg_settings").fetch_all(&mut connection).await.unwrap();
    let settings = recommended_settings();
    assert!(settings.len() >= 12, "{settings:?}");
    for setting in settings {
        assert!(known.contains(&setting), "PostgreSQL has no setting {setting}");
    }
    connection.close().await.unwrap();
    database.close().await;
}

#[tokio::test]
async fn the_questions_for_sqlite_are_answered_by_a_connection_that_only_reads() {
    let database = Database::Sqlite.create().await;
    fill(&*database.store).await;
    let file = SqliteConnectOptions::new().filename(database.sqlite_file()).read_only(true);
    let mut connection = file.connect().await.unwrap();
    assert!(!sqlite_questions().is_empty());
    for sql in sqlite_questions() {
        let rows = connection.fetch_all(sql).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
        assert!(!rows.is_empty(), "the data should give some rows:\n{sql}");
    }
    assert!(connection.execute("delete from usage_counters").await.is_err());
    connection.close().await.unwrap();
    database.close().await;
}
