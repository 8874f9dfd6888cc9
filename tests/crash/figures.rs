//! What the figures of a server must be, once all events are in them: what its lists of usage and events say, and what
//! its clients have paid.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use crate::load::{Client, PAUSE_BEFORE_RETRY, micro, text};

/// How long the consumers may take until they have taken all events.
const FIGURES_TIMEOUT: Duration = Duration::from_mins(1);

/// Credits in micro-credits, and how many deductions, by day and feature.
type Usage = BTreeMap<(String, String), (i64, i64)>;
/// What was paid and what was given back in a currency, in minor units.
pub type Money = BTreeMap<String, [i64; 2]>;

/// All items of a list, page by page.
pub async fn list(client: &Client, path: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{path}{cursor}")).await;
        items.extend_from_slice(page["items"].as_array().unwrap());
        if page["has_more"] == false {
            return items;
        }
        cursor = format!("&cursor={}", text(&page["next"]));
    }
}

/// Waits until all events are in the figures, and returns all items.
async fn figures(client: &Client, path: &str) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let as_of = &client.get(path).await["as_of"];
        assert_eq!(as_of["incomplete"], false, "no workspace waits behind a dead letter");
        if as_of["lag_seconds"] == 0 {
            return list(client, path).await;
        }
        assert!(started.elapsed() < FIGURES_TIMEOUT, "the consumers do not catch up: {as_of}");
        tokio::time::sleep(PAUSE_BEFORE_RETRY).await;
    }
}

/// Checks that usage by day is what the usage logs say.
pub async fn verify_usage(client: &Client, workspace: Uuid) {
    let (mut expected, mut refunded) = (Usage::new(), 0);
    for log in list(client, &format!("/v1/workspaces/{workspace}/usage?limit=200")).await {
        let day = text(&log["recorded_at"])[.."2026-01-31".len()].to_owned();
        let (credits, deductions) = expected.entry((day, text(&log["feature_code"]))).or_default();
        (*credits, *deductions) = (*credits + micro(&log["credits"]), *deductions + 1);
        refunded += micro(&log["refunded_credits"]);
    }
    let items = figures(client, &format!("/v1/workspaces/{workspace}/analytics/usage?limit=200")).await;
    let of_item = |item: &Value| {
        let key = (text(&item["day"]), text(&item["feature_code"]));
        (key, (micro(&item["credits"]), item["deductions"].as_i64().unwrap()))
    };
    let found: Usage = items.iter().map(of_item).collect();
    assert_eq!(found, expected, "each usage log is counted once");
    assert_eq!(items.iter().map(|item| micro(&item["refunded_credits"])).sum::<i64>(), refunded, "and each refund");
}

/// Checks that what was paid less what was given back is recognised or deferred, in each currency.
pub async fn verify_revenue(client: &Client, expected: &Money) {
    let (mut found, mut recognised, mut deferred) = (Money::new(), BTreeMap::new(), BTreeMap::new());
    // The oldest day comes first.
    for item in figures(client, "/v1/analytics/kpis?step=day&group=currency").await {
        let (currency, minor) = (text(&item["currency"]), |name: &str| item["revenue"][name].as_i64().unwrap());
        let [paid, returned] = found.entry(currency.clone()).or_default();
        *paid += minor("paid_minor");
        *returned += minor("returned_minor");
        *recognised.entry(currency.clone()).or_insert(0) += minor("recognised_minor");
        deferred.insert(currency, minor("deferred_minor"));
    }
    assert_eq!(&found, expected, "each purchase and each reversal is counted once");
    println!("recognised {recognised:?}, deferred {deferred:?}");
    for (currency, [paid, returned]) in found {
        assert_eq!(recognised[&currency] + deferred[&currency], paid - returned, "{currency}");
        assert!(recognised[&currency] > 0 && deferred[&currency] >= 0, "{currency}");
    }
}

/// Checks that there is one notification for each event that must make one.
pub async fn verify_notifications(client: &Client, workspace: Uuid) {
    let (mut expected, mut exhausted) = (BTreeSet::new(), false);
    let events = list(client, &format!("/v1/events?workspace_id={workspace}&limit=200")).await;
    for event in &events {
        match event["type"].as_str().unwrap() {
            "CreditsExpiring" => _ = expected.insert(("credits_expiring".to_owned(), text(&event["workspaceseq"]))),
            "CreditLimitExceeded" if !exhausted => {
                exhausted = true;
                expected.insert(("credits_exhausted".to_owned(), text(&event["workspaceseq"])));
            }
            "CreditConsumed" if event["data"].get("released_credits").is_none_or(|released| released == "0") => {}
            "CreditConsumed" | "CreditsPurchased" | "CreditsRefunded" | "DebtRepaid" | "HoldReleased" => {
                exhausted = false;
            }
            "WorkspaceProvisioned" | "CreditsHeld" | "CreditsExpired" | "PurchaseReversed" | "CreditLimitExceeded" => {}
            other => panic!("the load raises no {other}"),
        }
    }
    let last = text(&events.last().unwrap()["workspaceseq"]);
    let path = format!("/v1/workspaces/{workspace}/notifications?limit=200");
    let mut found: Vec<_> =
        figures(client, &path).await.iter().map(|item| (text(&item["kind"]), text(&item["workspaceseq"]))).collect();
    // The scheduler may have warned of credits that will expire since the events were read.
    found.retain(|(_, seq)| *seq <= last);
    assert_eq!(found.len(), expected.len(), "no notification is doubled");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "each event is told once");
    assert!(expected.iter().any(|(kind, _)| kind == "credits_exhausted"));
}
