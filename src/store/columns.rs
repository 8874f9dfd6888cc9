//! How values of the domain are stored: the types of columns, and the conversion of a field to columns and back.
//!
//! Both databases share this. Each only binds a [`Value`] of a [`Kind`] and reads one ([`ReadValue`]). A stored value
//! that the domain does not know is corruption, never a default.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;

use chrono_tz::Tz;
use serde::Serialize;
use uuid::Uuid;

use super::error::StoreError;
use super::plan_rows::Terms;
use crate::domain::cloud_event::AnyEventType;
use crate::domain::consumers::{Build, Consumer, ConsumerState, NotificationData, NotificationKind};
use crate::domain::counter::CounterSubject;
use crate::domain::credits::{Credits, Quantity};
use crate::domain::dead_letter::{FailedEvent, FailedJob, FailedWork, LetterSource, LetterState};
use crate::domain::grant::{CostBasis, Currency, GrantSource};
use crate::domain::hold::HoldState;
use crate::domain::ids::{
    CommandId, EventId, GrantId, HoldId, JobId, LeaseId, NotificationId, Partition, RefundId, ReversalId,
    SubscriptionId, WorkerId, WorkspaceId,
};
use crate::domain::jobs::{
    ActualUse, AttemptOutcome, JobError, JobHold, JobOutcome, JobState, QueueNames, QueueSettings, ReplayedLetter,
    RetryDelays, Runner, WorkerState,
};
use crate::domain::ledger::{Account, Accounts};
use crate::domain::metadata::Metadata;
use crate::domain::period::Period;
use crate::domain::plan::{LimitMode, UsageLimit};
use crate::domain::reversal::ReversalReason;
use crate::domain::subscription::{PendingChange, SubscriptionStatus};
use crate::domain::text::{
    FeatureCode, IdempotencyKey, JobKind, Label, PaymentReference, PlanCode, QueueName, UniqueKey, UserId,
};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;
use crate::domain::workspace::OverrideTerms;

/// The type of a column, named after PostgreSQL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Uuid,
    Smallint,
    Integer,
    Bigint,
    Boolean,
    Text,
    Bytea,
    Timestamptz,
    Jsonb,
}

impl Kind {
    /// The type's name in PostgreSQL.
    pub(super) const fn sql(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Smallint => "smallint",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Boolean => "boolean",
            Self::Text => "text",
            Self::Bytea => "bytea",
            Self::Timestamptz => "timestamptz",
            Self::Jsonb => "jsonb",
        }
    }
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'v> {
    Null,
    Uuid(Uuid),
    Smallint(i16),
    Integer(i32),
    Bigint(i64),
    Boolean(bool),
    Text(Cow<'v, str>),
    Bytea(Cow<'v, [u8]>),
    Timestamptz(Timestamp),
    Jsonb(Cow<'v, str>),
}

/// Takes the values of a row, in order of its columns.
pub(super) trait WriteValue {
    fn value(&mut self, kind: Kind, value: Value<'_>);
}

/// A row of a database.
pub(super) trait ReadValue {
    /// The value of a column, by its place.
    fn value(&self, place: usize, kind: Kind) -> Result<Value<'_>, StoreError>;

    fn name(&self, place: usize) -> &str;
}

/// Reads the values of a row, in order of its columns.
pub(super) struct Fields<'r> {
    row: &'r dyn ReadValue,
    place: usize,
}

impl<'r> Fields<'r> {
    pub(super) fn of(row: &'r dyn ReadValue) -> Self {
        Self { row, place: 0 }
    }

    pub(super) fn next<T: Columns>(&mut self) -> Result<T, StoreError> {
        T::take(self)
    }

    pub(super) fn skip(&mut self, columns: usize) {
        self.place += columns;
    }

    fn stored<T: Stored>(&mut self) -> Result<T, StoreError> {
        let value = self.row.value(self.place, T::KIND)?;
        let unreadable = || unreadable(self.row.name(self.place), &value);
        let read = T::from_value(value.clone()).ok_or_else(unreadable)?;
        self.place += 1;
        Ok(read)
    }
}

fn unreadable(column: &str, value: &Value<'_>) -> StoreError {
    StoreError::Corrupt(format!("stored {column} {value:?} cannot be read"))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a small tree of texts and numbers is JSON")
}

/// A type that fills one column.
pub(super) trait Stored: Sized {
    const KIND: Kind;

    fn to_value(&self) -> Value<'_>;

    /// `None` if it is not a value of this type.
    fn from_value(value: Value<'_>) -> Option<Self>;
}

/// A field of a row: one column, or several that belong together.
pub(super) trait Columns: Sized {
    const KINDS: &'static [Kind];

    fn put(&self, row: &mut impl WriteValue);

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError>;
}

impl<T: Stored> Columns for T {
    const KINDS: &'static [Kind] = &[T::KIND];

    fn put(&self, row: &mut impl WriteValue) {
        row.value(T::KIND, self.to_value());
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        row.stored()
    }
}

impl<T: Stored> Stored for Option<T> {
    const KIND: Kind = T::KIND;

    fn to_value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, T::to_value)
    }

    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

/// `Type: Kind, field => its value, value => the field`.
macro_rules! stored {
    ($($type:ty: $kind:ident, $field:ident => $write:expr, $value:ident => $read:expr;)+) => {
        $(impl Stored for $type {
            const KIND: Kind = Kind::$kind;

            fn to_value(&self) -> Value<'_> {
                let $field = self;
                Value::$kind($write)
            }

            fn from_value(value: Value<'_>) -> Option<Self> {
                let Value::$kind($value) = value else { return None };
                $read
            }
        })+
    };
}

stored! {
    Uuid: Uuid, id => *id, value => Some(value);
    WorkspaceId: Uuid, id => id.0, value => Some(Self(value));
    CommandId: Uuid, id => id.0, value => Some(Self(value));
    GrantId: Uuid, id => id.0, value => Some(Self(value));
    HoldId: Uuid, id => id.0, value => Some(Self(value));
    RefundId: Uuid, id => id.0, value => Some(Self(value));
    ReversalId: Uuid, id => id.0, value => Some(Self(value));
    EventId: Uuid, id => id.0, value => Some(Self(value));
    JobId: Uuid, id => id.0, value => Some(Self(value));
    LeaseId: Uuid, id => id.0, value => Some(Self(value));
    WorkerId: Uuid, id => id.0, value => Some(Self(value));
    NotificationId: Uuid, id => id.0, value => Some(Self(value));
    SubscriptionId: Uuid, id => id.0, value => Some(Self(value));
    Partition: Smallint, partition => partition.stored(), value => u8::try_from(value).ok().and_then(Self::new);
    i16: Smallint, number => *number, value => Some(value);
    i32: Integer, number => *number, value => Some(value);
    i64: Bigint, number => *number, value => Some(value);
    bool: Boolean, flag => *flag, value => Some(value);
    String: Text, text => text.into(), value => Some(value.into_owned());
    Credits: Bigint, credits => credits.micro(), value => Self::from_micro(value).ok();
    Quantity: Bigint, quantity => quantity.micro(), value => Self::from_micro(value).ok();
    Timestamp: Timestamptz, at => *at, value => Some(value);
    Tz: Text, zone => zone.name().into(), value => Self::from_str(&value).ok();
    FeatureCode: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    IdempotencyKey: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    Label: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    PaymentReference: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    PlanCode: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    JobKind: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    UniqueKey: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    QueueName: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    UserId: Text, text => text.as_str().into(), value => Some(Self::from_stored(&value));
    GrantSource: Text, source => source.as_str().into(), value => Self::from_stored(&value);
    HoldState: Text, state => state.as_str().into(), value => Self::from_stored(&value);
    ReversalReason: Text, reason => reason.as_str().into(), value => Self::from_stored(&value);
    Consumer: Text, consumer => consumer.as_str().into(), value => Self::from_stored(&value);
    ConsumerState: Text, state => state.as_str().into(), value => Self::from_stored(&value);
    JobState: Text, state => state.as_str().into(), value => Self::from_stored(&value);
    JobOutcome: Text, outcome => outcome.as_str().into(), value => Self::from_stored(&value);
    AttemptOutcome: Text, outcome => outcome.as_str().into(), value => Self::from_stored(&value);
    WorkerState: Text, state => state.as_str().into(), value => Self::from_stored(&value);
    Runner: Text, runner => runner.as_str().into(), value => Self::from_stored(&value);
    LetterSource: Text, source => source.as_str().into(), value => Self::from_stored(&value);
    LetterState: Text, state => state.as_str().into(), value => Self::from_stored(&value);
    NotificationKind: Text, kind => kind.as_str().into(), value => Self::from_stored(&value);
    LimitMode: Text, mode => mode.as_str().into(), value => Self::from_stored(&value);
    SubscriptionStatus: Text, status => status.as_str().into(), value => Self::from_stored(&value);
    AnyEventType: Text, event_type => event_type.as_str().into(), value => Some(Self::from_stored(&value));
    Currency: Text, currency => currency.as_str().into(), value => Self::new(&value);
    Metadata: Text, metadata => metadata.to_json().into(), value => Self::from_stored(&value);
    Arc<Metadata>: Text, metadata => metadata.to_json().into(), value => Metadata::from_stored(&value).map(Self::new);
    [u8; 32]: Bytea, bytes => bytes.as_slice().into(), value => value.as_ref().try_into().ok();
    Terms: Jsonb, terms => terms.0.as_str().into(), value => Some(Self(value.into_owned()));
    JobHold: Jsonb, hold => to_json(hold).into(), value => serde_json::from_str(&value).ok();
    ActualUse: Jsonb, actual => to_json(actual).into(), value => serde_json::from_str(&value).ok();
    QueueNames: Jsonb, names => to_json(names).into(), value => serde_json::from_str(&value).ok();
    RetryDelays: Jsonb, delays => to_json(delays).into(), value => serde_json::from_str(&value).ok();
    PendingChange: Jsonb, pending => to_json(pending).into(),
        value => serde_json::from_str(&value).ok();
}

/// Both columns are null, or neither is.
macro_rules! optional_pair {
    ($($type:ident { $one:ident: $of_one:ty, $other:ident: $of_other:ty })+) => {
        $(impl Columns for Option<$type> {
            const KINDS: &'static [Kind] = &[<$of_one>::KIND, <$of_other>::KIND];

            fn put(&self, row: &mut impl WriteValue) {
                match self {
                    Some(pair) => {
                        pair.$one.put(row);
                        pair.$other.put(row);
                    }
                    None => {
                        None::<$of_one>.put(row);
                        None::<$of_other>.put(row);
                    }
                }
            }

            fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
                let (one, other): (Option<$of_one>, Option<$of_other>) = (row.next()?, row.next()?);
                match (one, other) {
                    (Some($one), Some($other)) => Ok(Some($type { $one, $other })),
                    (None, None) => Ok(None),
                    _ => Err(StoreError::Corrupt(concat!("half of a ", stringify!($type), " is missing").into())),
                }
            }
        })+
    };
}

optional_pair! {
    CostBasis { amount_minor: i64, currency: Currency }
    UsageLimit { credits: Credits, mode: LimitMode }
    UsageId { recorded_at: Timestamp, seq: i64 }
    JobError { class: String, text: String }
    ReplayedLetter { dead_letter_id: Uuid, replay_id: Uuid }
}

impl Columns for Period {
    const KINDS: &'static [Kind] = &[Timestamp::KIND, Timestamp::KIND];

    fn put(&self, row: &mut impl WriteValue) {
        self.start.put(row);
        self.end.put(row);
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self { start: row.next()?, end: row.next()? })
    }
}

impl Columns for UsageId {
    const KINDS: &'static [Kind] = &[Timestamp::KIND, i64::KIND];

    fn put(&self, row: &mut impl WriteValue) {
        self.recorded_at.put(row);
        self.seq.put(row);
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self { recorded_at: row.next()?, seq: row.next()? })
    }
}

impl Columns for QueueSettings {
    const KINDS: &'static [Kind] =
        &[i32::KIND, bool::KIND, i32::KIND, i32::KIND, i32::KIND, i32::KIND, i32::KIND, RetryDelays::KIND, i32::KIND];

    fn put(&self, row: &mut impl WriteValue) {
        self.weight.put(row);
        self.is_paused.put(row);
        self.max_running.put(row);
        self.max_running_per_workspace.put(row);
        self.lease_s.put(row);
        self.timeout_s.put(row);
        self.max_attempts.put(row);
        self.retry_delays_s.put(row);
        self.keep_done_h.put(row);
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            weight: row.next()?,
            is_paused: row.next()?,
            max_running: row.next()?,
            max_running_per_workspace: row.next()?,
            lease_s: row.next()?,
            timeout_s: row.next()?,
            max_attempts: row.next()?,
            retry_delays_s: row.next()?,
            keep_done_h: row.next()?,
        })
    }
}

impl Columns for OverrideTerms {
    const KINDS: &'static [Kind] = &[bool::KIND, Credits::KIND, Credits::KIND];

    fn put(&self, row: &mut impl WriteValue) {
        self.enabled.put(row);
        self.unit_price.put(row);
        self.limit.put(row);
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self { enabled: row.next()?, unit_price: row.next()?, limit: row.next()? })
    }
}

/// A scope and what is counted in it.
impl Columns for CounterSubject {
    const KINDS: &'static [Kind] = &[Kind::Text, Kind::Text];

    fn put(&self, row: &mut impl WriteValue) {
        match self {
            Self::Feature(code) => {
                row.value(Kind::Text, Value::Text("feature".into()));
                code.put(row);
            }
        }
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        let scope: String = row.next()?;
        match scope.as_str() {
            "feature" => Ok(Self::Feature(row.next()?)),
            _ => Err(unreadable("scope", &Value::Text(scope.into()))),
        }
    }
}

/// The kind, and the data of that kind.
impl Columns for NotificationData {
    const KINDS: &'static [Kind] = &[NotificationKind::KIND, Kind::Jsonb];

    fn put(&self, row: &mut impl WriteValue) {
        self.kind().put(row);
        row.value(Kind::Jsonb, Value::Jsonb(to_json(self).into()));
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        let kind: NotificationKind = row.next()?;
        let value = row.row.value(row.place, Kind::Jsonb)?;
        let Value::Jsonb(json) = &value else { return Err(unreadable("data", &value)) };
        let data = Self::parse(kind, json).map_err(|_| unreadable("data", &value))?;
        row.skip(1);
        Ok(data)
    }
}

/// What a dead letter is about, and the ids of that.
impl Columns for FailedWork {
    const KINDS: &'static [Kind] = &[
        LetterSource::KIND,
        Kind::Text,
        i32::KIND,
        WorkspaceId::KIND,
        Partition::KIND,
        i64::KIND,
        i64::KIND,
        EventId::KIND,
        JobId::KIND,
    ];

    fn put(&self, row: &mut impl WriteValue) {
        let (event, job) = match self {
            Self::Event(event) => (Some(event), None),
            Self::Job(job) => (None, Some(job)),
        };
        self.source().put(row);
        row.value(Kind::Text, Value::Text(self.name().into()));
        event.map(|event| event.build.version).put(row);
        self.workspace_id().put(row);
        event.map(|event| event.partition).put(row);
        event.map(|event| event.seq).put(row);
        event.map(|event| event.workspace_seq).put(row);
        event.map(|event| event.event_id).put(row);
        job.map(|job| job.job_id).put(row);
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        match row.next()? {
            LetterSource::Consumer => {
                let build = Build { consumer: row.next()?, version: row.next()? };
                let (workspace_id, partition) = (row.next()?, row.next()?);
                let (seq, workspace_seq, event_id) = (row.next()?, row.next()?, row.next()?);
                row.skip(1);
                Ok(Self::Event(FailedEvent { build, workspace_id, partition, seq, workspace_seq, event_id }))
            }
            LetterSource::Job => {
                let queue = row.next()?;
                row.skip(1);
                let workspace_id = row.next()?;
                row.skip(4);
                Ok(Self::Job(FailedJob { queue, workspace_id, job_id: row.next()? }))
            }
        }
    }
}

/// The debit account, the credit account, and the grant that one of them belongs to.
impl Columns for Accounts {
    const KINDS: &'static [Kind] = &[Kind::Text, Kind::Text, GrantId::KIND];

    fn put(&self, row: &mut impl WriteValue) {
        row.value(Kind::Text, Value::Text(self.debit.label()));
        row.value(Kind::Text, Value::Text(self.credit.label()));
        self.grant_id().put(row);
    }

    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        let (debit, credit): (String, String) = (row.next()?, row.next()?);
        let grant: Option<GrantId> = row.next()?;
        let account = |label: String| {
            Account::from_stored(&label, grant).ok_or_else(|| unreadable("account", &Value::Text(label.into())))
        };
        Ok(Self { debit: account(debit)?, credit: account(credit)? })
    }
}
