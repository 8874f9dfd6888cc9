//! GrantCredits: gives a workspace credits that nobody paid for.
//!
//! A grant may begin later. Until then it is in the balance, but it cannot be spent, repays no debt and warns nobody.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::TimeDelta;

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::work::{GrantTerms, Work};
use crate::domain::credits::PositiveCredits;
use crate::domain::event::CreditsGranted;
use crate::domain::grant::{GrantedSource, MAX_OPEN_GRANTS, Priority};
use crate::domain::receipt::{GrantReceipt, Receipt};
use crate::domain::rejection::Rejection;
use crate::domain::text::{FeatureCode, Label};
use crate::domain::time::Timestamp;

/// How far a grant's beginning and expiry may lie ahead: ten years, leap days included.
const MAX_AHEAD: TimeDelta = TimeDelta::days(3653);

/// Gives a workspace credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantCredits {
    pub credits: PositiveCredits,
    pub source: GrantedSource,
    pub priority: Priority,
    /// At most [`MAX_AHEAD`] ahead. None, or an instant in the past, is now.
    pub effective_at: Option<Timestamp>,
    /// After the beginning, and at most [`MAX_AHEAD`] ahead.
    pub expires_at: Option<Timestamp>,
    /// The only feature that the credits may be spent on.
    pub feature_scope: Option<FeatureCode>,
    pub reason: Label,
}

impl GrantCredits {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        features: &HashSet<FeatureCode>,
    ) -> Result<(Effects, Receipt), Refusal> {
        let now = work.now();
        let effective_at = self.effective_at.unwrap_or(now).max(now);
        self.check(&work, effective_at, features)?;
        let source = self.source.into();
        let terms = GrantTerms {
            priority: self.priority,
            feature_scope: self.feature_scope.clone(),
            reason: Some(self.reason.clone()),
            metadata: request.metadata.cloned().map(Arc::new),
            ..GrantTerms::new(effective_at, self.expires_at)
        };
        let grant_id = work.issue(source, self.credits.get(), terms)?;
        let debt_repaid = work.repay_debt(now)?;
        let receipt = GrantReceipt {
            command_id: work.command_id(),
            workspace_id: request.workspace_id,
            grant_id,
            source,
            credits: self.credits.get(),
            priority: self.priority.get(),
            effective_at,
            expires_at: self.expires_at,
            feature_scope: self.feature_scope.clone(),
            reason: self.reason.clone(),
            debt_repaid,
            spendable: effective_at <= work.recorded_at() && !work.is_frozen(source),
            current_credits: work.credits().current_credits,
            recorded_at: work.recorded_at(),
        };
        work.raise(CreditsGranted {
            grant_id,
            source,
            credits: receipt.credits,
            priority: receipt.priority,
            effective_at,
            expires_at: self.expires_at,
            feature_scope: self.feature_scope.clone(),
            reason: self.reason.clone(),
            debt_repaid,
            spendable: receipt.spendable,
            current_credits: receipt.current_credits,
        });
        let changes_available = receipt.spendable && self.feature_scope.is_none();
        let effects = if changes_available { work.finish() } else { work.finish_without_warning() };
        Ok((effects, Receipt::Granted(receipt)))
    }

    fn check(
        &self,
        work: &Work<'_>,
        effective_at: Timestamp,
        features: &HashSet<FeatureCode>,
    ) -> Result<(), Rejection> {
        let out_of_range = |pointer, detail| Err(Rejection::TimeOutOfRange { pointer, detail });
        let latest = work.now().plus(MAX_AHEAD);
        if effective_at > latest {
            return out_of_range("/effective_at", "must be at most ten years ahead");
        }
        if self.expires_at.is_some_and(|end| end <= effective_at) {
            return out_of_range("/expires_at", "must be in the future and after effective_at");
        }
        if self.expires_at.is_some_and(|end| end > latest) {
            return out_of_range("/expires_at", "must be at most ten years ahead");
        }
        if let Some(code) = &self.feature_scope
            && work.feature_terms(code).is_none()
            && !features.contains(code)
        {
            return Err(Rejection::FeatureNotFound(code.clone()));
        }
        if work.grants().count() >= MAX_OPEN_GRANTS {
            return Err(Rejection::TooManyGrants(MAX_OPEN_GRANTS));
        }
        Ok(())
    }
}
