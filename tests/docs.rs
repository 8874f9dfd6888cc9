//! The tables in `docs/` are what the code says. To write them anew: `UPDATE_DOCS=1 cargo test --test docs`.

use std::fs;

use visionscope_billing::config::{ALIASES, keys};
use visionscope_billing::domain::event::EventType;
use visionscope_billing::http::auth::Scope;
use visionscope_billing::telemetry::metric;

fn page(name: &str) -> (String, String) {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).expect("the page is there");
    (path, text)
}

/// Compares what stands between the marks `<!-- mark: begin -->` and `<!-- mark: end -->`.
fn assert_holds_table(name: &str, mark: &str, expected: &str) {
    let (path, text) = page(name);
    let (begin, end) = (format!("<!-- {mark}: begin -->\n"), format!("<!-- {mark}: end -->"));
    let (head, rest) = text.split_once(&begin).expect("the mark where the table begins");
    let (table, tail) = rest.split_once(&end).expect("the mark where the table ends");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{begin}{expected}{end}{tail}")).expect("the page can be written");
        return;
    }
    assert_eq!(table, expected, "docs/{name} is not what the code says: UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn the_page_on_configuration_holds_every_key() {
    assert_holds_table("CONFIGURATION.md", "keys", &keys::to_markdown());
}

#[test]
fn the_page_on_configuration_holds_every_alias() {
    let (_, text) = page("CONFIGURATION.md");
    for (alias, key) in ALIASES {
        assert!(text.contains(&format!("| `{alias}` | `{key}` |")), "{alias}");
    }
}

#[test]
fn the_page_on_configuration_holds_every_scope() {
    let (_, text) = page("CONFIGURATION.md");
    for scope in Scope::ALL {
        assert!(text.contains(&format!("| `{}` | ", scope.as_str())), "{}", scope.as_str());
    }
}

#[test]
fn the_page_on_events_names_every_type() {
    let (_, text) = page("EVENTS.md");
    for event_type in EventType::ALL {
        assert!(text.contains(&format!("| `{}` | ", event_type.as_str())), "{}", event_type.as_str());
    }
}

#[test]
fn the_page_on_operations_holds_every_metric() {
    assert_holds_table("OPERATIONS.md", "metrics", &metric::to_markdown());
}

/// What `scripts/bench` calls tuned stands in a dictionary of its source.
#[test]
fn the_page_on_operations_recommends_what_the_benchmark_is_tuned_to() {
    let (_, text) = page("OPERATIONS.md");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/benchmark/rounds.py");
    let source = fs::read_to_string(source).expect("the source of the benchmark is there");
    let (_, tuned) = source.split_once("def tuned():").expect("the settings that are tuned");
    let settings = tuned.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = settings.split('"').collect();
    let pairs = words.windows(3).filter(|three| three[1] == ": ").map(|three| (three[0], three[2]));
    let marked = |(name, value): (&str, &str)| format!("| `{name}` | `{value}` (tuned) |");
    let mut expected: Vec<_> = pairs.map(marked).collect();
    assert_eq!(expected.len(), 3, "{settings}");
    assert!(settings.contains("\"shared_buffers\": f\"{memory_mb // 4}MB\""), "{settings}");
    expected.push("| `shared_buffers` | a quarter of the memory (tuned) |".into());
    for row in &expected {
        assert!(text.contains(row.as_str()), "docs/OPERATIONS.md has no row {row}");
    }
    assert_eq!(text.matches("(tuned) |").count(), expected.len(), "a setting is marked that is not tuned");
}

#[test]
fn every_metric_of_the_table_is_measured_somewhere() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let mut sources = String::new();
    let mut folders = vec![std::path::PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("telemetry/metric.rs") {
                sources.push_str(&fs::read_to_string(path).expect("a source is text"));
            }
        }
    }
    let table = fs::read_to_string(format!("{root}/telemetry/metric.rs")).expect("the table is there");
    let constants = table.lines().filter_map(|line| line.trim().split_once(" = \"").map(|(name, _)| name));
    let unused: Vec<_> = constants.filter(|name| !sources.contains(&format!("metric::{name}"))).collect();
    assert!(unused.is_empty(), "nobody measures {unused:?}");
}
