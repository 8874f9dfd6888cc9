//! The plans of the model.

use crate::model::{Amount, CREDIT};

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub code: &'static str,
    pub allowance: Amount,
    pub rollover_cap: Amount,
    pub overdraft: Amount,
    pub monthly_limit: Option<Amount>,
    /// The limit of the second feature; none if the plan does not have that feature.
    pub second_feature_limit: Option<Amount>,
    pub freezes_on_cancel: bool,
    /// What was spent of a reversed purchase is written off.
    pub writes_off: bool,
}

pub const PLANS: [Plan; 3] = [
    Plan {
        code: "basic",
        allowance: 100 * CREDIT,
        rollover_cap: 20 * CREDIT,
        overdraft: 0,
        monthly_limit: None,
        second_feature_limit: None,
        freezes_on_cancel: false,
        writes_off: false,
    },
    Plan {
        code: "plus",
        allowance: 300 * CREDIT,
        rollover_cap: 0,
        overdraft: 30 * CREDIT,
        monthly_limit: Some(350 * CREDIT),
        second_feature_limit: Some(40 * CREDIT),
        freezes_on_cancel: true,
        writes_off: false,
    },
    Plan {
        code: "max",
        allowance: 500 * CREDIT + 1,
        rollover_cap: 1000 * CREDIT,
        overdraft: 7,
        monthly_limit: None,
        second_feature_limit: Some(1000 * CREDIT),
        freezes_on_cancel: false,
        writes_off: true,
    },
];
