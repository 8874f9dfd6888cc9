//! Allowed dependencies: which module may import which other modules and which crates.
//!
//! Data flows one way (http → engine → domain → store → outbox → publisher → stream), and nothing on
//! the right knows anything on its left.

use crate::hold;
use crate::source::{Source, rust_files};

/// What each top-level module may import from this crate besides itself. No other module imports the
/// composition root.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("clock", &["domain"]),
    ("contract", &["domain"]),
    ("config", &["domain"]),
    ("telemetry", &["config", "domain"]),
    ("store", &["domain", "clock", "contract", "config", "telemetry"]),
    ("engine", &["domain", "clock", "contract", "config", "store", "telemetry"]),
    ("scheduler", &["domain", "clock", "config", "store", "engine", "telemetry"]),
    ("background", &["telemetry"]),
    ("cleaning", &["clock", "store", "telemetry"]),
    ("consumers", &["domain", "clock", "config", "store", "telemetry"]),
    ("queues", &["domain", "clock", "store", "engine", "telemetry", "background"]),
    ("stream", &["domain", "config", "telemetry"]),
    ("publisher", &["domain", "clock", "config", "store", "stream", "telemetry"]),
    ("outbox", &["domain", "clock", "store", "stream", "publisher"]),
    ("demo", &["domain", "clock", "engine", "http"]),
    ("http", &["domain", "clock", "contract", "config", "store", "engine", "queues", "telemetry"]),
];
/// These may import everything.
const COMPOSITION: [&str; 4] = ["app", "cli", "main", "lib"];

/// Crates that only some places may use, and why.
const CONFINED: &[(&str, &[&str], &str)] = &[
    ("sqlx", &["src/store/postgres", "src/store/sqlite"], "a database's errors and types leave the store as ours"),
    ("redis", &["src/stream"], "another stream must be possible without touching the publisher"),
    ("deadpool_redis", &["src/stream"], "another stream must be possible without touching the publisher"),
    ("actix_web", &["src/http"], "the core must run without HTTP"),
    ("actix_cors", &["src/http"], "the core must run without HTTP"),
    ("tracing_actix_web", &["src/http"], "the core must run without HTTP"),
    ("utoipa_actix_web", &["src/http"], "the contract is described beside the routes"),
    ("utoipa_swagger_ui", &["src/http"], "the contract is described beside the routes"),
    ("utoipa", &["src/http", "src/domain", "src/contract"], "schemas come from the wire types and the routes (ADR 2)"),
    ("jsonwebtoken", &["src/http/auth"], "one place decides who a caller is"),
    ("metrics_exporter_prometheus", &["src/telemetry"], "all other modules only count"),
    ("opentelemetry_otlp", &["src/telemetry"], "all other modules only trace"),
];

/// The domain must not use IO, time, randomness or async.
const IMPURE: [&str; 16] = [
    "async fn",
    ".await",
    "tokio::",
    "futures::",
    "reqwest::",
    "tracing::",
    "metrics::",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant",
    "Utc::now",
    "println!",
];
/// A domain type may have a schema from utoipa, but nothing about routes.
const DOMAIN_UTOIPA: [&str; 3] = ["ToSchema", "PartialSchema", "openapi"];

fn product() -> Vec<Source> {
    rust_files().into_iter().filter(Source::is_product).collect()
}

fn module_of(path: &str) -> &str {
    path.trim_start_matches("src/").split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// The names right after every `root::`, including those in groups: `root::{a::b, c}` gives a and c.
fn names_after<'c>(code: &'c str, root: &str) -> Vec<(usize, &'c str)> {
    let needle = format!("{root}::");
    let mut names = Vec::new();
    for (at, _) in code.match_indices(&needle) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + needle.len()..];
        let line = code[..at].matches('\n').count() + 1;
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_names(group).into_iter().map(|name| (line, name))),
            None => names.push((line, first_name(rest))),
        }
    }
    names
}

fn group_names(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(&group[begin..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    names.into_iter().map(|name| first_name(name.trim())).filter(|name| !name.is_empty()).collect()
}

fn first_name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

#[test]
fn modules_know_only_what_lies_downstream() {
    let mut violations = Vec::new();
    for file in product() {
        let module = module_of(&file.path);
        if COMPOSITION.contains(&module) {
            continue;
        }
        let Some((_, may_know)) = MAY_KNOW.iter().find(|(name, _)| *name == module) else {
            violations
                .push(format!("{}: module {module} is not in the table MAY_KNOW of tests/tidy/layers.rs", file.path));
            continue;
        };
        let code = file.product_code();
        let known =
            names_after(&code, "crate").into_iter().filter(|(_, name)| *name != module && !may_know.contains(name));
        violations.extend(known.map(|(line, name)| format!("{}:{line}: {module} must not know {name}", file.path)));
    }
    hold(
        "a module imports only what MAY_KNOW lists for it",
        "data flows one way; a module that knows its caller cannot be understood, tested or replaced alone",
        &violations,
    );
}

#[test]
fn crates_stay_in_the_places_they_are_confined_to() {
    let mut violations = Vec::new();
    for file in product() {
        let code = file.product_code();
        for (name, places, why) in CONFINED {
            if places.iter().any(|place| file.path.starts_with(place)) {
                continue;
            }
            let found = names_after(&code, name).into_iter().map(|(line, _)| line);
            violations.extend(found.map(|line| format!("{}:{line}: {name} belongs to {places:?}: {why}", file.path)));
        }
    }
    hold(
        "a confined crate is used in its places only",
        "a crate that is used everywhere can never be replaced",
        &violations,
    );
}

#[test]
fn the_domain_is_pure() {
    let mut violations = Vec::new();
    for file in product().into_iter().filter(|file| module_of(&file.path) == "domain") {
        let code = file.product_code();
        for (n, line) in code.lines().enumerate() {
            let impure = IMPURE.iter().filter(|needle| line.contains(**needle));
            violations.extend(impure.map(|needle| format!("{}:{}: {needle}", file.path, n + 1)));
        }
        let routes = names_after(&code, "utoipa").into_iter().filter(|(_, name)| !DOMAIN_UTOIPA.contains(name));
        violations.extend(routes.map(|(line, name)| format!("{}:{line}: utoipa::{name}", file.path)));
    }
    hold(
        "no async, IO, clock or randomness in src/domain; of utoipa only the schema of a type",
        "deciding twice must give the same, in a test as in production",
        &violations,
    );
}

#[test]
fn imported_names_are_found_in_every_form() {
    let code = "use crate::store::{Store, views};\nuse crate::{domain::ids, http, engine::{Engine, lane}};\nxcrate::no; sqlx::query";
    let names = names_after(code, "crate");
    assert_eq!(names, [(1, "store"), (2, "domain"), (2, "http"), (2, "engine")]);
    assert_eq!(names_after(code, "sqlx"), [(3, "query")]);
    assert_eq!([module_of("src/http/routes/credits.rs"), module_of("src/clock.rs")], ["http", "clock"]);
}
