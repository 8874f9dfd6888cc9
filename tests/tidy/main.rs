//! Rules of this code base that the compiler does not check: dependencies between modules, sizes, names, and that
//! the two dialects mirror each other.
//!
//! A failure states the rule and its reason. If a rule is wrong, change it here instead of working around it.

mod advisories;
mod cycles;
mod guides;
mod layers;
mod mirrors;
mod source;

use self::source::{Source, rust_files, tracked_files};

/// Longer files are printed, but do not fail.
const SOFT_FILE_LINES: usize = 400;
/// No file may be longer.
const HARD_FILE_LINES: usize = 600;
/// A function that does not fit on a screen hides its control flow. Counts lines of code only, as clippy does.
const MAX_FN_LINES: usize = 70;
/// Names that do not say what a module contains, and so attract everything.
const FORBIDDEN_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"];
/// The fewest words of a sentence: a subject, a verb and an object.
const MIN_TEST_NAME_WORDS: usize = 3;

/// Fails with the rule, its reason and every place that breaks it.
fn hold(rule: &str, why: &str, violations: &[String]) {
    assert!(violations.is_empty(), "\n\nrule: {rule}\nwhy:  {why}\n\n{}\n", violations.join("\n"));
}

#[test]
fn files_are_short_enough_to_be_read_in_one_go() {
    let mut violations = Vec::new();
    for file in rust_files() {
        let lines = file.text.lines().count();
        if lines > HARD_FILE_LINES {
            violations.push(format!("{}: {lines} lines", file.path));
        } else if lines > SOFT_FILE_LINES {
            println!("{}: {lines} lines, more than {SOFT_FILE_LINES}: consider splitting it", file.path);
        }
    }
    hold(
        "a file has at most 600 lines",
        "longer ones hold more than one idea: split by idea, not by size",
        &violations,
    );
}

#[test]
fn functions_fit_on_a_screen() {
    let mut violations = Vec::new();
    for file in rust_files() {
        for (name, lines) in file.functions() {
            if lines > MAX_FN_LINES {
                violations.push(format!("{}: fn {name} has {lines} lines of code", file.path));
            }
        }
    }
    hold(
        "a function has at most 70 lines of code",
        "what does not fit on a screen is not seen as a whole",
        &violations,
    );
}

#[test]
fn every_module_says_what_it_is_for() {
    let without_docs = rust_files().into_iter().filter(|file| !file.text.starts_with("//!"));
    let violations: Vec<_> = without_docs.map(|file| file.path).collect();
    hold(
        "a file opens with //!",
        "its purpose, its invariants and what is deliberately absent come first",
        &violations,
    );
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let says_nothing = |part: &str| part.split(['_', '-']).any(|word| FORBIDDEN_NAMES.contains(&word));
    let violations: Vec<_> = rust_files()
        .into_iter()
        .filter(|file| file.path.trim_end_matches(".rs").split('/').any(says_nothing))
        .map(|file| file.path)
        .collect();
    hold("no util, common, helper, manager or misc", "name a module after what is in it", &violations);
}

#[test]
fn nothing_outside_tests_unwraps() {
    let mut violations = Vec::new();
    for file in rust_files().into_iter().filter(Source::is_product) {
        let code = file.product_code();
        for (n, line) in code.lines().enumerate() {
            if line.contains(".unwrap()") || line.contains(".unwrap_err()") {
                violations.push(format!("{}:{}", file.path, n + 1));
            }
        }
    }
    hold(
        "no unwrap() outside tests",
        "return an error, or say with expect(\"why\") what makes it impossible",
        &violations,
    );
}

#[test]
fn every_test_name_is_a_sentence() {
    let mut violations = Vec::new();
    for file in rust_files() {
        for name in file.tests() {
            // A macro that declares tests names them by a variable.
            if name.is_empty() {
                continue;
            }
            if name.split('_').filter(|word| !word.is_empty()).count() < MIN_TEST_NAME_WORDS {
                violations.push(format!("{}: {name}", file.path));
            }
        }
    }
    hold("a test's name says what holds", "a failing test's name alone must tell what is broken", &violations);
}

#[test]
fn no_file_contains_a_path_of_one_machine() {
    // Put together here, so that this file does not break its own rule.
    let places =
        [["/wo", "rk/"], ["/tm", "p/"], ["/roo", "t/"], ["/hom", "e/"], ["/User", "s/"]].map(|part| part.concat());
    let hosts = [["index.crates", ".io"], ["static.crates", ".io"], ["registry.npm", "js.org"], ["pyp", "i.org"]]
        .map(|part| part.concat());
    let mut violations = Vec::new();
    for file in tracked_files() {
        for (n, line) in file.text.lines().enumerate() {
            let found = places.iter().chain(&hosts).find(|needle| line.contains(needle.as_str()));
            if let Some(needle) = found {
                violations.push(format!("{}:{}: {needle}", file.path, n + 1));
            }
        }
    }
    hold(
        "no path of one machine and no registry's host in a file",
        "a clone must build and run anywhere, from whatever source of packages the machine has",
        &violations,
    );
}

#[test]
fn every_package_comes_from_the_one_registry() {
    let lock = tracked_files().into_iter().find(|file| file.path == "Cargo.lock").expect("Cargo.lock is tracked");
    let canonical = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let others = lock.text.lines().filter(|line| line.starts_with("source = ") && *line != canonical);
    let violations: Vec<_> = others.map(str::to_owned).collect();
    hold(
        "Cargo.lock names the default registry only",
        "other sources are not there for everybody who builds",
        &violations,
    );
}
