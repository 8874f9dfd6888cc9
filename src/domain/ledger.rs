//! The ledger: immutable entries, each moving an amount from one account to another.
//!
//! An entry is one row with two accounts, so every transaction sums to zero by its shape. A
//! workspace's balance is what came into its `grant`, `held` and `debt` accounts less what left
//! them.

use std::borrow::Cow;

use super::credits::Credits;
use super::grant::GrantSource;
use super::ids::{CommandId, GrantId, WorkspaceId};
use super::text::FeatureCode;
use super::time::Timestamp;

/// One side of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The outside, where credits come from. What rolls over passes through `issued:rollover`, out
    /// of the old grant and into the new one.
    Issued(GrantSource),
    Grant(GrantId),
    Held(GrantId),
    Consumed(FeatureCode),
    /// Where credits end that nobody can spend any more.
    Expired,
    /// What the workspace owes: negative while it does.
    Debt,
}

impl Account {
    /// The name without the id of a grant, which has its own column: `grant`, `issued:purchase`.
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

    /// The account of a label; `grant` is the one that belongs to it, if it is a grant's.
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

    /// Whether it is part of the workspace's balance.
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
    /// What gives the amount.
    pub debit: Account,
    /// What receives it.
    pub credit: Account,
}

impl Accounts {
    /// The grant that one of the two sides belongs to; no entry touches two.
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
    /// When it counts: the boundary of a period that was caught up later, or when something was used.
    pub effective_at: Timestamp,
}
