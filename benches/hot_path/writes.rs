//! A batch in the database: decided already, written durably. The decision is measured apart.

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use sqlx::{Connection, Executor};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::store::Store;
use visionscope_billing::store::postgres::{PostgresConfig, PostgresStore};
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore};

use crate::world::World;

/// Each batch of one size touches as many workspaces as it has commands, out of so many.
const WORKSPACES: u128 = 1024;

pub fn write(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = TempDir::new().unwrap();
    let sqlite = runtime.block_on(SqliteStore::open(&SqliteConfig::new(folder.path().join("bench.db")))).unwrap();
    write_to(c, &runtime, "sqlite", &(Arc::new(sqlite) as Arc<dyn Store>));
    let Ok(server) = env::var("DATABASE_URL") else {
        eprintln!("write/postgres is left out: DATABASE_URL names no server");
        return;
    };
    let name = format!("bench_{}", std::process::id());
    runtime.block_on(admin(&server, format!("create database {name}")));
    let (base, _) = server.rsplit_once('/').unwrap();
    let config = PostgresConfig::new(format!("{base}/{name}").into());
    let postgres: Arc<dyn Store> = Arc::new(runtime.block_on(PostgresStore::connect(&config)).unwrap());
    write_to(c, &runtime, "postgres", &postgres);
    runtime.block_on(postgres.close());
    runtime.block_on(admin(&server, format!("drop database {name} with (force)")));
}

fn write_to(c: &mut Criterion, runtime: &Runtime, name: &str, store: &Arc<dyn Store>) {
    let (mut world, provisioned) = World::of(WORKSPACES);
    runtime.block_on(async {
        store.migrate().await.unwrap();
        store.put_plans(std::slice::from_ref(&world.plan), SystemClock.now()).await.unwrap();
        store.write(&provisioned).await.unwrap();
    });
    let mut group = c.benchmark_group(format!("write/{name}"));
    group.sample_size(20);
    for size in [1, 16, 256] {
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|batches| {
                let mut took = Duration::ZERO;
                for _ in 0..batches {
                    let envelopes = world.deductions(size);
                    let changes = world.run(&envelopes);
                    let began = Instant::now();
                    runtime.block_on(store.write(&changes)).unwrap();
                    took += began.elapsed();
                }
                took
            });
        });
    }
    group.finish();
}

async fn admin(server: &str, sql: String) {
    let mut connection = sqlx::PgConnection::connect(server).await.expect("the server of DATABASE_URL answers");
    connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    connection.close().await.unwrap();
}
