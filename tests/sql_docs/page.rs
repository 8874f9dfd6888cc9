//! Reads `docs/SQL.md`: its statements, the variables that they use, and the map of the tables. And the settings that
//! `docs/OPERATIONS.md` recommends.

use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../docs/SQL.md");
const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");

/// A statement that answers a question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Without the line that names the indexes, with the variables filled in.
    pub sql: String,
    /// The indexes that its first line names; none if it reads whole tables.
    pub indexes: Vec<String>,
    pub is_of_one_workspace: bool,
}

/// The insides of the blocks in this language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("\n```{language}\n");
    PAGE.split(open.as_str()).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// The statements that create the role.
pub fn role_statements() -> &'static str {
    let first = blocks("sql")[0];
    assert!(first.starts_with("create role"), "the first block creates the role: {first}");
    first
}

/// The variables that the page sets, by name.
pub fn variables() -> BTreeMap<&'static str, &'static str> {
    let lines = blocks("psql")[0].lines().map(|line| line.strip_prefix("\\set ").unwrap());
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, value)| (name, value.trim_matches('\''))).collect()
}

pub fn questions() -> Vec<Question> {
    blocks("sql")[1..].iter().map(|block| question(block)).collect()
}

pub fn sqlite_questions() -> Vec<&'static str> {
    blocks("sqlite")
}

fn question(block: &str) -> Question {
    let (first, sql) = block.split_once('\n').unwrap();
    let names = first.strip_prefix("-- index: ");
    let says = names.is_some() || first == "-- reads whole tables";
    assert!(says, "a statement begins with a line on its indexes: {block}");
    let indexes = names.map(|names| names.split(", ").map(str::to_owned).collect()).unwrap_or_default();
    let mut filled = sql.trim_end_matches(';').to_owned();
    for (name, value) in variables() {
        filled = filled.replace(&format!(":'{name}'"), &format!("'{value}'"));
    }
    assert!(!filled.contains(":'"), "a variable is not set: {filled}");
    Question { sql: filled, indexes, is_of_one_workspace: sql.contains(":'workspace_id'") }
}

/// The map of the tables: each with the columns that it names.
pub fn map() -> Vec<(String, Vec<String>)> {
    let (_, rest) = PAGE.split_once("| table | a row is | columns to know |\n|---|---|---|\n").unwrap();
    rest.lines().take_while(|line| line.starts_with('|')).map(map_row).collect()
}

/// The names in the first column of the table of settings.
pub fn recommended_settings() -> Vec<String> {
    let (_, section) = OPERATIONS.split_once("\n## Settings of PostgreSQL\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

fn map_row(line: &str) -> (String, Vec<String>) {
    let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [table, _, columns] = cells[..] else { panic!("{line}") };
    let name = |text: &str| text.trim_matches('`').to_owned();
    (name(table), columns.split(", ").map(name).collect())
}
