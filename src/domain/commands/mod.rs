//! Commands: what callers and the scheduler can ask for, the envelope of a command, and the pure function
//! that decides it.
//!
//! One file per command. Each is a struct with its checked fields and a function that takes a
//! `Work` (one workspace with the changes of the decision so far) and returns a receipt
//! or a [`Rejection`](super::rejection::Rejection). The commands do not know each other; code that several
//! of them share is in `boundary`, `due_work`, `held_credits`, `plan_terms`, `spending`, `subscription_commands` and
//! `usage_record`. `command` lists them all, `envelope` wraps them, and `decide` calls them.
//!
//! Deliberately absent: code in this file. The files of this folder import each other, and never this one.

mod advance_period;
mod boundary;
mod cancel_subscription;
mod capture_hold;
mod command;
mod decide;
mod deduct_credits;
mod due_work;
mod effects;
mod envelope;
mod expire_grants;
mod expire_holds;
mod extend_hold;
mod grant_credits;
mod held_credits;
mod place_hold;
mod plan_terms;
mod process_subscription_change;
mod provision_workspace;
mod purchase_credits;
mod refund_usage;
mod refusal;
mod release_hold;
mod remedies;
mod repay_debt;
mod request;
mod reset_monthly_credits;
mod resume_subscription;
mod reverse_purchase;
mod spending;
mod subscription_commands;
#[cfg(test)]
mod tests;
mod usage_record;
mod void_grant;
mod warn_of_expiry;
mod work;

pub use self::advance_period::AdvancePeriod;
pub use self::cancel_subscription::CancelSubscription;
pub use self::capture_hold::CaptureHold;
pub use self::command::Command;
pub use self::decide::{Decision, decide};
pub use self::deduct_credits::{DeductCredits, OCCURRED_AT_MAX_AGE, OCCURRED_AT_MAX_AHEAD};
pub use self::due_work::MAX_DUE_COMMANDS;
pub use self::effects::Effects;
pub use self::envelope::Envelope;
pub use self::expire_grants::ExpireGrants;
pub use self::expire_holds::ExpireHolds;
pub use self::extend_hold::ExtendHold;
pub use self::grant_credits::GrantCredits;
pub use self::place_hold::PlaceHold;
pub use self::process_subscription_change::ProcessSubscriptionChange;
pub use self::provision_workspace::ProvisionWorkspace;
pub use self::purchase_credits::PurchaseCredits;
pub use self::refund_usage::RefundUsage;
pub use self::release_hold::ReleaseHold;
pub(in crate::domain) use self::remedies::remedies;
pub use self::repay_debt::RepayDebt;
pub use self::reset_monthly_credits::ResetMonthlyCredits;
pub use self::resume_subscription::ResumeSubscription;
pub use self::reverse_purchase::ReversePurchase;
pub use self::spending::Charge;
pub use self::void_grant::VoidGrant;
pub use self::warn_of_expiry::WarnOfExpiry;
pub use self::work::{available_credits, is_spendable};
