//! Why a deduction or a hold is refused, and what would help. Each remedy is taken at its word.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::domain::batch::{Batch, Outcome};
use crate::domain::commands::{
    CancelSubscription, Charge, Command, DeductCredits, GrantCredits, PlaceHold, ProcessSubscriptionChange,
    ReversePurchase,
};
use crate::domain::credits::Credits;
use crate::domain::explanation::Remedy;
use crate::domain::grant::{GrantedSource, Priority};
use crate::domain::hold::HoldDuration;
use crate::domain::plan::tests::pro;
use crate::domain::plan::{FeatureTerms, PlanVersion, RateLimit, UsageLimit};
use crate::domain::reversal::{ReversalReason, ReversedAmount};
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::tests::{ExplainingRender, PlainRender, World, json as parsed, purchase};
use crate::domain::text::{FeatureCode, Label, PlanCode};

fn code(feature: &str) -> FeatureCode {
    FeatureCode::new(feature).unwrap()
}

fn named(code: &str, plan: PlanVersion) -> PlanVersion {
    PlanVersion { plan_code: PlanCode::new(code).unwrap(), ..plan }
}

/// 100 credits a month, of which 60 may be used and 40 for `upscale`, and 50 a minute.
fn small() -> PlanVersion {
    let mut plan = named("small", pro());
    plan.allowance = Credits::whole(100);
    plan.rollover_cap = Credits::ZERO;
    plan.monthly_limit = Some(UsageLimit::hard(Credits::whole(60)));
    plan.rate_limit = Some(RateLimit { credits: Credits::whole(50), window_s: 60 });
    let upscale = FeatureTerms { limit: Some(UsageLimit::hard(Credits::whole(40))), ..plan.features["upscale"] };
    plan.features.insert(code("upscale"), upscale);
    plan.features.remove("render");
    plan
}

/// Everything that `small` has not.
fn large() -> PlanVersion {
    let mut plan = named("large", pro());
    plan.overdraft_limit = Credits::whole(20);
    plan.features.get_mut("upscale").unwrap().limit = None;
    plan
}

fn yearly() -> PlanVersion {
    PlanVersion { period_months: 12, ..named("yearly", large()) }
}

fn world_on(plan: PlanVersion, others: &[PlanVersion]) -> World {
    let offered: Vec<_> = std::iter::once(&plan).chain(others).cloned().map(Arc::new).collect();
    let mut world = World::on(plan);
    for plan in others {
        world.add_plan(plan.clone());
    }
    world.snapshot.offered_plans = offered.into();
    world
}

fn deduction(feature: &str, credits: &str) -> DeductCredits {
    DeductCredits {
        feature_code: code(feature),
        charge: Charge::Credits(parsed(credits)),
        user_id: None,
        occurred_at: None,
        explain: true,
    }
}

impl World {
    /// The decision that the answer tells.
    fn decision(&mut self, command: Command) -> Value {
        let envelope = self.envelope(command);
        let mut batch = Batch::new(self.snapshot.clone(), &ExplainingRender, &PlainRender);
        match batch.run(&envelope).unwrap() {
            Outcome::Accepted(answer) => serde_json::from_str::<Value>(&answer.body).unwrap()["decision"].clone(),
            Outcome::Refused { answer, .. } => serde_json::from_str(&answer.body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn remedies(&mut self, command: Command) -> Value {
        self.decision(command)["remedies"].clone()
    }
}

#[test]
fn an_accepted_deduction_says_why_if_it_is_asked_to() {
    let mut world = world_on(small(), &[]);
    let decision = world.decision(Command::DeductCredits(DeductCredits {
        charge: Charge::Quantity("5".parse().unwrap()),
        ..deduction("upscale", "1")
    }));
    let allowance = world.state().grants[0].grant_id;
    let period = json!(world.state().subscription.period.end);
    assert_eq!(
        decision,
        json!({
            "requested_credits": "10", "quantity": "5", "unit_price": "2", "available_credits": "100",
            "limits": [
                {"limit_scope": "feature", "mode": "hard", "limit_credits": "40", "used_credits": "0", "held_credits": "0",
                    "headroom_credits": "40", "resets_at": period},
                {"limit_scope": "workspace", "mode": "hard", "limit_credits": "60", "used_credits": "0", "held_credits": "0",
                    "headroom_credits": "60", "resets_at": period},
                {"limit_scope": "window", "mode": "hard", "limit_credits": "50", "used_credits": "0", "held_credits": "0",
                    "headroom_credits": "50", "resets_at": "2026-01-31T00:01:00.000000Z", "window_s": 60}
            ],
            "grants": [{"grant_id": allowance, "source": "allowance", "credits": "10"}],
            "thresholds_crossed": ["100"], "remedies": []
        })
    );
    let silent = world.decision(Command::DeductCredits(DeductCredits { explain: false, ..deduction("upscale", "1") }));
    assert_eq!(silent, Value::Null);
}

#[test]
fn a_refusal_names_what_would_help() {
    let change = |plan: &str, policy: &str| json!({"kind": "change_plan", "plan_code": plan, "plan_version": 1, "credit_policy": policy});
    let wait = |at: &str| json!({"kind": "wait_until", "at": at});
    let period_end = "2026-02-28T00:00:00.000000Z";
    // The deduction before, the one that is refused, and what helps.
    for (plan, before, feature, credits, expected) in [
        (small(), None, "render", "1", json!([change("large", "full"), change("yearly", "restart")])),
        (
            small(),
            Some("30"),
            "upscale",
            "11",
            json!([
                wait(period_end),
                {"kind": "raise_limit", "limit_scope": "feature", "credits": "41"},
                change("large", "full"), change("yearly", "restart")
            ]),
        ),
        (
            small(),
            Some("30"),
            "upscale",
            "31",
            json!([wait(period_end), change("large", "full"), change("yearly", "restart")]),
        ),
        (
            large(),
            Some("990"),
            "render",
            "35",
            json!([wait(period_end), {"kind": "buy_credits", "credits": "5"}, change("yearly", "restart")]),
        ),
        (large(), None, "render", "1220.5", json!([{"kind": "buy_credits", "credits": "200.5"}])),
    ] {
        let others = [small(), large(), yearly()].into_iter().filter(|other| other.plan_code != plan.plan_code);
        let others: Vec<_> = others.collect();
        let mut world = world_on(plan, &others);
        if let Some(before) = before {
            world.run(Command::DeductCredits(deduction("upscale", before))).accepted();
        }
        world.at("2026-01-31T00:05:00Z");
        let found = world.remedies(Command::DeductCredits(deduction(feature, credits)));
        assert_eq!(found, expected, "{feature} {credits}");
    }
}

#[test]
fn waiting_for_the_window_a_hold_or_a_grant_is_named_first() {
    let mut world = world_on(small(), &[]);
    world.run(Command::DeductCredits(deduction("upscale", "20"))).accepted();
    let found = world.remedies(Command::DeductCredits(deduction("upscale", "31")));
    let end = json!({"kind": "wait_until", "at": "2026-02-28T00:00:00.000000Z"});
    assert_eq!(found, json!([end]), "a higher limit alone would not help: the rate would be exceeded");
    world.run(Command::DeductCredits(deduction("upscale", "5"))).accepted();
    let mut again = world_on(PlanVersion { monthly_limit: None, ..small() }, &[]);
    again.run(Command::DeductCredits(deduction("upscale", "20"))).accepted();
    let other = FeatureTerms { limit: None, ..small().features["upscale"] };
    again.snapshot.workspaces.values_mut().for_each(|state| {
        let features = [(code("upscale"), other)].into();
        state.plan = Arc::new(PlanVersion { features, ..(*state.plan).clone() });
    });
    let found = again.remedies(Command::DeductCredits(deduction("upscale", "31")));
    assert_eq!(found, json!([{"kind": "wait_until", "at": "2026-01-31T00:01:00.000000Z"}]), "the next window");

    let mut world = world_on(PlanVersion { rate_limit: None, ..large() }, &[]);
    let hold = PlaceHold {
        feature_code: code("render"),
        charge: Charge::Credits(parsed("900")),
        min_credits: None,
        duration: HoldDuration::DEFAULT,
        user_id: None,
        explain: false,
        job: None,
    };
    world.run(Command::PlaceHold(hold.clone())).accepted();
    let found = world.remedies(Command::PlaceHold(hold));
    assert_eq!(found[0], json!({"kind": "wait_until", "at": "2026-01-31T01:00:00.000000Z"}));
}

/// What happened to a workspace before it is refused.
#[derive(Clone, Debug)]
enum Before {
    Deduct(bool, u32),
    Hold(bool, u32, i64),
    Buy(u32),
    GrantLater(u32, i64),
    Reverse,
    Change(usize, CreditPolicy),
    Cancel,
    Wait(i64),
}

fn before() -> impl Strategy<Value = Before> {
    let policy = prop_oneof![Just(CreditPolicy::None), Just(CreditPolicy::Full), Just(CreditPolicy::Restart)];
    prop_oneof![
        4 => (any::<bool>(), 1..120_u32).prop_map(|(render, credits)| Before::Deduct(render, credits)),
        3 => (any::<bool>(), 1..120_u32, 60..100_000_i64).prop_map(|(render, credits, s)| Before::Hold(render, credits, s)),
        1 => (1..100_u32).prop_map(Before::Buy),
        1 => (1..100_u32, 1..40 * 86_400_i64).prop_map(|(credits, s)| Before::GrantLater(credits, s)),
        1 => Just(Before::Reverse),
        1 => (0..3_usize, policy).prop_map(|(plan, policy)| Before::Change(plan, policy)),
        1 => Just(Before::Cancel),
        2 => prop_oneof![1..90_i64, 1..40 * 86_400_i64].prop_map(Before::Wait),
    ]
}

fn feature(render: bool) -> &'static str {
    if render { "render" } else { "upscale" }
}

fn request(hold: bool, render: bool, credits: u32) -> Command {
    let charge = Charge::Credits(parsed(&credits.to_string()));
    if hold {
        let (feature_code, duration) = (code(feature(render)), HoldDuration::DEFAULT);
        Command::PlaceHold(PlaceHold {
            feature_code,
            charge,
            min_credits: None,
            duration,
            user_id: None,
            explain: false,
            job: None,
        })
    } else {
        Command::DeductCredits(DeductCredits { charge, explain: false, ..deduction(feature(render), "1") })
    }
}

impl World {
    fn wait(&mut self, seconds: i64) {
        self.now = self.now.plus(chrono::TimeDelta::seconds(seconds));
    }

    fn prepare(&mut self, n: usize, before: &Before) {
        self.wait(1);
        let command = match before {
            Before::Deduct(render, credits) => request(false, *render, *credits),
            Before::Hold(render, credits, seconds) => {
                let Command::PlaceHold(hold) = request(true, *render, *credits) else { unreachable!() };
                Command::PlaceHold(PlaceHold { duration: HoldDuration::new(*seconds).unwrap(), ..hold })
            }
            Before::Buy(credits) => purchase(&credits.to_string(), &format!("pay-{n}")),
            Before::GrantLater(credits, seconds) => Command::GrantCredits(GrantCredits {
                credits: parsed(&credits.to_string()),
                source: GrantedSource::Promotion,
                priority: Priority::default(),
                effective_at: Some(self.now.plus(chrono::TimeDelta::seconds(*seconds))),
                expires_at: None,
                feature_scope: None,
                reason: Label::new("later").unwrap(),
            }),
            Before::Change(plan, credit_policy) => Command::ProcessSubscriptionChange(ProcessSubscriptionChange {
                plan_code: [small(), large(), yearly()][*plan].plan_code.clone(),
                effective: Effective::Immediate,
                credit_policy: *credit_policy,
                expected_version: None,
            }),
            Before::Reverse => {
                let Some((_, grant_id)) = self.snapshot.purchases.keys().max() else { return };
                let (amount, reason) = (ReversedAmount::All, ReversalReason::Chargeback);
                Command::ReversePurchase(ReversePurchase { grant_id: *grant_id, amount, reason })
            }
            Before::Cancel => Command::CancelSubscription(CancelSubscription {
                effective: Effective::Immediate,
                reason: None,
                expected_version: None,
            }),
            Before::Wait(seconds) => return self.wait(*seconds),
        };
        self.run(command);
    }

    /// The same world after doing what the remedy says.
    fn after(&self, remedy: &Remedy, command: &Command) -> Self {
        let mut world = self.clone();
        match remedy {
            Remedy::WaitUntil { at } => world.now = *at,
            Remedy::BuyCredits { credits } => {
                world.run(purchase(&credits.to_string(), "remedy")).accepted();
            }
            Remedy::ChangePlan { plan_code, credit_policy, .. } => {
                let change = ProcessSubscriptionChange {
                    plan_code: plan_code.clone(),
                    effective: Effective::Immediate,
                    credit_policy: *credit_policy,
                    expected_version: None,
                };
                world.run(Command::ProcessSubscriptionChange(change)).accepted();
            }
            Remedy::RaiseLimit { limit_scope, credits } => {
                let id = world.workspace_id;
                let state = world.snapshot.workspaces.get_mut(&id).unwrap();
                if *limit_scope == crate::domain::event::LimitScope::Workspace {
                    state.workspace.monthly_limit_override = Some(*credits);
                } else {
                    let code = command.feature_code().unwrap().clone();
                    state.feature_overrides.entry(code).or_default().limit = Some(*credits);
                }
            }
        }
        world
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_remedy_is_what_it_says(
        plan in 0..3_usize,
        history in proptest::collection::vec(before(), 0..12),
        hold in any::<bool>(),
        render in any::<bool>(),
        credits in 1..1500_u32,
    ) {
        let plans = [small(), large(), yearly()];
        let others: Vec<_> = plans.iter().filter(|other| other.plan_code != plans[plan].plan_code).cloned().collect();
        let mut world = world_on(plans[plan].clone(), &others);
        history.iter().enumerate().for_each(|(n, before)| world.prepare(n, before));
        let command = request(hold, render, credits);
        let envelope = world.envelope(command.clone());
        let mut batch = Batch::new(world.snapshot.clone(), &ExplainingRender, &PlainRender);
        if let Outcome::Refused { rejection, answer } = batch.run(&envelope).unwrap()
            && rejection.is_explained()
        {
            let remedies: Vec<Remedy> = serde_json::from_value(
                serde_json::from_str::<Value>(&answer.body).unwrap()["remedies"].clone(),
            ).unwrap();
            for remedy in &remedies {
                let mut after = world.after(remedy, &command);
                let outcome = after.run(command.clone()).outcome;
                prop_assert!(matches!(outcome, Outcome::Accepted(_)), "{rejection}: {remedy:?} gave {outcome:?}");
                // And no less would do.
                if let Remedy::BuyCredits { credits } = remedy
                    && let Ok(less) = credits.minus(Credits::from_micro(1).unwrap())
                    && less.is_positive()
                {
                    let mut after = world.after(&Remedy::BuyCredits { credits: less }, &command);
                    let outcome = after.run(command.clone()).outcome;
                    prop_assert!(!matches!(outcome, Outcome::Accepted(_)), "{less} would have been enough");
                }
            }
        }
    }
}
