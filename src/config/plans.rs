//! The plans file: the offered plans, as TOML that people edit.
//!
//! ```toml
//! [[plan]]
//! code = "pro"
//! version = 1
//! name = "Pro"
//! allowance = "1000"
//!
//! [[plan.feature]]
//! code = "video.render"
//! unit_price = "0.5"
//! limit = { credits = "500", mode = "hard" }
//! ```
//!
//! Amounts are decimal strings or whole numbers, never floats. A stored version never changes: to
//! change a plan, add a version.

use std::collections::BTreeSet;
use std::path::Path;

use config::{File, FileFormat, Value};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::sources::words_of;
use crate::domain::credits::LimitCredits;
use crate::domain::plan::{
    FeatureTerms, InvalidPlan, LimitMode, PlanVersion, PurchasedOnCancel, RateLimit, ReversalShortfall, UsageLimit,
};
use crate::domain::text::{FeatureCode, Label, PlanCode};

/// The plans of a server without a plans file.
const BUILT_IN: &str = include_str!("../../config/plans.toml");
const BUILT_IN_ORIGIN: &str = "built-in plans";

/// Why the plans cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlansError {
    #[error("plans ({origin}): {detail}")]
    File { origin: String, detail: String },
    #[error("plans ({origin}): plan {plan}: {field}: {problem}")]
    Field { origin: String, plan: String, field: String, problem: String },
    #[error("plans ({origin}): {source}")]
    Bounds { origin: String, source: InvalidPlan },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlansToml {
    #[serde(default)]
    plan: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanToml {
    code: PlanCode,
    version: i32,
    name: Label,
    #[serde(default = "one_month")]
    period_months: u32,
    allowance: LimitCredits,
    rollover_cap: Option<LimitCredits>,
    overdraft_limit: Option<LimitCredits>,
    monthly_limit: Option<LimitToml>,
    rate_limit: Option<RateToml>,
    #[serde(default)]
    low_credit_thresholds: Vec<LimitCredits>,
    purchased_on_cancel: PurchasedOnCancel,
    #[serde(default = "one_week")]
    expiry_warning_days: u32,
    #[serde(default = "thirty_days")]
    refund_validity_days: u32,
    #[serde(default)]
    reversal_shortfall: ReversalShortfall,
    #[serde(default)]
    feature: Vec<FeatureToml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureToml {
    code: FeatureCode,
    #[serde(default = "yes")]
    enabled: bool,
    unit_price: Option<LimitCredits>,
    limit: Option<LimitToml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitToml {
    credits: LimitCredits,
    mode: LimitMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateToml {
    credits: LimitCredits,
    window_s: u32,
}

const fn one_month() -> u32 {
    1
}

const fn one_week() -> u32 {
    7
}

const fn thirty_days() -> u32 {
    30
}

const fn yes() -> bool {
    true
}

impl From<LimitToml> for UsageLimit {
    fn from(limit: LimitToml) -> Self {
        Self { credits: limit.credits.get(), mode: limit.mode }
    }
}

impl PlanToml {
    /// Everything but the features.
    fn into_version(self) -> PlanVersion {
        let or_zero = |amount: Option<LimitCredits>| amount.map(LimitCredits::get).unwrap_or_default();
        PlanVersion {
            plan_code: self.code,
            version: self.version,
            name: self.name,
            period_months: self.period_months,
            allowance: self.allowance.get(),
            rollover_cap: or_zero(self.rollover_cap),
            overdraft_limit: or_zero(self.overdraft_limit),
            monthly_limit: self.monthly_limit.map(Into::into),
            rate_limit: self
                .rate_limit
                .map(|limit| RateLimit { credits: limit.credits.get(), window_s: limit.window_s }),
            low_credit_thresholds: self.low_credit_thresholds.into_iter().map(LimitCredits::get).collect(),
            purchased_on_cancel: self.purchased_on_cancel,
            expiry_warning_days: self.expiry_warning_days,
            refund_validity_days: self.refund_validity_days,
            reversal_shortfall: self.reversal_shortfall,
            features: self.feature.into_iter().map(|feature| (feature.code.clone(), feature.into())).collect(),
        }
    }
}

impl From<FeatureToml> for FeatureTerms {
    fn from(feature: FeatureToml) -> Self {
        Self {
            enabled: feature.enabled,
            unit_price: feature.unit_price.map(LimitCredits::get),
            limit: feature.limit.map(Into::into),
        }
    }
}

/// The built-in plans.
pub fn built_in() -> Result<Vec<PlanVersion>, PlansError> {
    parse(BUILT_IN, BUILT_IN_ORIGIN)
}

pub fn read_file(file: &Path) -> Result<Vec<PlanVersion>, PlansError> {
    let origin = file.display().to_string();
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text, &origin),
        Err(error) => Err(PlansError::File { origin, detail: format!("cannot be read: {error}") }),
    }
}

/// Parses and checks a plans file. Errors name its `origin`.
pub fn parse(text: &str, origin: &str) -> Result<Vec<PlanVersion>, PlansError> {
    let wrong_file = |detail: String| PlansError::File { origin: origin.to_owned(), detail };
    let source = File::from_str(text, FileFormat::Toml);
    let tree = config::Config::builder().add_source(source).build().map_err(|error| wrong_file(words_of(error)))?;
    let plans: PlansToml = read(tree.cache).map_err(|(field, problem)| wrong_file(format!("{field}: {problem}")))?;
    if plans.plan.is_empty() {
        return Err(wrong_file("has no [[plan]]".to_owned()));
    }
    let mut versions = Vec::new();
    let mut seen = BTreeSet::new();
    for (n, value) in plans.plan.into_iter().enumerate() {
        let name = name_of(&value, n);
        let wrong_field =
            |(field, problem)| PlansError::Field { origin: origin.to_owned(), plan: name.clone(), field, problem };
        let plan: PlanToml = read(value).map_err(wrong_field)?;
        if let Some(code) = first_double(plan.feature.iter().map(|feature| &feature.code)) {
            return Err(wrong_field(("feature".to_owned(), format!("{code} is defined twice"))));
        }
        let version = plan.into_version();
        version.validate().map_err(|source| PlansError::Bounds { origin: origin.to_owned(), source })?;
        if !seen.insert((version.plan_code.clone(), version.version)) {
            return Err(wrong_field(("version".to_owned(), format!("{} is defined twice", version.version))));
        }
        versions.push(version);
    }
    Ok(versions)
}

/// Reads a value. The error is the path of the field and the problem.
fn read<T: DeserializeOwned>(value: Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        (field, words_of(error.into_inner()))
    })
}

/// The plan's code if it can be read, or its number in the file.
fn name_of(plan: &Value, n: usize) -> String {
    let code = plan.clone().into_table().ok().and_then(|mut table| table.remove("code")?.into_string().ok());
    code.unwrap_or_else(|| format!("number {}", n + 1))
}

fn first_double<T: Ord>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    let mut items = items;
    // `replace` gives back an equal item that was there before.
    items.find_map(|item| seen.replace(item))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::credits::Credits;

    const SMALL: &str = r#"
        [[plan]]
        code = "pro"
        version = 2
        name = "Pro"
        allowance = "1000"
        rollover_cap = 200
        monthly_limit = { credits = "5000.5", mode = "soft" }
        rate_limit = { credits = "100", window_s = 60 }
        low_credit_thresholds = ["100", "10"]
        purchased_on_cancel = { expire_after_days = 30 }
        [[plan.feature]]
        code = "video.render"
        unit_price = "0.5"
        limit = { credits = "50", mode = "hard" }
        [[plan.feature]]
        code = "image.upscale"
        enabled = false
    "#;

    #[test]
    fn a_plan_reads_as_the_version_it_describes() {
        let plans = parse(SMALL, "test").unwrap();
        let [plan] = plans.as_slice() else { panic!("one plan expected") };
        assert_eq!((plan.plan_code.as_str(), plan.version, plan.period_months), ("pro", 2, 1));
        assert_eq!((plan.allowance, plan.rollover_cap), (Credits::whole(1000), Credits::whole(200)));
        assert_eq!(plan.overdraft_limit, Credits::ZERO);
        assert_eq!(plan.monthly_limit.map(|limit| limit.credits.to_string()), Some("5000.5".to_owned()));
        assert_eq!(plan.rate_limit, Some(RateLimit { credits: Credits::whole(100), window_s: 60 }));
        assert_eq!(plan.low_credit_thresholds, [Credits::whole(100), Credits::whole(10)]);
        assert_eq!(plan.purchased_on_cancel, PurchasedOnCancel::ExpireAfterDays(30));
        let render = plan.features["video.render"];
        assert_eq!((render.enabled, render.limit), (true, Some(UsageLimit::hard(Credits::whole(50)))));
        assert!(!plan.features["image.upscale"].enabled);
        for (words, policy) in [("\"keep\"", PurchasedOnCancel::Keep), ("\"freeze\"", PurchasedOnCancel::Freeze)] {
            let text = SMALL.replace("{ expire_after_days = 30 }", words);
            assert_eq!(parse(&text, "test").unwrap()[0].purchased_on_cancel, policy);
        }
    }

    #[test]
    fn the_built_in_plans_are_valid_and_serve_the_same_features() {
        let plans = built_in().unwrap();
        let codes: Vec<_> = plans.iter().map(|plan| plan.plan_code.as_str()).collect();
        assert_eq!(codes, ["free", "pro", "scale"]);
        let features = |plan: &PlanVersion| plan.features.keys().cloned().collect::<Vec<_>>();
        assert!(plans.iter().all(|plan| features(plan) == features(&plans[0])));
    }

    #[test]
    fn every_error_names_the_file_the_plan_and_the_field() {
        let error = |from: &str, to: &str| {
            assert!(SMALL.contains(from), "{from}");
            parse(&SMALL.replace(from, to), "shop.toml").unwrap_err().to_string()
        };
        let cases = [
            (("version = 2", "version = 0"), "plan pro version 0: version"),
            (("version = 2", "version = \"two\""), "plan pro: version:"),
            (("name = \"Pro\"", ""), "plan pro: ."),
            (("name = \"Pro\"", "nam = \"Pro\""), "plan pro: nam: unknown field"),
            (("\"1000\"", "10.5"), "plan pro: allowance:"),
            (("\"1000\"", "\"-1\""), "plan pro: allowance:"),
            (("\"100\", \"10\"", "\"100\", \"x\""), "plan pro: low_credit_thresholds[1]:"),
            (("mode = \"soft\"", "mode = \"weak\""), "plan pro: monthly_limit.mode:"),
            (("window_s = 60", "window_s = 0"), "rate_limit.window_s"),
            (("unit_price = \"0.5\"", "unit_price = \"0.5000001\""), "plan pro: feature[0].unit_price:"),
            (("image.upscale", "video.render"), "plan pro: feature: video.render is defined twice"),
            (("image.upscale", "Image"), "plan pro: feature[1].code:"),
            (("code = \"pro\"", ""), "plan number 1: ."),
            (("[[plan]]", "[[plans]]"), "plans"),
            (("[[plan]]", "[[plan"), "is not TOML"),
        ];
        for ((from, to), expected) in cases {
            let message = error(from, to);
            assert!(message.starts_with("plans (shop.toml): ") && message.contains(expected), "{message}");
        }
        let twice = parse(&format!("{SMALL}{SMALL}"), "shop.toml").unwrap_err().to_string();
        assert!(twice.contains("plan pro: version: 2 is defined twice"), "{twice}");
        assert!(parse("", "shop.toml").unwrap_err().to_string().contains("has no [[plan]]"));
    }
}
