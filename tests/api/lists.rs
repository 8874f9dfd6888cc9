//! Lists over HTTP, on both databases: both orders, filters, and cursors that know where they are from.

use serde_json::{Value, json};
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{FOREIGN, OWN, TestServer, User, path, start};

const PAGES: usize = 50;

/// A server with two workspaces, and as many deductions of each, by turns for two features.
async fn spent(database: Database, deductions: usize) -> TestServer {
    let server = start(database).await;
    for id in [OWN, FOREIGN] {
        let user = server.user(id);
        let features = json!([{"feature_code": "upscale", "enabled": true}]);
        let definition = json!({"name": "Acme", "plan_code": "pro", "features": features});
        assert_eq!(user.put(&path(id, ""), &definition).await.status, 201);
        for n in 0..deductions {
            let feature = if n % 2 == 0 { "render" } else { "upscale" };
            let body = json!({"feature_code": feature, "credits": 1});
            assert_eq!(user.post(&path(id, "/credits/deduct"), &body).await.status, 200);
        }
    }
    server
}

async fn page(user: &User<'_>, list: &str, parameters: &str) -> Value {
    let answer = user.get(&format!("{list}?{parameters}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn items(page: &Value) -> &Vec<Value> {
    page["items"].as_array().unwrap()
}

/// The field of every row, from the first page to the last.
async fn all(user: &User<'_>, list: &str, parameters: &str, field: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let page = page(user, list, &format!("{parameters}{cursor}")).await;
        found.extend(items(&page).iter().map(|row| row[field].clone()));
        if page["has_more"] == json!(false) {
            return found;
        }
        cursor = format!("&cursor={}", page["next"].as_str().unwrap());
    }
    panic!("{list}?{parameters} does not end");
}

#[tokio::test]
async fn history_is_listed_in_both_orders_and_with_filters() {
    for database in Database::ALL {
        let server = spent(database, 5).await;
        let user = server.user(OWN);
        let (usage, ledger) = (path(OWN, "/usage"), path(OWN, "/ledger"));
        for (list, parameters, expected) in [
            (&usage, "limit=2", json!([5, 4, 3, 2, 1])),
            (&usage, "limit=2&order=asc", json!([1, 2, 3, 4, 5])),
            (&usage, "limit=1&order=asc&feature_code=render", json!([1, 3, 5])),
            (&usage, "limit=3&feature_code=upscale", json!([4, 2])),
            (&usage, "feature_code=unused", json!([])),
            (&usage, "to=2026-01-01T00:00:00Z", json!([])),
            (&usage, "limit=4&from=2026-01-01T00:00:00Z", json!([5, 4, 3, 2, 1])),
            (&ledger, "limit=4&order=asc", json!([1, 2, 3, 4, 5, 6])),
            (&ledger, "limit=6", json!([6, 5, 4, 3, 2, 1])),
        ] {
            assert_eq!(json!(all(&user, list, parameters, "seq").await), expected, "{list}?{parameters}");
        }
        let entries = page(&user, &ledger, "order=asc&limit=1").await;
        let grant = entries["items"][0]["grant_id"].as_str().unwrap();
        assert_eq!(all(&user, &ledger, &format!("limit=4&grant_id={grant}"), "seq").await.len(), 6);
    }
}

#[tokio::test]
async fn a_cursor_is_refused_by_every_other_list() {
    for database in Database::ALL {
        let server = spent(database, 3).await;
        let all = server.user_of(Tenancy::All, Scope::ALL);
        let next = async |list: &str, parameters: &str| {
            page(&all, list, parameters).await["next"].as_str().unwrap().to_owned()
        };
        let usage = path(OWN, "/usage");
        let of_usage = next(&usage, "limit=1").await;
        let of_events = next("/v1/events", &format!("limit=1&workspace_id={OWN}")).await;
        let of_all = next("/v1/events", "limit=1").await;
        for (cursor, other) in [
            (&of_usage, format!("{usage}?limit=1&order=asc")),
            (&of_usage, format!("{usage}?limit=1&feature_code=render")),
            (&of_usage, format!("{usage}?limit=1&from=2026-01-01T00:00:00Z")),
            (&of_usage, format!("{}?limit=1", path(FOREIGN, "/usage"))),
            (&of_usage, format!("{}?limit=1", path(OWN, "/ledger"))),
            (&of_usage, "/v1/events?limit=1".to_owned()),
            (&of_events, format!("/v1/events?workspace_id={FOREIGN}")),
            (&of_events, format!("/v1/events?workspace_id={OWN}&type=CreditConsumed")),
            (&of_events, "/v1/events?limit=1".to_owned()),
            (&of_all, format!("/v1/events?workspace_id={OWN}")),
            (&of_all, "/v1/events?type=CreditConsumed".to_owned()),
        ] {
            let answer = all.get(&format!("{other}&cursor={cursor}")).await;
            answer.is_problem(422, "invalid-cursor");
            assert_eq!(answer.json()["errors"][0]["parameter"], "cursor", "{other}");
        }
        // Another limit is the same list.
        assert_eq!(items(&page(&all, &usage, &format!("limit=3&cursor={of_usage}")).await).len(), 2);
    }
}

/// As after a restore of an older backup: the callers have seen more than the database holds.
#[tokio::test]
async fn a_cursor_whose_row_the_database_no_longer_holds_is_gone() {
    for database in Database::ALL {
        let (server, restored) = (spent(database, 5).await, spent(database, 1).await);
        let (before, after) = (server.user_of(Tenancy::All, Scope::ALL), restored.user_of(Tenancy::All, Scope::ALL));
        for (list, parameters) in [
            (path(OWN, "/usage"), "limit=1".to_owned()),
            (path(OWN, "/ledger"), "limit=4&order=asc".to_owned()),
            ("/v1/events".to_owned(), format!("limit=5&workspace_id={OWN}")),
            ("/v1/events".to_owned(), "limit=200".to_owned()),
            ("/v1/events".to_owned(), "cursor=latest".to_owned()),
        ] {
            let next = page(&before, &list, &parameters).await["next"].as_str().unwrap().to_owned();
            let parameters = parameters.replace("cursor=latest", "limit=9");
            let answer = after.get(&format!("{list}?{parameters}&cursor={next}")).await;
            answer.is_problem(410, "cursor-gone");
        }
    }
}

#[tokio::test]
async fn events_are_listed_oldest_first_only() {
    let server = crate::harness::provisioned(Database::Sqlite).await;
    let user = server.user(OWN);
    let default = user.get("/v1/events").await.text;
    assert_eq!(user.get("/v1/events?order=asc").await.text, default);
    user.get("/v1/events?order=desc").await.is_problem(422, "invalid-field");
}

#[tokio::test]
async fn events_are_filtered_by_type_and_can_start_at_the_end() {
    for database in Database::ALL {
        let server = spent(database, 3).await;
        let user = server.user_of(Tenancy::All, Scope::ALL);
        let own = format!("workspace_id={OWN}");
        for (parameters, count) in [
            (own.clone(), 4),
            (format!("{own}&type=CreditConsumed&limit=2"), 3),
            (format!("{own}&type=WorkspaceProvisioned&type=CreditConsumed"), 4),
            (format!("{own}&type=CreditReset"), 0),
            ("type=CreditConsumed&limit=1".to_owned(), 6),
            ("type=WorkspaceProvisioned".to_owned(), 2),
            ("limit=3".to_owned(), 8),
        ] {
            assert_eq!(all(&user, "/v1/events", &parameters, "id").await.len(), count, "{parameters}");
        }
        let filtered = format!("{own}&type=WorkspaceProvisioned&limit=1");
        for parameters in [filtered.as_str(), "type=WorkspaceProvisioned&limit=2"] {
            let page = page(&user, "/v1/events", parameters).await;
            assert_eq!(page["has_more"], json!(false), "other events follow, but none of this type: {parameters}");
        }
        for filter in [own.as_str(), "limit=50"] {
            let end = page(&user, "/v1/events", &format!("{filter}&cursor=latest")).await;
            assert_eq!((items(&end).len(), &end["has_more"]), (0, &json!(false)));
            let cursor = format!("{filter}&cursor={}", end["next"].as_str().unwrap());
            let later = page(&user, "/v1/events", &cursor).await;
            assert_eq!((items(&later).len(), &later["next"]), (0, &end["next"]), "nothing happened");
            let body = json!({"feature_code": "render", "credits": 1});
            server.user(OWN).post(&path(OWN, "/credits/deduct"), &body).await;
            let later = page(&user, "/v1/events", &cursor).await;
            assert_eq!((items(&later).len(), &later["items"][0]["type"]), (1, &json!("CreditConsumed")));
        }
    }
}

#[tokio::test]
async fn a_short_page_of_all_events_says_that_there_are_more() {
    for database in Database::ALL {
        let server = spent(database, 29).await;
        let user = server.user_of(Tenancy::All, Scope::ALL);
        let first = page(&user, "/v1/events", "").await;
        assert!(items(&first).len() < 60 && first["has_more"] == json!(true), "{first}");
        assert_eq!(all(&user, "/v1/events", "limit=50", "id").await.len(), 60);
    }
}

/// As a consumer of a stream reads what it has missed.
#[tokio::test]
async fn events_of_a_partition_are_listed_from_any_sequence_on() {
    for database in Database::ALL {
        let server = spent(database, 5).await;
        let user = server.user_of(Tenancy::All, Scope::ALL);
        let sequences_of = async |parameters: String| {
            let found = all(&user, "/v1/events", &parameters, "sequence").await;
            found.iter().map(|sequence| sequence.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let first = page(&user, "/v1/events", &format!("workspace_id={OWN}")).await;
        let partition = items(&first)[0]["partition"].as_u64().unwrap();
        let empty = (0..16).find(|other| *other != partition && *other != 0).unwrap();
        let of_one = format!("partition={partition}");
        let sequences = sequences_of(format!("{of_one}&limit=2")).await;
        assert!([6, 12].contains(&sequences.len()), "{sequences:?}");
        for (number, sequence) in (1..).zip(&sequences) {
            assert_eq!(sequence.parse::<usize>().unwrap(), number, "in order and without a gap");
            for after in [sequence.clone(), number.to_string()] {
                let missed = sequences_of(format!("{of_one}&limit=4&after_sequence={after}")).await;
                assert_eq!(missed, sequences[number..], "after {after}");
            }
        }
        assert_eq!(sequences_of(format!("{of_one}&after_sequence=0")).await, sequences);
        assert_eq!(sequences_of(format!("{of_one}&type=CreditConsumed")).await.len() % 5, 0);
        let beyond = user.get(&format!("/v1/events?{of_one}&after_sequence={}", sequences.len() + 1)).await;
        beyond.is_problem(410, "cursor-gone");
        for start in [format!("partition={empty}"), format!("partition={empty}&cursor=latest")] {
            let page = page(&user, "/v1/events", &start).await;
            let again = format!("partition={empty}&cursor={}", page["next"].as_str().unwrap());
            assert_eq!(items(&page).len(), 0, "{start}");
            assert_eq!(self::page(&user, "/v1/events", &again).await["next"], page["next"]);
        }
        let end = page(&user, "/v1/events", &format!("{of_one}&cursor=latest")).await;
        server.user(OWN).post(&path(OWN, "/credits/deduct"), &json!({"feature_code": "render", "credits": 1})).await;
        let later = page(&user, "/v1/events", &format!("{of_one}&cursor={}", end["next"].as_str().unwrap())).await;
        assert_eq!((items(&later).len(), &later["has_more"]), (1, &json!(false)));
    }
}
