//! Reads the files of the repository, and Rust code without its comments and string literals.

use std::fs;
use std::path::Path;

/// Folders that are not part of the repository.
const SKIPPED: [&str; 5] = ["target", "data", ".git", "node_modules", "proptest-regressions"];

/// One file.
pub struct Source {
    /// From the repository's root, with `/`.
    pub path: String,
    pub text: String,
}

/// Every text file of the repository.
pub fn tracked_files() -> Vec<Source> {
    let mut files = Vec::new();
    collect(Path::new(env!("CARGO_MANIFEST_DIR")), "", &mut files);
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

pub fn rust_files() -> Vec<Source> {
    let is_rust = |file: &Source| Path::new(&file.path).extension().is_some_and(|extension| extension == "rs");
    tracked_files().into_iter().filter(is_rust).collect()
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("the repository can be read").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        // In a second work tree, `.git` is a file that contains a path of the machine.
        if SKIPPED.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), &format!("{path}/"), files);
        } else if let Ok(text) = fs::read_to_string(entry.path()) {
            files.push(Source { path, text });
        }
    }
}

impl Source {
    /// Whether the file is part of the product, and not a test.
    pub fn is_product(&self) -> bool {
        self.path.starts_with("src/") && !self.path.ends_with("/tests.rs") && !self.path.contains("/tests/")
    }

    /// The code with comments and the contents of string literals blanked out. Lines keep their numbers.
    pub fn code(&self) -> String {
        blank(&self.text)
    }

    /// The code without items marked `#[cfg(test)]`.
    pub fn product_code(&self) -> String {
        let mut code = self.code();
        while let Some(start) = code.find("#[cfg(test)]") {
            let open = code[start..].find(['{', ';']).map_or(code.len(), |at| start + at);
            let end = if code[open..].starts_with('{') { closing(&code, open) } else { open };
            let blanked: String =
                code[start..=end.min(code.len() - 1)].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            code.replace_range(start..=end.min(code.len() - 1), &blanked);
        }
        code
    }

    /// Every function with a body: its name and how many lines of code it has.
    pub fn functions(&self) -> Vec<(String, usize)> {
        let code = self.code();
        let mut functions = Vec::new();
        for (start, _) in code.match_indices("fn ") {
            let is_word = start > 0 && code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let name = identifier(&code[start + 3..]);
            if is_word || name.is_empty() {
                continue;
            }
            if let Some(open) = body(&code, start) {
                let lines = code[open..=closing(&code, open)].lines().filter(|line| !line.trim().is_empty()).count();
                // Without the lines of the two braces.
                functions.push((name, lines.saturating_sub(2)));
            }
        }
        functions
    }

    /// The names of all tests.
    pub fn tests(&self) -> Vec<String> {
        let code = self.code();
        let mut names = Vec::new();
        for (n, line) in code.lines().enumerate() {
            let attribute = line.trim();
            let is_test = attribute.starts_with("#[") && (attribute.contains("test]") || attribute.contains("::test("));
            if !is_test || attribute.contains("cfg(") {
                continue;
            }
            let declared = code.lines().skip(n + 1).find_map(|line| Some(identifier(line.split_once("fn ")?.1)));
            names.extend(declared);
        }
        names
    }
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The index at which the body of the function declared at `start` opens, if it has one.
fn body(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, c) in code[start..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return None,
            '{' if depth == 0 => return Some(start + at),
            _ if depth < 0 => return None,
            _ => {}
        }
    }
    None
}

/// The index of the brace that closes the one at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return open + at,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len() - 1
}

/// Blanks comments and the contents of string and character literals.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end > at {
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

/// The end of the comment or literal that begins at `at`; `at` if none begins there.
fn skipped(chars: &[char], at: usize) -> usize {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let find = |from: usize, needle: &[char]| {
        let found = (from..chars.len()).find(|n| chars[*n..].starts_with(needle));
        found.map_or(chars.len(), |n| n + needle.len())
    };
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == '/' => find(at, &['\n']) - 1,
        '/' if next(1) == '*' => find(at + 2, &['*', '/']),
        'r' if !after_word || chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) == '"' {
                let mut needle = vec!['"'];
                needle.extend(std::iter::repeat_n('#', hashes));
                find(at + hashes + 2, &needle)
            } else {
                at
            }
        }
        '"' => quoted(chars, at, '"'),
        '\'' if next(1) == '\\' || next(2) == '\'' => quoted(chars, at, '\''),
        _ => at,
    }
}

fn quoted(chars: &[char], at: usize, quote: char) -> usize {
    let mut n = at + 1;
    while n < chars.len() && chars[n] != quote {
        n += if chars[n] == '\\' { 2 } else { 1 };
    }
    (n + 1).min(chars.len())
}

#[test]
fn comments_and_literals_are_not_code() {
    let source = |text: &str| Source { path: "src/a.rs".into(), text: text.into() };
    let code = source("a(\"x { \\\" }\"); // b {\nlet c = '{'; /* { */ fn d<'a>(e: &'a str) {}").code();
    assert!(!code.replace("{}", "").contains('{') && code.contains("fn d<'a>"), "{code}");
    let code = source("let a = r#\"sqlx::query \" \"#; b").code();
    assert!(!code.contains("sqlx") && code.ends_with("; b"), "{code}");
    let file = source("fn one() {\n    1\n}\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn is_ok() {\n    }\n}\n");
    assert_eq!(file.functions(), [("one".to_owned(), 1), ("is_ok".to_owned(), 0)]);
    assert_eq!(file.tests(), ["is_ok"]);
    assert!(!file.product_code().contains("is_ok") && file.product_code().contains("fn one"));
}
