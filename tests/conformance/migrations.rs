//! Migrations: the schema matches the code, and a database of another schema is refused.

use visionscope_billing::store::{StoreError, tables};

use crate::database::TestDatabase;

pub async fn every_table_has_the_columns_that_its_descriptor_says(db: &impl TestDatabase) {
    let tables = tables();
    assert!(tables.len() >= 14, "{}", tables.len());
    for (table, columns) in tables {
        assert_eq!(db.columns(table).await, columns, "{table}");
    }
}

/// Schemas from before the first release cannot be upgraded.
pub async fn a_database_of_another_schema_is_refused_with_instructions(db: &impl TestDatabase) {
    for other in [
        "update _sqlx_migrations set checksum = substr(checksum, 2)",
        "update _sqlx_migrations set version = version + 1000",
    ] {
        db.tamper(other).await;
        assert_tells_what_to_do(db.store().migrate().await);
    }
    // A command of an operator does not migrate.
    db.tamper("drop view usage_daily").await;
    for other in ["alter table usage_logs drop column credits", "drop table usage_counters"] {
        db.tamper(other).await;
        assert_tells_what_to_do(db.store().audit(1).await.map(|_| ()));
    }
}

fn assert_tells_what_to_do(refused: Result<(), StoreError>) {
    let Err(StoreError::Corrupt(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("another version of the schema") && text.contains("empty database"), "{text}");
}
