//! Ids, as a path or a token names them.

use uuid::Uuid;

/// The one text form of a UUID that is taken; the parser knows braced and other forms too.
#[must_use]
pub fn hyphenated(text: &str) -> Option<Uuid> {
    const HYPHENATED_LEN: usize = 36;
    if text.len() == HYPHENATED_LEN { Uuid::try_parse(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_one_text_form() {
        assert!(hyphenated("019a0000-0000-7000-8000-000000000001").is_some());
        for bad in ["", "1", "019a000000007000800000000000000 1", "{019a0000-0000-7000-8000-000000000001}"] {
            assert!(hyphenated(bad).is_none(), "{bad}");
        }
    }
}
