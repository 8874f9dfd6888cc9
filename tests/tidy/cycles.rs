//! No import cycles between the files of `src/`.
//!
//! Every name that a file takes from another one counts as an import: in a `use`, in a re-export, or by its path in
//! the code. The import belongs to the deepest file on the path: `super::ids::EventId` is taken from
//! `ids.rs`, and `super::EventId` from the `mod.rs` that re-exports it. A plain `mod ids;` does not count,
//! and neither does test code.
//!
//! Not found: a path inside a string (`#[serde(with = "…")]`), and a method of a type that is not named.

use std::collections::{BTreeMap, BTreeSet};

use crate::hold;
use crate::source::{Source, rust_files};

/// The segments of a path: `crate::http::auth` is `["crate", "http", "auth"]`.
type Segments = Vec<String>;
/// The names that each file imports from each other file.
type Imports = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The modules that have their own file: the path from the crate's root, and the file.
struct Modules(BTreeMap<Segments, String>);

impl Modules {
    fn of(files: &[Source]) -> Self {
        Self(files.iter().map(|file| (module_of(&file.path), file.path.clone())).collect())
    }

    /// The deepest file on an absolute path, and the name that is imported from it.
    fn resolve(&self, path: &[String]) -> Option<(&str, String)> {
        (0..=path.len()).rev().find_map(|len| {
            let file = self.0.get(&path[..len])?;
            let name = path.get(len).or(path.last()).cloned().unwrap_or_default();
            Some((file.as_str(), name))
        })
    }
}

/// The module path of a file: `src/http/mod.rs` is `["http"]`, `src/lib.rs` is the root.
fn module_of(path: &str) -> Segments {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Words, `::`, and every other character by itself.
fn tokens(code: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut rest, mut tokens) = (code.trim_start(), Vec::new());
    while let Some(first) = rest.chars().next() {
        let len = match first {
            first if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            first => first.len_utf8(),
        };
        tokens.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads one file.
struct Reader<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    /// The current module: the file's own, or an inline module in it.
    module: Segments,
    /// The current depth of braces, and the depths at which inline modules started.
    depth: usize,
    opened: Vec<usize>,
    /// The names that `mod` and `use` declare in this file, with their absolute paths.
    known: BTreeMap<String, Segments>,
    /// The absolute paths that were found.
    found: Vec<Segments>,
}

impl<'a> Reader<'a> {
    fn read(file: &Source) -> Vec<Segments> {
        let code = file.product_code();
        let module = module_of(&file.path);
        let known = BTreeMap::new();
        let mut reader =
            Reader { tokens: tokens(&code), at: 0, module, depth: 0, opened: Vec::new(), known, found: Vec::new() };
        // A name is valid in the whole file, so all names are collected first.
        reader.pass();
        reader.found.clear();
        reader.pass();
        reader.found
    }

    fn pass(&mut self) {
        self.at = 0;
        while let Some(token) = self.token(0) {
            self.at += 1;
            match token {
                "{" => self.depth += 1,
                "}" => self.close(),
                "mod" => self.declare(),
                "use" => self.import(Vec::new()),
                // `pub(in crate::http)` limits visibility and imports nothing.
                "in" if self.at >= 3 && self.tokens[self.at - 3..].starts_with(&["pub", "("]) => drop(self.path()),
                word if is_name(word) && self.token(0) == Some("::") => {
                    self.at -= 1;
                    let path = self.path();
                    self.find(&path);
                }
                _ => {}
            }
        }
    }

    fn token(&self, ahead: usize) -> Option<&'a str> {
        self.tokens.get(self.at + ahead).copied()
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if self.opened.last() == Some(&self.depth) {
            self.opened.pop();
            self.module.pop();
        }
    }

    /// `mod name;` or `mod name {`.
    fn declare(&mut self) {
        let (Some(name), Some(next)) = (self.token(0), self.token(1)) else { return };
        let module = [self.module.clone(), vec![name.to_owned()]].concat();
        match next {
            ";" => drop(self.known.insert(name.to_owned(), module)),
            "{" => {
                self.known.insert(name.to_owned(), module.clone());
                self.module = module;
                self.opened.push(self.depth);
                self.depth += 1;
                self.at += 2;
            }
            _ => {}
        }
    }

    /// Names separated by `::`.
    fn path(&mut self) -> Segments {
        let mut path = Vec::new();
        while let Some(word) = self.token(0).filter(|token| is_name(token)) {
            path.push(word.to_owned());
            self.at += 1;
            if self.token(0) != Some("::") {
                break;
            }
            self.at += 1;
        }
        path
    }

    /// One tree of a `use`, below the path of the groups around it.
    fn import(&mut self, mut path: Segments) {
        if path.is_empty() && self.token(0) == Some("::") {
            self.at += 1;
        }
        path.extend(self.path());
        match self.token(0) {
            Some("{") => {
                self.at += 1;
                while !matches!(self.token(0), None | Some("}")) {
                    self.import(path.clone());
                    if self.token(0) == Some(",") {
                        self.at += 1;
                    }
                }
                self.at += 1;
                return;
            }
            Some("*") => {
                path.push("*".to_owned());
                self.at += 1;
            }
            // `{self, …}` names the group's module.
            _ if path.len() > 1 && path.last().is_some_and(|last| last == "self") => drop(path.pop()),
            _ => {}
        }
        let mut name = path.last().map_or("", String::as_str);
        if self.token(0) == Some("as") {
            name = self.token(1).unwrap_or_default();
            self.at += 2;
        }
        if let Some(absolute) = self.find(&path) {
            self.known.insert(name.to_owned(), absolute);
        }
    }

    /// Records a path that starts in this crate, as an absolute path.
    fn find(&mut self, path: &[String]) -> Option<Segments> {
        let mut rest = path;
        let mut absolute = match rest.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            first => self.known.get(first)?.clone(),
        };
        if !matches!(rest[0].as_str(), "super") {
            rest = &rest[1..];
        }
        while rest.first().is_some_and(|first| first == "super") {
            absolute.pop();
            rest = &rest[1..];
        }
        absolute.extend_from_slice(rest);
        self.found.push(absolute.clone());
        Some(absolute)
    }
}

/// The imports of every file. `main.rs` is left out: it is another crate, and no file imports it.
fn imports(files: &[Source]) -> Imports {
    let modules = Modules::of(files);
    let mut imports = Imports::new();
    for file in files.iter().filter(|file| file.path != "src/main.rs") {
        for path in Reader::read(file) {
            let Some((to, name)) = modules.resolve(&path).filter(|(to, _)| *to != file.path) else { continue };
            let from = imports.entry(file.path.clone()).or_default();
            from.entry(to.to_owned()).or_default().insert(name);
        }
    }
    imports
}

/// All files that can be reached from a file, including itself if it is on a cycle.
fn reached<'i>(imports: &'i Imports, from: &'i str) -> BTreeSet<&'i str> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        let next = imports.get(file).into_iter().flat_map(BTreeMap::keys);
        open.extend(next.map(String::as_str).filter(|next| reached.insert(*next)));
    }
    reached
}

/// The strongly connected sets of files.
fn cycles(imports: &Imports) -> BTreeSet<BTreeSet<&str>> {
    let all: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|file| (file.as_str(), reached(imports, file))).collect();
    let in_one =
        |one: &str, other: &str| all[one].contains(other) && all.get(other).is_some_and(|back| back.contains(one));
    let of = |file: &&str| all.keys().copied().filter(|other| in_one(file, other)).collect();
    all.keys().map(of).filter(|cycle: &BTreeSet<&str>| !cycle.is_empty()).collect()
}

/// Lists the imports of a cycle.
fn describe(imports: &Imports, cycle: &BTreeSet<&str>) -> String {
    let mut lines = vec![format!("a cycle of {} files:", cycle.len())];
    for from in cycle {
        for (to, names) in imports[*from].iter().filter(|(to, _)| cycle.contains(to.as_str())) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            lines.push(format!("  {from} -> {to}: {}", names.join(", ")));
        }
    }
    lines.join("\n")
}

#[test]
fn source_files_import_each_other_without_cycles() {
    let files: Vec<_> = rust_files().into_iter().filter(Source::is_product).collect();
    let imports = imports(&files);
    assert!(!imports.is_empty(), "no import found in src/");
    let cycles = cycles(&imports);
    hold(
        "the files of src/ import each other without cycles",
        "the files of a cycle cannot be read, tested or changed separately: move what they share to a file of its own",
        &cycles.iter().map(|cycle| describe(&imports, cycle)).collect::<Vec<_>>(),
    );
}

fn made_up(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source { path: format!("src/{path}"), text: (*text).to_owned() }).collect()
}

#[test]
fn every_import_of_a_file_is_found() {
    // The content of `a/b.rs`, and its imports.
    let table = [
        ("use crate::d::One;", "d.rs: One"),
        ("use crate::d::e::One;", "d/e.rs: One"),
        ("use super::{c::{self, One as Other}, Two,};", "a/c.rs: One c, a/mod.rs: Two"),
        ("pub use super::*;", "a/mod.rs: *"),
        ("use crate::d as f; fn g() { f::e::run() }", "d.rs: d, d/e.rs: run"),
        (
            "fn f(of: Vec<super::c::One>) -> crate::d::Two { <super::c::Two as Into<u8>>::into(of) }",
            "a/c.rs: One Two, d.rs: Two",
        ),
        ("use super::c::One; fn f() { One::new() }", "a/c.rs: One"),
        ("fn f() { e::run() } use crate::d::e;", "d/e.rs: e run"),
        ("mod inner { use super::super::c::One; } use super::Two;", "a/c.rs: One, a/mod.rs: Two"),
        ("mod f; use std::d::One; use serde::{d, e}; fn g() -> X { X { ..self::f() } }", ""),
        ("pub(in crate::d::e) fn f() { g(\"crate::d::One\") } // crate::d::Two", ""),
        ("#[cfg(test)]\nmod tests { use crate::d::One; }", ""),
    ];
    for (text, expected) in table {
        let others = [("lib.rs", "pub mod a; mod d;"), ("a/mod.rs", ""), ("a/c.rs", ""), ("d.rs", ""), ("d/e.rs", "")];
        let files = made_up(&[&others[..], &[("a/b.rs", text)]].concat());
        let taken = imports(&files).remove("src/a/b.rs").unwrap_or_default();
        let words = taken.iter().map(|(file, names)| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            format!("{}: {}", &file["src/".len()..], names.join(" "))
        });
        assert_eq!(words.collect::<Vec<_>>().join(", "), expected, "{text}");
    }
}

#[test]
fn cycles_are_distinguished_from_chains() {
    let found = |files: &[(&str, &str)]| {
        let imports = imports(&made_up(files));
        cycles(&imports).iter().map(|cycle| describe(&imports, cycle)).collect::<Vec<_>>()
    };
    let chain = [("a.rs", "use crate::{b::B, c::C};"), ("b.rs", "use crate::c::C;"), ("c.rs", "")];
    assert!(found(&chain).is_empty());
    let child = ("d/e.rs", "use super::D;");
    assert!(found(&[("d/mod.rs", "mod e;"), child]).is_empty());

    let cycle = [chain[0], chain[1], ("c.rs", "fn c() { crate::a::run() }"), ("f.rs", "use crate::a::A;")];
    let words = "a cycle of 3 files:\n  src/a.rs -> src/b.rs: B\n  src/a.rs -> src/c.rs: C\n  \
                 src/b.rs -> src/c.rs: C\n  src/c.rs -> src/a.rs: run";
    assert_eq!(found(&cycle), [words]);
    let parent = ("d/mod.rs", "mod e; pub use self::e::E;");
    let words = "a cycle of 2 files:\n  src/d/e.rs -> src/d/mod.rs: D\n  src/d/mod.rs -> src/d/e.rs: E";
    assert_eq!(found(&[parent, child]), [words]);
    assert_eq!(found(&[&cycle[..], &[parent, child]].concat()).len(), 2);
}
