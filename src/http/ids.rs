//! Parsing of ids in paths and tokens.

use uuid::Uuid;

/// Parses a hyphenated UUID. The parser of the library would also accept braced and other forms.
#[must_use]
pub fn hyphenated(text: &str) -> Option<Uuid> {
    const HYPHENATED_LEN: usize = 36;
    if text.len() == HYPHENATED_LEN { Uuid::try_parse(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hyphenated_uuids_are_accepted() {
        assert!(hyphenated("019a0000-0000-7000-8000-000000000001").is_some());
        for bad in ["", "1", "019a000000007000800000000000000 1", "{019a0000-0000-7000-8000-000000000001}"] {
            assert!(hyphenated(bad).is_none(), "{bad}");
        }
    }
}
