//! `analytics`: the usage of each workspace by day and feature, and the figures of the whole server.
//!
//! Days and hours are in UTC, by the time of the event: when it was charged. A purchase is *recognised* (earned) in
//! proportion to the credits of it that were used, have expired, or have repaid debt. The sum so far is rounded down, and
//! not each part, so that all parts together are exactly what was paid. A refund of the usage takes some of it back, and a
//! reversal lowers both what was bought and what was paid.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::fact::Fact;
use super::fault::Fault;
use super::fold::{Fold, add, not_negative};
use super::rows::{ConsumerKeys, ConsumerRows, PurchaseRevenue, RevenueDay, UsageDay, UsageHour, WorkspaceActivity};
use crate::domain::cloud_event::EventRecord;
use crate::domain::credits::Quantity;
use crate::domain::event::{
    CreditConsumed, CreditsPurchased, EventData, EventType, GrantShare, PurchaseReversed, SubscriptionChangeKind,
};
use crate::domain::grant::{Currency, GrantSource};
use crate::domain::ids::{GrantId, Partition, WorkspaceId};
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::{Day, Timestamp};

/// Whether it makes something of events of this type.
pub(super) const fn reads(event_type: EventType) -> bool {
    match event_type {
        EventType::CreditConsumed
        | EventType::CreditLimitExceeded
        | EventType::UsageLimitExceeded
        | EventType::CreditsPurchased
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
        | EventType::CreditsGranted
        | EventType::GrantVoided
        | EventType::CreditsExpiring
        | EventType::JobSubmitted
        | EventType::JobCompleted
        | EventType::JobFailed => false,
    }
}

pub(super) struct Analytics {
    version: i32,
    activities: HashMap<WorkspaceId, WorkspaceActivity>,
    revenues: HashMap<GrantId, PurchaseRevenue>,
    changed_activities: HashSet<WorkspaceId>,
    changed_revenues: HashSet<GrantId>,
    usage_days: BTreeMap<(WorkspaceId, Timestamp, FeatureCode), UsageDay>,
    usage_hours: BTreeMap<(Partition, Timestamp, PlanCode, FeatureCode), UsageHour>,
    revenue_days: BTreeMap<(Partition, Timestamp, PlanCode, String), RevenueDay>,
}

impl Analytics {
    pub(super) fn new(version: i32, rows: ConsumerRows) -> Self {
        let activities = rows.activities.into_iter().map(|row| (row.workspace_id, row));
        let revenues = rows.revenues.into_iter().map(|row| (row.grant_id, row));
        Self {
            version,
            activities: activities.collect(),
            revenues: revenues.collect(),
            changed_activities: HashSet::new(),
            changed_revenues: HashSet::new(),
            usage_days: BTreeMap::new(),
            usage_hours: BTreeMap::new(),
            revenue_days: BTreeMap::new(),
        }
    }

    pub(super) fn add_keys(version: i32, fact: &Fact, data: Option<&EventData>, keys: &mut ConsumerKeys) {
        let workspace_id = fact.event.workspace_id;
        keys.activities.insert((version, workspace_id));
        let Some(data) = data else { return };
        let mut add = |grant_id| keys.revenues.insert((version, workspace_id, grant_id));
        match data {
            EventData::CreditsPurchased(bought) => _ = add(bought.grant_id),
            EventData::PurchaseReversed(reversed) => _ = add(reversed.grant_id),
            EventData::CreditConsumed(data) => bought(&data.grants).for_each(|share| _ = add(share.grant_id)),
            EventData::CreditsRefunded(data) => bought(&data.grants).for_each(|share| _ = add(share.grant_id)),
            EventData::CreditsExpired(data) => bought(&data.grants).for_each(|share| _ = add(share.grant_id)),
            EventData::DebtRepaid(data) => bought(&data.grants).for_each(|share| _ = add(share.grant_id)),
            _ => {}
        }
    }

    fn activity(&mut self, workspace_id: WorkspaceId) -> Result<&mut WorkspaceActivity, Fault> {
        let unknown = || Fault::contradiction(format!("the workspace {workspace_id} was not created"));
        self.activities.get_mut(&workspace_id).ok_or_else(unknown)
    }

    fn set_plan(&mut self, fact: &Fact, plan_code: &PlanCode) -> Result<(), Fault> {
        let activity = self.activity(fact.event.workspace_id)?;
        if activity.plan_code != *plan_code {
            activity.plan_code = plan_code.clone();
            self.changed_activities.insert(fact.event.workspace_id);
        }
        Ok(())
    }

    /// Counts what was used, given back or refused of a feature.
    fn use_feature(&mut self, fact: &Fact, feature_code: &FeatureCode, used: Used) -> Result<(), Fault> {
        let event = &fact.event;
        let (workspace_id, partition) = (event.workspace_id, event.partition);
        let (day, hour) = (Day::of(event.recorded_at).start(), event.recorded_at.start_of_hour());
        let plan_code = self.activity(workspace_id)?.plan_code.clone();
        not_negative(&[used.credits, used.refunded, used.quantity])?;
        let of_day = self.usage_days.entry((workspace_id, day, feature_code.clone())).or_insert_with(|| UsageDay {
            version: self.version,
            workspace_id,
            day,
            feature_code: feature_code.clone(),
            partition,
            credits: 0,
            refunded: 0,
            quantity: 0,
            deductions: 0,
            refused: 0,
        });
        add(&mut of_day.credits, used.credits)?;
        add(&mut of_day.refunded, used.refunded)?;
        add(&mut of_day.quantity, used.quantity)?;
        of_day.deductions += used.deductions;
        of_day.refused += used.refused;
        if used.deductions + used.refused == 0 {
            // The figures by hour have no refunds.
            return Ok(());
        }
        let key = (partition, hour, plan_code.clone(), feature_code.clone());
        let of_hour = self.usage_hours.entry(key).or_insert_with(|| UsageHour {
            version: self.version,
            partition,
            hour,
            plan_code,
            feature_code: feature_code.clone(),
            credits: 0,
            deductions: 0,
            refused: 0,
        });
        add(&mut of_hour.credits, used.credits)?;
        of_hour.deductions += used.deductions;
        of_hour.refused += used.refused;
        Ok(())
    }

    /// The row of the event's day and its workspace's plan.
    fn revenue_day(&mut self, fact: &Fact, currency: &str) -> Result<&mut RevenueDay, Fault> {
        let event = &fact.event;
        let (partition, day) = (event.partition, Day::of(event.recorded_at).start());
        let plan_code = self.activity(event.workspace_id)?.plan_code.clone();
        let version = self.version;
        let key = (partition, day, plan_code.clone(), currency.to_owned());
        Ok(self.revenue_days.entry(key).or_insert_with(|| RevenueDay {
            version,
            partition,
            day,
            plan_code,
            currency: currency.to_owned(),
            purchases: 0,
            credits_sold: 0,
            paid_minor: 0,
            returned_minor: 0,
            recognised_minor: 0,
            active_workspaces: 0,
            new_workspaces: 0,
            canceled_workspaces: 0,
        }))
    }

    /// Notes that the workspace has used credits today.
    fn note_active(&mut self, fact: &Fact) -> Result<(), Fault> {
        let day = Day::of(fact.event.recorded_at).start();
        let activity = self.activity(fact.event.workspace_id)?;
        if activity.active_day.is_none_or(|last| last < day) {
            activity.active_day = Some(day);
            self.changed_activities.insert(fact.event.workspace_id);
            self.revenue_day(fact, "")?.active_workspaces += 1;
        }
        Ok(())
    }

    fn revenue(&mut self, grant_id: GrantId) -> Result<&mut PurchaseRevenue, Fault> {
        let unknown = || Fault::contradiction(format!("the purchase {grant_id} is unknown"));
        let revenue = self.revenues.get_mut(&grant_id).ok_or_else(unknown)?;
        self.changed_revenues.insert(grant_id);
        Ok(revenue)
    }

    /// Whether the event may name this purchase although no event has told of it.
    fn is_left_out(&self, fact: &Fact, grant_id: GrantId) -> bool {
        let activity = self.activities.get(&fact.event.workspace_id);
        !self.revenues.contains_key(&grant_id) && activity.is_some_and(|activity| activity.incomplete)
    }

    /// Counts credits of purchases as used, or as given back if the sign is negative.
    fn use_purchases(&mut self, fact: &Fact, shares: &[GrantShare], sign: i64) -> Result<(), Fault> {
        for share in bought(shares) {
            if self.is_left_out(fact, share.grant_id) {
                continue;
            }
            let revenue = self.revenue(share.grant_id)?;
            not_negative(&[share.credits.micro()])?;
            add(&mut revenue.used, sign * share.credits.micro())?;
            self.recognise(fact, share.grant_id)?;
        }
        Ok(())
    }

    /// Books what the purchase has earned since the last time.
    fn recognise(&mut self, fact: &Fact, grant_id: GrantId) -> Result<(), Fault> {
        let revenue = self.revenue(grant_id)?;
        let earned = revenue.earned_minor();
        let added = earned - revenue.recognised_minor;
        revenue.recognised_minor = earned;
        let currency = revenue.currency;
        if added != 0 {
            add(&mut self.revenue_day(fact, currency.as_str())?.recognised_minor, added)?;
        }
        Ok(())
    }

    fn consume(&mut self, fact: &Fact, data: &CreditConsumed) -> Result<(), Fault> {
        let quantity = data.quantity.map_or(0, Quantity::micro);
        let used = Used { credits: data.credits.micro(), quantity, deductions: 1, ..Used::default() };
        self.use_feature(fact, &data.feature_code, used)?;
        self.note_active(fact)?;
        self.use_purchases(fact, &data.grants, 1)
    }

    fn purchase(&mut self, fact: &Fact, data: &CreditsPurchased) -> Result<(), Fault> {
        let unknown = || Fault::contradiction(format!("{:?} is no currency", data.currency));
        let currency = Currency::new(&data.currency).ok_or_else(unknown)?;
        not_negative(&[data.credits.micro(), data.amount_minor])?;
        let event = &fact.event;
        let revenue = PurchaseRevenue {
            version: self.version,
            workspace_id: event.workspace_id,
            grant_id: data.grant_id,
            partition: event.partition,
            currency,
            amount_minor: data.amount_minor,
            credits: data.credits.micro(),
            used: 0,
            recognised_minor: 0,
        };
        if self.revenues.insert(data.grant_id, revenue).is_some() {
            return Err(Fault::contradiction(format!("the purchase {} was made before", data.grant_id)));
        }
        self.changed_revenues.insert(data.grant_id);
        let day = self.revenue_day(fact, currency.as_str())?;
        day.purchases += 1;
        add(&mut day.credits_sold, data.credits.micro())?;
        add(&mut day.paid_minor, data.amount_minor)
    }

    fn reverse(&mut self, fact: &Fact, data: &PurchaseReversed) -> Result<(), Fault> {
        not_negative(&[data.credits.micro(), data.amount_minor])?;
        if self.is_left_out(fact, data.grant_id) {
            return Ok(());
        }
        let revenue = self.revenue(data.grant_id)?;
        revenue.credits -= data.credits.micro();
        revenue.amount_minor -= data.amount_minor;
        if revenue.credits < 0 || revenue.amount_minor < 0 {
            return Err(Fault::contradiction(format!(
                "more of the purchase {} was reversed than bought",
                data.grant_id
            )));
        }
        let currency = revenue.currency;
        add(&mut self.revenue_day(fact, currency.as_str())?.returned_minor, data.amount_minor)?;
        self.recognise(fact, data.grant_id)
    }
}

impl Fold for Analytics {
    fn take(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault> {
        match data {
            EventData::WorkspaceProvisioned(data) => {
                let workspace_id = fact.event.workspace_id;
                let activity = WorkspaceActivity {
                    version: self.version,
                    workspace_id,
                    partition: fact.event.partition,
                    plan_code: data.plan_code.clone(),
                    active_day: None,
                    incomplete: false,
                };
                if self.activities.insert(workspace_id, activity).is_some() {
                    return Err(Fault::contradiction(format!("the workspace {workspace_id} was created before")));
                }
                self.changed_activities.insert(workspace_id);
                self.revenue_day(fact, "")?.new_workspaces += 1;
                Ok(())
            }
            EventData::SubscriptionChanged(data) => {
                if data.change == SubscriptionChangeKind::Canceled {
                    self.revenue_day(fact, "")?.canceled_workspaces += 1;
                }
                self.set_plan(fact, &data.after.plan_code)
            }
            EventData::CreditReset(data) => self.set_plan(fact, &data.plan_code),
            EventData::CreditConsumed(data) => self.consume(fact, data),
            EventData::CreditLimitExceeded(data) => self.use_feature(fact, &data.feature_code, Used::REFUSED),
            EventData::UsageLimitExceeded(data) if data.refused => {
                self.use_feature(fact, &data.feature_code, Used::REFUSED)
            }
            EventData::CreditsRefunded(data) => {
                let used = Used { refunded: data.credits.micro(), ..Used::default() };
                self.use_feature(fact, &data.feature_code, used)?;
                self.use_purchases(fact, &data.grants, -1)
            }
            EventData::CreditsPurchased(data) => self.purchase(fact, data),
            EventData::PurchaseReversed(data) => self.reverse(fact, data),
            EventData::CreditsExpired(data) => self.use_purchases(fact, &data.grants, 1),
            EventData::DebtRepaid(data) => self.use_purchases(fact, &data.grants, 1),
            _ => Ok(()),
        }
    }

    fn skip(&mut self, event: &EventRecord) {
        let Some(activity) = self.activities.get_mut(&event.workspace_id) else { return };
        activity.incomplete = true;
        self.changed_activities.insert(event.workspace_id);
    }

    fn finish(mut self) -> ConsumerRows {
        self.activities.retain(|workspace_id, _| self.changed_activities.contains(workspace_id));
        self.revenues.retain(|grant_id, _| self.changed_revenues.contains(grant_id));
        ConsumerRows {
            activities: self.activities.into_values().collect(),
            revenues: self.revenues.into_values().collect(),
            usage_days: self.usage_days.into_values().collect(),
            usage_hours: self.usage_hours.into_values().collect(),
            revenue_days: self.revenue_days.into_values().collect(),
            ..ConsumerRows::default()
        }
    }
}

impl PurchaseRevenue {
    /// What the used credits have earned so far.
    fn earned_minor(&self) -> i64 {
        if self.credits == 0 {
            return self.amount_minor;
        }
        let used = i128::from(self.used.clamp(0, self.credits));
        let earned = i128::from(self.amount_minor) * used / i128::from(self.credits);
        i64::try_from(earned).unwrap_or(self.amount_minor)
    }
}

/// What an event adds to the usage of a feature.
#[derive(Clone, Copy, Default)]
struct Used {
    credits: i64,
    refunded: i64,
    quantity: i64,
    deductions: i64,
    refused: i64,
}

impl Used {
    const REFUSED: Self = Self { credits: 0, refunded: 0, quantity: 0, deductions: 0, refused: 1 };
}

/// The shares of purchases. Other grants have cost nothing.
fn bought(shares: &[GrantShare]) -> impl Iterator<Item = &GrantShare> {
    shares.iter().filter(|share| share.source == GrantSource::Purchase)
}
