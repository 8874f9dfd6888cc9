//! The table from refusals to statuses, row by row.

use super::*;
use crate::domain::credits::Credits;
use crate::domain::ids::HoldId;
use crate::domain::usage::UsageId;

fn rejections() -> Vec<(Rejection, u16)> {
    let (one, at) = (Credits::whole(1), Timestamp::from_micros(0));
    let (plan, feature) = ("pro", "render");
    let plan = || crate::domain::text::PlanCode::new(plan).unwrap();
    let feature = || crate::domain::text::FeatureCode::new(feature).unwrap();
    let scope = LimitScope::Workspace;
    vec![
        (Rejection::WorkspaceNotFound, 404),
        (Rejection::WorkspaceExists, 409),
        (Rejection::FeatureNotFound(crate::domain::text::FeatureCode::from_stored("render")), 404),
        (Rejection::TimeOutOfRange { pointer: "/anchor", detail: "must not be in the future" }, 422),
        (Rejection::PlanNotFound(plan()), 422),
        (Rejection::PlanNotOffered(plan()), 422),
        (Rejection::VersionMismatch { expected: 1, actual: 2 }, 412),
        (Rejection::SubscriptionCanceled, 409),
        (Rejection::PlanUnchanged(plan()), 409),
        (Rejection::RestartRequired, 409),
        (Rejection::NothingScheduled, 409),
        (Rejection::ResetNotDue { ends_at: at }, 409),
        (Rejection::PeriodMismatch { next: at }, 409),
        (Rejection::TooManyGrants(1000), 409),
        (
            Rejection::PaymentReferenceUsed {
                reference: crate::domain::text::PaymentReference::new("p").unwrap(),
                grant_id: GrantId(uuid::Uuid::nil()),
            },
            409,
        ),
        (Rejection::GrantNotFound(GrantId(uuid::Uuid::nil())), 404),
        (Rejection::GrantNotVoidable(crate::domain::grant::GrantSource::Purchase), 409),
        (Rejection::GrantClosed, 409),
        (Rejection::VoidExceedsRemaining { requested: one, remaining: Credits::ZERO }, 409),
        (Rejection::UsageLogNotFound(UsageId { recorded_at: at, seq: 1 }), 404),
        (Rejection::RefundExceedsUsage { requested: one, left: Credits::ZERO }, 409),
        (Rejection::PurchaseNotFound(GrantId(uuid::Uuid::nil())), 404),
        (Rejection::ReversalExceedsPurchase { left: one, left_minor: 0 }, 409),
        (Rejection::FeatureDisabled(feature()), 403),
        (Rejection::FeatureNotPriced(feature()), 422),
        (
            Rejection::LimitExceeded {
                scope,
                limit: one,
                used: one,
                held: Credits::ZERO,
                requested: one,
                resets_at: Some(at),
                window_s: None,
            },
            403,
        ),
        (Rejection::RateExceeded { limit: one, window_s: 60, retry_after_s: 7 }, 429),
        (Rejection::InsufficientCredits { requested: one, available: Credits::ZERO }, 402),
        (Rejection::BalanceOutOfRange, 422),
        (Rejection::HoldNotFound(HoldId(uuid::Uuid::nil())), 404),
        (Rejection::HoldOver(HoldState::Captured), 409),
        (Rejection::HoldExpired(at), 409),
        (Rejection::CaptureExceedsHold { requested: one, held: Credits::ZERO }, 409),
        (Rejection::TooManyHolds(1), 409),
        (Rejection::HoldSpansTooManyGrants(1), 409),
    ]
}

#[test]
fn every_rejection_has_its_status_and_the_code_of_the_domain() {
    for (rejection, status) in rejections() {
        let problem = Problem::from(&rejection);
        assert_eq!((problem.code.as_str(), problem.code.status()), (rejection.code(), status), "{rejection}");
        let body: serde_json::Value = serde_json::from_str(&problem.to_json()).unwrap();
        assert_eq!((&body["status"], &body["code"]), (&status.into(), &rejection.code().into()));
        assert_eq!(problem.retry_after_s(), (status == 429).then_some(7));
    }
}

#[test]
fn a_time_out_of_range_is_reported_like_any_other_invalid_field() {
    let rejection = Rejection::TimeOutOfRange { pointer: "/expires_at", detail: "must be in the future" };
    let body: serde_json::Value = serde_json::from_str(&Problem::from(&rejection).to_json()).unwrap();
    assert_eq!(body["errors"][0]["pointer"], "/expires_at");
    assert!(!rejection.is_recorded(), "it can be corrected under the same key");
}

#[test]
fn codes_are_unique_and_only_429_and_503_have_retry_after() {
    let words: std::collections::HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(words.len(), Code::ALL.len());
    for code in Code::ALL {
        assert!(code.type_uri().starts_with(TYPE_PREFIX) && code.type_uri().ends_with(code.as_str()));
        assert_eq!(Problem::plain(*code).retry_after_s().is_some(), matches!(code.status(), 429 | 503));
    }
}
