//! Positions, held events and the effects, in one SQLite database, so that they change in one transaction.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Acquire, ConnectOptions, Connection, Row, Sqlite, SqliteConnection, Transaction};

/// Events that have failed or wait behind one. More are a fault of this program, so it stops reading.
pub const MAX_HELD: i64 = 10_000;
/// Bytes of an error that are kept.
const MAX_ERROR: usize = 500;

const SCHEMA: &str = "
create table if not exists consumed (
    workspace_id text not null, feature_code text not null, micro_credits integer not null,
    primary key (workspace_id, feature_code)) strict;
-- The last event of each partition that has been dealt with.
create table if not exists positions (
    partition integer primary key, sequence integer not null, event_id text not null) strict;
-- Events that have failed, and later ones of the same workspace. Those that are dead do not hold others back.
create table if not exists held (
    partition integer not null, sequence integer not null, event_id text not null, workspace_id text not null,
    event text not null, attempts integer not null, due real not null, error text not null, is_dead integer not null,
    primary key (partition, sequence)) strict;
create index if not exists held_of_workspace on held (workspace_id, is_dead, sequence);
";

/// An event as it was received. `text` is none if it has left the stream: the others are empty then.
#[derive(Clone, Debug)]
pub struct Event {
    pub partition: u8,
    pub sequence: i64,
    pub id: String,
    pub workspace_id: String,
    pub text: Option<String>,
}

/// An event that has failed, or waits behind one of its workspace that has.
pub struct Held {
    pub event: Event,
    pub attempts: i64,
    /// Seconds since the Unix epoch.
    pub due: f64,
    pub error: String,
}

/// Why the work was not done.
enum WorkError {
    /// The event's fault: its effect is undone, and it is tried again later.
    Fault(String),
    /// The database has a problem, and not the event.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for WorkError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The work, in the transaction that stores the position.
async fn apply(db: &mut SqliteConnection, text: &str, fail_feature: Option<&str>) -> Result<(), WorkError> {
    let event: Value = serde_json::from_str(text).map_err(|error| WorkError::Fault(error.to_string()))?;
    if event["type"] != "CreditConsumed" {
        return Ok(());
    }
    let field = |value: &Value, name: &str| {
        value[name].as_str().map(str::to_owned).ok_or_else(|| WorkError::Fault(format!("there is no {name}")))
    };
    let (workspace_id, feature_code) = (field(&event, "workspaceid")?, field(&event["data"], "feature_code")?);
    let credits = field(&event["data"], "credits")?;
    let micro_credits = micro_credits(&credits).ok_or_else(|| WorkError::Fault(format!("{credits:?} is no amount")))?;
    let statement = "insert into consumed values (?, ?, ?)
        on conflict do update set micro_credits = micro_credits + excluded.micro_credits";
    sqlx::query(statement).bind(workspace_id).bind(&feature_code).bind(micro_credits).execute(db).await?;
    if fail_feature == Some(feature_code.as_str()) {
        return Err(WorkError::Fault("FAIL_FEATURE names this feature".to_owned()));
    }
    Ok(())
}

/// A decimal string with at most six places, in millionths. Never through a float.
fn micro_credits(text: &str) -> Option<i64> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let is_amount = whole.len() <= 13 && places.len() <= 6;
    is_amount.then(|| format!("{whole}{places:0<6}").parse().ok()).flatten()
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

pub struct Store {
    db: SqliteConnection,
    retry_delays: Vec<Duration>,
    fail_feature: Option<String>,
}

impl Store {
    pub async fn open(file: &str, timeout: Duration, delays: Vec<Duration>, fail: Option<String>) -> Result<Self> {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(true).busy_timeout(timeout);
        // Full: what is acknowledged to Redis must survive a power cut.
        let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let mut db = options.connect().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut db).await?;
        Ok(Self { db, retry_delays: delays, fail_feature: fail })
    }

    /// The last event of a partition that has been dealt with: its number and its id.
    pub async fn position(&mut self, partition: u8) -> Result<(i64, String)> {
        position(&mut self.db, partition).await
    }

    /// Deals with the events that follow the position without a gap. Returns the new position.
    pub async fn deal_with(&mut self, partition: u8, events: &BTreeMap<i64, Event>) -> Result<i64> {
        let (last, _) = self.position(partition).await?;
        if events.get(&(last + 1)).is_none_or(|event| event.text.is_none()) {
            return Ok(last);
        }
        let mut transaction = self.db.begin_with("begin immediate").await?;
        let (mut last, mut event_id) = position(&mut transaction, partition).await?;
        while let Some((event, text)) = events.get(&(last + 1)).and_then(|event| Some((event, event.text.as_ref()?))) {
            let waits = "select 1 from held where workspace_id = ? and not is_dead limit 1";
            let waits = sqlx::query(waits).bind(&event.workspace_id).fetch_optional(&mut *transaction).await?;
            if waits.is_some() {
                hold(&mut transaction, event, 0, "", &self.retry_delays).await?;
            } else if let Some(error) = attempt(&mut transaction, text, self.fail_feature.as_deref()).await? {
                hold(&mut transaction, event, 1, &error, &self.retry_delays).await?;
            }
            (last, event_id) = (event.sequence, event.id.clone());
        }
        let statement = "replace into positions values (?, ?, ?)";
        sqlx::query(statement).bind(partition).bind(last).bind(event_id).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(last)
    }

    /// The held event that is due first, of those that wait behind no other.
    pub async fn next_held(&mut self) -> Result<Option<Held>> {
        let statement = "select partition, sequence, event_id, workspace_id, event, attempts, due, error from held h
            where not is_dead and not exists (select 1 from held earlier
                where earlier.workspace_id = h.workspace_id and not earlier.is_dead and earlier.sequence < h.sequence)
            order by due limit 1";
        let Some(row) = sqlx::query(statement).fetch_optional(&mut self.db).await? else { return Ok(None) };
        let event = Event {
            partition: row.try_get("partition")?,
            sequence: row.try_get("sequence")?,
            id: row.try_get("event_id")?,
            workspace_id: row.try_get("workspace_id")?,
            text: row.try_get("event")?,
        };
        let (attempts, due, error) = (row.try_get("attempts")?, row.try_get("due")?, row.try_get("error")?);
        Ok(Some(Held { event, attempts, due, error }))
    }

    pub async fn retry(&mut self, held: &Held) -> Result<()> {
        let mut transaction = self.db.begin_with("begin immediate").await?;
        if !is_held(&mut transaction, held).await? {
            return Ok(()); // another consumer was faster
        }
        let text = held.event.text.as_deref().unwrap_or_default();
        if let Some(error) = attempt(&mut transaction, text, self.fail_feature.as_deref()).await? {
            hold(&mut transaction, &held.event, held.attempts + 1, &error, &self.retry_delays).await?;
        } else {
            let statement = "delete from held where partition = ? and sequence = ?";
            let delete = sqlx::query(statement).bind(held.event.partition).bind(held.event.sequence);
            delete.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Whether all delays have been used.
    pub fn is_exhausted(&self, held: &Held) -> bool {
        usize::try_from(held.attempts).is_ok_and(|attempts| attempts > self.retry_delays.len())
    }

    /// Marks an event as dead: it is tried no more, and later ones of its workspace go on.
    pub async fn bury(&mut self, held: &Held) -> Result<()> {
        let statement =
            "update held set is_dead = 1 where partition = ? and sequence = ? and attempts = ? and not is_dead";
        let update = sqlx::query(statement).bind(held.event.partition).bind(held.event.sequence).bind(held.attempts);
        update.execute(&mut self.db).await?;
        Ok(())
    }

    pub async fn held_count(&mut self) -> Result<i64> {
        Ok(sqlx::query_scalar("select count(*) from held").fetch_one(&mut self.db).await?)
    }

    /// Makes every dead event due.
    pub async fn replay(&mut self) -> Result<u64> {
        let statement = "update held set is_dead = 0, attempts = 0, due = 0 where is_dead";
        Ok(sqlx::query(statement).execute(&mut self.db).await?.rows_affected())
    }
}

impl Held {
    /// How long until it is due; zero if it is.
    pub fn due_in(&self) -> Duration {
        Duration::try_from_secs_f64(self.due - now_s()).unwrap_or_default()
    }
}

async fn position(db: &mut SqliteConnection, partition: u8) -> Result<(i64, String)> {
    let statement = "select sequence, event_id from positions where partition = ?";
    let row = sqlx::query_as(statement).bind(partition).fetch_optional(db).await?;
    Ok(row.unwrap_or_default())
}

/// Does the work; undoes it and returns the error if it fails.
async fn attempt(
    transaction: &mut Transaction<'_, Sqlite>,
    text: &str,
    fail_feature: Option<&str>,
) -> Result<Option<String>> {
    let mut savepoint = transaction.begin().await?;
    match apply(&mut savepoint, text, fail_feature).await {
        Ok(()) => savepoint.commit().await.map(|()| None).map_err(Into::into),
        Err(WorkError::Fault(mut error)) => {
            savepoint.rollback().await?;
            error.truncate(error.floor_char_boundary(MAX_ERROR));
            Ok(Some(error))
        }
        Err(WorkError::Database(error)) => Err(error.into()),
    }
}

async fn hold(db: &mut SqliteConnection, event: &Event, attempts: i64, error: &str, delays: &[Duration]) -> Result<()> {
    let delay = usize::try_from(attempts - 1).ok().and_then(|number| delays.get(number));
    let due = delay.map_or(0.0, |delay| now_s() + delay.as_secs_f64());
    let insert = sqlx::query("replace into held values (?, ?, ?, ?, ?, ?, ?, ?, 0)");
    let insert = insert.bind(event.partition).bind(event.sequence).bind(&event.id).bind(&event.workspace_id);
    insert.bind(&event.text).bind(attempts).bind(due).bind(error).execute(db).await?;
    Ok(())
}

async fn is_held(db: &mut SqliteConnection, held: &Held) -> Result<bool> {
    let statement = "select 1 from held where partition = ? and sequence = ? and attempts = ? and not is_dead";
    let query = sqlx::query(statement).bind(held.event.partition).bind(held.event.sequence).bind(held.attempts);
    Ok(query.fetch_optional(db).await?.is_some())
}
