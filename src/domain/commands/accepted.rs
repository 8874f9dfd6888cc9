//! The explanation of a deduction or a hold that was accepted.

use super::effects::Effects;
use crate::domain::credits::Credits;
use crate::domain::event::{EventData, GrantShare};
use crate::domain::explanation::Explanation;

impl Explanation {
    /// Adds what bears it, and the warnings that it raises.
    pub(super) fn accepted(self, grants: &[GrantShare], overdraft: Option<Credits>, effects: &Effects) -> Box<Self> {
        let threshold = |(_, event): &(_, EventData)| match event {
            EventData::LowCreditWarning(warning) => Some(warning.threshold_credits),
            _ => None,
        };
        Box::new(Self {
            grants: grants.to_vec(),
            overdraft_credits: overdraft,
            thresholds_crossed: effects.events.iter().filter_map(threshold).collect(),
            ..self
        })
    }
}
