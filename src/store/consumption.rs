//! What the consumers read and write, with the statements that both databases share.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::Consumption;
use super::columns::Stored;
use super::consumers::{Advance, ConsumerCursor, Registered};
use super::dialect::{Dialect, Keys, Parameters, each, rows_by_key};
use super::error::{StoreError, with_answer_timeout};
use super::kept_statements::keep_closed;
use super::queries::micros_of;
use super::reads::{Database, list, list_each};
use super::statements::Statement;
use super::{Operations as _, Outbox};
use crate::domain::cloud_event::EventRecord;
use crate::domain::consumers::{
    Build, Consumer, ConsumerKeys, ConsumerRows, NotifiedWorkspace, PurchaseRevenue, Statement as PeriodStatement,
    StatementLine, WorkspaceActivity,
};
use crate::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use crate::domain::ids::{EventId, Partition};
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::Label;
use crate::domain::time::Timestamp;

/// Who stopped a consumer that was tripped, or began a rebuild by itself.
const SERVER: &str = "server";
const NEWER_FOLD: &str = "A newer version of the server makes the figures";

/// A database with connections for work that no caller waits for.
pub(super) trait Background: Database {
    type Tx: BackgroundTx<Connection = Self::Connection>;

    /// Begins a transaction. Commands that wait for a connection go first.
    fn begin_background(&self) -> impl Future<Output = Result<Self::Tx, StoreError>> + Send;

    /// The statements that take and release the leases: each database reads its own clock.
    fn lease_statements(&self) -> [&'static str; 2];
}

/// Dropping it rolls back.
pub(super) trait BackgroundTx: Send {
    type Connection: Dialect;

    fn connection(&mut self) -> &mut Self::Connection;

    fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Runs one statement on these keys in a transaction of its own. Returns how many rows it says it has changed.
async fn change<D: Background>(
    database: &D,
    statement: &'static Statement,
    keys: Keys<'_>,
) -> Result<usize, StoreError> {
    with_answer_timeout(async {
        let mut tx = database.begin_background().await?;
        let changed = tx.connection().look_up(statement, &keys).await?.len();
        tx.commit().await?;
        Ok(changed)
    })
    .await
}

#[async_trait]
impl<D: Background + Outbox> Consumption for D {
    async fn lease_consumers(&self, owner: &str, ttl: Duration) -> Result<Vec<Partition>, StoreError> {
        let [take, _] = self.lease_statements();
        let (owner, ttl) = (owner.to_owned(), micros_of(ttl));
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let found = tx.connection().list(take, Parameters::of(&owner).and(&ttl)).await?;
            tx.commit().await?;
            each(&found, |mut row| row.next())
        })
        .await
    }

    async fn release_consumer_leases(&self, owner: &str) -> Result<(), StoreError> {
        let [_, release] = self.lease_statements();
        let owner = owner.to_owned();
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            tx.connection().list(release, Parameters::of(&owner)).await?;
            tx.commit().await
        })
        .await
    }

    async fn consumers(&self) -> Result<Vec<Registered>, StoreError> {
        let statement = &D::Connection::consumer_statements().consumers;
        list_each(self, statement, Parameters::default(), Registered::read).await
    }

    async fn consumer_cursors(&self) -> Result<Vec<ConsumerCursor>, StoreError> {
        let statement = &D::Connection::consumer_statements().consumer_cursors;
        list_each(self, statement, Parameters::default(), ConsumerCursor::read).await
    }

    async fn parked_workspaces(&self) -> Result<Vec<ParkedWorkspace>, StoreError> {
        list(self, &D::Connection::consumer_statements().parked_workspaces, Parameters::default()).await
    }

    async fn discarded_events(&self) -> Result<HashSet<(Consumer, EventId)>, StoreError> {
        let statement = &D::Connection::consumer_statements().discarded_events;
        let found = list_each(self, statement, Parameters::default(), |mut row| Ok((row.next()?, row.next()?))).await?;
        Ok(found.into_iter().collect())
    }

    async fn waiting_since(&self) -> Result<BTreeMap<Consumer, Timestamp>, StoreError> {
        let statement = &D::Connection::consumer_statements().waiting_since;
        let found = list_each(self, statement, Parameters::default(), |mut row| Ok((row.next()?, row.next()?))).await?;
        Ok(found.into_iter().collect())
    }

    async fn dead_letter(&self, dead_letter_id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        Ok(self.dead_letters_by_id(&[dead_letter_id]).await?.pop())
    }

    async fn events_left_out(&self, parked: &ParkedWorkspace, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        let (after, limit) = (parked.workspace_seq.saturating_sub(1), i64::from(limit));
        let parameters = Parameters::of(&parked.workspace_id).and(&after).and(&limit);
        list(self, &D::Connection::statements().events_of_workspace, parameters).await
    }

    async fn consumer_rows(&self, keys: &ConsumerKeys) -> Result<ConsumerRows, StoreError> {
        let statements = D::Connection::consumer_statements();
        with_answer_timeout(async {
            let mut view = self.view().await?;
            let activities: Vec<WorkspaceActivity> =
                rows_by_key(&mut *view, &statements.activities, Keys::pairs(&keys.activities)).await?;
            let revenues: Vec<PurchaseRevenue> =
                rows_by_key(&mut *view, &statements.revenues, Keys::triples(&keys.revenues)).await?;
            let open_statements: Vec<PeriodStatement> =
                rows_by_key(&mut *view, &statements.open_statements, Keys::pairs(&keys.statements)).await?;
            let statement_lines: Vec<StatementLine> =
                rows_by_key(&mut *view, &statements.open_statement_lines, Keys::pairs(&keys.statement_lines)).await?;
            let notified_workspaces: Vec<NotifiedWorkspace> =
                rows_by_key(&mut *view, &statements.notified_workspaces, Keys::pairs(&keys.notified_workspaces))
                    .await?;
            Ok(ConsumerRows {
                activities,
                revenues,
                statements: open_statements,
                statement_lines,
                notified_workspaces,
                ..ConsumerRows::default()
            })
        })
        .await
    }

    async fn advance_consumers(&self, advances: &[Advance]) -> Result<(), StoreError> {
        let mut all = ConsumerRows::default();
        for advance in advances {
            all.add(advance.rows.clone());
        }
        let letters: Vec<_> = advances.iter().flat_map(|advance| advance.letters.iter().cloned()).collect();
        let parked: Vec<_> = advances.iter().flat_map(|advance| advance.parked.iter().copied()).collect();
        let freed = Keys(advances.iter().flat_map(Advance::freed).collect());
        let cursors = Keys(advances.iter().map(Advance::key).collect());
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let connection = tx.connection();
            let moved =
                connection.look_up(&D::Connection::consumer_statements().advance_cursors, &cursors).await?.len();
            if moved != advances.len() {
                return Err(StoreError::Conflict("a cursor is elsewhere".into()));
            }
            keep_closed(connection, &mut all).await?;
            connection.put(&all.activities).await?;
            connection.put(&all.revenues).await?;
            // A closed statement takes no more lines, so they come first.
            connection.add(&all.statement_lines).await?;
            connection.put(&all.statements).await?;
            connection.add(&all.usage_days).await?;
            connection.add(&all.usage_hours).await?;
            connection.add(&all.revenue_days).await?;
            connection.put(&all.notified_workspaces).await?;
            connection.insert_missing(&all.notifications).await?;
            connection.put(&letters).await?;
            connection.put(&parked).await?;
            connection.look_up(&D::Connection::consumer_statements().free_workspaces, &freed).await?;
            tx.commit().await
        })
        .await
    }

    async fn start_rebuild(&self, before: &Registered, audit_id: Uuid, now: Timestamp) -> Result<(), StoreError> {
        let (reason, now) = (Label::from_stored(NEWER_FOLD), now.max(before.changed_at.next()));
        let after = Registered {
            reason: Some(NEWER_FOLD.to_owned()),
            changed_by: Some(SERVER.to_owned()),
            changed_at: now,
            ..before.rebuilding(self.newest_build(before.consumer).await?)
        };
        let act = OperatorAct {
            audit_id,
            at: now,
            actor: SERVER.to_owned(),
            action: "consumer.rebuild".to_owned(),
            target: before.consumer.as_str().to_owned(),
            reason,
            before: Some(before.told()),
            after: Some(after.told()),
        };
        self.change_consumer(before, &after, &act).await
    }

    async fn switch_consumer(&self, build: Build) -> Result<(), StoreError> {
        let keys = Keys(vec![vec![build.consumer.to_value(), build.version.to_value()]]);
        change(self, &D::Connection::consumer_statements().switch_consumer, keys).await.map(|_| ())
    }

    async fn trip_consumer(&self, consumer: Consumer, reason: &str, now: Timestamp) -> Result<(), StoreError> {
        let (reason, by) = (reason.to_owned(), SERVER.to_owned());
        let keys = Keys(vec![vec![consumer.to_value(), reason.to_value(), by.to_value(), now.to_value()]]);
        change(self, &D::Connection::consumer_statements().trip_consumer, keys).await.map(|_| ())
    }
}
