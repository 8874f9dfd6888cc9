//! Texts that callers send: codes, keys, references and names, each with its own type and bound.
//!
//! A text is checked once, when it is read; afterwards its type guarantees that it is valid. Control
//! characters and bidirectional overrides are refused everywhere (PostgreSQL stores no `\u0000`,
//! and the others can only deceive a reader). Texts must be in Unicode NFC, so that two identifiers that
//! look the same are the same.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, de};
use unicode_normalization::is_nfc;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// Why a field's value was refused. Each reason has a stable code in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldCode {
    Invalid,
    AmountOutOfRange,
    InvalidText,
}

impl FieldCode {
    pub const ALL: [Self; 3] = [Self::Invalid, Self::AmountOutOfRange, Self::InvalidText];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid-field",
            Self::AmountOutOfRange => "amount-out-of-range",
            Self::InvalidText => "invalid-text",
        }
    }
}

/// A refused value. Its text form is `code: detail`, because an error of serde can only contain text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct FieldError {
    pub code: FieldCode,
    pub detail: String,
}

impl FieldError {
    pub fn new(code: FieldCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    #[must_use]
    pub fn amount_out_of_range() -> Self {
        Self::new(FieldCode::AmountOutOfRange, "the amount is zero, negative or too large for this field")
    }
}

/// Refuses control characters, bidirectional controls and invisible line separators.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{2028}' | '\u{2029}' | '\u{FEFF}')
        || ('\u{202A}'..='\u{202E}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// Checks a free text: 1 to `max` characters, none deceptive, in NFC.
pub fn check_text(text: &str, max: usize) -> Result<(), FieldError> {
    let refuse = |detail: String| Err(FieldError::new(FieldCode::InvalidText, detail));
    if text.is_empty() || text.chars().nth(max).is_some() {
        return refuse(format!("must have 1 to {max} characters"));
    }
    if text.chars().any(is_deceptive) {
        return refuse("must not contain control characters or bidirectional overrides".into());
    }
    if !is_nfc(text) {
        return refuse("must be in Unicode normalization form C".into());
    }
    Ok(())
}

/// Whether a character has no width, so that a reader cannot see it.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{00AD}' | '\u{115F}' | '\u{1160}' | '\u{180E}' | '\u{200B}'..='\u{200D}' | '\u{2060}'..='\u{2064}'
            | '\u{206A}'..='\u{206F}' | '\u{3164}' | '\u{FFA0}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}'
    )
}

/// Checks an identifier: no invisible characters and no white space (of any kind) at its ends, so that two
/// identifiers that look the same are the same.
fn check_identifier(text: &str, max: usize) -> Result<(), FieldError> {
    check_visible(text, max, is_invisible)
}

/// Checks a name for people: like an identifier, but with the joiners that some scripts need.
fn check_name(text: &str, max: usize) -> Result<(), FieldError> {
    check_visible(text, max, |c| is_invisible(c) && !matches!(c, '\u{200C}' | '\u{200D}'))
}

fn check_visible(text: &str, max: usize, is_refused: fn(char) -> bool) -> Result<(), FieldError> {
    check_text(text, max)?;
    let refuse = |detail: &str| Err(FieldError::new(FieldCode::InvalidText, detail));
    if text.trim() != text {
        return refuse("must not begin or end with white space");
    }
    if text.chars().any(is_refused) {
        return refuse("must not contain invisible characters");
    }
    Ok(())
}

/// Checks a code: 1 to 64 lower-case letters, digits and `_ . -`, beginning with a letter or digit.
fn check_code(text: &str, max: usize) -> Result<(), FieldError> {
    let tail = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
    let head = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if bytes.first().copied().is_some_and(head) && bytes.len() <= max && bytes.iter().copied().all(tail) {
        return Ok(());
    }
    Err(FieldError::new(
        FieldCode::InvalidText,
        format!("must be 1 to {max} lower-case letters, digits, '_', '.' or '-', beginning with a letter or digit"),
    ))
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check:expr, max = $max:literal, pattern = $pattern:expr, example = $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The most characters it may have.
            pub const MAX_LEN: usize = $max;

            pub fn new(text: &str) -> Result<Self, FieldError> {
                let check: fn(&str, usize) -> Result<(), FieldError> = $check;
                check(text, Self::MAX_LEN)?;
                Ok(Self(text.into()))
            }

            /// A text from a store. It was checked before it was written.
            #[must_use]
            pub fn from_stored(text: &str) -> Self {
                Self(text.into())
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(de::Error::custom)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(SchemaType::new(Type::String))
                    .min_length(Some(1))
                    .max_length(Some(Self::MAX_LEN))
                    .pattern($pattern)
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }

        impl ToSchema for $name {}
    };
}

const CODE_PATTERN: Option<&str> = Some("^[a-z0-9][a-z0-9_.-]{0,63}$");

text_type!(
    /// The code of a feature, as plans name it.
    FeatureCode, check_code, max = 64, pattern = CODE_PATTERN, example = "video.render"
);
text_type!(
    /// The code of a plan; with a version it names one immutable [`super::plan::PlanVersion`].
    PlanCode, check_code, max = 64, pattern = CODE_PATTERN, example = "pro"
);
text_type!(
    /// The name of a queue.
    QueueName, check_code, max = 64, pattern = CODE_PATTERN, example = "video_processing"
);
text_type!(
    /// What a job is, as workers know it.
    JobKind, check_code, max = 64, pattern = CODE_PATTERN, example = "video_processing.analyse"
);
text_type!(
    /// What only one job of a workspace and a kind may be about at a time.
    UniqueKey, check_identifier, max = 128, pattern = None::<&str>, example = "video-17"
);
text_type!(
    /// The caller's own id of the person or service that used something.
    UserId, check_identifier, max = 128, pattern = None::<&str>, example = "user-7"
);
text_type!(
    /// The caller's id of a payment, unique per workspace.
    PaymentReference, check_identifier, max = 128, pattern = None::<&str>, example = "pay_2f6d"
);
text_type!(
    /// A name or reason for people to read.
    Label, check_name, max = 200, pattern = None::<&str>, example = "Acme Studio"
);
text_type!(
    /// Makes a command safe to send again; unique per workspace. Keys of callers contain visible ASCII only. Keys of
    /// internal commands contain a space, so they never collide with those of callers.
    IdempotencyKey, check_key, max = 255, pattern = Some(r"^[!#-\[\]-~]{1,255}$"), example = "order-1042"
);

fn check_key(text: &str, max: usize) -> Result<(), FieldError> {
    let visible = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if !text.is_empty() && text.len() <= max && text.bytes().all(visible) {
        return Ok(());
    }
    Err(FieldError::new(
        FieldCode::InvalidText,
        format!("must be 1 to {max} visible ASCII characters without quotes and backslashes"),
    ))
}

impl IdempotencyKey {
    /// A key of the server itself, such as `system provision`.
    #[must_use]
    pub fn system(words: fmt::Arguments<'_>) -> Self {
        Self(format!("system {words}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_lower_case_ascii_of_bounded_length() {
        for good in ["a", "video.render", "gpt-4o_mini", "0x", &"a".repeat(64)] {
            assert!(FeatureCode::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", ".a", "a b", "a/b", "é", "a\n", &"a".repeat(65)] {
            assert_eq!(FeatureCode::new(bad).unwrap_err().code, FieldCode::InvalidText, "{bad:?}");
        }
    }

    #[test]
    fn a_text_has_no_deceptive_characters_and_is_nfc() {
        for good in ["user-7", "Zoë", "名前", &"é".repeat(128)] {
            assert!(UserId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a\u{0}", "a\u{202E}b", "a\u{2066}", "Zoe\u{308}", "a\tb", &"é".repeat(129)] {
            assert!(UserId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_identifier_and_a_name_have_no_invisible_characters() {
        let edges = [" a", "a ", "\u{A0}a", "a\u{A0}", "\u{3000}a", "a\u{2009}"];
        let invisible = [
            "a\u{200B}b",
            "a\u{2060}b",
            "a\u{2064}",
            "a\u{AD}b",
            "a\u{180E}b",
            "a\u{FFF9}b",
            "a\u{E0001}b",
            "a\u{E007F}",
            "\u{3164}",
            "\u{115F}",
            "\u{1160}",
            "a\u{200E}b",
            "a\u{FEFF}",
        ];
        for bad in edges.iter().chain(&invisible) {
            assert!(UserId::new(bad).is_err() && PaymentReference::new(bad).is_err(), "{bad:?}");
            assert!(Label::new(bad).is_err(), "{bad:?}");
        }
        for joined in ["نمی\u{200C}شود", "👩\u{200D}🚀"] {
            assert!(Label::new(joined).is_ok() && UserId::new(joined).is_err(), "{joined:?}");
        }
        for good in ["a b", "a\u{A0}b", "名前"] {
            assert!(UserId::new(good).is_ok() && Label::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn the_key_of_a_caller_never_equals_a_key_of_the_server() {
        let system = IdempotencyKey::system(format_args!("provision"));
        assert!(IdempotencyKey::new(system.as_str()).is_err());
        assert!(IdempotencyKey::new("order-1042").is_ok());
        assert!(IdempotencyKey::new("a\"b").is_err());
    }
}
