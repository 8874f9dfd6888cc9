//! No package of `Cargo.lock` has a known fault: compared with `.ci/advisories.toml`, without a network.

use std::collections::BTreeSet;

use semver::{Version, VersionReq};
use serde::Deserialize;

use super::hold;

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Version,
}

#[derive(Deserialize)]
struct Advisories {
    /// The packages that advisories were looked for.
    packages: BTreeSet<String>,
    advisory: Vec<Advisory>,
}

#[derive(Deserialize)]
struct Advisory {
    id: String,
    package: String,
    unaffected: Vec<VersionReq>,
    accepted: Option<String>,
}

impl Advisory {
    fn affects(&self, package: &Package) -> bool {
        self.package == package.name && !self.unaffected.iter().any(|versions| versions.matches(&package.version))
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &str) -> T {
    let text = std::fs::read_to_string(path).expect("the file is read");
    toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn no_package_has_a_known_fault() {
    let packages = parse::<Lock>("Cargo.lock").package;
    let known = parse::<Advisories>(".ci/advisories.toml");
    let (mut violations, mut stale) = (Vec::new(), Vec::new());
    let unknown = packages.iter().map(|package| &package.name).filter(|name| !known.packages.contains(*name));
    let unknown: Vec<_> = unknown.map(|name| format!("{name}: run scripts/update-advisories")).collect();
    for advisory in known.advisory {
        let affected: Vec<_> = packages.iter().filter(|package| advisory.affects(package)).collect();
        match &advisory.accepted {
            None => violations.extend(affected.iter().map(|package| {
                format!("{} {}: https://rustsec.org/advisories/{}", package.name, package.version, advisory.id)
            })),
            Some(_) if affected.is_empty() => stale.push(format!("{}: no version in use is affected", advisory.id)),
            Some(_) => {}
        }
    }
    hold(
        "no package is at a version with an advisory, unless .ci/advisories.toml says why it does no harm",
        "a known fault is the first thing that an attacker tries",
        &violations,
    );
    hold("advisories were looked for each package", "one that nobody looked for is not safe", &unknown);
    hold("an accepted advisory is one of a version in use", "a reason that nobody needs misleads", &stale);
}

#[test]
fn an_affected_version_is_noticed() {
    let advisory = |unaffected: &[&str]| Advisory {
        id: String::new(),
        package: "h2".into(),
        unaffected: unaffected.iter().map(|versions| versions.parse().unwrap()).collect(),
        accepted: None,
    };
    let package = |name: &str, version: &str| Package { name: name.into(), version: version.parse().unwrap() };
    assert!(advisory(&[]).affects(&package("h2", "1.0.0")), "no version is unaffected");
    let patched = advisory(&["^0.3.28", ">= 0.4.20"]);
    for (version, is_affected) in [("0.3.27", true), ("0.3.28", false), ("0.4.19", true), ("0.4.20", false)] {
        assert_eq!(patched.affects(&package("h2", version)), is_affected, "{version}");
    }
    assert!(!patched.affects(&package("h3", "0.3.27")), "another package");
}
