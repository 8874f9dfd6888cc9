//! Workspaces on a plan that allows everything, and the commands that spend from them.

use std::sync::Arc;

use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::contract::Contract;
use visionscope_billing::domain::batch::{Batch, Outcome};
use visionscope_billing::domain::change_set::ChangeSet;
use visionscope_billing::domain::commands::{Charge, Command, DeductCredits, Envelope, ProvisionWorkspace};
use visionscope_billing::domain::ids::{CommandId, WorkspaceId};
use visionscope_billing::domain::plan::PlanVersion;
use visionscope_billing::domain::snapshot::{CataloguePlan, Snapshot};
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, Label, UserId};
use visionscope_billing::domain::workspace::FeatureOverrides;
use visionscope_billing::http::render::JsonRender;

/// A plan without limits, so that no deduction is ever refused.
const PLANS: &str = r#"
[[plan]]
code = "bench"
version = 1
name = "Bench"
allowance = "1000000000"

[[plan.feature]]
code = "text.generate"

[[plan.feature]]
code = "video.render"
unit_price = "0.5"
"#;

pub struct World {
    pub contract: Contract,
    pub plan: PlanVersion,
    /// Where the last batch left everything.
    pub snapshot: Snapshot,
    pub workspaces: Vec<WorkspaceId>,
    next: usize,
}

impl World {
    /// So many workspaces, and the rows that provisioning them writes.
    pub fn of(workspaces: u128) -> (Self, ChangeSet) {
        let plan = visionscope_billing::config::plans::parse(PLANS, "bench").unwrap().remove(0);
        let mut snapshot = Snapshot::default();
        let offered = CataloguePlan { newest: Arc::new(plan.clone()), is_offered: true };
        snapshot.plans.insert(plan.plan_code.clone(), offered);
        // Spread over all partitions, and like no other run's.
        let workspaces: Vec<_> = (0..workspaces).map(|_| WorkspaceId(SystemClock.new_id())).collect();
        let mut world = Self { contract: Contract::new(), plan, snapshot, workspaces, next: 0 };
        let provisions: Vec<_> = world.workspaces.iter().map(|id| provision(*id, &world.plan)).collect();
        world.snapshot.heads.extend(visionscope_billing::domain::ids::Partition::all().map(|partition| {
            (partition, visionscope_billing::domain::partition_head::PartitionHead::empty(partition))
        }));
        let changes = world.run(&provisions);
        (world, changes)
    }

    /// Decides the commands one after the other, and keeps what they leave.
    pub fn run(&mut self, envelopes: &[Envelope]) -> ChangeSet {
        let mut batch = Batch::new(std::mem::take(&mut self.snapshot), &JsonRender, &self.contract);
        for envelope in envelopes {
            assert!(matches!(batch.run(envelope), Ok(Outcome::Accepted(_))));
        }
        let (changes, snapshot) = batch.finish();
        self.snapshot = snapshot;
        changes
    }

    /// So many deductions, from one workspace after the other.
    pub fn deductions(&mut self, count: usize) -> Vec<Envelope> {
        (0..count)
            .map(|_| {
                self.next += 1;
                let command = Command::DeductCredits(DeductCredits {
                    feature_code: FeatureCode::new("text.generate").unwrap(),
                    charge: Charge::Credits(serde_json::from_value("0.000001".into()).unwrap()),
                    user_id: Some(UserId::new("user-42").unwrap()),
                    occurred_at: None,
                    explain: false,
                });
                envelope(self.workspaces[self.next % self.workspaces.len()], None, command)
            })
            .collect()
    }
}

fn provision(workspace_id: WorkspaceId, plan: &PlanVersion) -> Envelope {
    let command = Command::ProvisionWorkspace(ProvisionWorkspace {
        name: Label::new("Bench").unwrap(),
        plan_code: plan.plan_code.clone(),
        time_zone: chrono_tz::UTC,
        anchor: None,
        monthly_limit: None,
        overdraft_limit: None,
        feature_overrides: FeatureOverrides::new(),
    });
    envelope(workspace_id, Some(ProvisionWorkspace::idempotency_key()), command)
}

fn envelope(workspace_id: WorkspaceId, key: Option<IdempotencyKey>, command: Command) -> Envelope {
    let message_id: CommandId = SystemClock.new_command_id();
    Envelope {
        message_id,
        idempotency_key: key.unwrap_or_else(|| IdempotencyKey::new(&message_id.to_string()).unwrap()),
        workspace_id,
        actor: "bench".into(),
        correlation_id: message_id.to_string(),
        causation_id: None,
        traceparent: None,
        received_at: SystemClock.now(),
        metadata: None,
        fingerprint: [0; 32],
        command,
    }
}
