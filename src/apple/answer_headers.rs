//! The headers of Apple's answers.

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue,
    header::{DATE, RETRY_AFTER},
};

use crate::runtime::{SystemTime, since_epoch};

/// The id by which Apple's support finds a request. Seen in practice: hexadecimal.
pub(super) fn trace_id(headers: &HeaderMap) -> Option<Box<str>> {
    let id = headers.get("x-b3-traceid")?.to_str().ok()?;
    let sane =
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    sane.then(|| id.into())
}

/// The seconds by which our clock is ahead of the clock behind `Date`.
pub(super) fn ahead(headers: &HeaderMap, now: SystemTime) -> Option<i64> {
    let theirs = date(headers.get(DATE)?)?.as_secs();
    Some(since_epoch(now).as_secs().cast_signed().saturating_sub_unsigned(theirs))
}

/// The longest `Retry-After`: only that one keeps all of them. A date counts from the answer's own `Date`, because our
/// clock may be wrong.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let now = headers.get(DATE).and_then(date).unwrap_or_else(|| since_epoch(now));
    let time = |value: &HeaderValue| {
        let text = value.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        Some(date(value)?.saturating_sub(now))
    };
    headers.get_all(RETRY_AFTER).iter().filter_map(time).max()
}

/// A date, since the Unix epoch.
fn date(value: &HeaderValue) -> Option<Duration> {
    let date = httpdate::parse_http_date(value.to_str().ok()?.trim()).ok()?;
    date.duration_since(std::time::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use web_time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn when_to_come_back() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_717);
        let cases: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ];
        for (text, expected) in cases {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            let found = retry_after(&headers, now).map(|time| time.as_secs());
            assert_eq!(found, *expected, "{text}");
        }
        for (first, second, expected) in [("3", "9", 9), ("9", "3", 9), ("soon", "3", 3), ("3", "-1", 3)] {
            let mut headers = HeaderMap::new();
            headers.append(RETRY_AFTER, HeaderValue::from_static(first));
            headers.append(RETRY_AFTER, HeaderValue::from_static(second));
            assert_eq!(retry_after(&headers, now).unwrap().as_secs(), expected, "{first} and {second}");
        }
        // Our clock is an hour slow.
        let date = |text| HeaderValue::from_static(text);
        let mut headers = HeaderMap::from_iter([(RETRY_AFTER, date("Sun, 06 Nov 1994 09:48:47 GMT"))]);
        assert_eq!(retry_after(&headers, now).unwrap().as_secs(), 3_610);
        headers.insert(DATE, date("Sun, 06 Nov 1994 09:48:37 GMT"));
        assert_eq!(retry_after(&headers, now).unwrap().as_secs(), 10);
    }
}
