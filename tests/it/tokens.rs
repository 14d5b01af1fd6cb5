//! Tokens: their one form, and where they are read from.

use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use tower_devicecheck::{BearerToken, HeaderToken, MalformedToken, Rejection};

use crate::support::{App, Apple, TOKEN_HEADER, plain, rejection};

fn with_headers(headers: &[(&str, &[u8])]) -> Request<Full<bytes::Bytes>> {
    let mut request = plain();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

#[tokio::test]
async fn r11_aliases_of_a_token_are_refused() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    // Two bytes more than a multiple of three, so that there is padding and there are trailing bits.
    let token = apple.genuine();
    let token = format!("{}Pg", &token[..token.trim_end_matches('=').len() / 4 * 4]);
    assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED, "well formed, but none of Apple's");
    assert_eq!(app.status(&format!("{token}==")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(apple.calls(), 1, "canonical padding or none is the same token");

    let aliases = [
        ("one padding", format!("{token}=")),
        ("three paddings", format!("{token}===")),
        ("trailing bits", format!("{}h", &token[..token.len() - 1])),
        ("white space inside", format!("{} {}", &token[..8], &token[8..])),
        ("a letter of the URL-safe alphabet", format!("{}-_{}", &token[..8], &token[10..])),
        ("padding inside", format!("{token}==AAAA")),
        ("percent-encoded padding", format!("{token}%3D%3D")),
    ];
    for (name, alias) in aliases {
        let response = app.get(&alias).await;
        assert_eq!(rejection(&response), MalformedToken::NotCanonical.into(), "{name}");
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 0));
}

#[tokio::test]
async fn r11_a_cached_genuine_token_does_not_make_its_aliases_genuine() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    for alias in [format!("{token}="), format!("{token}=="), format!("{token}===="), format!("{token} =")] {
        assert_eq!(app.status(&alias).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 1));
}

#[tokio::test]
async fn r12_repeated_empty_and_overlong_headers_are_refused_without_asking_apple() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    let long = "A".repeat(8 * 1024 + 1);
    let token = token.as_bytes();
    type Row<'a> = (&'a str, &'a [(&'a str, &'a [u8])], MalformedToken);
    let cases: &[Row<'_>] = &[
        ("twice the same", &[(TOKEN_HEADER, token), (TOKEN_HEADER, token)], MalformedToken::Repeated),
        ("two different", &[(TOKEN_HEADER, token), (TOKEN_HEADER, b"AgAA")], MalformedToken::Repeated),
        ("empty", &[(TOKEN_HEADER, b"")], MalformedToken::Empty),
        ("blank", &[(TOKEN_HEADER, b" \t ")], MalformedToken::Empty),
        ("too long", &[(TOKEN_HEADER, long.as_bytes())], MalformedToken::TooLong),
        ("not ASCII", &[(TOKEN_HEADER, b"Ag\xc3\xa4A")], MalformedToken::NotCanonical),
    ];
    for (name, headers, reason) in cases {
        let response = app.send(with_headers(headers)).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{name}");
        assert_eq!(rejection(&response), Rejection::MalformedToken(*reason), "{name}");
    }
    assert_eq!((apple.calls(), app.inner.calls()), (0, 0));
}

#[tokio::test]
async fn two_token_sources_must_agree() {
    let apple = Apple::new();
    let layer = apple.layer().with_token_source(HeaderToken::default()).add_token_source(BearerToken::new());
    let app = App::new(&layer);
    let token = apple.genuine();
    let bearer = format!("Bearer part.metadata.{token}");
    let both: &[(&str, &[u8])] = &[(TOKEN_HEADER, token.as_bytes()), ("authorization", bearer.as_bytes())];
    for headers in [&both[..1], &both[1..], both] {
        assert_eq!(app.send(with_headers(headers)).await.status(), StatusCode::OK);
        let seen = app.inner.last().headers;
        assert!(!seen.contains_key(TOKEN_HEADER));
        let left = seen.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        assert!(left.is_none_or(|left| left == "Bearer part.metadata"));
    }
    assert_eq!(apple.calls(), 1);

    let other = apple.genuine();
    let differ: &[(&str, &[u8])] = &[(TOKEN_HEADER, other.as_bytes()), ("authorization", bearer.as_bytes())];
    let response = app.send(with_headers(differ)).await;
    assert_eq!(rejection(&response), MalformedToken::Disagreement.into());
    assert_eq!((apple.calls(), app.inner.calls()), (1, 3));
}
