//! Amounts: credits and quantities, and all rounding.
//!
//! A credit amount is a whole number of micro-credits. In JSON it goes out as a decimal string
//! (`"12.5"`) and comes in as a decimal string with at most six places, or as a JSON integer of
//! whole credits. There is deliberately no conversion from or to a float, and no unchecked operator:
//! every operation says what happens at the bounds.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{OneOfBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::text::{FieldCode, FieldError};

/// Micro-credits in one credit: six decimal places.
const SCALE: i64 = 1_000_000;
/// The largest amount and the largest balance: 10^12 credits. Two of them add up within an `i64`,
/// so a sum is checked against the bound and can never wrap before that.
const MAX_MICRO: i64 = 1_000_000_000_000 * SCALE;
/// The most digits before the point: those of the largest amount.
const MAX_WHOLE_DIGITS: usize = 13;
/// Whole credits beyond every amount: a JSON number of this size is too large in any form.
const BEYOND_MAX: f64 = 1e12;

/// An amount of credits in micro-credits, within ±10^12 credits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Credits(i64);

/// The result is outside the range of [`Credits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the amount is out of range")]
pub struct OutOfRange;

impl Credits {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(MAX_MICRO);

    /// Whole credits. For constants and tests; panics at compile time when out of range.
    #[must_use]
    pub const fn whole(credits: i64) -> Self {
        assert!(credits.abs() <= MAX_MICRO / SCALE, "out of range");
        Self(credits * SCALE)
    }

    pub fn from_micro(micro: i64) -> Result<Self, OutOfRange> {
        if (-MAX_MICRO..=MAX_MICRO).contains(&micro) { Ok(Self(micro)) } else { Err(OutOfRange) }
    }

    /// The amount in micro-credits, as the stores keep it.
    #[must_use]
    pub const fn micro(self) -> i64 {
        self.0
    }

    pub fn plus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_add(other.0).ok_or(OutOfRange).and_then(Self::from_micro)
    }

    pub fn minus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_sub(other.0).ok_or(OutOfRange).and_then(Self::from_micro)
    }

    /// `self - other`, but never below zero.
    #[must_use]
    pub fn minus_or_zero(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// `self + other`, but never above the largest amount. Only for sums that are compared and not booked.
    #[must_use]
    pub fn saturating_plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0).min(MAX_MICRO))
    }

    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// The amount, or nothing if it is zero or less: for a part that is named only where there is one.
    #[must_use]
    pub fn positive(self) -> Option<Self> {
        self.is_positive().then_some(self)
    }

    /// `part / whole` of this amount, rounded down to a micro-credit: the amount for a part of a period.
    /// `part` is clamped to `0..=whole`.
    #[must_use]
    pub fn prorate(self, part: i64, whole: i64) -> Self {
        if whole <= 0 {
            return Self::ZERO;
        }
        let part = part.clamp(0, whole);
        let micro = i128::from(self.0) * i128::from(part) / i128::from(whole);
        Self(i64::try_from(micro).unwrap_or(self.0))
    }

    pub fn sum(amounts: impl IntoIterator<Item = Self>) -> Result<Self, OutOfRange> {
        amounts.into_iter().try_fold(Self::ZERO, Self::plus)
    }
}

/// An amount of whatever a feature counts (seconds, tokens, images), in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(i64);

impl Quantity {
    pub fn from_micro(micro: i64) -> Result<Self, OutOfRange> {
        if (1..=MAX_MICRO).contains(&micro) { Ok(Self(micro)) } else { Err(OutOfRange) }
    }

    #[must_use]
    pub const fn micro(self) -> i64 {
        self.0
    }

    /// What this quantity costs at a price per unit: the only rounding of a charge, up to one
    /// micro-credit, so that a charge is never less than its exact price.
    pub fn cost(self, unit_price: Credits) -> Result<Credits, OutOfRange> {
        let exact = i128::from(self.0) * i128::from(unit_price.0);
        let scale = i128::from(SCALE);
        let micro = exact.div_euclid(scale) + i128::from(exact.rem_euclid(scale) != 0);
        i64::try_from(micro).map_err(|_| OutOfRange).and_then(Credits::from_micro)
    }
}

/// A sum of amounts, or of quantities, in millionths. It may be larger than a single one can be.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecimalSum(i64);

impl DecimalSum {
    #[allow(clippy::unnecessary_wraps, reason = "every sum is in range, and the decimals share their parser")]
    pub const fn from_micro(micro: i64) -> Result<Self, OutOfRange> {
        Ok(Self(micro))
    }

    #[must_use]
    pub const fn of_micro(micro: i64) -> Self {
        Self(micro)
    }
}

/// Parses a plain decimal: an optional minus, digits, and at most six places. No exponent, no
/// plus, no space, no leading or trailing point.
fn parse_micro(text: &str) -> Result<i64, FieldError> {
    let form = || FieldError::new(FieldCode::Invalid, "must be a decimal number with at most six places");
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(form()),
        None => (digits, ""),
    };
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 6 {
        return Err(form());
    }
    let out_of_range = || FieldError::amount_out_of_range();
    // Leading zeros count: what is taken is what the published pattern says.
    if whole.len() > MAX_WHOLE_DIGITS {
        return Err(out_of_range());
    }
    let whole: i64 = whole.parse().map_err(|_| out_of_range())?;
    let places: i64 = format!("{fraction:0<6}").parse().map_err(|_| form())?;
    let micro = whole.checked_mul(SCALE).and_then(|scaled| scaled.checked_add(places)).ok_or_else(out_of_range)?;
    Ok(if negative { -micro } else { micro })
}

fn write_micro(micro: i64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if micro < 0 { "-" } else { "" };
    let (whole, places) = (micro.unsigned_abs() / SCALE.unsigned_abs(), micro.unsigned_abs() % SCALE.unsigned_abs());
    if places == 0 {
        return write!(f, "{sign}{whole}");
    }
    let text = format!("{places:06}");
    write!(f, "{sign}{whole}.{}", text.trim_end_matches('0'))
}

/// Reads a JSON string or integer as millionths.
struct MicroVisitor;

impl de::Visitor<'_> for MicroVisitor {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a decimal string or an integer")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<i64, E> {
        parse_micro(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, whole: i64) -> Result<i64, E> {
        whole.checked_mul(SCALE).ok_or_else(|| E::custom(FieldError::amount_out_of_range()))
    }

    fn visit_u64<E: de::Error>(self, whole: u64) -> Result<i64, E> {
        i64::try_from(whole)
            .map_err(|_| E::custom(FieldError::amount_out_of_range()))
            .and_then(|whole| self.visit_i64(whole))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<i64, E> {
        // An integer beyond 64 bits and -0 come as floats.
        if number.abs() >= BEYOND_MAX || number == 0.0 {
            return Err(E::custom(FieldError::amount_out_of_range()));
        }
        Err(E::custom(FieldError::new(
            FieldCode::Invalid,
            "a number with a fraction or an exponent must be sent as a decimal string",
        )))
    }
}

macro_rules! decimal {
    ($name:ident, $title:literal, $example:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_micro(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = FieldError;

            fn from_str(text: &str) -> Result<Self, FieldError> {
                Self::from_micro(parse_micro(text)?).map_err(|_| FieldError::amount_out_of_range())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let micro = deserializer.deserialize_any(MicroVisitor)?;
                Self::from_micro(micro).map_err(|_| de::Error::custom(FieldError::amount_out_of_range()))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(SchemaType::new(Type::String))
                    .title(Some($title))
                    .description(Some("A decimal string with at most six places; never a float."))
                    .pattern(Some(r"^-?[0-9]{1,13}(\.[0-9]{1,6})?$"))
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }

        impl ToSchema for $name {}
    };
}

decimal!(Credits, "An amount of credits", "12.5");
decimal!(DecimalSum, "A sum of amounts or of quantities", "1012.5");
decimal!(Quantity, "A quantity of what the feature counts", "3");

/// A [`Credits`] that a caller sends as an amount: more than zero. A decimal string or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PositiveCredits(Credits);

impl PositiveCredits {
    #[must_use]
    pub fn new(credits: Credits) -> Option<Self> {
        credits.is_positive().then_some(Self(credits))
    }

    #[must_use]
    pub const fn get(self) -> Credits {
        self.0
    }
}

impl<'de> Deserialize<'de> for PositiveCredits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let credits = Credits::deserialize(deserializer)?;
        if credits.is_positive() {
            Ok(Self(credits))
        } else {
            Err(de::Error::custom(FieldError::amount_out_of_range()))
        }
    }
}

/// A [`Credits`] that a caller sends as a limit: zero or more. A decimal string or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LimitCredits(Credits);

impl LimitCredits {
    #[must_use]
    pub const fn get(self) -> Credits {
        self.0
    }
}

impl<'de> Deserialize<'de> for LimitCredits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let credits = Credits::deserialize(deserializer)?;
        if credits < Credits::ZERO {
            Err(de::Error::custom(FieldError::amount_out_of_range()))
        } else {
            Ok(Self(credits))
        }
    }
}

macro_rules! amount_in_schema {
    ($name:ident, $minimum:literal, $pattern:literal, $words:literal, $example:literal) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some($pattern));
                let whole = ObjectBuilder::new()
                    .schema_type(SchemaType::new(Type::Integer))
                    .minimum(Some($minimum))
                    .maximum(Some(1_000_000_000_000_i64));
                OneOfBuilder::new()
                    .item(text)
                    .item(whole)
                    .description(Some($words))
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }

        impl ToSchema for $name {}
    };
}

amount_in_schema!(
    PositiveCredits,
    1,
    r"^(?=.*[1-9])[0-9]{1,13}(\.[0-9]{1,6})?$",
    "Credits, more than zero and at most 10^12: a decimal string with at most six places, or an integer.",
    "2.5"
);
amount_in_schema!(
    LimitCredits,
    0,
    r"^[0-9]{1,13}(\.[0-9]{1,6})?$",
    "Credits, zero to 10^12: a decimal string with at most six places, or an integer.",
    "500"
);

/// How a caller writes a [`Quantity`]; answers write it as a decimal string.
#[derive(Clone, Copy, Debug)]
pub struct SentQuantity;

amount_in_schema!(
    SentQuantity,
    1,
    r"^(?=.*[1-9])[0-9]{1,13}(\.[0-9]{1,6})?$",
    "A quantity, more than zero and at most 10^12: a decimal string with at most six places, or an integer.",
    "3"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_reads_and_writes_as_the_same_text() {
        for text in ["0", "1", "12.5", "0.000001", "-3.25", "1000000000000", "-1000000000000"] {
            let credits: Credits = text.parse().unwrap();
            assert_eq!(credits.to_string(), text);
        }
    }

    #[test]
    fn other_forms_of_a_number_are_refused() {
        for text in ["", ".", "1.", ".5", "+1", "1e3", " 1", "1 ", "0x1", "1.0000001", "--1", "1,5", "٣", "NaN"] {
            let error = text.parse::<Credits>().unwrap_err();
            assert_eq!(error.code, FieldCode::Invalid, "{text:?}");
        }
    }

    #[test]
    fn amounts_end_exactly_at_their_bound() {
        assert_eq!("1000000000000".parse(), Ok(Credits::MAX));
        for text in ["1000000000000.000001", "-1000000000000.000001", "99999999999999999999999", "00000000000001"] {
            let error = text.parse::<Credits>().unwrap_err();
            assert_eq!(error.code, FieldCode::AmountOutOfRange, "{text:?}");
        }
        assert_eq!(Credits::MAX.plus(Credits::from_micro(1).unwrap()), Err(OutOfRange));
        assert_eq!(Credits::ZERO.minus(Credits::MAX).map(Credits::micro), Ok(-MAX_MICRO));
        assert!(Quantity::from_micro(0).is_err());
    }

    #[test]
    fn json_takes_strings_and_integers_and_no_floats() {
        let read = |json: &str| serde_json::from_str::<PositiveCredits>(json).map(|amount| amount.get().to_string());
        assert_eq!(read("\"2.50\"").unwrap(), "2.5");
        assert_eq!(read("7").unwrap(), "7");
        for json in ["2.5", "1e3", "0", "\"0\"", "-1", "\"-1\"", "true", "null", "18446744073709551615"] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_price_is_rounded_up_to_one_micro_credit_and_only_when_needed() {
        let cost = |quantity: &str, price: &str| {
            quantity.parse::<Quantity>().unwrap().cost(price.parse().unwrap()).map(|cost| cost.to_string())
        };
        assert_eq!(cost("3", "0.5").unwrap(), "1.5");
        assert_eq!(cost("0.000001", "0.000001").unwrap(), "0.000001");
        assert_eq!(cost("0.333333", "0.01").unwrap(), "0.003334");
        assert_eq!(cost("5", "0").unwrap(), "0");
        assert_eq!(cost("1000000000000", "1.000001"), Err(OutOfRange));
    }

    #[test]
    fn a_prorated_amount_is_rounded_down_and_at_most_the_whole() {
        let ten = Credits::whole(10);
        assert_eq!(ten.prorate(1, 3).to_string(), "3.333333");
        assert_eq!(ten.prorate(5, 3), ten);
        assert_eq!(ten.prorate(-1, 3), Credits::ZERO);
        assert_eq!(Credits::MAX.prorate(i64::MAX - 1, i64::MAX).to_string(), "999999999999.999999");
        assert_eq!(ten.prorate(1, 0), Credits::ZERO);
    }
}
