//! Instants: UTC, whole microseconds.
//!
//! A [`Timestamp`] is truncated when it is created, so decisions, rows, hashes and answers have the same value on
//! every database.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::text::{FieldCode, FieldError};

/// A UTC instant in microseconds since 1970, within the years 1900 to 9999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 1900-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z, in microseconds.
const MIN_MICROS: i64 = -2_208_988_800_000_000;
const MAX_MICROS: i64 = 253_402_300_799_999_999;

const HOUR_MICROS: i64 = 3_600_000_000;

/// How far the clocks of replicas may differ. NTP keeps them far closer.
pub const MAX_CLOCK_DIFFERENCE: TimeDelta = TimeDelta::seconds(10);

/// The two instants of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandTimes {
    /// When the command was received. It decides what is due, expired or within a window: otherwise a clock that was
    /// ahead once would decide for all later commands.
    pub now: Timestamp,
    /// The instant of everything that the command records: `now`, but always later than the command before it. So no
    /// two commands of a workspace share an instant, even if the clocks of the replicas differ, and no two periods
    /// begin at the same instant.
    pub recorded_at: Timestamp,
}

impl Timestamp {
    pub const MIN: Self = Self(MIN_MICROS);
    pub const MAX: Self = Self(MAX_MICROS);

    /// Truncates to microseconds and clamps to the years 1900 to 9999.
    #[must_use]
    pub fn from_datetime(at: DateTime<Utc>) -> Self {
        Self::from_micros(at.timestamp_micros())
    }

    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        if micros < MIN_MICROS {
            Self(MIN_MICROS)
        } else if micros > MAX_MICROS {
            Self(MAX_MICROS)
        } else {
            Self(micros)
        }
    }

    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    #[must_use]
    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::UNIX_EPOCH)
    }

    /// The first instant of the hour that it is in, in UTC.
    #[must_use]
    pub const fn start_of_hour(self) -> Self {
        Self::from_micros(self.0.div_euclid(HOUR_MICROS) * HOUR_MICROS)
    }

    /// One microsecond later.
    #[must_use]
    pub const fn next(self) -> Self {
        Self::from_micros(self.0.saturating_add(1))
    }

    #[must_use]
    pub fn plus(self, delta: TimeDelta) -> Self {
        let micros = delta.num_microseconds().unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    #[must_use]
    pub fn minus(self, delta: TimeDelta) -> Self {
        self.plus(-delta)
    }

    /// How long ago the other instant was; zero if it is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or_default())
    }
}

/// A day in UTC. Its text is `YYYY-MM-DD`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(Timestamp);

impl Day {
    const MICROS: i64 = 86_400_000_000;

    /// The day that an instant is in.
    #[must_use]
    pub fn of(at: Timestamp) -> Self {
        Self(Timestamp::from_micros(at.micros().div_euclid(Self::MICROS) * Self::MICROS))
    }

    /// Its first instant.
    #[must_use]
    pub const fn start(self) -> Timestamp {
        self.0
    }

    /// So many days later.
    #[must_use]
    pub fn plus(self, days: i64) -> Self {
        Self::of(self.0.plus(TimeDelta::days(days)))
    }

    /// How many days the other one is later.
    #[must_use]
    pub fn days_to(self, other: Self) -> i64 {
        other.0.micros().saturating_sub(self.0.micros()) / Self::MICROS
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.to_datetime().format("%Y-%m-%d"))
    }
}

impl fmt::Debug for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The parser alone would accept signs, spaces and fewer digits.
        let is_plain = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let at = is_plain.then(|| format!("{text}T00:00:00Z").parse().ok()).flatten();
        let refuse = || FieldError::new(FieldCode::Invalid, "must be a day, such as 2026-01-31");
        at.map(Self::of).ok_or_else(|| de::Error::custom(refuse()))
    }
}

impl PartialSchema for Day {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Date)))
            .description(Some("A day in UTC."))
            .examples([serde_json::json!("2026-01-31")])
            .into()
    }
}

impl ToSchema for Day {}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_datetime().to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = |detail: &str| FieldError::new(FieldCode::Invalid, detail);
        let form = || refuse("must be an RFC 3339 timestamp, such as 2026-01-31T09:00:00Z");
        // The parser also accepts a space between date and time, which RFC 3339's grammar does not.
        if !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
            return Err(form());
        }
        let at = DateTime::parse_from_rfc3339(text).map_err(|_| form())?;
        let micros = at.timestamp_micros();
        if (MIN_MICROS..=MAX_MICROS).contains(&micros) {
            Ok(Self(micros))
        } else {
            Err(refuse("must be within the years 1900 to 9999"))
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("An RFC 3339 instant; in answers always UTC with microseconds."))
            .examples([serde_json::json!("2026-01-31T09:00:00.000000Z")])
            .into()
    }
}

impl ToSchema for Timestamp {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_a_later_instant_is_zero() {
        let [early, late] = [1, 3].map(Timestamp::from_micros);
        assert_eq!([late.since(early), early.since(late)], [Duration::from_micros(2), Duration::ZERO]);
        assert_eq!(Timestamp::MIN.since(Timestamp::MAX), Duration::ZERO);
    }

    #[test]
    fn nanoseconds_are_truncated_and_the_text_form_is_always_microseconds() {
        let at: Timestamp = "2026-01-31T10:00:00.123456789+01:00".parse().unwrap();
        assert_eq!(at.to_string(), "2026-01-31T09:00:00.123456Z");
        let whole: Timestamp = "2026-01-31T09:00:00Z".parse().unwrap();
        assert_eq!(whole.to_string(), "2026-01-31T09:00:00.000000Z");
    }

    #[test]
    fn years_outside_the_range_of_both_databases_are_refused() {
        for text in [
            "1899-12-31T23:59:59Z",
            "+10000-01-01T00:00:00Z",
            "yesterday",
            "2026-01-31 09:00:00Z",
            "2026-02-30T00:00:00Z",
            "",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
        assert!("9999-12-31T23:59:59.999999Z".parse::<Timestamp>().is_ok());
        let last = Timestamp::from_micros(i64::MAX);
        assert_eq!(last.plus(TimeDelta::days(1)), last);
    }
}
