//! Statements of workspaces: what became of the credits of a period.

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::fault::Fault;
use crate::domain::cloud_event::Sequence;
use crate::domain::credits::DecimalSum;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::Timestamp;

/// What became of a workspace's credits in one period. Amounts are in micro-credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub period_start: Timestamp,
    pub partition: Partition,
    /// When the period ends, or ended. None while there is no subscription.
    pub period_end: Option<Timestamp>,
    /// The plan at the end of the period.
    pub plan_code: PlanCode,
    pub plan_version: i32,
    /// The balance before the first event.
    pub opening: i64,
    pub granted: i64,
    pub purchased: i64,
    pub bonus: i64,
    pub refunded: i64,
    pub consumed: i64,
    pub expired: i64,
    pub removed: i64,
    pub reversed: i64,
    pub voided: i64,
    /// What discarded events have moved, as the next event tells. None until then.
    pub unexplained: Option<i64>,
    /// The balance after the last event.
    pub closing: i64,
    /// Moves no balance, as debt is a part of it.
    pub debt_repaid: i64,
    /// Moves no balance: credits of this period that the next one begins with.
    pub rolled_over: i64,
    /// The first event by its number in the workspace. It may be the last of the statement before.
    pub first_seq: i64,
    pub last_seq: i64,
    /// None while the statement is open.
    pub closed_at: Option<Timestamp>,
    /// Of a closed statement.
    pub sha256: Option<[u8; 32]>,
}

/// The usage of one feature in a statement. To be added to what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatementLine {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub period_start: Timestamp,
    pub feature_code: FeatureCode,
    pub partition: Partition,
    /// What was charged. Refunds are not taken off.
    pub credits: i64,
    /// What was given back in this period, whenever it had been charged.
    pub refunded: i64,
    /// In millionths.
    pub quantity: i64,
    /// Deductions and captures.
    pub deductions: i64,
    /// Deductions and holds that were refused for want of credits or at a limit.
    pub refused: i64,
}

impl Statement {
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed_at.is_some()
    }

    /// Explains what a discarded event has moved by a balance that a later one tells.
    pub(super) fn explain(&mut self, told: i64) -> Result<(), Fault> {
        if self.unexplained.is_none() {
            let moved = told.checked_sub(self.balance()?);
            self.unexplained = Some(moved.ok_or_else(|| Fault::too_large("the balance of a statement"))?);
        }
        Ok(())
    }

    /// The balance that follows from the figures.
    pub(super) fn balance(&self) -> Result<i64, Fault> {
        let added = [self.opening, self.granted, self.purchased, self.bonus, self.refunded];
        let taken = [self.consumed, self.expired, self.removed, self.reversed, self.voided];
        let sum = |parts: [i64; 5]| parts.into_iter().try_fold(0_i64, i64::checked_add);
        let moved = sum(added).zip(sum(taken)).and_then(|(added, taken)| added.checked_sub(taken));
        let balance = moved.and_then(|moved| moved.checked_add(self.unexplained.unwrap_or_default()));
        balance.ok_or_else(|| Fault::too_large("the balance of a statement"))
    }
}

/// Whether the period of a statement is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatementState {
    /// Its figures grow with each event.
    Open,
    /// It never changes again.
    Closed,
}

/// The figures of a statement: what became of a workspace's credits in one period. The balance at its end is `opening`,
/// `granted`, `purchased`, `bonus` and `refunded`, less `consumed`, `expired`, `removed`, `reversed` and `voided`, and with
/// `unexplained`.
//
// All of it is hashed. A field that is added must be absent from statements that were closed without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = StatementFigures)]
pub struct StatementView {
    pub workspace_id: WorkspaceId,
    /// When the period began. After the end of a subscription, that end.
    pub period_start: Timestamp,
    /// When the period ends; of a closed statement, when it ended. Absent while there is no subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_end: Option<Timestamp>,
    pub state: StatementState,
    /// The plan at the end of the period.
    pub plan_code: PlanCode,
    pub plan_version: i32,
    /// The balance when the period began: the closing balance of the statement before.
    pub opening: DecimalSum,
    /// Allowances, and what a change of plan or a caller granted.
    pub granted: DecimalSum,
    /// What was bought, without the bonus.
    pub purchased: DecimalSum,
    /// What was added to purchases.
    pub bonus: DecimalSum,
    /// What was given back of usage, of this period or an earlier one.
    pub refunded: DecimalSum,
    /// What deductions and captures charged.
    pub consumed: DecimalSum,
    pub expired: DecimalSum,
    /// What a change of plan or the end of the subscription removed.
    pub removed: DecimalSum,
    /// What reversals of purchases took back, as credits or as debt.
    pub reversed: DecimalSum,
    /// What was taken back of grants.
    pub voided: DecimalSum,
    /// What events have moved that an operator has discarded: positive if credits were added. Absent until the next event
    /// tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<DecimalSum>,
    /// The balance after the last event. Debt makes it negative.
    pub closing: DecimalSum,
    /// What credits repaid of debt. It moves no balance.
    pub debt_repaid: DecimalSum,
    /// What the next period was given of this period's allowance. It moves no balance.
    pub rolled_over: DecimalSum,
    /// The `workspaceseq` of the first event.
    pub first_seq: Sequence,
    /// The `workspaceseq` of the last event.
    pub last_seq: Sequence,
    /// When the event was recorded that ended the period. Only a closed statement has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// Only a closed statement has it: a hash of all its other figures, in hexadecimal. docs/FIGURES.md says how to compute it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Hex>,
}

/// The usage of one feature in a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = StatementLine)]
pub struct StatementLineView {
    pub feature_code: FeatureCode,
    /// What was charged. Refunds are not taken off.
    pub credits: DecimalSum,
    /// What was given back in this period, whenever it had been charged.
    pub refunded: DecimalSum,
    /// The sum of the quantities that were charged by quantity.
    pub quantity: DecimalSum,
    /// Deductions and captures.
    pub deductions: i64,
    /// Deductions and holds that were refused for want of credits or at a hard limit.
    pub refused: i64,
}

/// A statement with its lines, ordered by the bytes of their features' codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Statement)]
pub struct StatementDocument {
    #[serde(flatten)]
    pub figures: StatementView,
    pub lines: Vec<StatementLineView>,
}

/// A SHA-256 as 64 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
pub struct Sha256Hex(pub [u8; 32]);

impl Serialize for Sha256Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = |byte: &u8| format!("{byte:02x}");
        serializer.serialize_str(&self.0.iter().map(digits).collect::<String>())
    }
}

impl From<&Statement> for StatementView {
    fn from(statement: &Statement) -> Self {
        let sum = DecimalSum::of_micro;
        let state = if statement.is_closed() { StatementState::Closed } else { StatementState::Open };
        Self {
            workspace_id: statement.workspace_id,
            period_start: statement.period_start,
            period_end: statement.period_end,
            state,
            plan_code: statement.plan_code.clone(),
            plan_version: statement.plan_version,
            opening: sum(statement.opening),
            granted: sum(statement.granted),
            purchased: sum(statement.purchased),
            bonus: sum(statement.bonus),
            refunded: sum(statement.refunded),
            consumed: sum(statement.consumed),
            expired: sum(statement.expired),
            removed: sum(statement.removed),
            reversed: sum(statement.reversed),
            voided: sum(statement.voided),
            unexplained: statement.unexplained.map(sum),
            closing: sum(statement.closing),
            debt_repaid: sum(statement.debt_repaid),
            rolled_over: sum(statement.rolled_over),
            first_seq: Sequence(statement.first_seq),
            last_seq: Sequence(statement.last_seq),
            closed_at: statement.closed_at,
            sha256: statement.sha256.map(Sha256Hex),
        }
    }
}

impl From<&StatementLine> for StatementLineView {
    fn from(line: &StatementLine) -> Self {
        Self {
            feature_code: line.feature_code.clone(),
            credits: DecimalSum::of_micro(line.credits),
            refunded: DecimalSum::of_micro(line.refunded),
            quantity: DecimalSum::of_micro(line.quantity),
            deductions: line.deductions,
            refused: line.refused,
        }
    }
}

impl StatementDocument {
    /// The document of a statement and all its lines.
    #[must_use]
    pub fn new<'l>(statement: &Statement, lines: impl IntoIterator<Item = &'l StatementLine>) -> Self {
        let mut lines: Vec<_> = lines.into_iter().map(StatementLineView::from).collect();
        lines.sort_by(|one, other| one.feature_code.cmp(&other.feature_code));
        Self { figures: statement.into(), lines }
    }

    /// The SHA-256 of the document without its hash, as canonical JSON (RFC 8785): no spaces, and names in order.
    pub(super) fn sha256(mut self) -> Result<[u8; 32], Fault> {
        self.figures.sha256 = None;
        // serde_json escapes texts as RFC 8785 says, and all numbers are integers.
        let canonical = serde_json::to_value(&self).and_then(|mut value| {
            value.sort_all_objects();
            serde_json::to_vec(&value)
        });
        let text = canonical.map_err(|error| Fault::contradiction(format!("the statement is no JSON: {error}")))?;
        Ok(Sha256::digest(text).into())
    }
}
