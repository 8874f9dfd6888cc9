//! Handmade change sets: a few workspaces whose rows are consistent.

use std::collections::BTreeMap;

use uuid::Uuid;
use visionscope_billing::domain::change_set::{ChangeSet, Rows, SubscriptionPeriod};
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::command_record::CommandRecord;
use visionscope_billing::domain::consumers::{Build, ConsumerRows};
use visionscope_billing::domain::counter::{CounterSubject, UsageCounter};
use visionscope_billing::domain::credits::{Credits, Quantity};
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::grant::{DEFAULT_PRIORITY, Grant, GrantSource};
use visionscope_billing::domain::hold::{HeldShare, Hold, HoldState, OpenHold};
use visionscope_billing::domain::ids::{
    CommandId, EventId, GrantId, HoldId, Partition, RefundId, ReversalId, SubscriptionId, WorkspaceId,
};
use visionscope_billing::domain::ledger::{Account, Accounts, LedgerEntry};
use visionscope_billing::domain::partition_head::PartitionHead;
use visionscope_billing::domain::period::Period;
use visionscope_billing::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel, ReversalShortfall, UsageLimit};
use visionscope_billing::domain::refund::UsageRefund;
use visionscope_billing::domain::reversal::{PurchaseReversal, ReversalReason};
use visionscope_billing::domain::snapshot::{KeySet, Snapshot};
use visionscope_billing::domain::subscription::{Subscription, SubscriptionStatus};
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, Label, PlanCode};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageLog;
use visionscope_billing::domain::workspace::{Workspace, WorkspaceCredits};
use visionscope_billing::store::consumers::Advance;
use visionscope_billing::store::{Store, StoreError};

/// What a provisioned workspace is granted.
pub const ALLOWANCE: Credits = Credits::whole(1000);
const ONE_SECOND_US: i64 = 1_000_000;
const PERIOD_S: i64 = 30 * 86_400;

/// Seconds after a fixed instant, with microseconds.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_123_456 + seconds * ONE_SECOND_US)
}

/// The n-th workspace id of a partition.
pub fn workspace_in(partition: Partition, nth: usize) -> WorkspaceId {
    (1_u128..).map(|n| WorkspaceId(Uuid::from_u128(n))).filter(|id| Partition::of(*id) == partition).nth(nth).unwrap()
}

/// A workspace id of partition 3.
pub fn workspace(nth: usize) -> WorkspaceId {
    workspace_in(Partition::new(3).unwrap(), nth)
}

pub fn keys_of(workspaces: impl IntoIterator<Item = WorkspaceId>) -> KeySet {
    KeySet { workspaces: workspaces.into_iter().collect(), ..KeySet::default() }
}

pub fn feature(code: &str) -> FeatureCode {
    FeatureCode::new(code).unwrap()
}

pub fn plan(code: &str, version: i32) -> PlanVersion {
    let limit = Some(UsageLimit::hard(Credits::whole(50)));
    PlanVersion {
        plan_code: PlanCode::new(code).unwrap(),
        version,
        name: Label::new("Pro").unwrap(),
        period_months: 1,
        allowance: ALLOWANCE,
        rollover_cap: Credits::ZERO,
        overdraft_limit: Credits::ZERO,
        monthly_limit: None,
        rate_limit: None,
        low_credit_thresholds: vec![Credits::whole(100)],
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: ReversalShortfall::Debt,
        purchased_on_cancel: PurchasedOnCancel::ExpireAfterDays(30),
        features: [
            (feature("render"), FeatureTerms { enabled: true, unit_price: None, limit: None }),
            (feature("upscale"), FeatureTerms { enabled: false, unit_price: Some(Credits::whole(2)), limit }),
        ]
        .into(),
    }
}

/// A row, whether it is stored, and whether it must be written.
#[derive(Clone)]
struct Tracked<T> {
    row: T,
    is_stored: bool,
    is_dirty: bool,
}

impl<T: Clone> Tracked<T> {
    fn new(row: T) -> Self {
        Self { row, is_stored: false, is_dirty: true }
    }

    fn change(&mut self) -> &mut T {
        self.is_dirty = true;
        &mut self.row
    }

    fn take(&mut self, rows: &mut Rows<T>) {
        if std::mem::take(&mut self.is_dirty) {
            let list = if self.is_stored { &mut rows.updated } else { &mut rows.inserted };
            list.push(self.row.clone());
            self.is_stored = true;
        }
    }
}

/// Workspaces and their history, stored or not.
#[derive(Clone, Default)]
pub struct World {
    heads: BTreeMap<Partition, PartitionHead>,
    credits: BTreeMap<WorkspaceId, Tracked<WorkspaceCredits>>,
    counters: BTreeMap<WorkspaceId, Tracked<UsageCounter>>,
    grants: BTreeMap<WorkspaceId, Tracked<Grant>>,
    pending: ChangeSet,
    ids: u128,
}

impl World {
    pub fn new() -> Self {
        Self::default()
    }

    /// A world whose ids start after the given number of ids.
    pub fn after(ids: u128) -> Self {
        Self { ids, ..Self::default() }
    }

    /// Another writer with the same state and ids of its own.
    pub fn beside(&self) -> Self {
        Self { ids: self.ids + 1000, ..self.clone() }
    }

    pub fn fresh_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(0xF000_0000_0000_0000_0000 + self.ids)
    }

    /// A workspace with a subscription, one feature and an allowance.
    pub fn provision(&mut self, id: WorkspaceId) -> &mut Self {
        let grant_id = GrantId(self.fresh_id());
        let subscription_id = SubscriptionId(self.fresh_id());
        self.pending.workspaces.push(new_workspace(id));
        let subscription = new_subscription(id, subscription_id);
        let period = subscription.period;
        self.pending.subscriptions.inserted.push(subscription);
        self.credits.insert(id, Tracked::new(WorkspaceCredits::new(id, at(0))));
        self.counters.insert(id, Tracked::new(new_counter(id)));
        self.grants.insert(id, Tracked::new(new_grant(id, grant_id, ALLOWANCE)));
        let command_id = self.command(id, "ProvisionWorkspace", "accepted", at(0));
        let period = SubscriptionPeriod { workspace_id: id, subscription_id, period, usage_seq: 0, command_id };
        self.pending.periods.push(period);
        self.entry(id, command_id, Account::Issued(GrantSource::Allowance), Account::Grant(grant_id), ALLOWANCE, at(0));
        self.event(id, command_id, EventType::WorkspaceProvisioned, at(0));
        self
    }

    /// An accepted deduction from the allowance.
    pub fn deduct(&mut self, id: WorkspaceId, credits: Credits, now: Timestamp) -> &mut Self {
        let command_id = self.command(id, "DeductCredits", "accepted", now);
        let grant = self.grants.get_mut(&id).unwrap().change();
        grant.remaining = grant.remaining.minus(credits).unwrap();
        let grant_id = grant.grant_id;
        let counter = self.counters.get_mut(&id).unwrap().change();
        counter.used_credits = counter.used_credits.plus(credits).unwrap();
        let own = self.credits.get_mut(&id).unwrap().change();
        own.used_this_month = own.used_this_month.plus(credits).unwrap();
        own.usage_seq += 1;
        own.updated_at = now;
        let log = UsageLog {
            workspace_id: id,
            seq: own.usage_seq,
            command_id,
            feature_code: feature("render"),
            user_id: None,
            credits,
            quantity: Some(Quantity::from_micro(1).unwrap()),
            occurred_at: now,
            recorded_at: now,
            metadata: None,
        };
        self.pending.usage_logs.push(log);
        self.entry(id, command_id, Account::Grant(grant_id), Account::Consumed(feature("render")), credits, now);
        self.event(id, command_id, EventType::CreditConsumed, now);
        self
    }

    /// Credits that a caller has granted. The grant is an allowance's with another source.
    pub fn grant(&mut self, id: WorkspaceId, credits: Credits, now: Timestamp) -> Grant {
        let command_id = self.command(id, "GrantCredits", "accepted", now);
        let grant_id = GrantId(self.fresh_id());
        let source = GrantSource::Promotion;
        self.entry(id, command_id, Account::Issued(source), Account::Grant(grant_id), credits, now);
        let issued_seq = self.credits[&id].row.ledger_seq;
        let grant = Grant { source, created_at: now, issued_seq, ..new_grant(id, grant_id, credits) };
        self.pending.grants.inserted.push(grant.clone());
        self.event(id, command_id, EventType::CreditsGranted, now);
        grant
    }

    /// Takes back a part of a grant that was stored.
    pub fn void(&mut self, grant: &Grant, credits: Credits, now: Timestamp) -> &mut Self {
        let id = grant.workspace_id;
        let command_id = self.command(id, "VoidGrant", "accepted", now);
        self.entry(id, command_id, Account::Grant(grant.grant_id), Account::Issued(grant.source), credits, now);
        let remaining = grant.remaining.minus(credits).unwrap();
        self.pending.grants.updated.push(Grant { remaining, ..grant.clone() });
        self.event(id, command_id, EventType::GrantVoided, now);
        self
    }

    /// Gives a part of a deduction of this period back.
    pub fn refund(&mut self, log: &UsageLog, credits: Credits, now: Timestamp) -> UsageRefund {
        let id = log.workspace_id;
        let command_id = self.command(id, "RefundUsage", "accepted", now);
        let grant = self.grants.get_mut(&id).unwrap().change();
        grant.remaining = grant.remaining.plus(credits).unwrap();
        let grant_id = grant.grant_id;
        let counter = self.counters.get_mut(&id).unwrap().change();
        counter.used_credits = counter.used_credits.minus(credits).unwrap();
        let own = self.credits.get_mut(&id).unwrap().change();
        own.used_this_month = own.used_this_month.minus(credits).unwrap();
        self.entry(id, command_id, Account::Consumed(feature("render")), Account::Grant(grant_id), credits, now);
        self.event(id, command_id, EventType::CreditsRefunded, now);
        let refund = UsageRefund {
            workspace_id: id,
            usage_id: log.id(),
            refund_id: RefundId(self.fresh_id()),
            credits,
            is_counted: true,
            reason: None,
            command_id,
            recorded_at: now,
        };
        self.pending.refunds.push(refund.clone());
        refund
    }

    /// Takes a part of a stored purchase back.
    pub fn reverse(&mut self, purchase: &Grant, credits: Credits, now: Timestamp) -> PurchaseReversal {
        let id = purchase.workspace_id;
        let command_id = self.command(id, "ReversePurchase", "accepted", now);
        self.entry(id, command_id, Account::Grant(purchase.grant_id), Account::Issued(purchase.source), credits, now);
        let remaining = purchase.remaining.minus(credits).unwrap();
        self.pending.grants.updated.push(Grant { remaining, ..purchase.clone() });
        self.event(id, command_id, EventType::PurchaseReversed, now);
        let reversal = PurchaseReversal {
            workspace_id: id,
            grant_id: purchase.grant_id,
            reversal_id: ReversalId(self.fresh_id()),
            credits,
            bonus_credits: Credits::ZERO,
            bonus_owed: Credits::ZERO,
            owed: Credits::ZERO,
            written_off: Credits::ZERO,
            amount_minor: 7,
            reason: ReversalReason::Mistake,
            command_id,
            recorded_at: now,
        };
        self.pending.reversals.push(reversal.clone());
        reversal
    }

    /// A hold of a part of the allowance.
    pub fn hold(&mut self, id: WorkspaceId, amount: Credits, now: Timestamp) -> OpenHold {
        let command_id = self.command(id, "PlaceHold", "accepted", now);
        let hold_id = HoldId(self.fresh_id());
        let grant = self.grants.get_mut(&id).unwrap().change();
        (grant.remaining, grant.held) = (grant.remaining.minus(amount).unwrap(), grant.held.plus(amount).unwrap());
        let grant_id = grant.grant_id;
        self.entry(id, command_id, Account::Grant(grant_id), Account::Held(grant_id), amount, now);
        let own = self.credits.get_mut(&id).unwrap().change();
        own.held_credits = own.held_credits.plus(amount).unwrap();
        own.open_holds += 1;
        let hold = Hold {
            workspace_id: id,
            hold_id,
            feature_code: feature("render"),
            user_id: None,
            amount,
            overdraft: Credits::ZERO,
            unit_price: None,
            metadata: None,
            command_id,
            state: HoldState::Open,
            expires_at: now.plus(chrono::TimeDelta::hours(1)),
            created_at: now,
            closed_at: None,
            captured: Credits::ZERO,
            usage_id: None,
        };
        let share = HeldShare { workspace_id: id, hold_id, position: 0, grant_id, amount };
        self.pending.holds.inserted.push(hold.clone());
        self.pending.held_shares.push(share);
        self.event(id, command_id, EventType::CreditsHeld, now);
        OpenHold { hold, shares: [share].into() }
    }

    /// The release of a hold that was stored.
    pub fn release(&mut self, open: &OpenHold, now: Timestamp) -> Hold {
        let (id, amount) = (open.hold.workspace_id, open.hold.amount);
        let command_id = self.command(id, "ReleaseHold", "accepted", now);
        let grant = self.grants.get_mut(&id).unwrap().change();
        (grant.remaining, grant.held) = (grant.remaining.plus(amount).unwrap(), grant.held.minus(amount).unwrap());
        let grant_id = grant.grant_id;
        self.entry(id, command_id, Account::Held(grant_id), Account::Grant(grant_id), amount, now);
        let own = self.credits.get_mut(&id).unwrap().change();
        own.held_credits = own.held_credits.minus(amount).unwrap();
        own.open_holds -= 1;
        let hold = Hold { state: HoldState::Released, closed_at: Some(now), ..open.hold.clone() };
        self.pending.holds.updated.push(hold.clone());
        self.event(id, command_id, EventType::HoldReleased, now);
        hold
    }

    /// A deduction that was refused.
    pub fn refuse(&mut self, id: WorkspaceId, now: Timestamp) -> &mut Self {
        let command_id = self.command(id, "DeductCredits", "insufficient-credits", now);
        self.event(id, command_id, EventType::CreditLimitExceeded, now);
        self
    }

    pub fn command(&mut self, id: WorkspaceId, name: &str, outcome: &str, now: Timestamp) -> CommandId {
        let command_id = CommandId(self.fresh_id());
        let own = self.credits.get_mut(&id).unwrap().change();
        own.version += 1;
        self.pending.commands.push(CommandRecord {
            workspace_id: id,
            idempotency_key: IdempotencyKey::new(&command_id.to_string()).unwrap(),
            command_id,
            seq: own.version,
            command_type: name.to_owned(),
            fingerprint: [7; 32],
            outcome: outcome.to_owned(),
            status: 201,
            body: "{}".to_owned(),
            actor: "test".to_owned(),
            correlation_id: "correlation".to_owned(),
            traceparent: None,
            metadata: None,
            received_at: now,
            recorded_at: now,
        });
        command_id
    }

    /// An entry; the balance follows it.
    pub fn entry(
        &mut self,
        id: WorkspaceId,
        command_id: CommandId,
        debit: Account,
        credit: Account,
        amount: Credits,
        now: Timestamp,
    ) {
        let own = self.credits.get_mut(&id).unwrap().change();
        if credit.is_in_balance() {
            own.current_credits = own.current_credits.plus(amount).unwrap();
        }
        if debit.is_in_balance() {
            own.current_credits = own.current_credits.minus(amount).unwrap();
        }
        own.ledger_seq += 1;
        self.pending.ledger_entries.push(LedgerEntry {
            workspace_id: id,
            seq: own.ledger_seq,
            command_id,
            accounts: Accounts { debit, credit },
            amount,
            balance_after: own.current_credits,
            recorded_at: now,
            effective_at: now,
        });
    }

    pub fn event(&mut self, id: WorkspaceId, command_id: CommandId, event_type: EventType, now: Timestamp) {
        let event_id = EventId(self.fresh_id());
        let partition = Partition::of(id);
        let own = self.credits.get_mut(&id).unwrap().change();
        own.event_seq += 1;
        let head = self.heads.entry(partition).or_insert_with(|| PartitionHead::empty(partition));
        head.seq += 1;
        head.last_event_id = Some(event_id);
        self.pending.events.push(EventRecord {
            event_id,
            event_type: event_type.into(),
            schema_version: event_type.schema_version(),
            partition,
            seq: head.seq,
            workspace_id: id,
            workspace_seq: own.event_seq,
            recorded_at: now,
            correlation_id: "correlation".to_owned(),
            causation_id: command_id.0,
            traceparent: None,
            data: "{}".to_owned(),
        });
    }

    /// The changes that are not written yet, for a test to alter before it commits them.
    pub fn pending(&mut self) -> &mut ChangeSet {
        &mut self.pending
    }

    /// All changes since the last call, as one change set.
    pub fn take(&mut self) -> ChangeSet {
        let mut changes = std::mem::take(&mut self.pending);
        let touched: std::collections::BTreeSet<_> =
            changes.commands.iter().map(|command| Partition::of(command.workspace_id)).collect();
        for partition in touched {
            let head = self.heads.entry(partition).or_insert_with(|| PartitionHead::empty(partition));
            head.version += 1;
            changes.heads.push(*head);
        }
        self.credits.values_mut().for_each(|row| row.take(&mut changes.credits));
        self.counters.values_mut().for_each(|row| row.take(&mut changes.counters));
        self.grants.values_mut().for_each(|row| row.take(&mut changes.grants));
        changes
    }

    /// Commits all changes since the last call.
    pub async fn store(&mut self, store: &dyn Store) {
        let changes = self.take();
        commit(store, changes).await.unwrap();
    }
}

/// Locks the partitions of the change set and commits it.
pub async fn commit(store: &dyn Store, changes: ChangeSet) -> Result<(), StoreError> {
    let mut tx = store.begin().await.unwrap();
    tx.load(&keys_of(changes.commands.iter().map(|command| command.workspace_id))).await.unwrap();
    tx.commit(&changes).await
}

/// Loads the keys and releases the locks.
pub async fn load(store: &dyn Store, keys: &KeySet) -> Snapshot {
    let mut tx = store.begin().await.unwrap();
    tx.load(keys).await.unwrap()
}

/// Stores the plan and that many workspaces of partition 3.
pub async fn world_of(store: &dyn Store, workspaces: usize) -> World {
    store.put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
    let mut world = World::new();
    for nth in 0..workspaces {
        world.provision(workspace(nth));
    }
    world.store(store).await;
    world
}

pub fn new_workspace(id: WorkspaceId) -> Workspace {
    Workspace {
        workspace_id: id,
        name: Label::new("Acme").unwrap(),
        time_zone: chrono_tz::UTC,
        monthly_limit_override: None,
        overdraft_limit_override: None,
        metadata: None,
        created_at: at(0),
    }
}

pub fn new_subscription(id: WorkspaceId, subscription_id: SubscriptionId) -> Subscription {
    Subscription {
        workspace_id: id,
        subscription_id,
        plan_code: PlanCode::new("pro").unwrap(),
        plan_version: 1,
        status: SubscriptionStatus::Active,
        billing_anchor: at(0),
        period: Period { start: at(0), end: at(PERIOD_S) },
        version: 1,
        pending_change: None,
        canceled_at: None,
        updated_at: at(0),
    }
}

pub fn new_counter(id: WorkspaceId) -> UsageCounter {
    UsageCounter::new(id, CounterSubject::Feature(feature("render")), at(0))
}

pub fn new_grant(id: WorkspaceId, grant_id: GrantId, amount: Credits) -> Grant {
    Grant {
        workspace_id: id,
        grant_id,
        source: GrantSource::Allowance,
        amount,
        remaining: amount,
        held: Credits::ZERO,
        priority: DEFAULT_PRIORITY,
        effective_at: at(0),
        expires_at: None,
        feature_scope: None,
        payment_reference: None,
        cost_basis: None,
        reason: None,
        metadata: None,
        bonus_grant_id: None,
        expiry_warning_at: None,
        created_at: at(0),
        issued_seq: 1,
    }
}

/// What a build made of the events after a place and up to another, where none has failed.
pub fn advance(build: Build, partition: Partition, [from, to]: [i64; 2], rows: ConsumerRows) -> Advance {
    Advance {
        build,
        partition,
        epoch: 0,
        epoch_to: 0,
        from,
        to,
        last_event_id: None,
        waiting_for: None,
        rows,
        letters: Vec::new(),
        parked: Vec::new(),
        freed: Vec::new(),
        at: at(1),
    }
}
