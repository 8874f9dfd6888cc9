//! The ledger: immutable entries, each moving an amount from one account to another.
//!
//! An entry is one row with two accounts, so every transaction sums to zero by construction. A
//! workspace's balance is the sum of its `grant`, `held` and `debt` accounts: their credits less their debits.

use std::borrow::Cow;

use super::credits::Credits;
use super::grant::GrantSource;
use super::ids::{CommandId, GrantId, WorkspaceId};
use super::text::FeatureCode;
use super::time::Timestamp;

/// One side of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The external source of credits; voided credits go back to it. Rolled over credits move from the old grant to `issued:rollover`, and from
    /// there to the new grant.
    Issued(GrantSource),
    Grant(GrantId),
    Held(GrantId),
    Consumed(FeatureCode),
    /// The account of credits that can no longer be spent.
    Expired,
    /// The debt of the workspace, as a negative balance.
    Debt,
}

impl Account {
    /// The stored name, such as `grant` or `issued:purchase`. The id of a grant has its own column.
    #[must_use]
    pub fn label(&self) -> Cow<'static, str> {
        match self {
            Self::Issued(GrantSource::Allowance) => Cow::Borrowed("issued:allowance"),
            Self::Issued(GrantSource::Rollover) => Cow::Borrowed("issued:rollover"),
            Self::Issued(GrantSource::Purchase) => Cow::Borrowed("issued:purchase"),
            Self::Issued(GrantSource::Promotion) => Cow::Borrowed("issued:promotion"),
            Self::Issued(GrantSource::Adjustment) => Cow::Borrowed("issued:adjustment"),
            Self::Grant(_) => Cow::Borrowed("grant"),
            Self::Held(_) => Cow::Borrowed("held"),
            Self::Consumed(feature) => Cow::Owned(format!("consumed:{feature}")),
            Self::Expired => Cow::Borrowed("expired"),
            Self::Debt => Cow::Borrowed("debt"),
        }
    }

    /// The account of a stored label. `grant` is the id from the grant's column.
    #[must_use]
    pub fn from_stored(label: &str, grant: Option<GrantId>) -> Option<Self> {
        match label.split_once(':') {
            Some(("issued", source)) => GrantSource::from_stored(source).map(Self::Issued),
            Some(("consumed", feature)) => Some(Self::Consumed(FeatureCode::from_stored(feature))),
            Some(_) => None,
            None => match label {
                "grant" => grant.map(Self::Grant),
                "held" => grant.map(Self::Held),
                "expired" => Some(Self::Expired),
                "debt" => Some(Self::Debt),
                _ => None,
            },
        }
    }

    /// Whether the account is part of the workspace's balance.
    #[must_use]
    pub const fn is_in_balance(&self) -> bool {
        matches!(self, Self::Grant(_) | Self::Held(_) | Self::Debt)
    }

    #[must_use]
    pub const fn grant_id(&self) -> Option<GrantId> {
        match self {
            Self::Grant(id) | Self::Held(id) => Some(*id),
            Self::Issued(_) | Self::Consumed(_) | Self::Expired | Self::Debt => None,
        }
    }
}

/// The two sides of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// The account that the amount is taken from.
    pub debit: Account,
    /// The account that the amount is added to.
    pub credit: Account,
}

impl Accounts {
    /// The grant of one of the two sides. No entry has two grants.
    #[must_use]
    pub fn grant_id(&self) -> Option<GrantId> {
        self.debit.grant_id().or(self.credit.grant_id())
    }
}

/// One movement of credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    pub workspace_id: WorkspaceId,
    /// Gap-free within the workspace, from 1.
    pub seq: i64,
    pub command_id: CommandId,
    pub accounts: Accounts,
    /// More than zero.
    pub amount: Credits,
    pub balance_after: Credits,
    pub recorded_at: Timestamp,
    /// When the entry counts: for example a boundary that was passed late, or the time of use.
    pub effective_at: Timestamp,
}
