//! The guides for contributors name only files, tests and scripts that exist.

use std::collections::BTreeSet;
use std::path::Path;

use crate::hold;
use crate::source::{Source, rust_files, tracked_files};

/// The heading of a checklist's table of tests.
const TESTS: &str = "## Tests that notice a forgotten step";

fn checklists() -> Vec<Source> {
    let lists: Vec<_> = tracked_files().into_iter().filter(|file| file.path.starts_with("docs/adding/")).collect();
    assert!(lists.len() >= 4, "the checklists are not found");
    lists
}

fn is_there(path: &str) -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists()
}

/// The text between backticks, with its line number. Code blocks are left out.
fn quoted(text: &str) -> Vec<(usize, &str)> {
    let mut is_block = false;
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        if !is_block && !is_fence {
            found.extend(line.split('`').skip(1).step_by(2).map(|words| (n + 1, words)));
        }
    }
    found
}

/// The part of a path before its first placeholder; `None` if the words are not a path in the repository.
fn path_of(words: &str) -> Option<&str> {
    let is_file = |end: &str| words.to_ascii_lowercase().ends_with(end);
    let is_path = words.contains('/') || [".rs", ".md", ".toml", ".sql"].into_iter().any(is_file);
    if !is_path || words.contains([' ', '(', '{']) || words.starts_with(['/', '.']) {
        return None;
    }
    let known = words.split('<').next().unwrap_or_default();
    let end = if known.len() < words.len() { known.rfind('/').map_or(0, |slash| slash + 1) } else { known.len() };
    Some(&known[..end])
}

#[test]
fn every_path_in_a_checklist_exists() {
    let mut violations = Vec::new();
    for file in checklists() {
        let paths = quoted(&file.text).into_iter().filter_map(|(line, words)| Some((line, words, path_of(words)?)));
        let missing = paths.filter(|(_, _, path)| !is_there(path));
        violations.extend(missing.map(|(line, words, _)| format!("{}:{line}: {words}", file.path)));
    }
    hold(
        "every path in backticks in docs/adding exists; a placeholder is in <angle brackets>",
        "a checklist with wrong paths misleads",
        &violations,
    );
}

#[test]
fn every_checklist_names_existing_tests() {
    let rust: Vec<String> = rust_files().into_iter().map(|file| file.text).collect();
    let is_function = |name: &str| rust.iter().any(|text| text.contains(&format!("fn {name}(")));
    let mut violations = Vec::new();
    for file in checklists() {
        let tests = file.text.split_once(TESTS).map(|(_, tests)| tests).unwrap_or_default();
        let words: BTreeSet<_> = quoted(tests).into_iter().map(|(_, words)| words).collect();
        if !words.iter().any(|words| words.starts_with("tests/")) {
            violations.push(format!("{}: there is no section {TESTS:?} with tests", file.path));
        }
        let is_name =
            |words: &&str| words.matches('_').count() >= 2 && words.chars().all(|c| c.is_alphanumeric() || c == '_');
        let missing = words.into_iter().filter(is_name).filter(|name| !is_function(name));
        violations.extend(missing.map(|name| format!("{}: {name}", file.path)));
    }
    hold(
        "every checklist in docs/adding has a table of tests, and each test in it exists",
        "the checklist says which test notices a forgotten step",
        &violations,
    );
}

#[test]
fn every_task_of_the_justfile_has_a_comment_and_calls_existing_scripts() {
    let files = tracked_files();
    let justfile = files.iter().find(|file| file.path == "justfile").expect("there is a justfile");
    let lines: Vec<_> = justfile.text.lines().collect();
    let mut violations = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let place = format!("justfile:{}", n + 1);
        let is_task = line.starts_with(char::is_alphabetic);
        if is_task && !lines.get(n.wrapping_sub(1)).is_some_and(|before| before.starts_with("# ")) {
            violations.push(format!("{place}: {line} has no comment"));
        }
        let mut words = line.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let is_script = word.starts_with("scripts/") || word.starts_with(".ci/");
            if is_script && !is_there(word) {
                violations.push(format!("{place}: there is no {word}"));
            }
            let suite = words.peek().filter(|next| word == "--test" && !next.starts_with('{'));
            if let Some(suite) = suite.filter(|suite| {
                ![format!("tests/{suite}.rs"), format!("tests/{suite}/main.rs")].iter().any(|path| is_there(path))
            }) {
                violations.push(format!("{place}: there is no suite {suite}"));
            }
        }
    }
    hold(
        "every task of the justfile has a comment and calls scripts and suites that exist",
        "otherwise the person who needs a task is the first to find it broken",
        &violations,
    );
}

#[test]
fn paths_are_distinguished_from_other_words() {
    assert_eq!(path_of("src/domain/<noun>.rs"), Some("src/domain/"));
    assert_eq!(path_of("src/store/<dialect>/write.rs"), Some("src/store/"));
    assert_eq!(path_of("CHANGELOG.md"), Some("CHANGELOG.md"));
    assert_eq!(path_of("openapi/events/"), Some("openapi/events/"));
    for words in ["cargo run -- openapi", "/v1/events", "work.raise(…)", "Rows<T>", "from_stored"] {
        assert_eq!(path_of(words), None, "{words}");
    }
    assert_eq!(quoted("a `b` c\n```sh\n`d`\n```\n`e`"), [(1, "b"), (5, "e")]);
}
