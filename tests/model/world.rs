//! Runs histories on real stores and compares them with the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;
use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::domain::batch::{Batch, EventWriter, InvalidEvent, Outcome};
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::commands::{
    CancelSubscription, CaptureHold, Charge, Command, DeductCredits, Envelope, ExpireGrants, ExpireHolds, ExtendHold,
    GrantCredits, PlaceHold, ProcessSubscriptionChange, ProvisionWorkspace, PurchaseCredits, RefundUsage, ReleaseHold,
    ResetMonthlyCredits, ResumeSubscription, ReversePurchase, VoidGrant,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::EventData;
use visionscope_billing::domain::explanation::Explanation;
use visionscope_billing::domain::grant::{Currency, GrantedSource, Priority};
use visionscope_billing::domain::hold::{self, HoldDuration};
use visionscope_billing::domain::ids::{GrantId, HoldId, WorkspaceId};
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel, ReversalShortfall, UsageLimit};
use visionscope_billing::domain::receipt::Receipt;
use visionscope_billing::domain::rejection::Rejection;
use visionscope_billing::domain::reversal::{ReversalReason, ReversedAmount};
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::domain::subscription::{CreditPolicy, Effective};
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, Label, PaymentReference, PlanCode};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageId;
use visionscope_billing::domain::workspace::FeatureOverrides;
use visionscope_billing::engine::{CommitSignal, DryRunEvent, Engine, EngineConfig, Render, Rendered, Reply};
use visionscope_billing::store::queries::{EventQuery, GrantFilter, HistoryQuery};

use crate::databases::{Database, TestDatabase};
use crate::model::holds::{HoldStep, Overrun};
use crate::model::refunds_and_reversals::{PRICE, Reversed};
use crate::model::{Amount, DAY, Model, Policy, Step};
use crate::plans::{PLANS, Plan};
use crate::told_grants::{Told, ToldGrants};
use crate::told_statements;

/// 2026-01-15T12:00:00Z. Every month has that day.
const START: i64 = 1_768_478_400_000_000;

pub struct World {
    /// Gets one command at a time.
    serial: TestDatabase,
    /// Gets the same commands in batches.
    batched: TestDatabase,
    engine: Engine,
    ports: Arc<TestPorts>,
    histories: AtomicU64,
}

/// Answers with the receipt as JSON, or with the code of the rejection.
struct TestPorts;

impl Render for TestPorts {
    fn receipt(&self, receipt: &Receipt) -> Rendered {
        Rendered { status: 200, body: serde_json::to_string(receipt).unwrap() }
    }

    fn rejection(&self, rejection: &Rejection, _: Option<&Explanation>) -> Rendered {
        Rendered { status: 400, body: rejection.code().to_owned() }
    }
}

impl EventWriter for TestPorts {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent> {
        data.to_json(metadata).map_err(|error| InvalidEvent(error.to_string()))
    }
}

impl CommitSignal for TestPorts {
    fn committed(&self, _: Vec<EventRecord>) {}
}

impl World {
    pub async fn open(serial: Database, batched: Database) -> Self {
        let (serial, batched) = (serial.create().await, batched.create().await);
        let plans: Vec<_> = PLANS.iter().map(plan_version).collect();
        serial.store.put_plans(&plans, SystemClock.now()).await.unwrap();
        batched.store.put_plans(&plans, SystemClock.now()).await.unwrap();
        let ports = Arc::new(TestPorts);
        let config = EngineConfig {
            lanes: 2,
            queue_capacity: 1000,
            max_batch: 100,
            cache_bytes: 1 << 24,
            max_clock_ahead: None,
        };
        let engine = Engine::start(&config, serial.store.clone(), ports.clone(), ports.clone(), ports.clone());
        Self { serial, batched, engine, ports, histories: AtomicU64::new(0) }
    }

    /// Runs one history. An error describes the first difference from the model.
    pub async fn run(&self, plan: usize, steps: &[Step], batch_sizes: &[usize]) -> Result<(), String> {
        let workspace_id = WorkspaceId(SystemClock.new_id());
        let number = self.histories.fetch_add(1, Ordering::SeqCst);
        let mut model = Model::new(plan, START);
        let provision = envelope(workspace_id, START, provision(plan));
        let mut envelopes = vec![provision.clone()];
        let mut answers = vec![self.try_and_submit(&provision).await?];
        let mut ids = Ids::default();
        for (n, step) in steps.iter().enumerate() {
            let predicted = model.step(step);
            let Some(command) = command(step, number, model.now, &ids) else { continue };
            let envelope = envelope(workspace_id, model.now, command);
            let reply = self.try_and_submit(&envelope).await.map_err(|error| format!("step {n} {step:?}: {error}"))?;
            let context = format!("step {n} {step:?} of {steps:?} on plan {plan}");
            if outcome(&reply) != predicted {
                return Err(format!("{context}: got {reply:?}, the model says {predicted}"));
            }
            if predicted == "accepted" {
                ids.add(step, &reply);
            }
            self.compare(workspace_id, &model, predicted).await.map_err(|error| format!("{context}: {error}"))?;
            envelopes.push(envelope);
            answers.push(reply);
        }
        self.sum_up(workspace_id).await?;
        self.run_in_batches(&envelopes, &answers, batch_sizes).await?;
        self.replay(&envelopes, &answers).await
    }

    async fn submit(&self, envelope: &Envelope) -> Result<Reply, String> {
        self.engine.submit(envelope.clone()).await.map_err(|error| error.to_string())
    }

    /// Tries the command without doing it, then does it. The dry run must write nothing and tell all that the command does,
    /// byte for byte: both have the ids that follow from one envelope.
    async fn try_and_submit(&self, envelope: &Envelope) -> Result<Reply, String> {
        let (store, workspace_id) = (&self.serial.store, envelope.workspace_id);
        let before = store.workspace(workspace_id).await.map_err(|error| error.to_string())?;
        let dry_run = self.engine.dry_run(envelope).await.map_err(|error| error.to_string())?;
        if store.workspace(workspace_id).await.map_err(|error| error.to_string())? != before {
            return Err("a dry run has changed the workspace".into());
        }
        let reply = self.submit(envelope).await?;
        let after = before.map_or(0, |state| state.credits.event_seq);
        let query = EventQuery::OfWorkspace { workspace_id, after, limit: 10_000 };
        let raised = store.events(&query).await.map_err(|error| error.to_string())?;
        let raised: Vec<_> = raised
            .into_iter()
            .map(|event| DryRunEvent {
                event_type: event.event_type,
                data: event.data,
                is_due_work: event.causation_id != envelope.message_id.0,
            })
            .collect();
        if (&dry_run.reply, &dry_run.events) == (&reply, &raised) {
            Ok(reply)
        } else {
            Err(format!("the dry run was {dry_run:?}, the command gave {reply:?} and {raised:?}"))
        }
    }

    async fn compare(&self, workspace_id: WorkspaceId, model: &Model, predicted: &str) -> Result<(), String> {
        let stored = self.serial.store.workspace(workspace_id).await.unwrap().unwrap();
        let as_of_now = stored.clone().as_of(Timestamp::from_micros(model.now));
        let expected = (model.balance(), model.used(), model.debt(), model.held());
        for (what, state) in [("stored", &stored), ("read", &as_of_now)] {
            let credits = &state.credits;
            let found = [credits.current_credits, credits.used_this_month, credits.debt_credits, credits.held_credits];
            let [balance, used, debt, held] = found.map(|credits| Amount::from(credits.micro()));
            // Only a command of a caller does all due work, and the model does it for a refused one too.
            let is_compared = if what == "read" { !model.has_due_work() } else { predicted != "nothing" };
            if is_compared && (balance, used, debt, held) != expected {
                return Err(format!(
                    "{what}: balance, usage, debt and held credits are {found:?}, the model says {expected:?}"
                ));
            }
        }
        Ok(())
    }

    /// Reads all events of the workspace back, and checks that each carries the balance after what it tells, and that
    /// together they tell what became of each grant and make the statements.
    async fn sum_up(&self, workspace_id: WorkspaceId) -> Result<(), String> {
        let store = &self.serial.store;
        let query = EventQuery::OfWorkspace { workspace_id, after: 0, limit: 10_000 };
        let (mut balance, mut told) = (Credits::ZERO, ToldGrants::default());
        let events = store.events(&query).await.map_err(|error| error.to_string())?;
        for event in &events {
            let data =
                EventData::parse(event.event_type.known().unwrap(), &event.data).map_err(|error| error.to_string())?;
            balance = balance.plus(data.balance_change().unwrap()).unwrap();
            if data.current_credits() != balance {
                return Err(format!("the events sum up to {balance}, and one says {data:?}"));
            }
            told.tell(&data);
        }
        let all = HistoryQuery::newest(workspace_id, 10_000);
        let grants = store.grants(&all, GrantFilter::All).await.map_err(|error| error.to_string())?.rows;
        for grant in grants.iter().filter(|grant| !grant.source.is_periodic()) {
            let stored = Told { remaining: grant.remaining.micro(), held: grant.held.micro() };
            let told = told.of(grant.grant_id);
            if *told != stored {
                return Err(format!("the events tell {told:?} of a grant that is {grant:?}"));
            }
        }
        let logs = store.usage(&all, None).await.map_err(|error| error.to_string())?.rows;
        told_statements::check(&events, balance, logs.iter().map(|usage| usage.log.credits.micro()).sum())?;
        let state = store.workspace(workspace_id).await.unwrap().unwrap();
        if state.credits.current_credits == balance { Ok(()) } else { Err(format!("the events sum up to {balance}")) }
    }

    /// Runs the same envelopes in batches, which must give the same answers.
    async fn run_in_batches(&self, envelopes: &[Envelope], answers: &[Reply], sizes: &[usize]) -> Result<(), String> {
        let mut sizes = sizes.iter().cycle();
        let mut done = 0;
        while done < envelopes.len() {
            let size = (*sizes.next().unwrap_or(&1)).min(envelopes.len() - done);
            let mut keys = KeySet::default();
            envelopes[done..done + size].iter().for_each(|envelope| envelope.add_keys(&mut keys));
            let mut transaction = self.batched.store.begin().await.map_err(|error| error.to_string())?;
            let snapshot = transaction.load(&keys).await.map_err(|error| error.to_string())?;
            let mut batch = Batch::new(snapshot, &*self.ports, &*self.ports);
            for n in done..done + size {
                let outcome = batch.run(&envelopes[n]).map_err(|error| error.to_string())?;
                if body(&Reply::from(outcome.clone())) != body(&answers[n]) {
                    let command = &envelopes[n].command;
                    return Err(format!("in a batch {command:?} gives {outcome:?}, alone {:?}", answers[n]));
                }
                if matches!(outcome, Outcome::KeyReused) {
                    return Err("a fresh key was found reused".into());
                }
            }
            let (changes, left) = batch.finish();
            if changes.is_empty() {
                drop(transaction);
            } else {
                transaction.commit(&changes).await.map_err(|error| error.to_string())?;
            }
            for (id, state) in &left.workspaces {
                let stored = self.batched.store.workspace(*id).await.map_err(|error| error.to_string())?;
                if stored.as_ref() != Some(state) {
                    return Err(format!("a batch left {state:?}, and stored {stored:?}"));
                }
            }
            done += size;
        }
        Ok(())
    }

    /// Sends all envelopes again: recorded commands must be replayed with the same bytes.
    async fn replay(&self, envelopes: &[Envelope], answers: &[Reply]) -> Result<(), String> {
        for (envelope, answer) in envelopes.iter().zip(answers) {
            let is_recorded = match answer {
                Reply::Decided { rejection, .. } => rejection.as_ref().is_none_or(Rejection::is_recorded),
                Reply::Replayed(_) | Reply::KeyReused | Reply::Nothing => false,
            };
            let again = self.submit(envelope).await?;
            if is_recorded && (!matches!(again, Reply::Replayed(_)) || body(&again) != body(answer)) {
                return Err(format!("{:?} answered {answer:?} and then {again:?}", envelope.command));
            }
        }
        Ok(())
    }

    pub async fn audit_and_close(self) {
        for database in [&self.serial, &self.batched] {
            let findings = database.store.audit(5).await.unwrap();
            assert_eq!(findings, [], "the audit finds nothing");
        }
        self.engine.stop().await;
        self.serial.close().await;
        self.batched.close().await;
    }
}

/// What the commands of a history may name, in the order of its recording.
#[derive(Default)]
struct Ids {
    /// Those that callers have given or bought.
    grants: Vec<GrantId>,
    purchases: Vec<GrantId>,
    holds: Vec<HoldId>,
    usages: Vec<UsageId>,
}

impl Ids {
    /// Adds what an accepted step has made.
    fn add(&mut self, step: &Step, reply: &Reply) {
        match step {
            Step::Grant(_) => self.grants.push(GrantId(id_in(reply, "grant_id"))),
            Step::Purchase { .. } => {
                self.grants.push(GrantId(id_in(reply, "grant_id")));
                self.purchases.push(GrantId(id_in(reply, "grant_id")));
            }
            Step::OfHolds(HoldStep::Place { .. }) => self.holds.push(HoldId(id_in(reply, "hold_id"))),
            Step::Deduct { .. } | Step::OfHolds(HoldStep::Capture { .. }) => {
                let receipt: serde_json::Value = serde_json::from_str(body(reply)).unwrap();
                self.usages.push(receipt["usage_id"].as_str().unwrap().parse().unwrap());
            }
            _ => {}
        }
    }
}

fn outcome(reply: &Reply) -> &'static str {
    match reply {
        Reply::Decided { rejection: None, .. } => "accepted",
        Reply::Decided { rejection: Some(rejection), .. } => rejection.code(),
        Reply::Nothing => "nothing",
        Reply::Replayed(_) => "replayed",
        Reply::KeyReused => "key-reused",
    }
}

fn body(reply: &Reply) -> &str {
    match reply {
        Reply::Decided { answer, .. } | Reply::Replayed(answer) => &answer.body,
        Reply::Nothing | Reply::KeyReused => "",
    }
}

fn id_in(reply: &Reply, field: &str) -> Uuid {
    let receipt: serde_json::Value = serde_json::from_str(body(reply)).unwrap();
    receipt[field].as_str().unwrap().parse().unwrap()
}

fn envelope(workspace_id: WorkspaceId, now: i64, command: Command) -> Envelope {
    let message_id = SystemClock.new_command_id();
    Envelope {
        message_id,
        idempotency_key: IdempotencyKey::new(&message_id.to_string()).unwrap(),
        workspace_id,
        actor: "model".into(),
        correlation_id: Uuid::nil().to_string(),
        causation_id: None,
        traceparent: None,
        received_at: Timestamp::from_micros(now),
        metadata: None,
        fingerprint: [7; 32],
        command,
    }
}

fn credits(amount: Amount) -> Credits {
    Credits::from_micro(i64::try_from(amount).unwrap()).unwrap()
}

fn read<T: serde::de::DeserializeOwned>(amount: Amount) -> T {
    serde_json::from_value(credits(amount).to_string().into()).unwrap()
}

fn provision(plan: usize) -> Command {
    Command::ProvisionWorkspace(ProvisionWorkspace {
        name: Label::new("Model").unwrap(),
        plan_code: PlanCode::new(PLANS[plan].code).unwrap(),
        time_zone: chrono_tz::UTC,
        anchor: None,
        monthly_limit: None,
        overdraft_limit: None,
        feature_overrides: FeatureOverrides::new(),
    })
}

fn command(step: &Step, history: u64, now: i64, ids: &Ids) -> Option<Command> {
    let at = |micros| Timestamp::from_micros(micros);
    let effective = |now: bool| if now { Effective::Immediate } else { Effective::PeriodEnd };
    Some(match *step {
        Step::Wait { .. } => return None,
        Step::ExpireGrants => Command::ExpireGrants(ExpireGrants),
        Step::Reset => Command::ResetMonthlyCredits(ResetMonthlyCredits { period: None }),
        Step::Resume => Command::ResumeSubscription(ResumeSubscription { expected_version: None }),
        Step::Cancel { now } => Command::CancelSubscription(CancelSubscription {
            effective: effective(now),
            reason: None,
            expected_version: None,
        }),
        Step::Change { plan, now, policy } => Command::ProcessSubscriptionChange(ProcessSubscriptionChange {
            plan_code: PlanCode::new(PLANS[plan].code).unwrap(),
            effective: effective(now),
            credit_policy: match policy {
                Policy::None => CreditPolicy::None,
                Policy::Full => CreditPolicy::Full,
                Policy::Prorate => CreditPolicy::Prorate,
                Policy::Restart => CreditPolicy::Restart,
            },
            expected_version: None,
        }),
        Step::Deduct { second, amount } => Command::DeductCredits(DeductCredits {
            feature_code: feature(second),
            charge: Charge::Credits(read(amount)),
            user_id: None,
            occurred_at: None,
            explain: false,
        }),
        Step::OfHolds(step) => hold_command(step, &ids.holds),
        Step::Refund { number, amount } => Command::RefundUsage(RefundUsage {
            usage_id: ids.usages.get(number).copied().unwrap_or(UsageId { recorded_at: at(START), seq: 1 }),
            credits: amount.map(read),
            reason: None,
        }),
        Step::Reverse { number, how } => reversal(number, how, ids),
        Step::ExpireHolds => Command::ExpireHolds(ExpireHolds),
        Step::Grant(given) => {
            let begins_at = given.begins_after_days.map(|days| now + i64::from(days) * DAY);
            let end = |days| at(begins_at.unwrap_or(now) + i64::from(days) * DAY);
            Command::GrantCredits(GrantCredits {
                credits: read(given.amount),
                source: if given.adjustment { GrantedSource::Adjustment } else { GrantedSource::Promotion },
                priority: Priority::new(given.priority.into()).unwrap(),
                effective_at: begins_at.map(at),
                expires_at: given.lasts_days.map(end),
                feature_scope: given.scope.map(feature),
                reason: Label::new("model").unwrap(),
            })
        }
        Step::Void { number, amount } => Command::VoidGrant(VoidGrant {
            grant_id: ids.grants.get(number).copied().unwrap_or(GrantId(Uuid::from_u128(1))),
            credits: amount.map(read),
            reason: Label::new("model").unwrap(),
        }),
        Step::Purchase { amount, bonus, reference, expires_after_days } => Command::PurchaseCredits(PurchaseCredits {
            credits: read(amount),
            bonus_credits: bonus.map(read),
            amount_minor: PRICE,
            currency: Currency::new("EUR").unwrap(),
            payment_reference: PaymentReference::new(&format!("pay-{history}-{reference}")).unwrap(),
            expires_at: expires_after_days.map(|days| Timestamp::from_micros(now + i64::from(days) * DAY)),
        }),
    })
}

fn reversal(number: usize, how: Reversed, ids: &Ids) -> Command {
    Command::ReversePurchase(ReversePurchase {
        grant_id: ids.purchases.get(number).copied().unwrap_or(GrantId(Uuid::from_u128(1))),
        amount: match how {
            Reversed::All => ReversedAmount::All,
            Reversed::Credits(amount) => ReversedAmount::Credits(read(amount)),
            Reversed::Minor(minor) => ReversedAmount::Minor(minor),
        },
        reason: ReversalReason::Chargeback,
    })
}

fn hold_command(step: HoldStep, holds: &[HoldId]) -> Command {
    let hold_id = |number: usize| holds.get(number).copied().unwrap_or(HoldId(Uuid::from_u128(1)));
    match step {
        HoldStep::Place { second, amount, least, seconds } => Command::PlaceHold(PlaceHold {
            feature_code: feature(second),
            charge: Charge::Credits(read(amount)),
            min_credits: least.map(read),
            duration: HoldDuration::new(seconds).unwrap(),
            user_id: None,
            explain: false,
            job: None,
        }),
        HoldStep::Capture { number, amount, overrun, late } => Command::CaptureHold(CaptureHold {
            hold_id: hold_id(number),
            charge: amount.map(|amount| Charge::Credits(read(amount))),
            overrun: match overrun {
                Overrun::Reject => hold::Overrun::Reject,
                Overrun::ChargeAvailable => hold::Overrun::ChargeAvailable,
                Overrun::Overdraft => hold::Overrun::Overdraft,
            },
            late_capture: late,
            job: None,
        }),
        HoldStep::Release { number } => Command::ReleaseHold(ReleaseHold { hold_id: hold_id(number), job: None }),
        HoldStep::Extend { number, seconds } => {
            Command::ExtendHold(ExtendHold { hold_id: hold_id(number), duration: HoldDuration::new(seconds).unwrap() })
        }
    }
}

fn feature(second: bool) -> FeatureCode {
    FeatureCode::new(if second { "second" } else { "first" }).unwrap()
}

fn plan_version(plan: &Plan) -> PlanVersion {
    let enabled = FeatureTerms { enabled: true, unit_price: None, limit: None };
    let mut features = BTreeMap::from([(FeatureCode::new("first").unwrap(), enabled)]);
    if let Some(limit) = plan.second_feature_limit {
        let limited = FeatureTerms { limit: Some(UsageLimit::hard(credits(limit))), ..enabled };
        features.insert(FeatureCode::new("second").unwrap(), limited);
    }
    PlanVersion {
        plan_code: PlanCode::new(plan.code).unwrap(),
        version: 1,
        name: Label::new(plan.code).unwrap(),
        period_months: 1,
        allowance: credits(plan.allowance),
        rollover_cap: credits(plan.rollover_cap),
        overdraft_limit: credits(plan.overdraft),
        monthly_limit: plan.monthly_limit.map(|limit| UsageLimit::hard(credits(limit))),
        rate_limit: None,
        low_credit_thresholds: vec![Credits::whole(50), Credits::whole(10)],
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: if plan.writes_off { ReversalShortfall::WriteOff } else { ReversalShortfall::Debt },
        purchased_on_cancel: if plan.freezes_on_cancel { PurchasedOnCancel::Freeze } else { PurchasedOnCancel::Keep },
        features,
    }
}
