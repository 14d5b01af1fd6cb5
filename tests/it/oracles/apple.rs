//! From Apple's answers to verdicts.

use std::{convert::Infallible, future::ready};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use tower::service_fn;
use tower_devicecheck::{
    AppleClient, Bits, BitsErrorKind, Credentials, DeviceToken, Environment, Verdict, VerifyErrorKind,
    testing::verified_device,
};

use super::{chain, credentials::KEY, wait};

thread_local! {
    static CREDENTIALS: Credentials = Credentials::from_pem("TEAM123456", "KEY1234567", KEY).expect("a key");
}

const TOKEN: &str = "c2VjcmV0IGRldmljZSB0b2tlbg";

/// Reads a status (2 bytes), the choice of headers (1 byte), a value of `Retry-After` up to a line end, and a body. A byte
/// 1 in the body stands for the token, which a server may echo.
pub(crate) fn answer(data: &[u8]) {
    let Some((&[high, low, choice], rest)) = data.split_first_chunk::<3>() else { return };
    let status = 200 + u16::from_be_bytes([high, low]) % 400;
    let (retry_after, body) = match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) if choice & 2 != 0 => (std::str::from_utf8(&rest[..end]).ok(), &rest[end + 1..]),
        _ => (None, rest),
    };
    let body: Vec<u8> = body
        .iter()
        .flat_map(|byte| if *byte == 1 { TOKEN.as_bytes().to_vec() } else { vec![*byte] })
        .collect();
    let is_html = choice & 1 != 0;
    let mut headers = HeaderMap::new();
    if is_html {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("Text/HTML; charset=utf-8"));
    }
    if let Some(value) = retry_after.and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(RETRY_AFTER, value);
    }
    let body_sent = Bytes::from(body.clone());
    let transport = service_fn(move |_: Request<Bytes>| {
        let mut response = Response::new(body_sent.clone());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        response.headers_mut().clone_from(&headers);
        ready(Ok::<_, Infallible>(response))
    });
    let client = || {
        let credentials = CREDENTIALS.with(Clone::clone);
        AppleClient::builder(credentials).transport(transport.clone()).build().expect("a client")
    };
    validate(&client(), status, is_html, &body);
    query(&client(), status, is_html, &body);
}

/// The whole table again, told the other way round: only these answers are verdicts.
fn validate(client: &AppleClient, status: u16, is_html: bool, body: &[u8]) {
    let token: DeviceToken = TOKEN.parse().expect("a token");
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    let is_page = is_html || text.contains('<');
    let is_short = text.len() <= 256 && body.len() <= 4_096;
    let is_text = std::str::from_utf8(body).is_ok_and(|text| {
        !text.contains(|letter: char| letter.is_ascii_control() && !letter.is_ascii_whitespace())
    });
    let is_other_answer = has(&["bit state", "bit0"]) || text.trim_start().starts_with(['{', '[', '"']);
    let is_about_us = has(&["authorization token", "authentication_token", "authentication token"]);
    let expected = match status {
        200 if is_short && is_text && !is_page && !is_other_answer => Some(Verdict::Genuine),
        400 if is_short && !is_page && !is_about_us && has(&["device token"]) => Some(Verdict::Refused),
        _ => None,
    };
    match wait(client.validate(&token, Environment::Production)) {
        Ok(verdict) => assert_eq!(Some(verdict), expected),
        Err(error) => {
            assert_eq!(expected, None);
            assert!(!chain(&error).contains(TOKEN), "{}", chain(&error));
            assert_eq!(error.kind() == VerifyErrorKind::Throttled, status == 429);
            if matches!(status, 401 | 403) && is_short {
                assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
            }
        }
    }
}

/// Bits are those of the answer's JSON, or none if Apple says that there are none.
fn query(client: &AppleClient, status: u16, is_html: bool, body: &[u8]) {
    let device = verified_device(TOKEN.parse().expect("a token"), Environment::Production);
    let text = std::str::from_utf8(body).unwrap_or_default();
    match wait(client.query_bits(&device)) {
        Ok(bits) => {
            assert!(status == 200 && body.len() <= 4_096);
            let lower = text.to_ascii_lowercase();
            if !lower.contains("bit state not found") && !lower.contains("failed to find bit state") {
                let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
                assert_eq!(
                    (json["bit0"].as_bool(), json["bit1"].as_bool()),
                    (Some(bits.bit0()), Some(bits.bit1()))
                );
                let month =
                    bits.last_update().map(|month| format!("{:04}-{:02}", month.year(), month.month()));
                assert_eq!(json["last_update_time"].as_str(), month.as_deref());
            } else {
                assert_eq!(bits, Bits::default());
            }
        }
        Err(error) => {
            assert!(!chain(&error).contains(TOKEN));
            let refuses = status == 400 && !is_html && text.len() <= 256;
            assert!(error.kind() != BitsErrorKind::RefusedToken || refuses);
        }
    }
}
