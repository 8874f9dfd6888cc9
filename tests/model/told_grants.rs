//! What the events of a workspace tell of each grant that belongs to no period: what remains of it, and what is held.
//!
//! A consumer knows no more than that. So it must come out as what is stored.

use std::collections::{BTreeMap, HashMap};

use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::{EventData, GrantShare};
use visionscope_billing::domain::ids::{GrantId, HoldId};

/// In micro-credits.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub remaining: i64,
    pub held: i64,
}

#[derive(Default)]
pub struct ToldGrants {
    grants: BTreeMap<GrantId, Told>,
    holds: HashMap<HoldId, Vec<GrantShare>>,
}

impl ToldGrants {
    pub fn tell(&mut self, data: &EventData) {
        match data {
            EventData::CreditsPurchased(bought) => {
                self.add(bought.grant_id, bought.credits);
                if let Some(bonus_grant_id) = bought.bonus_grant_id {
                    self.add(bonus_grant_id, bought.bonus_credits);
                }
            }
            EventData::CreditsGranted(granted) => self.add(granted.grant_id, granted.credits),
            EventData::GrantVoided(voided) => self.take(voided.grant_id, voided.credits),
            EventData::CreditConsumed(consumed) => {
                // What a hold has reserved goes back, and then everything is taken.
                let held = consumed.hold_id.and_then(|hold_id| self.holds.remove(&hold_id));
                self.give_back(&held.unwrap_or_default());
                self.take_each(&consumed.grants);
            }
            EventData::CreditsHeld(held) => {
                self.take_each(&held.grants);
                for share in of_no_period(&held.grants) {
                    self.of(share.grant_id).held += share.credits.micro();
                }
                self.holds.insert(held.hold_id, held.grants.clone());
            }
            EventData::HoldReleased(released) => {
                self.holds.remove(&released.hold_id);
                self.give_back(&released.grants);
            }
            EventData::CreditsRefunded(refunded) => {
                of_no_period(&refunded.grants).for_each(|share| self.add(share.grant_id, share.credits));
            }
            EventData::PurchaseReversed(reversed) => {
                self.take(reversed.grant_id, reversed.credits_removed);
                if let Some(bonus_grant_id) = reversed.bonus_grant_id {
                    self.take(bonus_grant_id, reversed.bonus_removed);
                }
            }
            EventData::CreditsExpired(expired) => self.take_each(&expired.grants),
            EventData::DebtRepaid(repaid) => self.take_each(&repaid.grants),
            EventData::CreditLimitExceeded(_)
            | EventData::LowCreditWarning(_)
            | EventData::UsageLimitExceeded(_)
            | EventData::CreditsExpiring(_)
            | EventData::JobSubmitted(_)
            | EventData::JobCompleted(_)
            | EventData::JobFailed(_)
            | EventData::CreditReset(_)
            | EventData::SubscriptionChanged(_)
            | EventData::WorkspaceProvisioned(_) => {}
        }
    }

    pub fn of(&mut self, grant_id: GrantId) -> &mut Told {
        self.grants.entry(grant_id).or_default()
    }

    fn add(&mut self, grant_id: GrantId, credits: Credits) {
        self.of(grant_id).remaining += credits.micro();
    }

    fn take(&mut self, grant_id: GrantId, credits: Credits) {
        self.of(grant_id).remaining -= credits.micro();
    }

    fn take_each(&mut self, shares: &[GrantShare]) {
        of_no_period(shares).for_each(|share| self.take(share.grant_id, share.credits));
    }

    fn give_back(&mut self, shares: &[GrantShare]) {
        for share in of_no_period(shares) {
            self.add(share.grant_id, share.credits);
            self.of(share.grant_id).held -= share.credits.micro();
        }
    }
}

fn of_no_period(shares: &[GrantShare]) -> impl Iterator<Item = &GrantShare> {
    shares.iter().filter(|share| !share.source.is_periodic())
}
