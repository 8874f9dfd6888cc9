//! What only SQLite can get wrong, and only its own connections show. The rest is in `tests/conformance`.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use tempfile::TempDir;

use super::*;
use crate::domain::plan::tests::pro;
use crate::store::Reads;

const NOON: Timestamp = Timestamp::from_micros(1_800_000_000_000_001);

async fn store() -> (TempDir, SqliteStore) {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(&SqliteConfig::new(folder.path().join("data/billing.db"))).await.unwrap();
    store.migrate().await.unwrap();
    store.put_plans(&[pro()], NOON).await.unwrap();
    (folder, store)
}

#[tokio::test]
async fn every_statement_prepares() {
    let (_folder, store) = store().await;
    let mut tx = store.writer.acquire().await.unwrap();
    let mut count = 0;
    for statement in statements() {
        let prepared = tx.connection().prepare(AssertSqlSafe(statement.clone()).into_sql_str()).await;
        prepared.unwrap_or_else(|error| panic!("{error}: {statement}"));
        count += 1;
    }
    assert!(count > 50, "{count}");
}

#[tokio::test]
async fn a_reader_cannot_write_and_history_cannot_be_replaced() {
    let (_folder, store) = store().await;
    assert!(sqlx::query("delete from stream_leases").execute(&store.readers).await.is_err());
    let mut tx = store.writer.begin().await.unwrap();
    let replace = "insert or replace into plan_versions select * from plan_versions";
    let refused = tx.connection().execute(replace).await.map_err(error::store_error).unwrap_err().to_string();
    assert!(refused.contains("history is immutable"), "{refused}");
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_and_readers_see_what_is_committed_meanwhile() {
    let (_folder, store) = store().await;
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("update plans set retired_at = 1").await.unwrap();
    assert_eq!(store.plans().await.unwrap().len(), 1);
    drop(tx);
    store.put_plans(&[pro()], NOON).await.unwrap();
    assert_eq!(store.plans().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_writing_resumes_with_free_space() {
    let (_folder, store) = store().await;
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("pragma max_page_count = 1").await.unwrap();
    let full = tx.connection().execute("create table filler as select zeroblob(1000000) as bytes").await;
    assert!(matches!(full.map_err(error::store_error), Err(StoreError::Unavailable(_))));
    drop(tx);
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("pragma max_page_count = 1000000").await.unwrap();
    drop(tx);
    store.put_plans(&[pro()], NOON).await.unwrap();
}

#[tokio::test]
async fn the_file_is_its_owners_alone_durable_and_found_again() {
    let (folder, store) = store().await;
    let path = folder.path().join("data/billing.db");
    for suffix in ["", "-wal", "-shm"] {
        let file = std::fs::metadata(format!("{}{suffix}", path.display())).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{suffix}");
    }
    let mut tx = store.writer.begin().await.unwrap();
    for (pragma, expected) in [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")] {
        let query = AssertSqlSafe(format!("select cast({pragma} as text) from pragma_{pragma}"));
        let value: String = sqlx::query_scalar(query).fetch_one(tx.connection()).await.unwrap();
        assert_eq!(value, expected, "{pragma}");
    }
    drop(tx);
    store.close().await;
    assert!(matches!(store.begin().await.map(|_| ()), Err(StoreError::Unavailable(_))));
    let again = SqliteStore::open(&SqliteConfig::new(path)).await.unwrap();
    again.migrate().await.unwrap();
    assert_eq!(*again.plans().await.unwrap()[0], pro());
}

#[tokio::test]
async fn a_dropped_read_is_interrupted_and_its_connection_is_used_again() {
    let endless = "with recursive n (i) as (select 1 union all select i + 1 from n) select count(*) from n";
    let (_folder, store) = store().await;
    let mut connection = store.readers.acquire().await.unwrap();
    connection::limit(&mut connection, Duration::from_millis(50)).await.unwrap();
    let interrupted = sqlx::query(endless).execute(&mut *connection).await.map_err(error::store_error);
    assert!(matches!(interrupted, Err(StoreError::Unavailable(_))), "{interrupted:?}");
    drop(connection);
    for _ in 0..5 {
        store.ping().await.unwrap();
    }
}
