//! Routing: the queue of a kind of job, by patterns.
//!
//! The most specific pattern wins: the one with the longest text before its first wildcard, and of those the one with the
//! most text besides its wildcards. Two patterns that are equally specific and fit one kind would leave it to chance, so they
//! are refused when the routes are made.

use globset::{GlobBuilder, GlobMatcher};

use crate::domain::text::QueueName;

/// The longest pattern.
const MAX_PATTERN: usize = 128;
/// How many wildcards a pattern may have.
const MAX_WILDCARDS: usize = 4;
/// How many routes there may be.
const MAX_ROUTES: usize = 100;

const WILDCARDS: [char; 2] = ['*', '?'];

/// The kinds that fit a pattern go to a queue. In a pattern, `*` stands for any text and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub pattern: String,
    pub queue: QueueName,
}

/// Why routes are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutesError {
    #[error("there may be at most {MAX_ROUTES} routes")]
    TooMany,
    #[error("the pattern {0} is not valid: {1}")]
    Pattern(String, String),
    #[error("the patterns {0} and {1} are equally specific, and a kind may fit both")]
    Tie(String, String),
    #[error("no pattern fits every kind: add a route for *")]
    Incomplete,
}

/// All routes, the most specific first.
#[derive(Clone, Debug)]
pub struct Routes(Vec<(GlobMatcher, Route)>);

impl Routes {
    pub fn new(routes: Vec<Route>) -> Result<Self, RoutesError> {
        if routes.len() > MAX_ROUTES {
            return Err(RoutesError::TooMany);
        }
        let mut compiled = Vec::with_capacity(routes.len());
        for route in routes {
            let refuse = |reason: String| RoutesError::Pattern(route.pattern.clone(), reason);
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-*?".contains(&byte);
            if route.pattern.is_empty() || route.pattern.len() > MAX_PATTERN || !route.pattern.bytes().all(is_plain) {
                return Err(refuse(format!("must be 1 to {MAX_PATTERN} lower-case letters, digits and _ . - * ?")));
            }
            if route.pattern.matches(WILDCARDS).count() > MAX_WILDCARDS {
                return Err(refuse(format!("must have at most {MAX_WILDCARDS} wildcards")));
            }
            let glob = GlobBuilder::new(&route.pattern).build().map_err(|error| refuse(error.kind().to_string()))?;
            compiled.push((glob.compile_matcher(), route));
        }
        compiled.sort_by(|(_, one), (_, other)| {
            specificity(&other.pattern).cmp(&specificity(&one.pattern)).then(one.pattern.cmp(&other.pattern))
        });
        for (n, (_, one)) in compiled.iter().enumerate() {
            let rivals = compiled[n + 1..].iter().map(|(_, other)| other);
            let mut rivals = rivals.take_while(|other| specificity(&other.pattern) == specificity(&one.pattern));
            if let Some(other) = rivals.find(|other| may_meet(one.pattern.as_bytes(), other.pattern.as_bytes())) {
                return Err(RoutesError::Tie(one.pattern.clone(), other.pattern.clone()));
            }
        }
        if !compiled.iter().any(|(_, route)| route.pattern == "*") {
            return Err(RoutesError::Incomplete);
        }
        Ok(Self(compiled))
    }

    /// The route of a kind. There is always one, because one pattern fits all.
    #[must_use]
    pub fn of(&self, kind: &str) -> &Route {
        let found = self.0.iter().find(|(glob, _)| glob.is_match(kind)).or(self.0.last());
        &found.expect("routes are refused without one that fits all").1
    }

    /// All routes, the most specific first, and whether a kind fits each.
    pub fn explained(&self, kind: Option<&str>) -> impl Iterator<Item = (&Route, Option<bool>)> {
        self.0.iter().map(move |(glob, route)| (route, kind.map(|kind| glob.is_match(kind))))
    }
}

/// The length of the text before the first wildcard, and of all text. A pattern without a wildcard fits one kind only:
/// nothing is more specific.
fn specificity(pattern: &str) -> (usize, usize) {
    let before = pattern.find(WILDCARDS).unwrap_or(usize::MAX);
    (before, pattern.len() - pattern.matches(WILDCARDS).count())
}

/// Whether some text fits both patterns.
fn may_meet(one: &[u8], other: &[u8]) -> bool {
    match (one.split_first(), other.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => may_meet(rest, other) || other.split_first().is_some_and(|(_, o)| may_meet(one, o)),
        (_, Some((b'*', rest))) => may_meet(one, rest) || one.split_first().is_some_and(|(_, o)| may_meet(o, other)),
        (Some((a, one)), Some((b, other))) => (a == b || *a == b'?' || *b == b'?') && may_meet(one, other),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// The routes of a server without configuration.
#[must_use]
pub fn default_routes() -> Vec<Route> {
    ["billing.*", "video_processing.*", "notifications.*", "*"]
        .into_iter()
        .map(|pattern| {
            let queue = pattern.split('.').next().filter(|name| *name != "*").unwrap_or("default");
            Route { pattern: pattern.to_owned(), queue: QueueName::from_stored(queue) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(patterns: &[&str]) -> Result<Routes, RoutesError> {
        let route = |pattern: &&str| Route {
            pattern: (*pattern).to_owned(),
            queue: QueueName::new(&pattern.replace(['*', '?'], "x")).unwrap(),
        };
        Routes::new(patterns.iter().map(route).collect())
    }

    #[test]
    fn the_most_specific_pattern_wins_whatever_the_order() {
        let all = routes(&["*", "video.*", "video.render", "video.render.*", "*.slow", "v?deo.x*"]).unwrap();
        for (kind, expected) in [
            ("mail", "*"),
            ("video", "*"),
            ("video.cut", "video.*"),
            ("video.render", "video.render"),
            ("video.render.4k", "video.render.*"),
            ("video.slow", "video.*"),
            ("mail.slow", "*.slow"),
            ("vadeo.xy", "v?deo.x*"),
            ("video.cut.slow", "video.*"),
        ] {
            assert_eq!(all.of(kind).pattern, expected, "{kind}");
        }
        let default = Routes::new(default_routes()).unwrap();
        for (kind, queue) in [
            ("billing.deduct_credits", "billing"),
            ("video_processing.analyse", "video_processing"),
            ("notifications.email", "notifications"),
            ("billing", "default"),
            ("system.periods", "default"),
        ] {
            assert_eq!(default.of(kind).queue.as_str(), queue, "{kind}");
        }
    }

    #[test]
    fn patterns_that_leave_a_kind_to_chance_are_refused() {
        let tie = |one: &str, other: &str| Err(RoutesError::Tie(one.into(), other.into()));
        for (patterns, expected) in [
            (&["*", "*"][..], tie("*", "*")),
            (&["*", "a.*b", "a.b*"], Ok(())),
            (&["*", "a.*b", "a.*c"], Ok(())),
            (&["*", "*b", "*a*"], tie("*a*", "*b")),
            (&["*", "a.?", "a.*"], tie("a.*", "a.?")),
            (&["*", "a", "a"], tie("a", "a")),
            (&["a.*"], Err(RoutesError::Incomplete)),
            (&["*", "a.x?", "a.y?"], Ok(())),
            (&["*", "a.?b", "a.?c"], Ok(())),
        ] {
            assert_eq!(routes(patterns).map(|_| ()), expected, "{patterns:?}");
        }
        for bad in ["", "A*", "a[b]", "a b", "*****", &"a".repeat(129)] {
            let queue = QueueName::new("x").unwrap();
            let route = Route { pattern: bad.to_owned(), queue };
            assert!(matches!(Routes::new(vec![route]), Err(RoutesError::Pattern(..))), "{bad}");
        }
        assert_eq!(routes(&["*"; 101]).map(|_| ()), Err(RoutesError::TooMany));
    }
}
