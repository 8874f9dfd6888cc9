//! The `Accept` header: which form of an answer a caller prefers (RFC 9110, section 12.5.1).

use actix_web::http::header::{ACCEPT, HeaderMap};

/// The weight of a media range without one, in thousandths.
const FULL_WEIGHT: u16 = 1000;

/// How well a media type suits a caller: its weight in thousandths, then how specific the range is that names it.
type Suits = (u16, u8);

/// The offer that the caller prefers: its media type and what it stands for. None if the caller accepts none of them.
/// Without the header, and among those that suit alike, it is the first.
pub fn preferred<T: Copy>(headers: &HeaderMap, offers: &[(&str, T)]) -> Option<T> {
    let mut values = headers.get_all(ACCEPT).peekable();
    if values.peek().is_none() {
        return offers.first().map(|(_, offer)| *offer);
    }
    let ranges: Vec<&str> = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).collect();
    let mut best: Option<(Suits, T)> = None;
    for (media_type, offer) in offers {
        let suits = suits(&ranges, media_type);
        if suits.0 > 0 && best.is_none_or(|(before, _)| suits > before) {
            best = Some((suits, *offer));
        }
    }
    best.map(|(_, offer)| offer)
}

/// The most specific range that includes the media type decides. Its weight is zero if there is none.
fn suits(ranges: &[&str], media_type: &str) -> Suits {
    let including = ranges.iter().filter_map(|range| including(range, media_type));
    including.max().map_or((0, 0), |(specificity, weight)| (weight, specificity))
}

/// If a media range includes the media type: how specific it is, and its weight. Other parameters are ignored.
fn including(range: &str, media_type: &str) -> Option<(u8, u16)> {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let (kind, _) = media_type.split_once('/')?;
    let specificity = if name.eq_ignore_ascii_case(media_type) {
        2
    } else if name.strip_suffix("/*").is_some_and(|of| of.eq_ignore_ascii_case(kind)) {
        1
    } else if name == "*/*" {
        0
    } else {
        return None;
    };
    let mut parameters = parts.filter_map(|parameter| parameter.split_once('='));
    let weight = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    Some((specificity, weight.map_or(FULL_WEIGHT, |(_, weight)| thousandths(weight.trim()))))
}

/// A weight such as `0.25`. One that is malformed counts as 1.
fn thousandths(weight: &str) -> u16 {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    match whole {
        "0" if fraction.bytes().all(|byte| byte.is_ascii_digit()) => {
            let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
            digits.parse().unwrap_or(FULL_WEIGHT)
        }
        _ => FULL_WEIGHT,
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    const JSON: [(&str, &str); 1] = [("application/json", "json")];
    const LIST: [(&str, &str); 3] =
        [("application/json", "json"), ("text/csv", "csv"), ("application/x-ndjson", "lines")];

    fn headers(accept: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in accept {
            map.append(ACCEPT, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn json_is_accepted_if_a_media_range_includes_it_with_a_weight_above_zero() {
        let accepts_json = |accept: &str| preferred(&headers(&[accept]), &JSON).is_some();
        for good in ["*/*", "application/json", "text/html, application/*;q=0.1", "APPLICATION/JSON;q=1"] {
            assert!(accepts_json(good), "{good}");
        }
        for good in ["*/*;q=0, application/json", "application/json;q=0, application/json"] {
            assert!(accepts_json(good), "{good}");
        }
        for bad in ["application/json;q=0, */*", "*/*, application/*;q=0.0"] {
            assert!(!accepts_json(bad), "{bad}");
        }
        for bad in ["text/html", "application/xml, text/*", "application/json;q=0", "application/json; Q = 0.000", ""] {
            assert!(!accepts_json(bad), "{bad}");
        }
        assert!(preferred(&headers(&[]), &JSON).is_some());
    }

    #[test]
    fn the_media_type_with_the_highest_weight_is_preferred() {
        for (accept, expected) in [
            (&[][..], Some("json")),
            (&["*/*"], Some("json")),
            (&["application/*"], Some("json")),
            (&["text/*"], Some("csv")),
            (&["text/csv"], Some("csv")),
            (&["TEXT/CSV; charset=utf-8"], Some("csv")),
            (&["application/x-ndjson, application/json;q=0.9"], Some("lines")),
            (&["application/json;q=0.5, text/csv;q=0.51"], Some("csv")),
            (&["application/json;q=0.5", "text/csv;q=0.501"], Some("csv")),
            (&["text/csv;q=0.1, */*;q=0.2"], Some("json")),
            (&["text/csv;q=0, */*"], Some("json")),
            (&["application/json;q=0, */*"], Some("csv")),
            (&["text/html,application/xml;q=0.9,*/*;q=0.8"], Some("json")),
            (&["text/csv;q=high"], Some("csv")),
            (&["text/html"], None),
            (&["application/json;q=0"], None),
            (&["text/csv;q=0, application/x-ndjson;q=0.000"], None),
            (&[""], None),
        ] {
            assert_eq!(preferred(&headers(accept), &LIST), expected, "{accept:?}");
        }
    }

    #[test]
    fn among_equal_weights_the_one_that_is_named_comes_first_and_then_the_order_of_the_server() {
        for (accept, expected) in [
            ("text/csv, */*", "csv"),
            ("*/*, application/x-ndjson", "lines"),
            ("text/csv, application/json", "json"),
            ("application/x-ndjson, text/csv", "csv"),
            ("text/*, application/*", "json"),
        ] {
            assert_eq!(preferred(&headers(&[accept]), &LIST), Some(expected), "{accept}");
        }
    }
}
