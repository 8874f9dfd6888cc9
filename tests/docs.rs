//! The tables in `docs/` are what the code says. To write them anew: `UPDATE_DOCS=1 cargo test --test docs`.

use std::fs;

use visionscope_billing::config::{ALIASES, keys};
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
fn the_page_on_operations_holds_every_metric() {
    assert_holds_table("OPERATIONS.md", "metrics", &metric::to_markdown());
}
