use web_time::UNIX_EPOCH;

use super::*;

fn response(status: u16, headers: &[(&'static str, &str)], body: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    response
}

fn class(status: u16, body: &str) -> Class {
    look_up(Operation::Validate, &response(status, &[], body)).0
}

#[test]
fn every_known_answer() {
    use Class::*;
    let cases: &[(u16, &str, Class)] = &[
        (200, "", Accepted),
        (200, "anything", Accepted),
        (400, "Bad Device Token", RefusedDeviceToken),
        (400, "Missing or incorrectly formatted device token payload", RefusedDeviceToken),
        (
            400,
            r#"{"responseCode":"400","responseMessage":"Missing or badly formatted device token payload"}"#,
            RefusedDeviceToken,
        ),
        (400, "Bad device token <br>", Unavailable),
        (200, "<html>", Misconfigured),
        (200, "{}", Unavailable),
        (200, "Bit State Not Found", Unavailable),
        (400, "Bad Authorization Token", RefusedProviderToken),
        (400, "Bad device token, bad authorization token", RefusedProviderToken),
        (400, "Missing or badly formatted authorization token", RefusedProviderToken),
        (400, "BAD_AUTHENTICATION_TOKEN", RefusedProviderToken),
        (401, "Invalid Authorization Token", RefusedProviderToken),
        (401, "Authorization Token Expired", RefusedProviderToken),
        (401, "Unable to verify authorization token", RefusedProviderToken),
        (401, "", RefusedProviderToken),
        (401, "something about a device token", RefusedProviderToken),
        (400, "Bad Bits", Misconfigured),
        (400, "Missing or incorrectly formatted bits", Misconfigured),
        (400, "Bad Timestamp", Misconfigured),
        (400, "Missing or incorrectly formatted time stamp", Misconfigured),
        (400, "Bad Payload", Misconfigured),
        (403, "Forbidden", RefusedProviderToken),
        (403, "", RefusedProviderToken),
        (404, "", Misconfigured),
        (405, "Method Not Allowed", Misconfigured),
        (429, "Too Many Requests", Throttled),
        (429, "", Throttled),
        (400, "", Unavailable),
        (400, " \n", Unavailable),
        (400, "device", Unavailable),
        (400, "token", Unavailable),
        (400, "<html>Bad Request</html>", Unavailable),
        (400, "\u{fffd}", Unavailable),
        (500, "Server Error", Unavailable),
        (500, "bad device token", Unavailable),
        (502, "", Unavailable),
        (503, "Service Unavailable", Unavailable),
        (504, "", Unavailable),
        (599, "", Unavailable),
        (999, "", Unavailable),
        (100, "", Unavailable),
        (201, "", Unavailable),
        (204, "", Unavailable),
        (206, "", Unavailable),
        (301, "", Unavailable),
        (302, "bad device token", Unavailable),
        (304, "", Unavailable),
        (402, "", Unavailable),
        (408, "", Unavailable),
        (413, "", Unavailable),
        (418, "bad device token", Unavailable),
    ];
    for (status, body, expected) in cases {
        assert_eq!(class(*status, body), *expected, "{status} {body}");
        assert_eq!(class(*status, &body.to_uppercase()), *expected, "{status} {body}, upper case");
    }
    for status in [200, 400, 401] {
        let oversized = format!("device token{}", " ".repeat(LongestAnswer::DEFAULT.0));
        assert_eq!(class(status, &oversized), Unavailable, "{status}, over 4 KiB");
    }
}

#[test]
fn every_known_answer_about_a_receipt() {
    use Class::*;
    let class = |status, body: &str| look_up(Operation::RefreshReceipt, &response(status, &[], body)).0;
    let cases: &[(u16, &str, Class)] = &[
        (200, "MIAGCSqGSIb3DQEHAqCA", Accepted),
        (200, "<html>", Misconfigured),
        (304, "", NotYet),
        (400, "Incorrect Environment", RefusedReceipt),
        (400, "Bad Payload", RefusedReceipt),
        (400, "Missing or badly formatted authorization token", RefusedProviderToken),
        (400, "<html>bad payload", Unavailable),
        (400, "", Unavailable),
        (400, "bad device token", Unavailable),
        (401, "", RefusedProviderToken),
        (401, "Authentication Failure", RefusedProviderToken),
        (403, "", RefusedProviderToken),
        (404, "No Data Found", NoData),
        (404, "", NoData),
        (404, "<html>", Misconfigured),
        (405, "", Misconfigured),
        (429, "Too Many Requests", Throttled),
        (500, "", Unavailable),
        (503, "", Unavailable),
        (204, "", Unavailable),
        (302, "", Unavailable),
    ];
    for (status, body, expected) in cases {
        assert_eq!(class(*status, body), *expected, "{status} {body}");
        assert_eq!(class(*status, &body.to_uppercase()), *expected, "{status} {body}, upper case");
    }
    assert_eq!(class(200, &"A".repeat(32 * 1024)), Accepted);
    assert_eq!(class(200, &"A".repeat(32 * 1024 + 1)), Unavailable);
}

#[test]
fn errors_say_what_operators_need_and_nothing_of_apples_text() {
    let trace = "463ac35c9f6413ad48485a3953bb6124";
    let read = |status, headers: &[(&'static str, &str)], body| {
        let response = response(status, headers, body);
        read(Operation::Validate, Environment::Development, &response, SystemTime::now).unwrap_err()
    };
    let answer = read(401, &[("x-b3-traceid", trace)], "Unable to verify authorization token SECRET");
    assert_eq!(
        answer.to_string(),
        "Apple refused the provider token (check team id, key id, that the key is not revoked, and the clock): \
         status 401 from development/v1/validate_device_token, about \"authorization token\", x-b3-traceid \
         463ac35c9f6413ad48485a3953bb6124"
    );
    for (name, header) in [
        ("long", "a".repeat(65)),
        ("empty", String::new()),
        ("a line", "abc def".to_owned()),
        ("quoted", "\"SECRET\"".to_owned()),
    ] {
        let answer = read(500, &[("x-b3-traceid", &header)], "SECRET");
        let text = format!("{answer} {answer:?}");
        assert!(!text.contains("traceid") && !text.contains("SECRET"), "{name}: {text}");
    }
}

#[test]
fn bodies() {
    let now = Timestamp { wall: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123), ..Timestamp::now() };
    let id = Uuid::nil();
    let cases: &[(Operation, &str, &str, &str)] = &[
        (Operation::Validate, "AgAA", "AgAA", ""),
        (Operation::Validate, "AgA", "AgA=", ""),
        (Operation::QueryBits, "AgA=", "AgA=", ""),
        (Operation::QueryBits, "Ag", "Ag==", ""),
        (
            Operation::UpdateBits { bit0: Some(true), bit1: Some(false) },
            "+/+/",
            "+/+/",
            r#","bit0":true,"bit1":false"#,
        ),
        (Operation::UpdateBits { bit0: None, bit1: Some(true) }, "+/+/", "+/+/", r#","bit1":true"#),
    ];
    for (operation, token, sent, bits) in cases {
        let body = operation.body(&token.parse().unwrap(), id, now);
        let expected = format!(
            r#"{{"device_token":"{sent}","transaction_id":"00000000-0000-0000-0000-000000000000","timestamp":1700000000123{bits}}}"#
        );
        assert_eq!(body, expected, "{token}");
        assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok(), "{token}");
    }
}
