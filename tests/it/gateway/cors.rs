//! Pages and web views that call the gateway.

use axum::http::{HeaderMap, StatusCode};
use reqwest::Method;
use tower_devicecheck::split_key::{Limits as KeyLimits, MemorySplitKeyStore};

use super::{
    CHAT, Gateway, KEY,
    ai_gateway::{Limits, cors},
    ok, provider, providers_at,
};

const ORIGINS: [&str; 3] = ["https://app.example", "capacitor://localhost", "http://localhost:8100"];

async fn with_cors(url: &str) -> Gateway {
    let keys = MemorySplitKeyStore::new();
    let change = |settings: &mut super::Settings, gate| {
        settings.cors = Some(cors::layer(&ORIGINS.join(", ")).unwrap());
        gate
    };
    Gateway::put_together(("openai", KEY), providers_at(url), keys, KeyLimits::none(), change).await
}

fn preflight(gateway: &Gateway, path: &str, origin: &str) -> reqwest::RequestBuilder {
    gateway
        .client
        .request(Method::OPTIONS, format!("{}{path}", gateway.url))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,x-stainless-os")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn w11_a_preflight_of_a_listed_origin_is_answered_before_all_else() {
    let (url, seen) = provider(ok).await;
    let gateway = with_cors(&url).await;
    for origin in ORIGINS {
        for path in [CHAT, "/v1/anthropic/app/v1/messages", "/v1/nobody/x", "/elsewhere"] {
            let response = preflight(&gateway, path, origin).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{origin}{path}");
            let headers = response.headers();
            assert_eq!(text(headers, "access-control-allow-origin"), origin);
            let allowed = text(headers, "access-control-allow-headers");
            assert_eq!(allowed, "authorization,content-type,x-stainless-os");
            assert!(text(headers, "access-control-allow-methods").contains("POST"));
            assert!(!headers.contains_key("access-control-allow-credentials"));
        }
    }
    for origin in ["https://evil.example", "https://app.example.evil.example", "null", "http://app.example"] {
        let response = preflight(&gateway, CHAT, origin).send().await.unwrap();
        assert!(!response.headers().contains_key("access-control-allow-origin"), "{origin}");
    }
    assert_eq!(gateway.apple.calls(), 0);
    assert!(seen.lock().unwrap().is_empty());

    // Without the setting, the gateway knows no other origins.
    let gateway = Gateway::new(&url, Limits::default()).await;
    let response = preflight(&gateway, CHAT, ORIGINS[0]).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(!response.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn w11_a_page_can_read_answers_and_refusals() {
    let (url, seen) = provider(ok).await;
    let gateway = with_cors(&url).await;
    let origin = ("origin", "capacitor://localhost");
    let nobody =
        |path: &str| gateway.client.post(format!("{}{path}", gateway.url)).header(origin.0, origin.1);
    let cases = [
        (gateway.post(CHAT).header(origin.0, origin.1), 200),
        (nobody(CHAT), 401),
        (nobody("/v1/nobody/x"), 404),
        (nobody(CHAT).header("content-type", "multipart/mixed"), 415),
        (nobody(CHAT).header("upgrade", "websocket").header("connection", "upgrade"), 501),
    ];
    for (request, status) in cases {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        let headers = response.headers();
        assert_eq!(text(headers, "access-control-allow-origin"), origin.1, "{status}");
        let exposed = text(headers, "access-control-expose-headers");
        for name in ["x-devicecheck-code", "retry-after", "x-request-id", "x-ratelimit-remaining-tokens"] {
            assert!(exposed.contains(name), "{status}: {name}");
        }
        // A cache must not give one origin's answer to another.
        assert!(text(headers, "vary").contains("origin"), "{status}");
    }
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert!(!seen.lock().unwrap()[0].headers.contains_key("origin"));
    assert_eq!(gateway.apple.calls(), 1);
}

#[test]
fn w11_origins_are_written_as_browsers_write_them() {
    for good in [
        "https://app.example",
        "https://app.example:8443",
        "ionic://localhost",
        " https://a , http://[::1]:3 ",
    ] {
        assert!(cors::layer(good).is_ok(), "{good}");
    }
    for bad in [
        "*",
        "null",
        "",
        "https://*.example",
        "https://app.example/",
        "https://app.example/path",
        "app.example",
        "https://App.example",
        "https://user@app.example",
        "https://",
        "://app.example",
        "https://a,,https://b",
        "https://app.example\u{e9}",
        "https://a https://b",
    ] {
        let error = cors::layer(bad).unwrap_err().to_string();
        assert!(!error.contains("user") && !error.contains("path"), "{bad}: {error}");
    }
}
