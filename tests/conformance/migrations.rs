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
        let refused = db.store().migrate().await;
        let Err(StoreError::Corrupt(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("another version of the schema") && text.contains("empty database"), "{text}");
    }
}
