//! What operators read and write, with the statements that both databases share.

use async_trait::async_trait;
use uuid::Uuid;

use super::columns::{Stored, Value};
use super::consumers::Registered;
use super::consumption::{Background, BackgroundTx as _};
use super::dialect::{Dialect, Keys, Parameters, rows};
use super::error::{StoreError, with_answer_timeout};
use super::operations::{
    ConsumerPosition, ConsumerStatus, DeadLetterGroup, DeadLetterQuery, LetterChange, LetterFilter, Operations,
};
use super::queries::{EventPosition, Page, PartitionStatus};
use super::reads::{list, list_each};
use super::{Consumption as _, Outbox};
use crate::domain::consumers::{Build, Consumer, ConsumerKeys, ConsumerRows, Fact, keys};
use crate::domain::dead_letter::{DeadLetter, FailedEvent, LetterState};
use crate::domain::jobs::Job;
use crate::domain::operator_act::OperatorAct;
use crate::domain::time::Timestamp;

#[async_trait]
impl<D: Background + Outbox> Operations for D {
    async fn consumer_statuses(&self) -> Result<Vec<ConsumerStatus>, StoreError> {
        let registered = self.consumers().await?;
        let statement = &D::Connection::consumer_statements().consumer_positions;
        let mut positions = list_each(self, statement, Parameters::default(), ConsumerPosition::read).await?;
        positions.sort_by_key(|position| (position.cursor.build, position.cursor.partition));
        let parked = self.parked_workspaces().await?;
        let status = |registered: Registered| {
            let consumer = registered.consumer;
            let versions = [Some(registered.version), registered.building_version];
            let is_of = |build: &Build| build.consumer == consumer && versions.contains(&Some(build.version));
            let of_build = positions.iter().filter(|position| is_of(&position.cursor.build)).cloned().collect();
            let in_use =
                parked.iter().filter(|parked| (parked.consumer, parked.version) == (consumer, registered.version));
            let parked = i64::try_from(in_use.count()).unwrap_or(i64::MAX);
            ConsumerStatus { positions: of_build, parked, registered }
        };
        Ok(registered.into_iter().map(status).collect())
    }

    async fn stream_statuses(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        self.status().await
    }

    async fn newest_build(&self, consumer: Consumer) -> Result<i32, StoreError> {
        let cursors = self.consumer_cursors().await?;
        let versions = cursors.into_iter().filter(|cursor| cursor.build.consumer == consumer);
        Ok(versions.map(|cursor| cursor.build.version).max().unwrap_or_default())
    }

    async fn change_consumer(
        &self,
        before: &Registered,
        after: &Registered,
        act: &OperatorAct,
    ) -> Result<(), StoreError> {
        let statements = D::Connection::consumer_statements();
        let change = Keys(vec![vec![
            after.consumer.to_value(),
            before.version.to_value(),
            before.changed_at.to_value(),
            after.state.to_value(),
            after.reason.to_value(),
            after.changed_by.to_value(),
            after.changed_at.to_value(),
            after.building_version.to_value(),
            after.building_fold_version.to_value(),
        ]]);
        let started = after.building_version.filter(|version| before.building_version != Some(*version));
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let connection = tx.connection();
            if connection.look_up(&statements.change_consumer, &change).await?.is_empty() {
                return Err(StoreError::Conflict("the consumer was changed meanwhile".into()));
            }
            if let Some(version) = started {
                let keys = vec![after.consumer.to_value(), version.to_value(), after.changed_at.to_value()];
                connection.look_up(&statements.start_build, &Keys(vec![keys])).await?;
            }
            connection.insert(std::slice::from_ref(act)).await?;
            tx.commit().await
        })
        .await
    }

    async fn operator_acts(&self, start_at: Option<Uuid>, limit: u32) -> Result<Page<OperatorAct>, StoreError> {
        let (start_at, one_more) = (start_at.unwrap_or(Uuid::max()), i64::from(limit) + 1);
        let statement = &D::Connection::consumer_statements().operator_acts;
        Ok(Page::of(list(self, statement, Parameters::of(&start_at).and(&one_more)).await?, limit))
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, StoreError> {
        let (at, id) = query.start_at.unwrap_or((Timestamp::MAX, Uuid::max()));
        let one_more = i64::from(query.limit) + 1;
        let LetterFilter { source, name, fingerprint, workspace_id } = &query.filter;
        let parameters = Parameters::of(&query.state).and(&at).and(&id).and(&one_more);
        let parameters = parameters.and(source).and(name).and(fingerprint).and(workspace_id);
        let statement = &D::Connection::consumer_statements().dead_letters;
        Ok(Page::of(list(self, statement, parameters).await?, query.limit))
    }

    async fn dead_letter_groups(&self, state: LetterState, limit: u32) -> Result<Vec<DeadLetterGroup>, StoreError> {
        let limit = i64::from(limit);
        let statement = &D::Connection::consumer_statements().dead_letter_groups;
        list_each(self, statement, Parameters::of(&state).and(&limit), DeadLetterGroup::read).await
    }

    async fn dead_letters_by_id(&self, ids: &[Uuid]) -> Result<Vec<DeadLetter>, StoreError> {
        let statement = &D::Connection::consumer_statements().dead_letter;
        with_answer_timeout(async { rows(&self.reader().await?.look_up(statement, &Keys::of(ids)).await?) }).await
    }

    async fn event_trial(&self, failed: &FailedEvent) -> Result<Option<(Fact, ConsumerRows)>, StoreError> {
        let before = EventPosition { partition: failed.partition, seq: failed.seq.saturating_sub(1) };
        let mut events = self.read_each(&[before], 1).await?;
        let Some(event) = events.pop().filter(|event| event.event_id == failed.event_id) else { return Ok(None) };
        let (fact, mut wanted) = (Fact::new(event), ConsumerKeys::default());
        keys(failed.build, std::slice::from_ref(&fact), &mut wanted);
        let rows = self.consumer_rows(&wanted).await?;
        Ok(Some((fact, rows)))
    }

    async fn change_letters(&self, changes: &[LetterChange], act: &OperatorAct) -> Result<(), StoreError> {
        let statements = D::Connection::consumer_statements();
        let letters = Keys(changes.iter().map(|change| letter_key(&change.letter)).collect());
        let of_events = changes.iter().filter(|change| change.letter.event().is_some());
        let parked = of_events.map(|change| vec![change.letter.dead_letter_id.to_value(), change.replay_at.to_value()]);
        let parked = Keys(parked.collect());
        let jobs: Vec<Job> = changes.iter().filter_map(|change| change.job.clone()).collect();
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let connection = tx.connection();
            let closed = connection.look_up(&statements.change_letters, &letters).await?.len();
            let freed = connection.look_up(&statements.try_workspaces, &parked).await?.len();
            if (closed, freed) != (changes.len(), parked.0.len()) {
                return Err(StoreError::Conflict("a dead letter was changed meanwhile".into()));
            }
            connection.insert(&jobs).await?;
            connection.insert(std::slice::from_ref(act)).await?;
            tx.commit().await
        })
        .await
    }

    async fn keep_act(&self, act: &OperatorAct) -> Result<(), StoreError> {
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            tx.connection().insert(std::slice::from_ref(act)).await?;
            tx.commit().await
        })
        .await
    }

    async fn operator_act(&self, audit_id: Uuid) -> Result<Option<OperatorAct>, StoreError> {
        Ok(list(self, &D::Connection::consumer_statements().operator_act, Parameters::of(&audit_id)).await?.pop())
    }

    async fn replay_progress(&self, replay_id: Uuid) -> Result<Vec<(LetterState, i64)>, StoreError> {
        let statement = &D::Connection::consumer_statements().replay_progress;
        list_each(self, statement, Parameters::of(&replay_id), |mut row| Ok((row.next()?, row.next()?))).await
    }
}

fn letter_key(letter: &DeadLetter) -> Vec<Value<'_>> {
    vec![
        letter.dead_letter_id.to_value(),
        letter.state.to_value(),
        letter.replay_id.to_value(),
        letter.resolved_at.to_value(),
    ]
}
