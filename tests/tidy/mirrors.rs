//! The two dialects mirror each other: files, migrations, tables and columns.

use std::collections::{BTreeMap, BTreeSet};

use crate::hold;
use crate::source::tracked_files;

/// Words that begin a constraint of a table instead of a column.
const CONSTRAINTS: [&str; 5] = ["primary", "foreign", "unique", "check", "constraint"];

/// Tests of what only an embedded database can do.
const SQLITE_ONLY: [&str; 1] = ["tests.rs"];

/// Columns by table.
type Tables = BTreeMap<String, BTreeSet<String>>;

/// The names of the files below a folder.
fn names_below(folder: &str) -> BTreeSet<String> {
    tracked_files().into_iter().filter_map(|file| Some(file.path.strip_prefix(folder)?.to_owned())).collect()
}

fn differences<T: Ord + ToString>(one: &BTreeSet<T>, other: &BTreeSet<T>, words: [&str; 2]) -> Vec<String> {
    let only = |left: &BTreeSet<T>, right: &BTreeSet<T>, words: &str| {
        left.difference(right).map(|item| format!("{}: {words}", item.to_string())).collect::<Vec<_>>()
    };
    [only(one, other, words[0]), only(other, one, words[1])].concat()
}

#[test]
fn both_stores_have_files_of_the_same_names() {
    let (postgres, mut sqlite) = (names_below("src/store/postgres/"), names_below("src/store/sqlite/"));
    sqlite.retain(|name| !SQLITE_ONLY.contains(&name.as_str()));
    hold(
        "src/store/postgres and src/store/sqlite hold files of the same names",
        "a change to one dialect's statement needs the same change in the other: it must be easy to find",
        &differences(&postgres, &sqlite, ["only postgres has it", "only sqlite has it"]),
    );
}

#[test]
fn both_dialects_have_migrations_of_the_same_names() {
    let (postgres, sqlite) = (names_below("migrations/postgres/"), names_below("migrations/sqlite/"));
    hold(
        "every migration is there in both dialects",
        "the behaviour must not depend on the database",
        &differences(&postgres, &sqlite, ["only postgres has it", "only sqlite has it"]),
    );
}

#[test]
fn both_dialects_have_the_same_tables_and_columns() {
    let columns = |folder: &str| {
        let tables = tables_below(folder).into_iter();
        tables.flat_map(|(table, names)| names.into_iter().map(move |name| format!("{table}.{name}"))).collect()
    };
    let (postgres, sqlite): (BTreeSet<String>, BTreeSet<String>) =
        (columns("migrations/postgres/"), columns("migrations/sqlite/"));
    assert!(!postgres.is_empty(), "no table found in migrations/postgres");
    hold(
        "both dialects have the same tables with the same columns",
        "what can be stored in one database must be found in the other",
        &differences(&postgres, &sqlite, ["only postgres has it", "only sqlite has it"]),
    );
}

fn tables_below(folder: &str) -> Tables {
    let mut tables = Tables::new();
    let is_migration = |path: &str| path.starts_with(folder) && path.to_ascii_lowercase().ends_with(".sql");
    for file in tracked_files().into_iter().filter(|file| is_migration(&file.path)) {
        add_tables(&file.text, &mut tables);
    }
    tables
}

/// Reads `create table` and `alter table … add column` or `drop column`; nothing else changes columns here.
fn add_tables(sql: &str, tables: &mut Tables) {
    let without_comments: Vec<_> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let sql = without_comments.join("\n").to_lowercase();
    for (at, words) in sql.match_indices("create table ") {
        let rest = sql[at + words.len()..].trim_start().trim_start_matches("if not exists ").trim_start();
        let Some((name, body)) = rest.split_once('(') else { continue };
        let columns = parts(body).into_iter().filter_map(|part| part.split_whitespace().next().map(unquoted));
        tables.insert(unquoted(name.trim()), columns.filter(|word| !CONSTRAINTS.contains(&word.as_str())).collect());
    }
    for (at, words) in sql.match_indices("alter table ") {
        let mut rest = sql[at + words.len()..].split_whitespace();
        let (table, action) = (rest.next().map(unquoted), (rest.next(), rest.next()));
        let (Some(table), Some(column)) = (table, rest.next().map(unquoted)) else { continue };
        let columns = tables.entry(table).or_default();
        match action {
            (Some("add"), Some("column")) => drop(columns.insert(column)),
            (Some("drop"), Some("column")) => drop(columns.remove(&column)),
            _ => {}
        }
    }
}

/// The parts of a table's body between its commas, up to the closing parenthesis.
fn parts(body: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in body.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => {
                parts.push(&body[begin..at]);
                break;
            }
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&body[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts
}

fn unquoted(name: &str) -> String {
    let word = name.split('(').next().unwrap_or_default();
    word.trim_matches(['"', '`', ';', ',']).to_owned()
}

#[test]
fn columns_are_told_from_constraints() {
    let mut tables = Tables::new();
    let sql = "-- create table no (x)\ncreate table if not exists a (\n id bigint primary key check (id in (1, 2)), -- b\n \
               \"key\" text not null,\n primary key (id, key), check(id > 0)\n) strict;\nalter table a add column c text;\nalter table a add column d text;\nalter table a drop column d;";
    add_tables(sql, &mut tables);
    let columns: BTreeSet<_> = ["id", "key", "c"].map(str::to_owned).into();
    assert_eq!(tables.get("a"), Some(&columns), "{tables:?}");
    assert_eq!(tables.len(), 1);
}
