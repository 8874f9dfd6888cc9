//! The contracts of events: the generated files are current, good data passes and broken data fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;
use visionscope_billing::contract::{Contract, attributes_schema, documents, event_schema, write_all};
use visionscope_billing::domain::cloud_event::{CloudEvent, EventRecord, EventSource};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::{
    CreditConsumed, CreditLimitExceeded, CreditReset, CreditsExpired, CreditsExpiring, CreditsGranted, CreditsHeld,
    CreditsPurchased, CreditsRefunded, DebtRepaid, EventData, EventType, ExpiringCredits, FeatureChange, GrantShare,
    GrantVoided, HoldReleased, JobCompleted, JobFailed, JobSubmitted, LimitScope, LowCreditWarning, PurchaseReversed,
    ReleaseReason, ScheduledKind, SubscriptionChangeKind, SubscriptionChanged, SubscriptionSummary, UsageLimitExceeded,
    WorkspaceProvisioned,
};
use visionscope_billing::domain::grant::GrantSource;
use visionscope_billing::domain::ids::{EventId, GrantId, HoldId, JobId, Partition, RefundId, ReversalId, WorkspaceId};
use visionscope_billing::domain::job_ref::JobFailureReason;
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::period::Period;
use visionscope_billing::domain::plan::{FeatureTerms, UsageLimit};
use visionscope_billing::domain::reversal::ReversalReason;
use visionscope_billing::domain::subscription::{CreditPolicy, PendingView, SubscriptionStatus};
use visionscope_billing::domain::text::{FeatureCode, JobKind, Label, PaymentReference, PlanCode, QueueName, UserId};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageId;

/// Set to write the files instead of comparing them.
const WRITE: &str = "VISIONSCOPE_WRITE_CONTRACTS";

fn at() -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_001)
}

fn metadata() -> Metadata {
    serde_json::from_str(r#"{"job":"render-881"}"#).unwrap()
}

fn period() -> Period {
    Period { start: at(), end: Timestamp::from_micros(1_769_904_000_000_000) }
}

fn grants() -> Vec<GrantShare> {
    let grant_id = GrantId(Uuid::from_u128(5));
    vec![GrantShare { grant_id, source: GrantSource::Allowance, credits: Credits::from_micro(2_500_000).unwrap() }]
}

fn summary() -> SubscriptionSummary {
    SubscriptionSummary {
        plan_code: PlanCode::new("pro").unwrap(),
        plan_version: 2,
        status: SubscriptionStatus::Active,
        period: period(),
        version: 7,
    }
}

fn of_deductions() -> Vec<EventData> {
    let feature_code = FeatureCode::new("video.render").unwrap();
    let user_id = Some(UserId::new("user-7").unwrap());
    let credits = Credits::from_micro(2_500_000).unwrap();
    vec![
        CreditConsumed {
            feature_code: feature_code.clone(),
            user_id: user_id.clone(),
            credits,
            quantity: "3".parse().ok(),
            grants: grants(),
            overdraft_credits: None,
            hold_id: Some(HoldId(Uuid::from_u128(8))),
            released_credits: Some(credits),
            uncovered_credits: Some(Credits::ZERO),
            current_credits: Credits::from_micro(-1).unwrap(),
            used_this_month: Credits::MAX,
            occurred_at: at(),
        }
        .into(),
        CreditLimitExceeded {
            feature_code: feature_code.clone(),
            user_id: None,
            requested_credits: credits,
            available_credits: Credits::ZERO,
            current_credits: Credits::ZERO,
        }
        .into(),
        LowCreditWarning {
            threshold_credits: Credits::whole(100),
            available_credits: credits,
            current_credits: credits,
        }
        .into(),
        UsageLimitExceeded {
            scope: LimitScope::Feature,
            feature_code,
            user_id,
            limit_credits: Credits::whole(50),
            used_credits: Credits::whole(49),
            held_credits: Credits::ZERO,
            requested_credits: credits,
            refused: true,
            resets_at: Some(at()),
            window_s: Some(60),
            current_credits: Credits::ZERO,
        }
        .into(),
    ]
}

fn of_holds() -> Vec<EventData> {
    let feature_code = FeatureCode::new("video.render").unwrap();
    let user_id = Some(UserId::new("user-7").unwrap());
    let credits = Credits::from_micro(2_500_000).unwrap();
    vec![
        CreditsHeld {
            hold_id: HoldId(Uuid::from_u128(8)),
            feature_code: feature_code.clone(),
            user_id: user_id.clone(),
            credits,
            grants: grants(),
            overdraft_credits: Some(credits),
            expires_at: at(),
            available_credits: Credits::ZERO,
            current_credits: credits,
        }
        .into(),
        HoldReleased {
            hold_id: HoldId(Uuid::from_u128(8)),
            reason: ReleaseReason::Expired,
            feature_code: feature_code.clone(),
            user_id: user_id.clone(),
            credits,
            grants: grants(),
            overdraft_credits: Some(credits),
            current_credits: credits,
        }
        .into(),
    ]
}

fn of_refunds_and_reversals() -> Vec<EventData> {
    let credits = Credits::from_micro(2_500_000).unwrap();
    vec![
        CreditsRefunded {
            refund_id: RefundId(Uuid::from_u128(9)),
            usage_id: UsageId { recorded_at: at(), seq: 1 },
            feature_code: FeatureCode::new("video.render").unwrap(),
            user_id: Some(UserId::new("user-7").unwrap()),
            credits,
            grants: grants(),
            overdraft_credits: Some(credits),
            debt_repaid: Credits::ZERO,
            reason: Some(Label::new("The render failed").unwrap()),
            current_credits: credits,
            used_this_month: Credits::ZERO,
        }
        .into(),
        PurchaseReversed {
            reversal_id: ReversalId(Uuid::from_u128(10)),
            grant_id: GrantId(Uuid::from_u128(5)),
            reason: ReversalReason::Chargeback,
            credits,
            amount_minor: 4900,
            currency: "EUR".into(),
            credits_removed: credits,
            credits_owed: Credits::ZERO,
            credits_written_off: Credits::ZERO,
            bonus_grant_id: Some(GrantId(Uuid::from_u128(6))),
            bonus_removed: Credits::ZERO,
            bonus_owed: Credits::ZERO,
            debt_repaid: Credits::ZERO,
            current_credits: Credits::from_micro(-1).unwrap(),
        }
        .into(),
    ]
}

fn of_grants() -> Vec<EventData> {
    let credits = Credits::from_micro(2_500_000).unwrap();
    vec![
        CreditsGranted {
            grant_id: GrantId(Uuid::from_u128(5)),
            source: GrantSource::Adjustment,
            credits,
            priority: 100,
            effective_at: at(),
            expires_at: Some(at()),
            feature_scope: Some(FeatureCode::new("video.render").unwrap()),
            reason: Label::new("Welcome offer").unwrap(),
            debt_repaid: Credits::ZERO,
            spendable: true,
            current_credits: credits,
        }
        .into(),
        GrantVoided {
            grant_id: GrantId(Uuid::from_u128(5)),
            source: GrantSource::Promotion,
            credits,
            remaining_credits: Credits::ZERO,
            reason: Label::new("Granted twice").unwrap(),
            current_credits: Credits::from_micro(-1).unwrap(),
        }
        .into(),
        CreditsPurchased {
            grant_id: GrantId(Uuid::from_u128(5)),
            credits,
            bonus_grant_id: Some(GrantId(Uuid::from_u128(6))),
            bonus_credits: Credits::ZERO,
            amount_minor: 4900,
            currency: "EUR".into(),
            payment_reference: PaymentReference::new("pay_2f6d").unwrap(),
            expires_at: Some(at()),
            debt_repaid: Credits::ZERO,
            spendable: true,
            current_credits: credits,
        }
        .into(),
        CreditsExpired { credits, grants: grants(), current_credits: Credits::ZERO }.into(),
        DebtRepaid { credits, grants: grants(), debt_credits: Credits::ZERO, current_credits: Credits::ZERO }.into(),
        CreditsExpiring {
            grant_id: GrantId(Uuid::from_u128(5)),
            source: GrantSource::Promotion,
            credits,
            expires_at: at(),
            current_credits: credits,
        }
        .into(),
        CreditReset {
            period: period(),
            plan_code: PlanCode::new("pro").unwrap(),
            plan_version: 1,
            expired: credits,
            rolled_over: Credits::ZERO,
            granted: Credits::whole(1000),
            previously_used: credits,
            debt_repaid: Credits::ZERO,
            current_credits: Credits::whole(1000),
        }
        .into(),
    ]
}

fn of_subscriptions() -> Vec<EventData> {
    let terms = FeatureTerms {
        enabled: true,
        unit_price: Some(Credits::whole(2)),
        limit: Some(UsageLimit::hard(Credits::whole(50))),
    };
    let feature_code = FeatureCode::new("upscale").unwrap();
    vec![
        SubscriptionChanged {
            change: SubscriptionChangeKind::ChangeScheduled,
            effective_at: at(),
            before: summary(),
            after: summary(),
            pending: Some(PendingView::Change {
                plan_code: PlanCode::new("team").unwrap(),
                plan_version: 3,
                effective_at: at(),
            }),
            withdrawn: Some(ScheduledKind::Cancel),
            credit_policy: Some(CreditPolicy::Prorate),
            features: vec![FeatureChange { feature_code, before: Some(FeatureTerms::default()), after: terms }],
            credits_granted: Credits::ZERO,
            credits_removed: Credits::ZERO,
            credits_uncollected: Credits::ZERO,
            credits_set_off: Credits::ZERO,
            expiring: vec![ExpiringCredits {
                grant_id: GrantId(Uuid::from_u128(5)),
                source: GrantSource::Purchase,
                credits: Credits::whole(1),
                expires_at: at(),
            }],
            frozen_credits: Credits::ZERO,
            current_credits: Credits::ZERO,
            reason: Some(Label::new("too large").unwrap()),
        }
        .into(),
        WorkspaceProvisioned {
            name: Label::new("Acme Studio").unwrap(),
            time_zone: "Europe/Berlin".into(),
            plan_code: PlanCode::new("pro").unwrap(),
            plan_version: 1,
            period: period(),
            granted: Credits::whole(1000),
            current_credits: Credits::whole(1000),
        }
        .into(),
    ]
}

fn of_jobs() -> Vec<EventData> {
    let (job_id, hold_id) = (JobId(Uuid::from_u128(9)), HoldId(Uuid::from_u128(8)));
    let kind = || JobKind::new("video_processing.analyse").unwrap();
    let queue = || QueueName::new("video_processing").unwrap();
    let current_credits = Credits::from_micro(2_500_000).unwrap();
    let (credits, uncovered_credits) = (current_credits, Some(current_credits));
    vec![
        JobSubmitted { job_id, kind: kind(), queue: queue(), hold_id, credits, current_credits }.into(),
        JobCompleted { job_id, kind: kind(), queue: queue(), hold_id, credits, uncovered_credits, current_credits }
            .into(),
        JobFailed {
            job_id,
            kind: kind(),
            queue: queue(),
            hold_id,
            reason: JobFailureReason::Canceled,
            current_credits,
        }
        .into(),
    ]
}

/// One of every type.
fn samples() -> Vec<EventData> {
    [of_deductions(), of_holds(), of_jobs(), of_grants(), of_refunds_and_reversals(), of_subscriptions()].concat()
}

#[test]
fn the_files_under_openapi_events_are_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/events");
    if std::env::var_os(WRITE).is_some() {
        write_all(&folder).unwrap();
    }
    let mut expected: Vec<_> = documents().into_iter().map(|document| (document.file_name, document.text)).collect();
    let mut found: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect();
    expected.sort();
    found.sort();
    assert!(expected == found, "the contracts changed; look at the difference after running with {WRITE}=1");
}

#[test]
fn good_data_of_every_type_passes() {
    let contract = Contract::new();
    let types: Vec<_> = samples().iter().map(EventData::event_type).collect();
    assert!(EventType::ALL.iter().all(|event_type| types.contains(event_type)), "a sample of every type");
    for data in samples() {
        for metadata in [None, Some(metadata())] {
            let json = data.to_json(metadata.as_ref()).unwrap();
            assert_eq!(contract.check(data.event_type(), &json), Ok(()));
        }
    }
}

#[test]
fn data_of_every_type_is_read_back_as_it_was_written() {
    for data in samples() {
        let json = data.to_json(Some(&metadata())).unwrap();
        assert!(json.ends_with(r#","metadata":{"job":"render-881"}}"#), "{json}");
        assert_eq!(EventData::parse(data.event_type(), &json).unwrap(), data);
    }
    assert!(EventData::parse(EventType::LowCreditWarning, "{}").is_err());
}

/// Every member of an object, and of those within, as JSON pointers.
fn pointers(value: &Value, prefix: &str, found: &mut Vec<String>) {
    let members: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect(),
        _ => return,
    };
    for (name, member) in members {
        let pointer = format!("{prefix}/{name}");
        pointers(member, &pointer, found);
        found.push(pointer);
    }
}

#[test]
fn data_with_any_one_field_of_another_form_fails_and_the_field_is_named_but_not_its_value() {
    let contract = Contract::new();
    for data in samples() {
        let good = serde_json::to_value(&data).unwrap();
        let mut fields = Vec::new();
        pointers(&good, "", &mut fields);
        assert!(!fields.is_empty());
        for field in fields {
            let mut broken = good.clone();
            *broken.pointer_mut(&field).unwrap() = json!(987.25);
            let violation = contract.check(data.event_type(), &broken.to_string()).unwrap_err();
            assert_eq!(violation.event_type, data.event_type());
            assert!(!violation.detail.contains("987"), "{violation}");
            assert!(field.starts_with(&violation.pointer), "{field} {violation}");
        }
        for missing in good.as_object().unwrap().keys() {
            let mut broken = good.clone();
            broken.as_object_mut().unwrap().remove(missing);
            let is_required = event_schema(data.event_type())["required"].as_array().unwrap().contains(&json!(missing));
            assert_eq!(contract.check(data.event_type(), &broken.to_string()).is_err(), is_required, "{missing}");
        }
    }
}

#[test]
fn an_amount_is_a_decimal_string_and_nothing_else() {
    let contract = Contract::new();
    let check = |amount: Value| {
        let data = json!({"threshold_credits": amount, "available_credits": "0", "current_credits": "0"});
        contract.check(EventType::LowCreditWarning, &data.to_string()).is_ok()
    };
    for good in [json!("12.5"), json!("0"), json!("-1.000001"), json!("1000000000000")] {
        assert!(check(good.clone()), "{good}");
    }
    for bad in [json!(12), json!(12.5), json!("1e3"), json!("1.0000001"), json!(""), json!("1,5"), json!(null)] {
        assert!(!check(bad.clone()), "{bad}");
    }
}

#[test]
fn an_unknown_field_is_allowed_because_fields_may_be_added() {
    let data = r#"{"threshold_credits":"1","available_credits":"0","current_credits":"0","new":true}"#;
    assert_eq!(Contract::new().check(EventType::LowCreditWarning, data), Ok(()));
}

#[test]
fn every_document_is_a_schema_of_its_own_with_an_id() {
    let schemas = EventType::ALL.iter().map(|event_type| event_schema(*event_type)).chain([attributes_schema()]);
    for schema in schemas {
        jsonschema::meta::validate(&schema).unwrap();
        assert!(schema["$id"].as_str().unwrap().starts_with("urn:visionscope:event"), "{schema}");
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let text = schema.to_string();
        assert!(!text.contains("#/components/") && !text.contains("\"additionalProperties\":false"), "{text}");
    }
}

#[test]
fn a_published_event_passes_its_schema_with_and_without_its_optional_attributes() {
    let validator = jsonschema::options().should_validate_formats(true).build(&attributes_schema()).unwrap();
    let source = EventSource::new("urn:visionscope:billing").unwrap();
    let is_valid = |record: &EventRecord| {
        let event: CloudEvent = record.to_cloud_event(&source).unwrap();
        validator.is_valid(&serde_json::to_value(event).unwrap())
    };
    let mut record = EventRecord {
        event_id: EventId(Uuid::from_u128(1)),
        event_type: EventType::LowCreditWarning.into(),
        schema_version: 1,
        partition: Partition::all().next().unwrap(),
        seq: 1,
        workspace_id: WorkspaceId(Uuid::from_u128(2)),
        workspace_seq: 1,
        recorded_at: at(),
        correlation_id: "request-1".into(),
        causation_id: Uuid::from_u128(3),
        traceparent: None,
        data: r#"{"threshold_credits":"1","available_credits":"0","current_credits":"0"}"#.into(),
    };
    assert!(is_valid(&record));
    let text = record.to_cloud_event_json(&source).unwrap();
    assert_eq!(text, AS_PUBLISHED, "the text of a stored event never changes");
    record.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    assert!(is_valid(&record));
    record.data = "[]".into();
    assert!(!is_valid(&record));
}

const AS_PUBLISHED: &str = concat!(
    r#"{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000001","source":"urn:visionscope:billing","#,
    r#""type":"LowCreditWarning","subject":"00000000-0000-0000-0000-000000000002","#,
    r#""time":"2026-01-01T00:00:00.000001Z","datacontenttype":"application/json","#,
    r#""dataschema":"urn:visionscope:event:LowCreditWarning:1","partition":0,"sequence":"0000000000000000001","#,
    r#""workspaceid":"00000000-0000-0000-0000-000000000002","workspaceseq":"0000000000000000001","#,
    r#""correlationid":"request-1","causationid":"00000000-0000-0000-0000-000000000003","schemaversion":1,"#,
    r#""data":{"threshold_credits":"1","available_credits":"0","current_credits":"0"}}"#
);

/// Run with `--ignored --nocapture` to see what a check costs.
#[test]
#[ignore = "a measurement"]
fn what_a_check_costs() {
    const ROUNDS: u32 = 2000;
    let contract = Contract::new();
    for data in samples() {
        let started = Instant::now();
        let json = data.to_json(None).unwrap();
        (0..ROUNDS).for_each(|_| contract.check(data.event_type(), &json).unwrap());
        println!("{:>22} {:?}", data.event_type().as_str(), started.elapsed() / ROUNDS);
    }
}
