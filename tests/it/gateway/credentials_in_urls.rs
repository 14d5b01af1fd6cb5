//! Credentials in the URL, as Google's clients send them, and in places where they do not belong.

use axum::http::StatusCode;
use tracing::Level;

use super::{CHAT, Gateway, KEY, TEST_KEY, ai_gateway::Limits, code, ok, provider};
use crate::support::Log;

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn w05_key_is_one_more_place_for_the_credential() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let both = gateway.credential();
    let part = gateway.part();
    let token = both.rsplit_once('.').unwrap().1;
    let (bearer, other) = (format!("Bearer {both}"), gateway.credential());
    type Row<'a> = (&'a str, String, Option<(&'static str, &'a str)>, u16);
    let cases: Vec<Row<'_>> = vec![
        ("alone", format!("key={both}"), None, 200),
        ("encoded", format!("key={}", encoded(&both)), None, 200),
        ("a name that is encoded", format!("%6bey={both}"), None, 200),
        ("with the test key", format!("key={part}.{TEST_KEY}"), None, 200),
        ("beside the device token", format!("key={part}"), Some(("x-device-token", token)), 200),
        ("beside the same in a header", format!("key={both}"), Some(("x-goog-api-key", &both)), 200),
        ("beside the same as a bearer", format!("key={both}"), Some(("authorization", &bearer)), 200),
        ("beside another header", format!("key={both}"), Some(("x-goog-api-key", &other)), 401),
        ("the project in a header", format!("key={both}"), Some(("x-project-id", "app")), 200),
        ("no device", format!("key={part}"), None, 401),
        ("no part", format!("key={token}"), None, 401),
        ("a whole key", format!("key={KEY}"), None, 401),
        ("nothing", "key=".to_owned(), None, 401),
        ("nothing at all", "key".to_owned(), None, 401),
    ];
    let log = Log::default();
    let _guard = log.listen(Level::TRACE);
    for (name, query, header, status) in cases {
        for (before, after) in [("", ""), ("limit=2&", "&after=x")] {
            let path = format!("{}{CHAT}?{before}{query}{after}", gateway.url);
            let mut request = gateway.client.post(path);
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            // The client would log the URL, too.
            let request = {
                let _silent = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
                request.build().unwrap()
            };
            let response = gateway.client.execute(request).await.unwrap();
            assert_eq!(response.status(), status, "{name}");
            let head = seen.lock().unwrap().pop();
            assert_eq!(head.is_some(), status == 200, "{name}");
            let Some(head) = head else { continue };
            let expected = if before.is_empty() { None } else { Some("limit=2&after=x") };
            assert_eq!(head.uri.query(), expected, "{name}");
            assert_eq!(head.headers["authorization"], format!("Bearer {KEY}"), "{name}");
            assert!(!head.headers.contains_key("x-goog-api-key"), "{name}");
        }
    }
    // Lines of the HTTP client of this test are not the gateway's.
    let text = log.take();
    let ours = text.lines().filter(|line| line.contains("tower_devicecheck") || line.contains("it::gateway"));
    for line in ours {
        for secret in [part, token, KEY, TEST_KEY] {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

#[tokio::test]
async fn w05_credentials_anywhere_else_in_the_url_are_refused_unasked() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let both = gateway.credential();
    // A path with two slashes in a row can be read in two ways, which is another refusal.
    let in_path = both.replace('/', "_");
    let part = gateway.part();
    let all = encoded(part);
    let log = Log::default();
    let _guard = log.listen(Level::DEBUG);
    for (expected, path) in [
        ("bad_query", format!("{CHAT}?$key={both}")),
        ("bad_query", format!("{CHAT}?%24key={both}")),
        ("bad_query", format!("{CHAT}?KEY={both}")),
        ("bad_query", format!("{CHAT}?Key={both}")),
        ("bad_query", format!("{CHAT}?%256bey={both}")),
        ("bad_query", format!("{CHAT}?key[]={both}")),
        ("bad_query", format!("{CHAT}?access_token={both}")),
        ("bad_query", format!("{CHAT}?$access_token={both}")),
        ("bad_query", format!("{CHAT}?oauth_token={both}")),
        ("bad_query", format!("{CHAT}?bearer_token={both}")),
        ("bad_query", format!("{CHAT}?api_key={both}")),
        ("bad_query", format!("{CHAT}?api-key={both}")),
        ("bad_query", format!("{CHAT}?apikey={both}")),
        ("bad_query", format!("{CHAT}?authorization=Bearer%20{both}")),
        ("bad_query", format!("{CHAT}?x-goog-api-key={both}")),
        ("bad_query", format!("{CHAT}?token={both}")),
        ("bad_query", format!("{CHAT}?{both}")),
        ("bad_query", format!("{CHAT}?limit=1;key={both}")),
        ("bad_query", format!("{CHAT}?key={both}&key={both}")),
        ("bad_query", format!("{CHAT}?key={both}&%6bey={both}")),
        ("bad_query", format!("{CHAT}?key={both}%0d%0ax: y")),
        ("credential_in_url", format!("{CHAT}?limit={both}")),
        ("credential_in_url", format!("{CHAT}?key={both}&limit={part}")),
        ("credential_in_url", format!("{CHAT}?after={all}")),
        ("credential_in_url", format!("/v1/openai/{in_path}/chat/completions")),
        ("credential_in_url", format!("/v1/openai/app/{part}")),
        ("credential_in_url", format!("/v1/openai/app/files/{}", all.replace("%2E", "."))),
        ("credential_in_url", format!("/v1/openai/app/models;key={in_path}/x")),
        ("credential_in_url", format!("/v1/openai/app/models/key={in_path}")),
    ] {
        let response = gateway.post(&path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
        let text = response.text().await.unwrap();
        assert!(text.contains(&format!("\"{expected}\"")), "{path}: {text}");
        assert!(!text.contains(part), "{path}: {text}");
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(gateway.apple.calls(), 0);
    let text = log.take();
    assert!(!text.lines().any(|line| line.contains("tower_devicecheck") && line.contains(part)), "{text}");
}

/// A developer who took the wrong one of two names is told so.
#[tokio::test]
async fn w05_the_refusal_has_a_code_of_its_own() {
    let (url, _) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let request = gateway.client.get(format!("{}/v1/google/app/models?access_token=x", gateway.url));
    assert_eq!(code(request.send().await.unwrap()).await, "bad_query");
}
