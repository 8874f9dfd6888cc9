//! `billing`: a statement for each workspace and period, with a line for each feature.
//!
//! A workspace has one open statement. It is closed by the event that ends its period: `CreditReset`, or the
//! `SubscriptionChanged` that ends the subscription. What that event says of the old period belongs to the statement that
//! it closes, and what it grants to the one that it opens. After the end of a subscription, a statement is open until the
//! next `CreditReset`.
//!
//! After every event that it reads, the balance that follows from the figures must be the one in the event. If it is not,
//! the event is a fault, and no wrong statement is written. What an event has moved that an operator has discarded is
//! `unexplained`: the balance of the next event tells it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::beginning::Beginning;
use super::fact::Fact;
use super::fault::Fault;
use super::fold::{Fold, add, not_negative};
use super::rows::{ConsumerKeys, ConsumerRows};
use super::statement::{Statement, StatementDocument, StatementLine};
use crate::domain::cloud_event::EventRecord;
use crate::domain::credits::{Credits, Quantity};
use crate::domain::event::{
    CreditConsumed, CreditReset, EventData, EventType, PurchaseReversed, SubscriptionChanged, WorkspaceProvisioned,
};
use crate::domain::ids::WorkspaceId;
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

/// Whether it makes something of events of this type.
pub(super) const fn reads(event_type: EventType) -> bool {
    match event_type {
        EventType::CreditConsumed
        | EventType::CreditLimitExceeded
        | EventType::UsageLimitExceeded
        | EventType::CreditsPurchased
        | EventType::CreditsGranted
        | EventType::GrantVoided
        | EventType::CreditsRefunded
        | EventType::PurchaseReversed
        | EventType::CreditsExpired
        | EventType::DebtRepaid
        | EventType::CreditReset
        | EventType::SubscriptionChanged
        | EventType::WorkspaceProvisioned => true,
        EventType::CreditsHeld
        | EventType::HoldReleased
        | EventType::LowCreditWarning
        | EventType::CreditsExpiring
        | EventType::JobSubmitted
        | EventType::JobCompleted
        | EventType::JobFailed => false,
    }
}

type LineKey = (WorkspaceId, Timestamp, FeatureCode);

pub(super) struct Billing {
    version: i32,
    /// The open statement of each workspace.
    open: HashMap<WorkspaceId, Statement>,
    changed: HashSet<WorkspaceId>,
    closed: Vec<Statement>,
    /// The lines that are stored of statements that may be closed.
    stored_lines: BTreeMap<LineKey, StatementLine>,
    added_lines: BTreeMap<LineKey, StatementLine>,
}

impl Billing {
    pub(super) fn new(version: i32, rows: ConsumerRows) -> Self {
        let stored_lines = rows.statement_lines.into_iter().map(|line| (key_of(&line), line));
        Self {
            version,
            open: rows.statements.into_iter().map(|statement| (statement.workspace_id, statement)).collect(),
            changed: HashSet::new(),
            closed: Vec::new(),
            stored_lines: stored_lines.collect(),
            added_lines: BTreeMap::new(),
        }
    }

    pub(super) fn add_keys(version: i32, fact: &Fact, data: Option<&EventData>, keys: &mut ConsumerKeys) {
        let key = (version, fact.event.workspace_id);
        keys.statements.insert(key);
        // A statement is closed with all its lines. Otherwise they are only added to.
        if matches!(data, Some(EventData::CreditReset(_) | EventData::SubscriptionChanged(_))) {
            keys.statement_lines.insert(key);
        }
    }

    fn statement(&mut self, workspace_id: WorkspaceId) -> Result<&mut Statement, Fault> {
        let unknown = || Fault::contradiction(format!("the workspace {workspace_id} has no open statement"));
        self.open.get_mut(&workspace_id).ok_or_else(unknown)
    }

    fn provision(&mut self, fact: &Fact, data: &WorkspaceProvisioned) -> Result<(), Fault> {
        let workspace_id = fact.event.workspace_id;
        if self.open.contains_key(&workspace_id) {
            return Err(Fault::contradiction(format!("the workspace {workspace_id} was created before")));
        }
        let mut statement = self.opened(fact, &data.into(), 0);
        add_credits(&mut statement.granted, data.granted)?;
        self.open.insert(workspace_id, statement);
        Ok(())
    }

    fn opened(&self, fact: &Fact, period: &Beginning<'_>, opening: i64) -> Statement {
        Statement {
            version: self.version,
            workspace_id: fact.event.workspace_id,
            period_start: period.start,
            partition: fact.event.partition,
            period_end: period.end,
            plan_code: period.plan_code.clone(),
            plan_version: period.plan_version,
            opening,
            granted: 0,
            purchased: 0,
            bonus: 0,
            refunded: 0,
            consumed: 0,
            expired: 0,
            removed: 0,
            reversed: 0,
            voided: 0,
            unexplained: Some(0),
            closing: opening,
            debt_repaid: 0,
            rolled_over: 0,
            first_seq: fact.event.workspace_seq,
            last_seq: fact.event.workspace_seq,
            closed_at: None,
            sha256: None,
        }
    }

    /// Closes the open statement and opens that of the next period, or replaces the terms of the open one. `told` is the
    /// balance between them.
    fn begin(&mut self, fact: &Fact, period: &Beginning<'_>, told: Option<i64>) -> Result<(), Fault> {
        let workspace_id = fact.event.workspace_id;
        let statement = self.statement(workspace_id)?;
        if !period.closes(statement.period_start) {
            statement.period_end = period.end;
            statement.plan_code = period.plan_code.clone();
            statement.plan_version = period.plan_version;
            return Ok(());
        }
        let mut statement = statement.clone();
        statement.explain(told.ok_or_else(|| Fault::too_large("the balance of a statement"))?)?;
        statement.closing = statement.balance()?;
        statement.period_end = Some(period.start);
        statement.last_seq = fact.event.workspace_seq;
        statement.closed_at = Some(fact.event.recorded_at);
        let lines = self.lines_of(&statement)?;
        statement.sha256 = Some(StatementDocument::new(&statement, lines.values()).sha256()?);
        let next = self.opened(fact, period, statement.closing);
        self.closed.push(statement);
        self.open.insert(workspace_id, next);
        Ok(())
    }

    /// All lines of a statement, with what this fold has added.
    fn lines_of(&self, statement: &Statement) -> Result<BTreeMap<LineKey, StatementLine>, Fault> {
        let is_its = |key: &LineKey| (key.0, key.1) == (statement.workspace_id, statement.period_start);
        let first = (statement.workspace_id, statement.period_start, FeatureCode::from_stored(""));
        let of = |lines: &BTreeMap<LineKey, StatementLine>| -> Vec<_> {
            let its = lines.range(first.clone()..).take_while(|(key, _)| is_its(key));
            its.map(|(key, line)| (key.clone(), line.clone())).collect()
        };
        let mut lines: BTreeMap<_, _> = of(&self.stored_lines).into_iter().collect();
        for (key, added) in of(&self.added_lines) {
            match lines.get_mut(&key) {
                Some(line) => add_line(line, &added)?,
                None => _ = lines.insert(key, added),
            }
        }
        Ok(lines)
    }

    /// Adds to the line of a feature in the open statement.
    fn use_feature(&mut self, fact: &Fact, feature_code: &FeatureCode, used: Used) -> Result<(), Fault> {
        let quantity = used.quantity.map_or(0, Quantity::micro);
        not_negative(&[quantity])?;
        let workspace_id = fact.event.workspace_id;
        let period_start = self.statement(workspace_id)?.period_start;
        let added = StatementLine {
            version: self.version,
            workspace_id,
            period_start,
            feature_code: feature_code.clone(),
            partition: fact.event.partition,
            credits: used.credits.micro(),
            refunded: used.refunded.micro(),
            quantity,
            deductions: used.deductions,
            refused: used.refused,
        };
        match self.added_lines.get_mut(&(workspace_id, period_start, feature_code.clone())) {
            Some(line) => add_line(line, &added)?,
            None => _ = self.added_lines.insert(key_of(&added), added),
        }
        Ok(())
    }

    fn consume(&mut self, fact: &Fact, data: &CreditConsumed) -> Result<(), Fault> {
        add_credits(&mut self.statement(fact.event.workspace_id)?.consumed, data.credits)?;
        let used = Used { credits: data.credits, quantity: data.quantity, deductions: 1, ..Used::default() };
        self.use_feature(fact, &data.feature_code, used)
    }

    fn reverse(statement: &mut Statement, data: &PurchaseReversed) -> Result<(), Fault> {
        for credits in [data.credits_removed, data.credits_owed, data.bonus_removed, data.bonus_owed] {
            add_credits(&mut statement.reversed, credits)?;
        }
        Ok(())
    }

    fn reset(&mut self, fact: &Fact, data: &CreditReset) -> Result<(), Fault> {
        let workspace_id = fact.event.workspace_id;
        let statement = self.statement(workspace_id)?;
        add_credits(&mut statement.expired, data.expired)?;
        add_credits(&mut statement.rolled_over, data.rolled_over)?;
        self.begin(fact, &data.into(), data.current_credits.micro().checked_sub(data.granted.micro()))?;
        add_credits(&mut self.statement(workspace_id)?.granted, data.granted)
    }

    fn change_subscription(&mut self, fact: &Fact, data: &SubscriptionChanged) -> Result<(), Fault> {
        let statement = self.statement(fact.event.workspace_id)?;
        add_credits(&mut statement.granted, data.credits_granted)?;
        add_credits(&mut statement.removed, data.credits_removed)?;
        if let Some(period) = Beginning::of_change(data) {
            return self.begin(fact, &period, Some(data.current_credits.micro()));
        }
        let after = &data.after;
        // A plan that comes into force with the next period is not this period's.
        let is_before_end = statement.period_end.is_some_and(|end| data.effective_at < end);
        if after.period.start == statement.period_start && is_before_end {
            statement.plan_code = after.plan_code.clone();
            statement.plan_version = after.plan_version;
        }
        Ok(())
    }

    fn count(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault> {
        let workspace_id = fact.event.workspace_id;
        match data {
            EventData::WorkspaceProvisioned(data) => self.provision(fact, data),
            EventData::CreditReset(data) => self.reset(fact, data),
            EventData::SubscriptionChanged(data) => self.change_subscription(fact, data),
            EventData::CreditConsumed(data) => self.consume(fact, data),
            EventData::CreditLimitExceeded(data) => self.use_feature(fact, &data.feature_code, Used::REFUSED),
            EventData::UsageLimitExceeded(data) if data.refused => {
                self.use_feature(fact, &data.feature_code, Used::REFUSED)
            }
            EventData::CreditsRefunded(data) => {
                add_credits(&mut self.statement(workspace_id)?.refunded, data.credits)?;
                let used = Used { refunded: data.credits, ..Used::default() };
                self.use_feature(fact, &data.feature_code, used)
            }
            EventData::CreditsPurchased(data) => {
                let statement = self.statement(workspace_id)?;
                add_credits(&mut statement.purchased, data.credits)?;
                add_credits(&mut statement.bonus, data.bonus_credits)
            }
            EventData::CreditsGranted(data) => add_credits(&mut self.statement(workspace_id)?.granted, data.credits),
            EventData::GrantVoided(data) => add_credits(&mut self.statement(workspace_id)?.voided, data.credits),
            EventData::PurchaseReversed(data) => Self::reverse(self.statement(workspace_id)?, data),
            EventData::CreditsExpired(data) => add_credits(&mut self.statement(workspace_id)?.expired, data.credits),
            EventData::DebtRepaid(data) => add_credits(&mut self.statement(workspace_id)?.debt_repaid, data.credits),
            EventData::UsageLimitExceeded(_)
            | EventData::CreditsHeld(_)
            | EventData::HoldReleased(_)
            | EventData::LowCreditWarning(_)
            | EventData::CreditsExpiring(_)
            | EventData::JobSubmitted(_)
            | EventData::JobCompleted(_)
            | EventData::JobFailed(_) => Ok(()),
        }
    }
}

impl Fold for Billing {
    fn take(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault> {
        self.count(fact, data)?;
        let workspace_id = fact.event.workspace_id;
        let told = data.current_credits().micro();
        let statement = self.statement(workspace_id)?;
        statement.explain(told)?;
        statement.closing = statement.balance()?;
        statement.last_seq = fact.event.workspace_seq;
        let closing = statement.closing;
        if closing != told {
            return Err(Fault::contradiction(format!(
                "the statement says a balance of {closing} micro-credits, and the event {told}"
            )));
        }
        self.changed.insert(workspace_id);
        Ok(())
    }

    fn skip(&mut self, event: &EventRecord) {
        let Some(statement) = self.open.get_mut(&event.workspace_id) else { return };
        statement.unexplained = None;
        statement.last_seq = event.workspace_seq;
        self.changed.insert(event.workspace_id);
    }

    fn finish(mut self) -> ConsumerRows {
        self.open.retain(|workspace_id, _| self.changed.contains(workspace_id));
        let mut statements = self.closed;
        statements.extend(self.open.into_values());
        ConsumerRows {
            statements,
            statement_lines: self.added_lines.into_values().collect(),
            ..ConsumerRows::default()
        }
    }
}

/// What an event adds to the line of a feature.
#[derive(Clone, Copy, Default)]
struct Used {
    credits: Credits,
    refunded: Credits,
    quantity: Option<Quantity>,
    deductions: i64,
    refused: i64,
}

impl Used {
    const REFUSED: Self =
        Self { credits: Credits::ZERO, refunded: Credits::ZERO, quantity: None, deductions: 0, refused: 1 };
}

fn key_of(line: &StatementLine) -> LineKey {
    (line.workspace_id, line.period_start, line.feature_code.clone())
}

fn add_credits(sum: &mut i64, credits: Credits) -> Result<(), Fault> {
    not_negative(&[credits.micro()])?;
    add(sum, credits.micro())
}

fn add_line(line: &mut StatementLine, added: &StatementLine) -> Result<(), Fault> {
    add(&mut line.credits, added.credits)?;
    add(&mut line.refunded, added.refunded)?;
    add(&mut line.quantity, added.quantity)?;
    add(&mut line.deductions, added.deductions)?;
    add(&mut line.refused, added.refused)
}

#[cfg(test)]
pub(super) mod tests;
