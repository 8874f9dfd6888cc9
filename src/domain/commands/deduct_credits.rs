//! DeductCredits: charges for the use of a feature.
//!
//! The checks run in the documented order: feature enabled → larger than a whole limit → limit of the feature →
//! limit of the workspace → rate → balance plus overdraft. The first check that
//! fails decides the answer.

use std::collections::HashSet;

use chrono::TimeDelta;

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::work::{Work, split};
use crate::domain::counter::CounterSubject;
use crate::domain::credits::{Credits, PositiveCredits, Quantity};
use crate::domain::event::{
    CreditConsumed, CreditLimitExceeded, EventData, GrantShare, LimitScope, UsageLimitExceeded,
};
use crate::domain::grant::Grant;
use crate::domain::ledger::Account;
use crate::domain::plan::{FeatureTerms, LimitMode, RateLimit, UsageLimit};
use crate::domain::receipt::{DeductReceipt, Receipt};
use crate::domain::rejection::Rejection;
use crate::domain::text::{FeatureCode, UserId};
use crate::domain::time::{MAX_CLOCK_DIFFERENCE, Timestamp};
use crate::domain::usage::{UsageId, UsageLog};

/// How far `occurred_at` may lie before the time of the command.
pub const OCCURRED_AT_MAX_AGE: TimeDelta = TimeDelta::days(35);
/// How far `occurred_at` may lie after it: the clocks of callers differ from the server's.
pub const OCCURRED_AT_MAX_AHEAD: TimeDelta = TimeDelta::minutes(5);

/// What a deduction charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    Credits(PositiveCredits),
    /// Charged at the feature's unit price, rounded up to one micro-credit.
    Quantity(Quantity),
}

/// Charges for the use of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeductCredits {
    pub feature_code: FeatureCode,
    pub charge: Charge,
    pub user_id: Option<UserId>,
    /// When the feature was used, if not now: within [`OCCURRED_AT_MAX_AGE`] before and
    /// [`OCCURRED_AT_MAX_AHEAD`] after the receipt. The charge counts now, in the current period.
    pub occurred_at: Option<Timestamp>,
}

/// The cost of a deduction, and what it is checked against.
struct Assessment {
    terms: FeatureTerms,
    cost: Credits,
    /// What can be spent on this feature, the overdraft included.
    available_for_feature: Credits,
}

/// A cost that is checked against a limit.
#[derive(Clone, Copy)]
struct LimitCheck {
    scope: LimitScope,
    limit: UsageLimit,
    used: Credits,
    cost: Credits,
}

impl DeductCredits {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        features: &HashSet<FeatureCode>,
    ) -> Result<(Effects, Receipt), Refusal> {
        let now = work.now();
        let occurred_at = self.occurred_at.unwrap_or(now);
        if occurred_at < now.minus(OCCURRED_AT_MAX_AGE) || occurred_at > now.plus(OCCURRED_AT_MAX_AHEAD) {
            let detail = "must be at most 35 days ago and at most 5 minutes ahead";
            return Err(Rejection::TimeOutOfRange { pointer: "/occurred_at", detail }.into());
        }
        let assessment = self.assess(&work, features)?;
        let soft_limits = self.check_limits(&mut work, &assessment)?;
        if assessment.cost > assessment.available_for_feature {
            return Err(self.insufficient_credits(&work, &assessment));
        }
        let (grants, overdraft) = self.burn(&mut work, assessment.cost, occurred_at)?;
        self.count(&mut work, &assessment, &soft_limits)?;
        let receipt = self.record(&mut work, &assessment, grants, overdraft, occurred_at, request);
        let resets_at = work.subscription().period.end;
        for check in soft_limits {
            let event = self.limit_event(&work, check, Some(resets_at), None);
            work.raise(event);
        }
        Ok((work.finish(), receipt))
    }

    fn assess(&self, work: &Work<'_>, features: &HashSet<FeatureCode>) -> Result<Assessment, Refusal> {
        let feature_code = || self.feature_code.clone();
        let terms = match work.feature_terms(&self.feature_code) {
            Some(terms) if terms.enabled => terms,
            None if !features.contains(&self.feature_code) => {
                return Err(Rejection::FeatureNotFound(feature_code()).into());
            }
            Some(_) | None => return Err(Rejection::FeatureDisabled(feature_code()).into()),
        };
        let cost = match self.charge {
            Charge::Credits(credits) => credits.get(),
            Charge::Quantity(quantity) => {
                let not_priced = || Rejection::FeatureNotPriced(self.feature_code.clone());
                quantity.cost(terms.unit_price.ok_or_else(not_priced)?)?
            }
        };
        let spendable = work.grants().filter(|(_, grant)| self.can_burn(work, grant)).map(|(_, grant)| grant.remaining);
        let available_for_feature = spendable.fold(work.overdraft_left(), Credits::saturating_plus);
        Ok(Assessment { terms, cost, available_for_feature })
    }

    /// Checks the limits of the feature, of the workspace and of the rate. An ended subscription has none. Returns the
    /// soft limits to report.
    fn check_limits(&self, work: &mut Work<'_>, assessment: &Assessment) -> Result<Vec<LimitCheck>, Refusal> {
        let mut soft_limits = Vec::new();
        if !work.subscription().is_active() {
            return Ok(soft_limits);
        }
        let cost = assessment.cost;
        let own = work.workspace().monthly_limit_override.map(UsageLimit::hard);
        let monthly_limit = own.or(work.plan().monthly_limit);
        let rate = work.plan().rate_limit;
        self.check_whole_limits(work, assessment, monthly_limit, rate)?;
        if let Some(limit) = assessment.terms.limit {
            let counter = work.counter(&self.subject());
            let check = LimitCheck { scope: LimitScope::Feature, limit, used: counter.used_credits, cost };
            let is_exceeded = self.check_limit(work, check)?;
            soft_limits.extend((is_exceeded && counter.reported_limit != Some(limit.credits)).then_some(check));
        }
        if let Some(limit) = monthly_limit {
            let used = work.credits().used_this_month;
            let check = LimitCheck { scope: LimitScope::Workspace, limit, used, cost };
            let is_exceeded = self.check_limit(work, check)?;
            soft_limits.extend((is_exceeded && work.credits().reported_limit != Some(limit.credits)).then_some(check));
        }
        if let Some(rate) = rate {
            check_rate(work, rate, cost)?;
        }
        Ok(soft_limits)
    }

    /// Refuses a cost that is larger than a whole hard limit. It never passes, so no other limit is checked before: its
    /// refusal would name a time.
    fn check_whole_limits(
        &self,
        work: &Work<'_>,
        assessment: &Assessment,
        monthly_limit: Option<UsageLimit>,
        rate: Option<RateLimit>,
    ) -> Result<(), Refusal> {
        let cost = assessment.cost;
        let of_feature = || work.counter(&self.subject()).used_credits;
        let limits = [
            assessment.terms.limit.map(|limit| (LimitScope::Feature, limit, of_feature(), None)),
            monthly_limit.map(|limit| (LimitScope::Workspace, limit, work.credits().used_this_month, None)),
            rate.map(|rate| (LimitScope::Window, UsageLimit::hard(rate.credits), Credits::ZERO, Some(rate.window_s))),
        ];
        for (scope, limit, used, window_s) in limits.into_iter().flatten() {
            if limit.mode == LimitMode::Hard && cost > limit.credits {
                return Err(self.limit_exceeded(work, LimitCheck { scope, limit, used, cost }, None, window_s));
            }
        }
        Ok(())
    }

    /// Whether the cost exceeds a soft limit. Refuses it if it exceeds a hard one.
    fn check_limit(&self, work: &Work<'_>, check: LimitCheck) -> Result<bool, Refusal> {
        if check.used.plus(check.cost).is_ok_and(|sum| sum <= check.limit.credits) {
            return Ok(false);
        }
        match check.limit.mode {
            LimitMode::Soft => Ok(true),
            LimitMode::Hard => Err(self.limit_exceeded(work, check, Some(work.subscription().period.end), None)),
        }
    }

    fn limit_event(
        &self,
        work: &Work<'_>,
        check: LimitCheck,
        resets_at: Option<Timestamp>,
        window_s: Option<u32>,
    ) -> UsageLimitExceeded {
        UsageLimitExceeded {
            scope: check.scope,
            feature_code: self.feature_code.clone(),
            user_id: self.user_id.clone(),
            limit_credits: check.limit.credits,
            used_credits: check.used,
            requested_credits: check.cost,
            refused: check.limit.mode == LimitMode::Hard,
            resets_at,
            window_s,
            current_credits: work.credits().current_credits,
        }
    }

    fn limit_exceeded(
        &self,
        work: &Work<'_>,
        check: LimitCheck,
        resets_at: Option<Timestamp>,
        window_s: Option<u32>,
    ) -> Refusal {
        let LimitCheck { scope, limit, used, cost } = check;
        let (limit, requested) = (limit.credits, cost);
        Refusal {
            rejection: Rejection::LimitExceeded { scope, limit, used, requested, resets_at, window_s },
            event: Some(Box::new(self.limit_event(work, check, resets_at, window_s).into())),
        }
    }

    fn insufficient_credits(&self, work: &Work<'_>, assessment: &Assessment) -> Refusal {
        Refusal {
            rejection: Rejection::InsufficientCredits {
                requested: assessment.cost,
                available: assessment.available_for_feature,
            },
            event: Some(Box::new(EventData::from(CreditLimitExceeded {
                feature_code: self.feature_code.clone(),
                user_id: self.user_id.clone(),
                requested_credits: assessment.cost,
                available_credits: assessment.available_for_feature,
                current_credits: work.credits().current_credits,
            }))),
        }
    }

    /// Takes the cost from the grants in burn order, and the rest from the overdraft.
    fn burn(
        &self,
        work: &mut Work<'_>,
        cost: Credits,
        occurred_at: Timestamp,
    ) -> Result<(Vec<GrantShare>, Option<Credits>), Refusal> {
        let (parts, left) = split(cost, work.grants().filter(|(_, grant)| self.can_burn(work, grant)))?;
        let shares = work.debit_parts(parts, &Account::Consumed(self.feature_code.clone()), occurred_at)?;
        if left.is_zero() {
            return Ok((shares, None));
        }
        work.book(Account::Debt, Account::Consumed(self.feature_code.clone()), left, occurred_at)?;
        let credits = work.credits_mut();
        credits.debt_credits = credits.debt_credits.plus(left)?;
        Ok((shares, Some(left)))
    }

    /// Whether the deduction can spend credits of the grant.
    fn can_burn(&self, work: &Work<'_>, grant: &Grant) -> bool {
        work.is_spendable(grant) && grant.is_for(&self.feature_code)
    }

    fn subject(&self) -> CounterSubject {
        CounterSubject::Feature(self.feature_code.clone())
    }

    fn count(&self, work: &mut Work<'_>, assessment: &Assessment, reported: &[LimitCheck]) -> Result<(), Refusal> {
        let cost = assessment.cost;
        let reported_limit =
            |scope| reported.iter().find(|check| check.scope == scope).map(|check| check.limit.credits);
        let mut counter = work.counter(&self.subject());
        counter.used_credits = counter.used_credits.plus(cost)?;
        counter.reported_limit = reported_limit(LimitScope::Feature).or(counter.reported_limit);
        work.set_counter(counter);
        let credits = work.credits_mut();
        credits.reported_limit = reported_limit(LimitScope::Workspace).or(credits.reported_limit);
        credits.used_this_month = credits.used_this_month.plus(cost)?;
        credits.usage_seq += 1;
        Ok(())
    }

    fn record(
        &self,
        work: &mut Work<'_>,
        assessment: &Assessment,
        grants: Vec<GrantShare>,
        overdraft_credits: Option<Credits>,
        occurred_at: Timestamp,
        request: &Request<'_>,
    ) -> Receipt {
        let quantity = match self.charge {
            Charge::Quantity(quantity) => Some(quantity),
            Charge::Credits(_) => None,
        };
        let (command_id, recorded_at) = (work.command_id(), work.recorded_at());
        let workspace_id = work.workspace().workspace_id;
        let balance = work.credits();
        let (usage_seq, current_credits, used_this_month) =
            (balance.usage_seq, balance.current_credits, balance.used_this_month);
        work.effects_mut().usage_log = Some(UsageLog {
            workspace_id,
            seq: usage_seq,
            command_id,
            feature_code: self.feature_code.clone(),
            user_id: self.user_id.clone(),
            credits: assessment.cost,
            quantity,
            occurred_at,
            recorded_at,
            metadata: request.metadata.cloned(),
        });
        work.raise(CreditConsumed {
            feature_code: self.feature_code.clone(),
            user_id: self.user_id.clone(),
            credits: assessment.cost,
            quantity,
            grants: grants.clone(),
            overdraft_credits,
            current_credits,
            used_this_month,
            occurred_at,
        });
        Receipt::Deducted(DeductReceipt {
            command_id,
            workspace_id,
            usage_id: UsageId { recorded_at, seq: usage_seq },
            feature_code: self.feature_code.clone(),
            credits: assessment.cost,
            quantity,
            grants,
            overdraft_credits,
            current_credits,
            used_this_month,
            recorded_at,
        })
    }
}

/// Adds the cost to the current rate window, or refuses it. Windows are aligned to the Unix epoch.
fn check_rate(work: &mut Work<'_>, limit: RateLimit, cost: Credits) -> Result<(), Refusal> {
    let now = work.now();
    let window = i64::from(limit.window_s.max(1)) * 1_000_000;
    let window_of = |at: Timestamp| Timestamp::from_micros(at.micros().div_euclid(window) * window);
    let credits = work.credits_mut();
    // A window may begin after `now`, because clocks differ; further ahead, the clock that began it was wrong. It is
    // aligned again, because a change of plan may have changed its length.
    let (current, stored) = (window_of(now), window_of(credits.rate_window_start));
    let is_stored = stored >= current && stored <= now.plus(MAX_CLOCK_DIFFERENCE);
    let (start, used) = if is_stored { (stored, credits.rate_window_used) } else { (current, Credits::ZERO) };
    match used.plus(cost) {
        Ok(sum) if sum <= limit.credits => {
            (credits.rate_window_start, credits.rate_window_used) = (start, sum);
            Ok(())
        }
        _ => {
            let left_micros = start.micros().saturating_add(window).saturating_sub(now.micros());
            let retry_after_s = u32::try_from(left_micros.div_euclid(1_000_000) + 1).unwrap_or(limit.window_s);
            Err(Rejection::RateExceeded { limit: limit.credits, window_s: limit.window_s, retry_after_s }.into())
        }
    }
}
