//! Spending credits on a feature: its price, the limits of its use, and the grants that bear it.
//!
//! A deduction, a hold and what a capture takes beyond its hold pass the same checks, in the documented order: feature
//! known and enabled → larger than a whole limit → limit of the feature → limit of the workspace → rate → balance plus
//! overdraft. The first check that fails decides the answer. What open holds reserve counts in every headroom as if it
//! were used.

use std::collections::HashSet;

use super::effects::Effects;
use super::refusal::Refusal;
use super::work::{Work, split};
use crate::domain::counter::CounterSubject;
use crate::domain::credits::{Credits, PositiveCredits, Quantity};
use crate::domain::event::{CreditLimitExceeded, EventData, GrantShare, LimitScope, UsageLimitExceeded};
use crate::domain::explanation::{Explanation, LimitInForce};
use crate::domain::grant::Grant;
use crate::domain::ledger::Account;
use crate::domain::plan::{FeatureTerms, LimitMode, RateLimit, UsageLimit};
use crate::domain::rejection::Rejection;
use crate::domain::text::{FeatureCode, UserId};
use crate::domain::time::{MAX_CLOCK_DIFFERENCE, Timestamp};

/// What is charged for a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    Credits(PositiveCredits),
    /// Charged at the feature's unit price, rounded up to one micro-credit.
    Quantity(Quantity),
}

impl Charge {
    pub(super) const fn quantity(self) -> Option<Quantity> {
        match self {
            Self::Quantity(quantity) => Some(quantity),
            Self::Credits(_) => None,
        }
    }

    pub(super) fn cost(self, feature_code: &FeatureCode, unit_price: Option<Credits>) -> Result<Credits, Rejection> {
        match self {
            Self::Credits(credits) => Ok(credits.get()),
            Self::Quantity(quantity) => {
                Ok(quantity.cost(unit_price.ok_or_else(|| Rejection::FeatureNotPriced(feature_code.clone()))?)?)
            }
        }
    }
}

/// A limit that a command is checked against, as the command finds it.
#[derive(Clone, Copy)]
pub(super) struct CheckedLimit {
    scope: LimitScope,
    limit: UsageLimit,
    used: Credits,
    /// What open holds reserve. Of a rate window it is part of `used`.
    held: Credits,
    /// When usage counts from zero again.
    resets_at: Timestamp,
    /// The length of the window, if the limit is that of a rate.
    window_s: Option<u32>,
    /// Whether it is a soft limit whose passing was reported before.
    is_reported: bool,
}

impl CheckedLimit {
    /// What can be used before the limit is reached.
    fn headroom(&self) -> Credits {
        self.limit.credits.minus_or_zero(self.used).minus_or_zero(self.held)
    }

    fn explained(&self) -> LimitInForce {
        LimitInForce {
            limit_scope: self.scope,
            mode: self.limit.mode,
            limit_credits: self.limit.credits,
            used_credits: self.used,
            held_credits: self.held,
            headroom_credits: self.headroom(),
            resets_at: self.resets_at,
            window_s: self.window_s,
        }
    }

    fn is_hard(&self) -> bool {
        self.limit.mode == LimitMode::Hard
    }
}

/// The use of a feature by one command, and what it is checked against.
pub(super) struct Spending<'a> {
    feature_code: &'a FeatureCode,
    user_id: Option<&'a UserId>,
    terms: FeatureTerms,
    /// In the order of the checks. An ended subscription has none.
    limits: [Option<CheckedLimit>; 3],
}

impl<'a> Spending<'a> {
    /// Refuses a feature that the workspace does not have. `features` are those that are known to exist.
    pub(super) fn new(
        work: &Work<'_>,
        feature_code: &'a FeatureCode,
        user_id: Option<&'a UserId>,
        features: &HashSet<FeatureCode>,
    ) -> Result<Self, Rejection> {
        let terms = match work.feature_terms(feature_code) {
            Some(terms) if terms.enabled => terms,
            None if !features.contains(feature_code) => return Err(Rejection::FeatureNotFound(feature_code.clone())),
            Some(_) | None => return Err(Rejection::FeatureDisabled(feature_code.clone())),
        };
        Ok(Self { feature_code, user_id, terms, limits: limits(work, feature_code, terms) })
    }

    pub(super) fn feature_code(&self) -> &'a FeatureCode {
        self.feature_code
    }

    pub(super) fn unit_price(&self) -> Option<Credits> {
        self.terms.unit_price
    }

    /// The most that passes all limits.
    pub(super) fn headroom(&self) -> Credits {
        let hard = self.limits.iter().flatten().filter(|limit| limit.is_hard());
        hard.map(CheckedLimit::headroom).fold(Credits::MAX, Credits::min)
    }

    /// Checks a cost against the limits and what is available. Returns the soft limits to report.
    pub(super) fn check(
        &self,
        work: &Work<'_>,
        cost: Credits,
        available: Credits,
    ) -> Result<Vec<CheckedLimit>, Refusal> {
        let limits = || self.limits.iter().flatten();
        // A cost that is larger than a whole limit never passes. So no other limit is checked before: its refusal would
        // name a time.
        if let Some(limit) = limits().find(|limit| limit.is_hard() && cost > limit.limit.credits) {
            return Err(self.limit_exceeded(work, limit, cost, None));
        }
        let mut to_report = Vec::new();
        for limit in limits().filter(|limit| cost > limit.headroom()) {
            match (limit.scope, limit.limit.mode) {
                (LimitScope::Window, _) => return Err(rate_exceeded(work, limit).into()),
                (_, LimitMode::Hard) => return Err(self.limit_exceeded(work, limit, cost, Some(limit.resets_at))),
                (_, LimitMode::Soft) if limit.is_reported => {}
                (_, LimitMode::Soft) => to_report.push(*limit),
            }
        }
        if cost > available {
            return Err(self.insufficient_credits(work, cost, available));
        }
        Ok(to_report)
    }

    /// What a cost is checked against, and nothing of how it is decided.
    pub(super) fn explain(&self, charge: Charge, cost: Option<Credits>, available: Credits) -> Explanation {
        let quantity = charge.quantity();
        Explanation {
            requested_credits: cost,
            quantity,
            unit_price: self.terms.unit_price.filter(|_| quantity.is_some()),
            available_credits: Some(available),
            limits: self.limits.iter().flatten().map(CheckedLimit::explained).collect(),
            ..Explanation::default()
        }
    }

    /// The explanation of what was accepted: what bears it, and the warnings that it raises.
    pub(super) fn accepted(
        explanation: Explanation,
        grants: &[GrantShare],
        overdraft_credits: Option<Credits>,
        effects: &Effects,
    ) -> Box<Explanation> {
        let threshold = |(_, event): &(_, EventData)| match event {
            EventData::LowCreditWarning(warning) => Some(warning.threshold_credits),
            _ => None,
        };
        let thresholds_crossed = effects.events.iter().filter_map(threshold).collect();
        Box::new(Explanation { grants: grants.to_vec(), overdraft_credits, thresholds_crossed, ..explanation })
    }

    /// Counts what was used or held in the rate window.
    pub(super) fn count_in_rate_window(&self, work: &mut Work<'_>, cost: Credits) -> Result<(), Refusal> {
        let window = self.limits.iter().flatten().find(|limit| limit.scope == LimitScope::Window);
        if let Some(CheckedLimit { used, resets_at, window_s: Some(window_s), .. }) = window {
            let length = i64::from(*window_s) * 1_000_000;
            let credits = work.credits_mut();
            credits.rate_window_start = Timestamp::from_micros(resets_at.micros() - length);
            credits.rate_window_used = used.plus(cost)?;
        }
        Ok(())
    }

    /// Raises the event of each soft limit that the cost has exceeded, and notes that it was raised.
    pub(super) fn report(&self, work: &mut Work<'_>, limits: Vec<CheckedLimit>, cost: Credits) {
        for limit in limits {
            if limit.scope == LimitScope::Feature {
                let mut counter = work.counter(&subject(self.feature_code));
                counter.reported_limit = Some(limit.limit.credits);
                work.set_counter(counter);
            } else {
                work.credits_mut().reported_limit = Some(limit.limit.credits);
            }
            let event = self.limit_event(work, &limit, cost, Some(limit.resets_at));
            work.raise(event);
        }
    }

    fn limit_event(
        &self,
        work: &Work<'_>,
        limit: &CheckedLimit,
        cost: Credits,
        resets_at: Option<Timestamp>,
    ) -> UsageLimitExceeded {
        UsageLimitExceeded {
            scope: limit.scope,
            feature_code: self.feature_code.clone(),
            user_id: self.user_id.cloned(),
            limit_credits: limit.limit.credits,
            used_credits: limit.used,
            held_credits: limit.held,
            requested_credits: cost,
            refused: limit.is_hard(),
            resets_at,
            window_s: limit.window_s,
            current_credits: work.credits().current_credits,
        }
    }

    fn limit_exceeded(
        &self,
        work: &Work<'_>,
        limit: &CheckedLimit,
        requested: Credits,
        resets_at: Option<Timestamp>,
    ) -> Refusal {
        let CheckedLimit { scope, limit: UsageLimit { credits, .. }, held, window_s, .. } = *limit;
        // What was used in a rate window says nothing about a cost that is larger than the whole window.
        let used = if scope == LimitScope::Window { Credits::ZERO } else { limit.used };
        let event = UsageLimitExceeded { used_credits: used, ..self.limit_event(work, limit, requested, resets_at) };
        Refusal {
            rejection: Rejection::LimitExceeded { scope, limit: credits, used, held, requested, resets_at, window_s },
            event: Some(Box::new(event.into())),
            explanation: None,
        }
    }

    fn insufficient_credits(&self, work: &Work<'_>, requested: Credits, available: Credits) -> Refusal {
        Refusal {
            rejection: Rejection::InsufficientCredits { requested, available },
            event: Some(Box::new(EventData::from(CreditLimitExceeded {
                feature_code: self.feature_code.clone(),
                user_id: self.user_id.cloned(),
                requested_credits: requested,
                available_credits: available,
                current_credits: work.credits().current_credits,
            }))),
            explanation: None,
        }
    }
}

fn subject(feature_code: &FeatureCode) -> CounterSubject {
    CounterSubject::Feature(feature_code.clone())
}

/// The limits in force, in the order of the checks.
fn limits(work: &Work<'_>, feature_code: &FeatureCode, terms: FeatureTerms) -> [Option<CheckedLimit>; 3] {
    if !work.subscription().is_active() {
        return [None; 3];
    }
    let in_force = |scope, limit: UsageLimit, used, held, reported_limit| CheckedLimit {
        scope,
        limit,
        used,
        held,
        resets_at: work.subscription().period.end,
        window_s: None,
        is_reported: reported_limit == Some(limit.credits),
    };
    let of_feature = terms.limit.map(|limit| {
        let counter = work.counter(&subject(feature_code));
        let held = work.held_on(feature_code);
        in_force(LimitScope::Feature, limit, counter.used_credits, held, counter.reported_limit)
    });
    let of_workspace = work.workspace().monthly_limit(work.plan()).map(|limit| {
        let credits = work.credits();
        in_force(LimitScope::Workspace, limit, credits.used_this_month, credits.held_credits, credits.reported_limit)
    });
    [of_feature, of_workspace, work.plan().rate_limit.map(|rate| rate_window(work, rate))]
}

/// The limit of the current rate window. Windows are aligned to the Unix epoch.
fn rate_window(work: &Work<'_>, rate: RateLimit) -> CheckedLimit {
    let now = work.now();
    let window_s = rate.window_s.max(1);
    let length = i64::from(window_s) * 1_000_000;
    let window_of = |at: Timestamp| Timestamp::from_micros(at.micros().div_euclid(length) * length);
    let credits = work.credits();
    // A window may begin after `now`, because clocks differ; further ahead, the clock that began it was wrong. It is
    // aligned again, because a change of plan may have changed its length.
    let (current, stored) = (window_of(now), window_of(credits.rate_window_start));
    let is_stored = stored >= current && stored <= now.plus(MAX_CLOCK_DIFFERENCE);
    let (start, used) = if is_stored { (stored, credits.rate_window_used) } else { (current, Credits::ZERO) };
    CheckedLimit {
        scope: LimitScope::Window,
        limit: UsageLimit::hard(rate.credits),
        used,
        held: Credits::ZERO,
        resets_at: Timestamp::from_micros(start.micros().saturating_add(length)),
        window_s: Some(window_s),
        is_reported: false,
    }
}

fn rate_exceeded(work: &Work<'_>, window: &CheckedLimit) -> Rejection {
    let left_micros = window.resets_at.micros().saturating_sub(work.now().micros());
    let window_s = window.window_s.unwrap_or_default();
    let retry_after_s = u32::try_from(left_micros.div_euclid(1_000_000) + 1).unwrap_or(window_s);
    Rejection::RateExceeded { limit: window.limit.credits, window_s, retry_after_s }
}

/// Whether the use of a feature can be paid from the grant now.
pub(super) fn can_burn(work: &Work<'_>, feature_code: &FeatureCode, grant: &Grant) -> bool {
    work.is_spendable(grant) && grant.is_for(feature_code)
}

/// What the grants have for the feature, without the overdraft.
pub(super) fn granted_for(work: &Work<'_>, feature_code: &FeatureCode) -> Credits {
    let spendable = work.grants().filter(|(_, grant)| can_burn(work, feature_code, grant));
    spendable.map(|(_, grant)| grant.remaining).fold(Credits::ZERO, Credits::saturating_plus)
}

/// What a use has taken.
#[derive(Default)]
pub(super) struct Taken {
    /// From grants, in burn order.
    pub grants: Vec<GrantShare>,
    pub overdraft: Credits,
}

impl Taken {
    /// Adds what else was taken. Each grant occurs once.
    pub(super) fn add(&mut self, other: Self) -> Result<(), Refusal> {
        for share in other.grants {
            match self.grants.iter_mut().find(|taken| taken.grant_id == share.grant_id) {
                Some(taken) => taken.credits = taken.credits.plus(share.credits)?,
                None => self.grants.push(share),
            }
        }
        self.overdraft = self.overdraft.plus(other.overdraft)?;
        Ok(())
    }
}

/// Takes a cost from the grants in burn order, and the rest from the overdraft. It was checked that both have enough.
pub(super) fn burn(
    work: &mut Work<'_>,
    feature_code: &FeatureCode,
    cost: Credits,
    occurred_at: Timestamp,
) -> Result<Taken, Refusal> {
    let (parts, left) = split(cost, work.grants().filter(|(_, grant)| can_burn(work, feature_code, grant)))?;
    let grants = work.debit_parts(parts, &Account::Consumed(feature_code.clone()), occurred_at)?;
    if left.is_positive() {
        work.borrow(left, feature_code, occurred_at)?;
    }
    Ok(Taken { grants, overdraft: left })
}

/// Counts what was used in this billing period.
pub(super) fn count(work: &mut Work<'_>, feature_code: &FeatureCode, used: Credits) -> Result<(), Refusal> {
    let mut counter = work.counter(&subject(feature_code));
    counter.used_credits = counter.used_credits.plus(used)?;
    work.set_counter(counter);
    let credits = work.credits_mut();
    credits.used_this_month = credits.used_this_month.plus(used)?;
    Ok(())
}
