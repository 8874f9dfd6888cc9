//! The baseline of the embedded database, on the crate that the server itself uses: one transaction a
//! command, as one would write it first. `scripts/bench` runs it beside the server:
//! `one_transaction FILE SECONDS` makes the file, and prints how many commands were done and how many a second.
//!
//! WAL, `synchronous = FULL`, one connection that writes, statements prepared once. Each transaction updates a
//! balance and inserts a usage log, an entry and an event of about the server's sizes. Deliberately absent: HTTP,
//! tokens, idempotency and every check, all of which the server does besides.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Row};
use uuid::Uuid;

/// As many as the schema makes.
const ACCOUNTS: i64 = 10_000;
const NOTE_BYTES: usize = 200;

/// 10,000 accounts, numbered from 0, and their history.
const SCHEMA: &str = "
create table accounts (id integer primary key, balance integer not null, seq integer not null) strict;
create table usage_logs (
    account integer not null, seq integer not null, command blob not null, feature text not null,
    credits integer not null, recorded_at integer not null, primary key (account, seq)
) strict, without rowid;
create table entries (
    account integer not null, seq integer not null, command blob not null, from_account text not null,
    to_account text not null, amount integer not null, balance_after integer not null, primary key (account, seq)
) strict, without rowid;
create table events (
    seq integer primary key, id blob not null, account integer not null, type text not null, data text not null
) strict;
with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n + 1 < 10000)
insert into accounts (id, balance, seq) select n, 1000000000000000, 0 from numbers;
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(file), Some(seconds)) = (words.next(), words.next()) else {
        return Err("usage: one_transaction FILE SECONDS".into());
    };
    let time = Duration::from_secs(seconds.parse()?);
    let mut connection = open(Path::new(&file)).await?;
    let note = "x".repeat(NOTE_BYTES);
    let (mut done, mut random, begin) = (0_u32, 1_u64, Instant::now());
    while begin.elapsed() < time {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let account = i64::try_from(random >> 33)? % ACCOUNTS;
        transact(&mut connection, account, Uuid::from_u64_pair(random, done.into()), &note).await?;
        done += 1;
    }
    println!("{{\"done\": {done}, \"per_s\": {}}}", f64::from(done) / begin.elapsed().as_secs_f64());
    Ok(())
}

async fn open(file: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
    Ok(connection)
}

async fn transact(
    connection: &mut SqliteConnection,
    account: i64,
    command: Uuid,
    note: &str,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin_with("begin immediate").await?;
    let update = "update accounts set balance = balance - 250000, seq = seq + 1 where id = ? returning balance, seq";
    let row = sqlx::query(update).bind(account).fetch_one(&mut *tx).await?;
    let (balance, seq): (i64, i64) = (row.try_get("balance")?, row.try_get("seq")?);
    sqlx::query("insert into usage_logs values (?, ?, ?, ?, ?, cast(unixepoch('subsec') * 1000000 as integer))")
        .bind(account)
        .bind(seq)
        .bind(command)
        .bind("text.generate")
        .bind(250_000)
        .execute(&mut *tx)
        .await?;
    sqlx::query("insert into entries values (?, ?, ?, ?, ?, ?, ?)")
        .bind(account)
        .bind(seq)
        .bind(command)
        .bind("grant")
        .bind("consumed:text.generate")
        .bind(250_000)
        .bind(balance)
        .execute(&mut *tx)
        .await?;
    let data = format!(
        r#"{{"feature_code":"text.generate","credits":"0.25","current_credits":"99999999.75","note":"{note}"}}"#
    );
    sqlx::query("insert into events (id, account, type, data) values (?, ?, ?, ?)")
        .bind(command)
        .bind(account)
        .bind("CreditConsumed")
        .bind(data)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}
