//! The fixture of the domain's tests: one workspace and a clock that the test sets. Every command runs through a
//! batch, as in production.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::batch::{Batch, EventWriter, InvalidEvent, Outcome, Render, Rendered};
use super::change_set::ChangeSet;
use super::cloud_event::EventRecord;
use super::command_record::CommandRecord;
use super::commands::{
    CancelSubscription, Charge, Command, DeductCredits, Envelope, ProcessSubscriptionChange, ProvisionWorkspace,
    PurchaseCredits,
};
use super::credits::Credits;
use super::event::{EventData, EventType};
use super::explanation::Explanation;
use super::grant::Currency;
use super::ids::{CommandId, WorkspaceId};
use super::ledger::{Account, LedgerEntry};
use super::metadata::Metadata;
use super::plan::PlanVersion;
use super::receipt::Receipt;
use super::refund::{RefundableUsage, UsageShare};
use super::rejection::Rejection;
use super::snapshot::{CataloguePlan, Snapshot, WorkspaceState};
use super::subscription::{CreditPolicy, Effective};
use super::text::{FeatureCode, IdempotencyKey, Label, PaymentReference, PlanCode};
use super::time::Timestamp;
use super::workspace::FeatureOverrides;

/// Renders receipts as JSON and rejections as their code.
pub(crate) struct PlainRender;

impl Render for PlainRender {
    fn receipt(&self, receipt: &Receipt) -> Rendered {
        Rendered { status: 200, body: serde_json::to_string(receipt).unwrap() }
    }

    fn rejection(&self, rejection: &Rejection, _: Option<&Explanation>) -> Rendered {
        Rendered { status: 400, body: rejection.code().into() }
    }
}

/// Renders rejections as their explanation.
pub(crate) struct ExplainingRender;

impl Render for ExplainingRender {
    fn receipt(&self, receipt: &Receipt) -> Rendered {
        PlainRender.receipt(receipt)
    }

    fn rejection(&self, _: &Rejection, explanation: Option<&Explanation>) -> Rendered {
        Rendered { status: 400, body: serde_json::to_string(&explanation).unwrap() }
    }
}

impl EventWriter for PlainRender {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent> {
        data.to_json(metadata).map_err(|error| InvalidEvent(error.to_string()))
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub snapshot: Snapshot,
    pub now: Timestamp,
    pub workspace_id: WorkspaceId,
    pub entries: Vec<LedgerEntry>,
    pub events: Vec<EventRecord>,
    next: u128,
}

impl World {
    /// A workspace on that plan, provisioned at 2026-01-31T00:00:00Z.
    pub(crate) fn on(plan: PlanVersion) -> Self {
        let mut world = Self {
            snapshot: Snapshot::default(),
            now: "2026-01-31T00:00:00Z".parse().unwrap(),
            workspace_id: WorkspaceId(Uuid::from_u128(1)),
            entries: Vec::new(),
            events: Vec::new(),
            next: 1,
        };
        let plan_code = plan.plan_code.clone();
        world.add_plan(plan);
        let command = ProvisionWorkspace {
            name: Label::new("Acme").unwrap(),
            plan_code,
            time_zone: chrono_tz::UTC,
            anchor: None,
            monthly_limit: None,
            overdraft_limit: None,
            feature_overrides: FeatureOverrides::new(),
        };
        world.run(Command::ProvisionWorkspace(command)).accepted();
        world
    }

    pub(crate) fn add_plan(&mut self, plan: PlanVersion) {
        let code = plan.plan_code.clone();
        self.snapshot.features.extend(plan.features.keys().cloned());
        self.snapshot.plans.insert(code, CataloguePlan { newest: Arc::new(plan), is_offered: true });
    }

    pub(crate) fn at(&mut self, time: &str) -> &mut Self {
        self.now = time.parse().unwrap();
        self
    }

    pub(crate) fn state(&self) -> &WorkspaceState {
        &self.snapshot.workspaces[&self.workspace_id]
    }

    pub(crate) fn balance(&self) -> String {
        self.state().credits.current_credits.to_string()
    }

    pub(crate) fn envelope(&mut self, command: Command) -> Envelope {
        self.next += 1;
        let message_id = CommandId(Uuid::from_u128((7 << 76) | (2 << 62) | (self.next << 40)));
        Envelope {
            message_id,
            idempotency_key: IdempotencyKey::new(&format!("key-{}", self.next)).unwrap(),
            workspace_id: self.workspace_id,
            actor: "tester".into(),
            correlation_id: "test".into(),
            causation_id: None,
            traceparent: None,
            received_at: self.now,
            metadata: None,
            fingerprint: [0; 32],
            command,
        }
    }

    pub(crate) fn run(&mut self, command: Command) -> Ran {
        let envelope = self.envelope(command);
        self.run_envelope(&envelope)
    }

    /// Runs one command in a batch of its own, keeps the new state, and audits it.
    pub(crate) fn run_envelope(&mut self, envelope: &Envelope) -> Ran {
        let mut batch = Batch::new(self.snapshot.clone(), &PlainRender, &PlainRender);
        let outcome = batch.run(envelope).unwrap();
        let (changes, snapshot) = batch.finish();
        self.snapshot = snapshot;
        let keyed =
            |command: &CommandRecord| ((command.workspace_id, command.idempotency_key.clone()), command.clone());
        self.snapshot.commands.extend(changes.commands.iter().map(keyed));
        for log in &changes.usage_logs {
            let entries = changes.ledger_entries.iter().filter(|entry| entry.command_id == log.command_id);
            let shares = UsageShare::of_entries(entries);
            let usage =
                RefundableUsage { log: log.clone(), shares, refunded: Credits::ZERO, is_of_current_period: true };
            self.snapshot.usages.insert((log.workspace_id, log.id()), usage);
        }
        self.entries.extend(changes.ledger_entries.clone());
        self.events.extend(changes.events.clone());
        self.audit();
        Ran { outcome, changes }
    }

    pub(crate) fn deduct(&mut self, feature: &str, credits: &str) -> Ran {
        self.run(deduct(feature, Charge::Credits(json(credits))))
    }

    pub(crate) fn purchase(&mut self, credits: &str, reference: &str) -> Ran {
        self.run(purchase(credits, reference))
    }

    pub(crate) fn purchase_until(&mut self, credits: &str, reference: &str, end: &str) -> Ran {
        let mut command = purchase(credits, reference);
        if let Command::PurchaseCredits(command) = &mut command {
            command.expires_at = Some(end.parse().unwrap());
        }
        self.run(command)
    }

    pub(crate) fn change(&mut self, plan: &str, effective: Effective, credit_policy: CreditPolicy) -> Ran {
        self.run(Command::ProcessSubscriptionChange(ProcessSubscriptionChange {
            plan_code: PlanCode::new(plan).unwrap(),
            effective,
            credit_policy,
            expected_version: None,
        }))
    }

    pub(crate) fn cancel(&mut self, effective: Effective) -> Ran {
        self.run(Command::CancelSubscription(CancelSubscription { effective, reason: None, expected_version: None }))
    }

    /// Recomputes all balances from the ledger entries, and compares them.
    fn audit(&self) {
        let Some(state) = self.snapshot.workspaces.get(&self.workspace_id) else { return };
        let mut balances: BTreeMap<String, i64> = BTreeMap::new();
        let mut running = 0;
        for (n, entry) in self.entries.iter().enumerate() {
            assert_eq!(entry.seq, i64::try_from(n).unwrap() + 1, "entries have no gap");
            let key = |account: &Account| match account {
                Account::Grant(id) => id.to_string(),
                Account::Held(id) => format!("held {id}"),
                account => account.label().into_owned(),
            };
            *balances.entry(key(&entry.accounts.debit)).or_default() -= entry.amount.micro();
            *balances.entry(key(&entry.accounts.credit)).or_default() += entry.amount.micro();
            running += i64::from(entry.accounts.credit.is_in_balance()) * entry.amount.micro();
            running -= i64::from(entry.accounts.debit.is_in_balance()) * entry.amount.micro();
            assert_eq!(entry.balance_after.micro(), running, "balance_after chains");
        }
        assert_eq!(balances.values().sum::<i64>(), 0, "every transaction sums to zero");
        let credits = &state.credits;
        assert_eq!(credits.current_credits.micro(), running, "the balance is the ledger's");
        assert_eq!(-balances.get("debt").copied().unwrap_or(0), credits.debt_credits.micro(), "debt is the ledger's");
        assert!(credits.debt_credits <= credits.overdraft_limit, "never below the overdraft limit");
        for grant in &state.grants {
            let booked = balances.remove(&grant.grant_id.to_string()).unwrap_or(0);
            assert_eq!(booked, grant.remaining.micro(), "what remains of a grant is the ledger's");
            let held = balances.remove(&format!("held {}", grant.grant_id)).unwrap_or(0);
            assert_eq!(held, grant.held.micro(), "what is held of a grant is the ledger's");
            let shares = state.holds.iter().flat_map(|open| open.shares.iter());
            let reserved = shares.filter(|share| share.grant_id == grant.grant_id).map(|share| share.amount.micro());
            assert_eq!(held, reserved.sum::<i64>(), "what is held of a grant is what the open holds reserve");
            assert!(grant.is_open(), "closed grants are removed");
        }
        let amounts = state.holds.iter().map(|open| open.hold.amount.micro());
        assert_eq!(amounts.sum::<i64>(), credits.held_credits.micro(), "held credits are those of the open holds");
        assert_eq!(state.holds.len(), usize::try_from(credits.open_holds).unwrap(), "open holds are counted");
        for open in &state.holds {
            let of_grants: i64 = open.shares.iter().map(|share| share.amount.micro()).sum();
            assert_eq!(of_grants + open.hold.overdraft.micro(), open.hold.amount.micro(), "a hold is its shares");
            assert!(open.hold.is_open(), "holds that are over are removed");
        }
        assert!(state.holds.is_sorted_by_key(|open| open.hold.hold_id), "holds are in the order of their ids");
        for (account, balance) in balances {
            let is_grant = Uuid::parse_str(account.trim_start_matches("held ")).is_ok();
            assert!(!is_grant || balance == 0, "closed grants are empty");
        }
        assert!(state.grants.is_sorted_by(|one, next| one.cmp_burn_order(next).is_le()), "grants are in burn order");
        let ids: BTreeSet<_> = self.events.iter().map(|event| event.event_id).collect();
        assert_eq!(ids.len(), self.events.len(), "no two events have one id");
        for (n, event) in self.events.iter().enumerate() {
            assert_eq!(event.workspace_seq, i64::try_from(n).unwrap() + 1, "events have no gap");
        }
    }
}

/// The result of one command.
pub(crate) struct Ran {
    pub outcome: Outcome,
    pub changes: ChangeSet,
}

impl Ran {
    pub(crate) fn accepted(self) -> Self {
        assert!(matches!(self.outcome, Outcome::Accepted(_)), "{:?}", self.outcome);
        self
    }

    /// The code of the rejection.
    pub(crate) fn code(&self) -> &'static str {
        match &self.outcome {
            Outcome::Refused { rejection, .. } => rejection.code(),
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn events(&self) -> Vec<EventType> {
        self.changes.events.iter().filter_map(|event| event.event_type.known()).collect()
    }

    /// The data of the first event of that type.
    pub(crate) fn data(&self, event_type: EventType) -> serde_json::Value {
        let event = self.changes.events.iter().find(|event| event.event_type == event_type).unwrap();
        serde_json::from_str(&event.data).unwrap()
    }

    pub(crate) fn receipt(&self) -> serde_json::Value {
        match &self.outcome {
            Outcome::Accepted(answer) => serde_json::from_str(&answer.body).unwrap(),
            other => panic!("not accepted: {other:?}"),
        }
    }
}

pub(crate) fn json<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_value(text.into()).unwrap()
}

pub(crate) fn deduct(feature: &str, charge: Charge) -> Command {
    Command::DeductCredits(DeductCredits {
        feature_code: FeatureCode::new(feature).unwrap(),
        charge,
        user_id: None,
        occurred_at: None,
        explain: false,
    })
}

pub(crate) fn purchase(credits: &str, reference: &str) -> Command {
    Command::PurchaseCredits(PurchaseCredits {
        credits: json(credits),
        bonus_credits: None,
        amount_minor: 1000,
        currency: Currency::new("EUR").unwrap(),
        payment_reference: PaymentReference::new(reference).unwrap(),
        expires_at: None,
    })
}
