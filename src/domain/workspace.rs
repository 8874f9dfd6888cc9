//! A workspace and the caches of what it owns and used.

use std::sync::Arc;

use chrono_tz::Tz;

use super::credits::Credits;
use super::ids::{CommandId, EventId, GrantId, Partition, WorkspaceId};
use super::plan::{FeatureTerms, PlanVersion, UsageLimit};
use super::text::{FeatureCode, Label};
use super::time::Timestamp;

/// The paying tenant. Written once, when it is provisioned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    pub workspace_id: WorkspaceId,
    pub name: Label,
    pub zone: Tz,
    /// What this workspace agreed on instead of its plan's terms; survives a change of plan.
    pub monthly_limit_override: Option<Credits>,
    pub overdraft_limit_override: Option<Credits>,
    pub created_at: Timestamp,
}

impl Workspace {
    #[must_use]
    pub fn partition(&self) -> Partition {
        Partition::of(self.workspace_id)
    }
}

/// The balance and the counters of a workspace: caches that can be computed again from the ledger,
/// and the heads of its gap-free sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceCredits {
    pub workspace_id: WorkspaceId,
    /// What the ledger says: the remaining credits of all grants less the debt.
    pub current_credits: Credits,
    /// Of these, what open holds reserve.
    pub held_credits: Credits,
    /// What was spent beyond the grants, and is owed.
    pub debt_credits: Credits,
    /// How far `debt_credits` may go.
    pub overdraft_limit: Credits,
    /// What was used in the current billing period.
    pub used_this_month: Credits,
    /// The last command's number.
    pub command_seq: i64,
    /// The last ledger entry's number.
    pub entry_seq: i64,
    /// The last usage log's number.
    pub usage_seq: i64,
    /// The last event's number: `workspace_seq` in the event.
    pub event_seq: i64,
    /// The last command that wrote more of the workspace than this row: its grants, features or
    /// subscription. Whoever knows the workspace as of that command needs no more than this row.
    pub rest_seq: i64,
    /// Bit n: the plan's n-th low-credit threshold has fired and is not armed again yet.
    pub low_credit_fired: i16,
    /// The soft monthly limit has been reported in this period.
    pub monthly_limit_fired: bool,
    /// What was used in the rate window that began at `window_start`.
    pub window_start: Timestamp,
    pub window_used: Credits,
    /// When the last command of this workspace was decided. Time always runs forwards within a
    /// workspace, whatever the clocks of the replicas say.
    pub updated_at: Timestamp,
    /// What the last deductions moved, kept in this row.
    pub current: Current,
    pub last: LastRows,
}

/// Where the workspace's history is found: its last rows, each of which names the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastRows {
    /// The command of the last usage log.
    pub usage_log: Option<CommandId>,
    /// The command of the last ledger entry.
    pub entry: Option<CommandId>,
    pub event: Option<EventId>,
}

/// The grant and the feature whose figures are kept in the row of the workspace, and not in their own
/// ones: a deduction mostly moves the same two as the one before it, and so writes one row and not
/// three. The rows of their own have what was true before they became current.
///
/// A grant is current only while it has something remaining and nothing else of it changes, so its own
/// row always says rightly whether it is open and when it expires.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Current {
    pub grant: Option<CurrentGrant>,
    pub feature: Option<CurrentFeature>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentGrant {
    pub grant_id: GrantId,
    pub remaining: Credits,
    pub held: Credits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurrentFeature {
    pub feature_code: FeatureCode,
    pub used_this_month: Credits,
    pub limit_fired: bool,
}

impl WorkspaceCredits {
    #[must_use]
    pub fn new(workspace_id: WorkspaceId, at: Timestamp) -> Self {
        Self {
            workspace_id,
            current_credits: Credits::ZERO,
            held_credits: Credits::ZERO,
            debt_credits: Credits::ZERO,
            overdraft_limit: Credits::ZERO,
            used_this_month: Credits::ZERO,
            command_seq: 0,
            entry_seq: 0,
            usage_seq: 0,
            event_seq: 0,
            rest_seq: 0,
            low_credit_fired: 0,
            monthly_limit_fired: false,
            window_start: at,
            window_used: Credits::ZERO,
            updated_at: at,
            current: Current::default(),
            last: LastRows::default(),
        }
    }
}

/// What a workspace may do with one feature, and what it did with it in this period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceFeature {
    pub feature_code: FeatureCode,
    /// The terms of the plan; not enabled when the plan does not name the feature.
    pub plan_terms: FeatureTerms,
    /// What this workspace agreed on instead; survives a change of plan.
    pub overrides: FeatureOverrides,
    pub used_this_month: Credits,
    /// The soft limit has been reported in this period.
    pub limit_fired: bool,
}

/// The features of a workspace, by code. States are remembered by the ten thousand: what workspaces of one plan
/// have in common, which is every feature that is not used yet, they can share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceFeatures(Vec<Arc<WorkspaceFeature>>);

impl WorkspaceFeatures {
    /// Those of a workspace that has just subscribed to the plan.
    #[must_use]
    pub fn of_plan(plan: &PlanVersion) -> Self {
        plan.features.iter().map(|(code, terms)| WorkspaceFeature::new(code.clone(), *terms)).collect()
    }

    #[must_use]
    pub fn get(&self, code: &FeatureCode) -> Option<&WorkspaceFeature> {
        self.place(code).ok().and_then(|place| self.0.get(place)).map(Arc::as_ref)
    }

    pub fn get_mut(&mut self, code: &FeatureCode) -> Option<&mut WorkspaceFeature> {
        self.place(code).ok().and_then(|place| self.0.get_mut(place)).map(Arc::make_mut)
    }

    /// Takes the place of the one with its code, if there is one.
    pub fn put(&mut self, feature: WorkspaceFeature) {
        match self.place(&feature.feature_code) {
            Ok(place) => match Arc::get_mut(&mut self.0[place]) {
                Some(own) => *own = feature,
                None => self.0[place] = Arc::new(feature),
            },
            Err(place) => self.0.insert(place, Arc::new(feature)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &WorkspaceFeature> + Clone {
        self.0.iter().map(Arc::as_ref)
    }

    pub fn codes(&self) -> impl Iterator<Item = &FeatureCode> + Clone {
        self.iter().map(|feature| &feature.feature_code)
    }

    /// Shares with the others those that are equal, and the codes of all that they have as well.
    pub(super) fn share(&mut self, others: &Self) {
        for own in &mut self.0 {
            let Ok(place) = others.place(&own.feature_code) else { continue };
            let other = &others.0[place];
            if own == other {
                *own = Arc::clone(other);
            } else {
                Arc::make_mut(own).feature_code = other.feature_code.clone();
            }
        }
    }

    /// How much memory they take, about, without those that are shared.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let own = self.0.iter().filter(|feature| Arc::strong_count(feature) == 1).count();
        self.0.len() * size_of::<Arc<WorkspaceFeature>>() + own * size_of::<WorkspaceFeature>()
    }

    fn place(&self, code: &FeatureCode) -> Result<usize, usize> {
        self.0.binary_search_by(|feature| feature.feature_code.cmp(code))
    }
}

impl FromIterator<WorkspaceFeature> for WorkspaceFeatures {
    fn from_iter<I: IntoIterator<Item = WorkspaceFeature>>(features: I) -> Self {
        let mut features: Vec<_> = features.into_iter().map(Arc::new).collect();
        features.sort_by(|one, other| one.feature_code.cmp(&other.feature_code));
        features.shrink_to_fit();
        Self(features)
    }
}

/// A workspace's own terms for a feature; each, where given, stands before the plan's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureOverrides {
    pub enabled: Option<bool>,
    pub unit_price: Option<Credits>,
    /// A hard limit.
    pub limit: Option<Credits>,
}

impl WorkspaceFeature {
    /// One that is not used yet.
    #[must_use]
    pub fn new(feature_code: FeatureCode, plan_terms: FeatureTerms) -> Self {
        let overrides = FeatureOverrides::default();
        Self { feature_code, plan_terms, overrides, used_this_month: Credits::ZERO, limit_fired: false }
    }

    /// The terms in force: the plan's, with this workspace's overrides.
    #[must_use]
    pub fn terms(&self) -> FeatureTerms {
        FeatureTerms {
            enabled: self.overrides.enabled.unwrap_or(self.plan_terms.enabled),
            unit_price: self.overrides.unit_price.or(self.plan_terms.unit_price),
            limit: self.overrides.limit.map(UsageLimit::hard).or(self.plan_terms.limit),
        }
    }
}
