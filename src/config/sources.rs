//! Where values come from, in rising order: the built-in defaults, the files, the environment.
//!
//! Every value carries its origin, so that an error can name it.

use std::path::{Path, PathBuf};

use config::{ConfigError as SourceError, File, FileFormat, Map, Source, Value, ValueKind};

use super::error::{ConfigError, Problem};
use super::keys::{self, KEYS, Kind};

/// The plans file is in the same folder, but is not part of the configuration.
pub(super) const PLANS_FILE: &str = "plans.toml";
const CONFIG_DIR_VAR: &str = "VISIONSCOPE_CONFIG_DIR";
const DEFAULT_CONFIG_DIR: &str = "config";
const PREFIX: &str = "VISIONSCOPE__";

/// Variables that other tools use too. The full name takes precedence. There is deliberately no `PORT`, because a
/// port does not say which address to listen on.
pub const ALIASES: [(&str, &str); 4] = [
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
    ("RUST_LOG", "telemetry.log_filter"),
];

/// The folder of the files: the named one, which must exist, or `./config` if it exists.
pub(super) fn config_dir(vars: &[(String, String)]) -> Result<Option<PathBuf>, ConfigError> {
    let named = vars.iter().find(|(name, value)| name == CONFIG_DIR_VAR && !value.is_empty());
    match named {
        Some((_, dir)) if Path::new(dir).is_dir() => Ok(Some(dir.into())),
        Some((name, dir)) => {
            Err(Problem::new(name, "environment variable", format!("{dir} is not a folder that can be read")).into())
        }
        None => Ok(Some(PathBuf::from(DEFAULT_CONFIG_DIR)).filter(|dir| dir.is_dir())),
    }
}

/// Merges all sources into one tree and refuses unknown keys.
pub(super) fn merge(
    vars: impl IntoIterator<Item = (String, String)>,
    config_dir: Option<&Path>,
) -> Result<Value, ConfigError> {
    let mut builder = config::Config::builder().add_source(Defaults);
    for file in files(config_dir)? {
        builder = builder.add_source(File::from(file).format(FileFormat::Toml));
    }
    let environment = Environment::new(vars);
    let merged = builder.add_source(environment).build().map_err(|error| {
        let origin = match &error {
            SourceError::FileParse { uri: Some(uri), .. } => uri.clone(),
            _ => "a source".to_owned(),
        };
        Problem::new("(file)", origin, words_of(error))
    })?;
    let mut unknown = Vec::new();
    find_unknown(&merged.cache, "", &mut unknown);
    if unknown.is_empty() { Ok(merged.cache) } else { Err(ConfigError { problems: unknown }) }
}

/// The files of the folder in the order of their names.
fn files(config_dir: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let Some(dir) = config_dir else { return Ok(Vec::new()) };
    let entries = std::fs::read_dir(dir)
        .map_err(|error| Problem::new(CONFIG_DIR_VAR, dir.display().to_string(), format!("cannot be read: {error}")))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "toml"))
        .filter(|file| file.file_name().is_some_and(|name| name != PLANS_FILE))
        .collect();
    files.sort();
    Ok(files)
}

/// The defaults of [`KEYS`].
#[derive(Clone, Copy, Debug)]
struct Defaults;

impl Source for Defaults {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(*self)
    }

    fn collect(&self) -> Result<Map<String, Value>, SourceError> {
        let origin = "built-in default".to_owned();
        let with_default = KEYS.iter().filter_map(|key| Some((key, key.default?)));
        let mut values: Map<_, _> =
            with_default.map(|(key, text)| (key.name.to_owned(), key.kind.value(text, &origin))).collect();
        // A section must exist even if all of its keys are left out.
        for section in keys::sections() {
            let has_value = values.keys().any(|key| key.split('.').next() == Some(section));
            if !has_value {
                values.insert(section.to_owned(), Value::new(Some(&origin), ValueKind::Table(Map::new())));
            }
        }
        for empty in ["auth.keys", "routes"] {
            values.insert(empty.to_owned(), Value::new(Some(&origin), ValueKind::Array(Vec::new())));
        }
        Ok(values)
    }
}

impl Kind {
    /// The value of a text. Numbers and booleans stay texts; they are converted when their type is known.
    fn value(self, text: &str, origin: &String) -> Value {
        let of = |text: &str| Value::new(Some(origin), ValueKind::String(text.to_owned()));
        match self {
            Self::One => of(text),
            Self::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::new(Some(origin), ValueKind::Array(items.map(of).collect()))
            }
        }
    }
}

/// The environment: `VISIONSCOPE__SECTION__KEY` and the aliases. An empty variable counts as not set.
#[derive(Clone)]
struct Environment(Vec<(String, Value)>);

/// Does not show the values, because some are secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

impl Environment {
    fn new(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut aliased = Vec::new();
        let mut named = Vec::new();
        for (name, text) in vars {
            if text.is_empty() {
                continue;
            }
            let (values, key) = if let Some(path) = name.strip_prefix(PREFIX) {
                (&mut named, key_of(path))
            } else if let Some((_, key)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
                (&mut aliased, (*key).to_owned())
            } else {
                continue;
            };
            let kind = keys::find(&key).map_or(Kind::One, |key| key.kind);
            let value = kind.value(&text, &format!("environment variable {name}"));
            values.push((key, value));
        }
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        aliased.append(&mut named);
        Self(aliased)
    }
}

impl Source for Environment {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, SourceError> {
        Ok(self.0.iter().cloned().collect())
    }
}

/// `AUTH__KEYS__0__KID` → `auth.keys[0].kid`.
fn key_of(path: &str) -> String {
    let mut key = String::new();
    for segment in path.to_ascii_lowercase().split("__") {
        let is_index = !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit());
        if is_index {
            key.extend(["[", segment, "]"]);
        } else {
            key.push_str(if key.is_empty() { "" } else { "." });
            key.push_str(segment);
        }
    }
    key
}

/// Adds every key of the tree that is neither one of [`KEYS`] nor contains one.
fn find_unknown(value: &Value, path: &str, unknown: &mut Vec<Problem>) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (name, inner) in table {
                let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if keys::is_known(&key) {
                    find_unknown(inner, &key, unknown);
                } else {
                    let origin = deepest_origin(inner).unwrap_or("an empty table");
                    unknown.push(Problem::new(key, origin, "is not a key of the configuration"));
                }
            }
        }
        ValueKind::Array(items) => {
            for (n, inner) in items.iter().enumerate() {
                find_unknown(inner, &format!("{path}[{n}]"), unknown);
            }
        }
        _ => {}
    }
    unknown.sort_by(|one, other| one.key.cmp(&other.key));
}

/// The origin of a key's value. If the key is not set, the origin of what contains it.
pub(super) fn origin_of(tree: &Value, key: &str) -> String {
    let mut origin = None;
    let mut value = Some(tree);
    let path = key.replace('[', ".[");
    for segment in path.split('.') {
        value = match value.map(|value| &value.kind) {
            Some(ValueKind::Table(table)) => table.get(segment),
            Some(ValueKind::Array(items)) => {
                segment.trim_matches(['[', ']']).parse::<usize>().ok().and_then(|n| items.get(n))
            }
            _ => None,
        };
        origin = value.and_then(deepest_origin).or(origin);
    }
    origin.unwrap_or("not set").to_owned()
}

/// The value's own origin, or that of the first value in it.
fn deepest_origin(value: &Value) -> Option<&str> {
    value.origin().or_else(|| match &value.kind {
        ValueKind::Table(table) => table.values().find_map(deepest_origin),
        ValueKind::Array(items) => items.iter().find_map(deepest_origin),
        _ => None,
    })
}

/// The text of an error without the key and the origin, which the caller adds.
pub(super) fn words_of(error: SourceError) -> String {
    match error {
        SourceError::Type { unexpected, expected, .. } => format!("must be {expected}, but is {unexpected}"),
        SourceError::At { error, .. } => words_of(*error),
        SourceError::FileParse { cause, .. } => format!("is not TOML: {cause}"),
        other => other.to_string(),
    }
}
