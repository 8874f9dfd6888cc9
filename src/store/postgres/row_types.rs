//! The rows that the write statement takes: each table's as one array of a composite type of the database.
//!
//! An array for each column would be set out again row by row, column by column, on the server. The types
//! are the statement's own (`migrations/postgres/0003_write_path.sql` and later); their columns go by position.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgRecordEncoder;
use sqlx::postgres::{PgArgumentBuffer, PgBindIterExt, PgHasArrayType, PgTypeInfo, Postgres};
use sqlx::{Encode, Type};

use super::write::{Statement, at};
use crate::domain::change_set::CommandRecord;
use crate::domain::credits::{Credits, Quantity};
use crate::domain::entry::Entry;
use crate::domain::event::EventRecord;
use crate::domain::grant::Grant;
use crate::domain::ids::WorkspaceId;
use crate::domain::metadata::Metadata;
use crate::domain::snapshot::PartitionHead;
use crate::domain::text::UserId;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{WorkspaceCredits, WorkspaceFeature};

/// A row of the domain as a value of a composite type.
pub(super) trait Row {
    /// The type's name in the database.
    const TYPE: &'static str;

    /// All its columns, in the type's order.
    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError>;
}

/// Binds many rows as one array.
pub(super) trait BindRows: Sized {
    fn rows<T: Row>(self, rows: &[T]) -> Self;
}

impl BindRows for Statement<'_> {
    fn rows<T: Row>(self, rows: &[T]) -> Self {
        self.bind(rows.iter().map(Value).bind_iter())
    }
}

struct Value<'r, T>(&'r T);

impl<T: Row> Type<Postgres> for Value<'_, T> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name(T::TYPE)
    }
}

impl<T: Row> PgHasArrayType for Value<'_, T> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of(T::TYPE)
    }
}

impl<T: Row> Encode<'_, Postgres> for Value<'_, T> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let mut record = PgRecordEncoder::new(buffer);
        self.0.columns(&mut record)?;
        record.finish();
        Ok(IsNull::No)
    }
}

/// A head as a batch would leave it, with how many events the batch adds.
pub(super) struct MovedHead<'r> {
    pub(super) head: &'r PartitionHead,
    pub(super) events: i64,
}

impl Row for MovedHead<'_> {
    const TYPE: &'static str = "head_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        record
            .encode(self.head.partition.stored())?
            .encode(self.head.seq)?
            .encode(self.head.last_event_id.map(|id| id.0))?
            .encode(self.head.version)?
            .encode(self.events)?;
        Ok(())
    }
}

/// A workspace's row, with its last command before the batch; none if the row is new.
pub(super) struct MovedCredits<'r> {
    pub(super) credits: &'r WorkspaceCredits,
    pub(super) command_seq_before: Option<i64>,
}

impl Row for MovedCredits<'_> {
    const TYPE: &'static str = "credits_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        let credits = self.credits;
        let (grant, feature) = (credits.current.grant, credits.current.feature.as_ref());
        record
            .encode(credits.workspace_id.0)?
            .encode(credits.current_credits.micro())?
            .encode(credits.held_credits.micro())?
            .encode(credits.debt_credits.micro())?
            .encode(credits.overdraft_limit.micro())?
            .encode(credits.used_this_month.micro())?
            .encode(credits.command_seq)?
            .encode(credits.entry_seq)?
            .encode(credits.usage_seq)?
            .encode(credits.event_seq)?
            .encode(credits.low_credit_fired)?
            .encode(credits.monthly_limit_fired)?
            .encode(at(credits.window_start))?
            .encode(credits.window_used.micro())?
            .encode(at(credits.updated_at))?
            .encode(grant.map(|grant| grant.grant_id.0))?
            .encode(grant.map(|grant| grant.remaining.micro()))?
            .encode(grant.map(|grant| grant.held.micro()))?
            .encode(feature.map(|feature| feature.feature_code.as_str()))?
            .encode(feature.map(|feature| feature.used_this_month.micro()))?
            .encode(feature.map(|feature| feature.limit_fired))?
            .encode(credits.rest_seq)?
            .encode(self.command_seq_before)?
            .encode(credits.last.usage_log.map(|id| id.0))?
            .encode(credits.last.entry.map(|id| id.0))?
            .encode(credits.last.event.map(|id| id.0))?;
        Ok(())
    }
}

impl Row for (WorkspaceId, WorkspaceFeature) {
    const TYPE: &'static str = "feature_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        let (workspace_id, feature) = self;
        record
            .encode(workspace_id.0)?
            .encode(feature.feature_code.as_str())?
            .encode(feature.plan_terms.enabled)?
            .encode(feature.plan_terms.unit_price.map(Credits::micro))?
            .encode(feature.plan_terms.limit.map(|limit| limit.credits.micro()))?
            .encode(feature.plan_terms.limit.map(|limit| limit.mode.as_str()))?
            .encode(feature.overrides.enabled)?
            .encode(feature.overrides.unit_price.map(Credits::micro))?
            .encode(feature.overrides.limit.map(Credits::micro))?
            .encode(feature.used_this_month.micro())?
            .encode(feature.limit_fired)?;
        Ok(())
    }
}

impl Row for Grant {
    const TYPE: &'static str = "spent_grant_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        record
            .encode(self.workspace_id.0)?
            .encode(self.grant_id.0)?
            .encode(self.remaining.micro())?
            .encode(self.held.micro())?
            .encode(self.expires_at.map(at))?
            .encode(self.is_open())?;
        Ok(())
    }
}

impl Row for CommandRecord {
    const TYPE: &'static str = "command_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        record
            .encode(self.workspace_id.0)?
            .encode(self.idempotency_key.as_str())?
            .encode(self.command_id.0)?
            .encode(self.command_type.as_str())?
            .encode(self.fingerprint.as_slice())?
            .encode(self.outcome.as_str())?
            .encode(self.status)?
            .encode(self.body.as_str())?
            .encode(self.actor.as_str())?
            .encode(self.correlation_id.as_str())?
            .encode(self.traceparent.as_deref())?
            .encode(self.metadata.as_ref().map(Metadata::to_json))?
            .encode(at(self.received_at))?
            .encode(at(self.recorded_at))?
            .encode(self.seq)?;
        Ok(())
    }
}

impl Row for Entry {
    const TYPE: &'static str = "entry_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        record
            .encode(self.workspace_id.0)?
            .encode(self.seq)?
            .encode(self.command_id.0)?
            .encode(self.from.label())?
            .encode(self.to.label())?
            .encode(self.grant_id().map(|id| id.0))?
            .encode(self.amount.micro())?
            .encode(self.balance_after.micro())?
            .encode(at(self.recorded_at))?
            .encode(at(self.effective_at))?
            .encode(self.previous.map(|id| id.0))?;
        Ok(())
    }
}

impl Row for UsageLog {
    const TYPE: &'static str = "usage_log_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        record
            .encode(self.workspace_id.0)?
            .encode(self.seq)?
            .encode(self.command_id.0)?
            .encode(self.feature_code.as_str())?
            .encode(self.user_id.as_ref().map(UserId::as_str))?
            .encode(self.credits.micro())?
            .encode(self.quantity.map(Quantity::micro))?
            .encode(at(self.occurred_at))?
            .encode(at(self.recorded_at))?
            .encode(self.metadata.as_ref().map(Metadata::to_json))?
            .encode(self.previous.map(|id| id.0))?;
        Ok(())
    }
}

impl Row for EventRecord {
    const TYPE: &'static str = "event_row";

    fn columns(&self, record: &mut PgRecordEncoder<'_>) -> Result<(), BoxDynError> {
        record
            .encode(self.partition.stored())?
            .encode(self.seq)?
            .encode(self.event_id.0)?
            .encode(self.workspace_id.0)?
            .encode(self.workspace_seq)?
            .encode(self.event_type.as_str())?
            .encode(self.schema_version)?
            .encode(at(self.occurred_at))?
            .encode(self.correlation_id.as_str())?
            .encode(self.causation_id)?
            .encode(self.traceparent.as_deref())?
            .encode(self.metadata.as_deref())?
            .encode(self.data.as_str())?
            .encode(self.previous.map(|id| id.0))?;
        Ok(())
    }
}
