//! Grants: lots of credits with a source and an expiry, and the order in which they burn.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::credits::Credits;
use super::ids::{GrantId, WorkspaceId};
use super::metadata::Metadata;
use super::text::{FeatureCode, Label, PaymentReference};
use super::time::Timestamp;

/// How many open grants a workspace may have before a purchase or a further grant is refused. Every command of the workspace
/// reads all of them, and one deduction may spend them all.
pub const MAX_OPEN_GRANTS: usize = 1000;

/// The priority of a grant without one. Lower burns first.
pub const DEFAULT_PRIORITY: i16 = 50;

/// The order in which a grant is spent: 0 to [`Priority::MAX`]. Lower is spent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority(i16);

impl Priority {
    pub const MAX: i16 = 100;

    #[must_use]
    pub fn new(priority: i64) -> Option<Self> {
        i16::try_from(priority).ok().filter(|priority| (0..=Self::MAX).contains(priority)).map(Self)
    }

    #[must_use]
    pub const fn get(self) -> i16 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(DEFAULT_PRIORITY)
    }
}

/// Where credits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantSource {
    /// The plan's credits for one period.
    Allowance,
    /// What was carried over from the period before.
    Rollover,
    Purchase,
    /// Free credits, such as the bonus of a purchase.
    Promotion,
    /// A correction by an operator.
    Adjustment,
}

impl GrantSource {
    pub const ALL: [Self; 5] = [Self::Allowance, Self::Rollover, Self::Purchase, Self::Promotion, Self::Adjustment];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowance => "allowance",
            Self::Rollover => "rollover",
            Self::Purchase => "purchase",
            Self::Promotion => "promotion",
            Self::Adjustment => "adjustment",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }

    /// Whether the credits belong to a period. Only a reset, a change of plan or a cancellation ends them, because
    /// their unspent part may roll over.
    #[must_use]
    pub const fn is_periodic(self) -> bool {
        matches!(self, Self::Allowance | Self::Rollover)
    }

    /// Whether a grant can be voided. A purchase was paid for, and the credits of a period belong to the plan.
    #[must_use]
    pub const fn is_voidable(self) -> bool {
        matches!(self, Self::Promotion | Self::Adjustment)
    }

    /// Whether the plan's `purchased_on_cancel` decides about the credits when the subscription ends.
    #[must_use]
    pub const fn follows_cancel_policy(self) -> bool {
        matches!(self, Self::Purchase | Self::Promotion)
    }

    /// The burn order among grants that expire at the same time: promotional credits before paid ones, and rolled
    /// over credits before the allowance, because they cannot roll over again.
    const fn burn_rank(self) -> u8 {
        match self {
            Self::Promotion => 0,
            Self::Rollover => 1,
            Self::Allowance | Self::Purchase | Self::Adjustment => 2,
        }
    }
}

/// The sources of the grants that callers may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantedSource {
    /// Free credits.
    Promotion,
    /// A correction.
    Adjustment,
}

impl From<GrantedSource> for GrantSource {
    fn from(source: GrantedSource) -> Self {
        match source {
            GrantedSource::Promotion => Self::Promotion,
            GrantedSource::Adjustment => Self::Adjustment,
        }
    }
}

/// What was paid for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostBasis {
    /// In minor units of the currency.
    pub amount_minor: i64,
    pub currency: Currency,
}

/// An ISO 4217 currency code: three upper-case letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

/// A lot of credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub workspace_id: WorkspaceId,
    pub grant_id: GrantId,
    pub source: GrantSource,
    pub amount: Credits,
    /// What is neither spent, expired nor held.
    pub remaining: Credits,
    pub held: Credits,
    /// 0 to 100; lower burns first.
    pub priority: i16,
    pub effective_at: Timestamp,
    /// The first instant at which the grant cannot be spent.
    pub expires_at: Option<Timestamp>,
    /// The only feature it may be spent on.
    pub feature_scope: Option<FeatureCode>,
    pub payment_reference: Option<PaymentReference>,
    pub cost_basis: Option<CostBasis>,
    /// Why a caller granted it.
    pub reason: Option<Label>,
    /// Of the command that issued it.
    pub metadata: Option<Arc<Metadata>>,
    /// The bonus that came with a purchase.
    pub bonus_grant_id: Option<GrantId>,
    /// When `CreditsExpiring` is due. None once it was raised, or if it never is.
    pub expiry_warning_at: Option<Timestamp>,
    /// `recorded_at` and `seq` of the ledger entry that issued it.
    pub created_at: Timestamp,
    pub issued_seq: i64,
}

impl Grant {
    /// Whether the grant has remaining or held credits. Closed grants take no part in decisions.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.remaining.is_positive() || self.held.is_positive()
    }

    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether `ExpireGrants` has to book the expiry. The grants of a period are closed with the period instead.
    #[must_use]
    pub fn is_expiry_due(&self, now: Timestamp) -> bool {
        self.is_expired(now) && self.remaining.is_positive() && !self.source.is_periodic()
    }

    /// Whether the grant is in effect. One that began when it was issued stays in effect by a clock that is behind.
    #[must_use]
    pub fn has_begun(&self, now: Timestamp) -> bool {
        self.effective_at <= self.created_at.max(now)
    }

    /// Whether the grant repays the debt that is there at that instant. A grant for one feature repays none, because the
    /// debt may be of another one. A grant that has expired since it began still does: it repays when it begins, also where
    /// that is recorded later.
    #[must_use]
    pub fn can_repay_debt(&self, now: Timestamp) -> bool {
        self.remaining.is_positive()
            && self.feature_scope.is_none()
            && self.has_begun(now)
            && !self.is_expired(self.effective_at)
    }

    /// Sets when `CreditsExpiring` is due: that many days before the expiry. With 0 days it never is, because what has
    /// expired is not expiring. The grants of a period end with it, so nobody is warned of them.
    pub fn schedule_expiry_warning(&mut self, days: u32) {
        self.expiry_warning_at = self.expiry_warning(days);
    }

    /// That many days before the expiry, but not before the grant begins.
    #[must_use]
    pub fn expiry_warning(&self, days: u32) -> Option<Timestamp> {
        let expires_at = self.expires_at.filter(|_| !self.source.is_periodic());
        expires_at.map(|end| end.minus(TimeDelta::days(i64::from(days))).max(self.effective_at))
    }

    #[must_use]
    pub fn is_expiry_warning_due(&self, now: Timestamp) -> bool {
        self.remaining.is_positive() && !self.is_expired(now) && self.expiry_warning_at.is_some_and(|at| at <= now)
    }

    /// Whether the grant can be spent, whatever its feature scope.
    #[must_use]
    pub fn is_spendable(&self, now: Timestamp) -> bool {
        self.remaining.is_positive() && self.has_begun(now) && !self.is_expired(now)
    }

    #[must_use]
    pub fn is_for(&self, feature: &FeatureCode) -> bool {
        self.feature_scope.as_ref().is_none_or(|scope| scope == feature)
    }

    /// Compares in burn order: grants scoped to a feature first, then by lower priority, earlier expiry (none
    /// last), source (promotion, rollover, others), earlier `effective_at`, smaller id.
    #[must_use]
    pub fn cmp_burn_order(&self, other: &Self) -> Ordering {
        self.burn_key().cmp(&other.burn_key())
    }

    fn burn_key(&self) -> impl Ord {
        (
            Reverse(self.feature_scope.is_some()),
            self.priority,
            self.expires_at.map_or(i64::MAX, Timestamp::micros),
            self.source.burn_rank(),
            self.effective_at,
            self.grant_id,
        )
    }
}

impl Currency {
    pub const EUR: Self = Self(*b"EUR");

    pub fn new(code: &str) -> Option<Self> {
        let bytes: [u8; 3] = code.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_uppercase).then_some(Self(bytes))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Currency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn grant(id: u128) -> Grant {
        Grant {
            workspace_id: WorkspaceId(Uuid::nil()),
            grant_id: GrantId(Uuid::from_u128(id)),
            source: GrantSource::Purchase,
            amount: Credits::whole(1),
            remaining: Credits::whole(1),
            held: Credits::ZERO,
            priority: DEFAULT_PRIORITY,
            effective_at: Timestamp::from_micros(10),
            expires_at: None,
            feature_scope: None,
            payment_reference: None,
            cost_basis: None,
            reason: None,
            metadata: None,
            bonus_grant_id: None,
            expiry_warning_at: None,
            created_at: Timestamp::from_micros(10),
            issued_seq: 1,
        }
    }

    #[test]
    fn grants_burn_in_the_documented_order() {
        let at = |micros| Some(Timestamp::from_micros(micros));
        let in_order = vec![
            Grant { feature_scope: Some(FeatureCode::new("render").unwrap()), priority: 90, ..grant(9) },
            Grant { priority: 10, ..grant(8) },
            Grant { expires_at: at(100), ..grant(7) },
            Grant { expires_at: at(200), source: GrantSource::Promotion, ..grant(6) },
            Grant { expires_at: at(200), source: GrantSource::Rollover, ..grant(15) },
            Grant { expires_at: at(200), ..grant(5) },
            Grant { effective_at: Timestamp::from_micros(5), ..grant(4) },
            grant(2),
            grant(3),
        ];
        let mut shuffled = in_order.clone();
        shuffled.reverse();
        shuffled.sort_by(Grant::cmp_burn_order);
        assert_eq!(shuffled, in_order);
    }

    #[test]
    fn a_grant_is_spendable_from_its_effective_instant_to_right_before_its_expiry() {
        let grant = Grant {
            effective_at: Timestamp::from_micros(15),
            expires_at: Some(Timestamp::from_micros(20)),
            ..grant(1)
        };
        let is_spendable =
            |grant: &Grant| [9, 14, 15, 19, 20].map(|now| grant.is_spendable(Timestamp::from_micros(now)));
        assert_eq!(is_spendable(&grant), [false, false, true, true, false]);
        let begun = Grant { created_at: Timestamp::from_micros(16), ..grant };
        assert_eq!(
            is_spendable(&begun),
            [true, true, true, true, false],
            "by a clock that is behind the one that issued it"
        );
    }

    #[test]
    fn nobody_is_warned_of_the_expiry_of_a_grant_that_has_not_begun() {
        let at = |micros| Timestamp::from_micros(micros);
        let day = 86_400_000_000;
        let grant = Grant { effective_at: at(3 * day), expires_at: Some(at(10 * day)), ..grant(1) };
        assert_eq!(grant.expiry_warning(5), Some(at(5 * day)));
        assert_eq!(grant.expiry_warning(8), Some(at(3 * day)));
    }
}
