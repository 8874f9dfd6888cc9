//! The data that the questions are asked of: one workspace with a bit of everything, decided by the domain, and many
//! others beside it, so that the planner has a choice.

use uuid::Uuid;
use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::contract::Contract;
use visionscope_billing::domain::batch::{Batch, Outcome};
use visionscope_billing::domain::commands::{
    Charge, Command, DeductCredits, Envelope, ProvisionWorkspace, PurchaseCredits,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::grant::Currency;
use visionscope_billing::domain::ids::{CommandId, WorkspaceId};
use visionscope_billing::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel, ReversalShortfall, UsageLimit};
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, Label, PaymentReference, PlanCode, UserId};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::workspace::FeatureOverrides;
use visionscope_billing::http::render::JsonRender;
use visionscope_billing::store::Store;

use crate::page::variables;

const HOUR_US: i64 = 3_600_000_000;
/// Within the 30 days that two questions ask about.
const EXPIRES_IN_HOURS: i64 = 10 * 24;

/// How many deductions are accepted; each is of one credit.
pub const DEDUCTIONS: i32 = 9;

/// Many workspaces beside the one of the page, with as much history each. Rows that nobody asks for in full are short.
pub const OTHERS: &str = "
create temp table other as
select md5('w' || w)::uuid as id, md5(w || '/' || n)::uuid as row_id, w, n, timestamptz '2026-01-02Z' + n * interval '9 hours' as at
from generate_series(1, 2000) w, generate_series(1, 20) n;
insert into workspaces (workspace_id, name, time_zone, created_at, partition_id)
    select id, 'Other', 'UTC', at, w % 16 from other where n = 1;
insert into workspace_credits select id, 0, 0, 0, 0, 0, 0, null, at, 0, 0, 0, 20, 20, 20, 20, at from other where n = 1;
insert into subscriptions (subscription_id, workspace_id, plan_code, plan_version, status, billing_anchor, period_start, period_end, version, updated_at)
    select row_id, id, 'pro', 1, 'active', at, at, at + interval '1 month', 1, at from other where n = 1;
insert into credit_grants (workspace_id, grant_id, source, amount, remaining, held, priority, effective_at, created_at, issued_seq)
    select id, row_id, 'promotion', 1, n % 2, 0, 50, at, at, n from other;
insert into commands (workspace_id, idempotency_key, command_id, seq, command_type, fingerprint, outcome, status, body, actor, correlation_id, received_at, recorded_at)
    select id, row_id::text, row_id, n, 'DeductCredits', sha256(''), 'accepted', 200, repeat('x', 200), 'a', 'c', at, at from other;
insert into ledger_entries select id, n, row_id, 'grant', 'consumed:render', row_id, 1, 1, at, at from other;
insert into usage_logs select id, n, row_id, 'render', null, 1, null, at, at, null from other;
insert into event_outbox (partition_id, seq, event_id, workspace_id, workspace_seq, event_type, schema_version, recorded_at, correlation_id, causation_id, data)
    select w % 16, 1000000 + 20 * w + n, row_id, id, n, 'CreditConsumed', 1, at, 'c', row_id, '{}' from other;
insert into stream_batches (partition_id, generation, seq_from, seq_to) select w % 16, 2, 20 * w + n, 20 * w + n from other;
analyze;";

/// Stores the workspace of the page and what happened to it in its month.
pub async fn fill(store: &dyn Store) {
    store.put_plans(&[plan()], SystemClock.now()).await.unwrap();
    let envelopes = envelopes();
    let mut keys = KeySet::default();
    for envelope in &envelopes {
        envelope.add_keys(&mut keys);
    }
    let mut transaction = store.begin().await.unwrap();
    let snapshot = transaction.load(&keys).await.unwrap();
    let contract = Contract::new();
    let mut batch = Batch::new(snapshot, &JsonRender, &contract);
    let outcomes: Vec<_> = envelopes.iter().map(|envelope| batch.run(envelope).unwrap()).collect();
    let accepted = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Accepted(_))).count();
    // Those, the provisioning and the purchase; the last two were refused.
    assert_eq!((accepted, outcomes.len()), (11, 13), "{outcomes:?}");
    transaction.commit(&batch.finish().0).await.unwrap();
}

fn envelopes() -> Vec<Envelope> {
    let deduction = |n: i32| (format!("deduction-{n}"), deduct(if n % 3 == 0 { "upscale" } else { "render" }, 1, n));
    let mut commands = vec![("provision".to_owned(), provision()), ("purchase".to_owned(), purchase())];
    commands.extend((1..DEDUCTIONS).map(deduction));
    commands.push((variables()["idempotency_key"].to_owned(), deduct("render", 1, 0)));
    commands.push(("too-much".to_owned(), deduct("render", 1_000_000, 0)));
    commands.push(("not-there".to_owned(), deduct("nothing", 1, 0)));
    (0..).zip(commands).map(|(n, (key, command))| envelope(n, &key, command)).collect()
}

/// Seven hours apart, from the first instant that the page names.
fn envelope(n: i64, key: &str, command: Command) -> Envelope {
    let begin: Timestamp = variables()["begin"].parse().unwrap();
    let message_id = CommandId(Uuid::from_u128(u128::try_from(n).unwrap() + 1));
    Envelope {
        message_id,
        idempotency_key: IdempotencyKey::new(key).unwrap(),
        workspace_id: WorkspaceId(variables()["workspace_id"].parse().unwrap()),
        actor: "tester".into(),
        correlation_id: message_id.to_string(),
        causation_id: None,
        traceparent: None,
        received_at: Timestamp::from_micros(begin.micros() + n * 7 * HOUR_US),
        metadata: None,
        fingerprint: [0; 32],
        command,
    }
}

fn provision() -> Command {
    Command::ProvisionWorkspace(ProvisionWorkspace {
        name: Label::new("Acme").unwrap(),
        plan_code: PlanCode::new("pro").unwrap(),
        time_zone: chrono_tz::UTC,
        anchor: None,
        monthly_limit: None,
        overdraft_limit: None,
        feature_overrides: FeatureOverrides::new(),
    })
}

fn purchase() -> Command {
    Command::PurchaseCredits(PurchaseCredits {
        credits: serde_json::from_str("\"50\"").unwrap(),
        bonus_credits: None,
        amount_minor: 4_900,
        currency: Currency::new("EUR").unwrap(),
        payment_reference: PaymentReference::new("payment-1").unwrap(),
        expires_at: Some(Timestamp::from_micros(SystemClock.now().micros() + EXPIRES_IN_HOURS * HOUR_US)),
    })
}

fn deduct(feature: &str, credits: i64, user: i32) -> Command {
    Command::DeductCredits(DeductCredits {
        feature_code: FeatureCode::new(feature).unwrap(),
        charge: Charge::Credits(serde_json::from_value(credits.into()).unwrap()),
        user_id: Some(UserId::new(&format!("user-{}", user % 2)).unwrap()),
        occurred_at: None,
        explain: false,
    })
}

/// A limit that the deductions come near to.
fn plan() -> PlanVersion {
    let enabled = FeatureTerms { enabled: true, unit_price: None, limit: None };
    PlanVersion {
        plan_code: PlanCode::new("pro").unwrap(),
        version: 1,
        name: Label::new("Pro").unwrap(),
        period_months: 1,
        allowance: Credits::whole(100),
        rollover_cap: Credits::ZERO,
        overdraft_limit: Credits::ZERO,
        monthly_limit: Some(UsageLimit::hard(Credits::whole(10))),
        rate_limit: None,
        low_credit_thresholds: Vec::new(),
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: ReversalShortfall::Debt,
        purchased_on_cancel: PurchasedOnCancel::Keep,
        features: ["render", "upscale"].map(|code| (FeatureCode::new(code).unwrap(), enabled)).into(),
    }
}
