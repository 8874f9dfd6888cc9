//! What happens at the boundary of a period: the old period ends, and usually the next one begins.
//!
//! A scheduled cancellation or change of plan takes effect, unspent credits of the old period expire or roll
//! over, the new allowance is granted, and usage is counted from zero. Commands that end a subscription or
//! start a period early use the same functions.

use chrono::TimeDelta;

use super::plan_terms::switch_plan;
use super::refusal::Refusal;
use super::subscription_commands::CreditEffect;
use super::work::{GrantTerms, Work};
use crate::domain::change_set::SubscriptionPeriod;
use crate::domain::credits::Credits;
use crate::domain::event::{CreditReset, ScheduledKind, SubscriptionChangeKind, SubscriptionChanged};
use crate::domain::grant::GrantSource;
use crate::domain::ids::GrantId;
use crate::domain::ledger::Account;
use crate::domain::period::Period;
use crate::domain::plan::PurchasedOnCancel;
use crate::domain::subscription::{PendingChange, SubscriptionStatus};
use crate::domain::text::Label;
use crate::domain::time::Timestamp;

/// How many missed periods one command processes, so that its writes stay bounded. The scheduler
/// sends another command while more are due.
const MAX_PERIODS_PER_COMMAND: usize = 36;

/// Passes the boundaries that are due, in order. Returns the periods that began.
pub(super) fn pass_due_boundaries(work: &mut Work<'_>) -> Result<Vec<CreditReset>, Refusal> {
    let mut resets = Vec::new();
    while work.subscription().is_boundary_due(work.now()) && resets.len() < MAX_PERIODS_PER_COMMAND {
        let boundary = work.subscription().period.end;
        let months = work.plan().period_months;
        match work.subscription().pending_change.clone() {
            Some(PendingChange::Cancel { reason }) => {
                end_subscription(work, boundary, reason)?;
                break;
            }
            Some(PendingChange::Change { .. }) => apply_pending_plan(work, boundary),
            None => {}
        }
        let subscription = work.subscription();
        let schedule = subscription.schedule(work.workspace().time_zone);
        let next = schedule.after(subscription.period, months, work.plan().period_months);
        resets.push(begin_period(work, next)?);
    }
    Ok(resets)
}

fn apply_pending_plan(work: &mut Work<'_>, boundary: Timestamp) {
    let Some(plan) = work.pending_plan().cloned() else { return };
    let before = work.summary();
    work.change_subscription().pending_change = None;
    let features = switch_plan(work, &plan);
    let event = SubscriptionChanged {
        features,
        ..work.subscription_changed(SubscriptionChangeKind::Changed, boundary, before)
    };
    work.raise(event);
}

/// Starts a period: rolls over unspent allowance up to the plan's cap, lets the rest expire, grants the new
/// allowance and counts usage from zero.
pub(super) fn begin_period(work: &mut Work<'_>, period: Period) -> Result<CreditReset, Refusal> {
    let (rolled_over, expired) = close_periodic_grants(work, period.start, work.plan().rollover_cap)?;
    let previously_used = work.credits().used_this_month;
    start_counting(work, period);

    let effective_at = period.start;
    let subscription_id = work.subscription().subscription_id;
    let terms = |number| GrantTerms {
        grant_id: Some(GrantId::of_period(subscription_id, period.start, number)),
        ..GrantTerms::new(effective_at, Some(period.end))
    };
    if rolled_over.is_positive() {
        work.issue(GrantSource::Rollover, rolled_over, terms(0))?;
    }
    // Passing a boundary must never fail. So an allowance that would exceed the largest balance is granted
    // only in part.
    let room = Credits::MAX.minus_or_zero(work.credits().current_credits);
    let granted = work.plan().allowance.min(room);
    if granted.is_positive() {
        work.issue(GrantSource::Allowance, granted, terms(1))?;
    }
    let debt_repaid = work.repay_debt(effective_at)?;
    work.update_overdraft_limit();
    let reset = CreditReset {
        period,
        plan_code: work.subscription().plan_code.clone(),
        plan_version: work.subscription().plan_version,
        expired,
        rolled_over,
        granted,
        previously_used,
        debt_repaid,
        current_credits: work.credits().current_credits,
    };
    let record = SubscriptionPeriod {
        workspace_id: work.workspace().workspace_id,
        subscription_id: work.subscription().subscription_id,
        period,
        usage_seq: work.credits().usage_seq,
        command_id: work.command_id(),
    };
    work.effects_mut().periods.push(record);
    work.raise(reset.clone());
    Ok(reset)
}

/// Closes all grants that belong to the ending period, but for what is held: that ends when its hold gives it back. Up to `rollover_cap` of the unspent allowance is moved
/// to the account that the new rollover grant is issued from. The rest expires, and so do credits that were
/// already rolled over once. Returns (rolled over, expired).
fn close_periodic_grants(
    work: &mut Work<'_>,
    at: Timestamp,
    rollover_cap: Credits,
) -> Result<(Credits, Credits), Refusal> {
    let (mut rolled_over, mut expired) = (Credits::ZERO, Credits::ZERO);
    let open: Vec<_> = work
        .grants()
        .filter(|(_, grant)| grant.source.is_periodic() && grant.remaining.is_positive())
        .map(|(index, grant)| (index, grant.source, grant.remaining))
        .collect();
    for (index, source, remaining) in open {
        let room = if source == GrantSource::Allowance { rollover_cap.minus(rolled_over)? } else { Credits::ZERO };
        let rolled = remaining.min(room);
        if rolled.is_positive() {
            work.debit_grant(index, rolled, Account::Issued(GrantSource::Rollover), at)?;
            rolled_over = rolled_over.plus(rolled)?;
        }
        let rest = remaining.minus(rolled)?;
        if rest.is_positive() {
            work.debit_grant(index, rest, Account::Expired, at)?;
            expired = expired.plus(rest)?;
        }
    }
    Ok((rolled_over, expired))
}

/// Sets the period and counts usage from zero. The counters of features need no reset, because each names the
/// period that it counts.
fn start_counting(work: &mut Work<'_>, period: Period) {
    work.change_subscription().period = period;
    let credits = work.credits_mut();
    credits.used_this_month = Credits::ZERO;
    credits.uncollected_credits = Credits::ZERO;
    credits.reported_limit = None;
    credits.low_credit_alerts = 0;
}

/// Ends the subscription at the given instant. Its allowance expires; the plan decides about bought credits.
pub(super) fn end_subscription(
    work: &mut Work<'_>,
    at: Timestamp,
    reason: Option<Label>,
) -> Result<CreditEffect, Refusal> {
    let before = work.summary();
    let (_, removed) = close_periodic_grants(work, at, Credits::ZERO)?;
    let subscription = work.change_subscription();
    subscription.status = SubscriptionStatus::Canceled;
    subscription.canceled_at = Some(at);
    subscription.pending_change = None;
    subscription.version += 1;
    if let PurchasedOnCancel::ExpireAfterDays(days) = work.plan().purchased_on_cancel {
        shorten_purchased_grants(work, at.plus(TimeDelta::days(i64::from(days))));
    }
    work.update_overdraft_limit();
    let event = SubscriptionChanged {
        credits_removed: removed,
        reason,
        // A scheduled cancellation that takes effect was not withdrawn.
        withdrawn: work.withdrawn().filter(|kind| *kind == ScheduledKind::Change),
        ..work.subscription_changed(SubscriptionChangeKind::Canceled, at, before)
    };
    work.raise(event);
    Ok(CreditEffect { removed, ..CreditEffect::default() })
}

fn shorten_purchased_grants(work: &mut Work<'_>, end: Timestamp) {
    let later: Vec<_> = work
        .grants()
        .filter(|(_, grant)| {
            grant.source.follows_cancel_policy() && grant.is_open() && grant.expires_at.is_none_or(|at| at > end)
        })
        .map(|(index, _)| index)
        .collect();
    let days_ahead = work.plan().expiry_warning_days;
    for index in later {
        if let Some(grant) = work.change_grant(index) {
            let was_warned = grant.expires_at.is_some() && grant.expiry_warning_at.is_none();
            grant.expires_at = Some(end);
            if !was_warned {
                grant.schedule_expiry_warning(days_ahead);
            }
        }
    }
}
