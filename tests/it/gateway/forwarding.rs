//! The parts of a request that reach the provider, and those that do not.

use axum::{
    http::{Method, StatusCode},
    response::IntoResponse,
};

use super::{ANTHROPIC_KEY, CHAT, Gateway, KEY, TEST_KEY, ai_gateway::Limits, ok, provider, status};

#[tokio::test]
async fn what_crosses_the_gateway() {
    let (url, seen) = provider(async |_| {
        let headers = [
            ("connection", "x-of-the-connection, close"),
            ("x-of-the-connection", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "session=secret"),
            ("x-api-key", "secret"),
            ("authorization", "secret"),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1"),
            ("x-request-id", "req_1"),
            ("retry-after", "7"),
            ("content-type", "application/json"),
        ];
        (StatusCode::TOO_MANY_REQUESTS, headers, r#"{"error":"slow down"}"#).into_response()
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let response = gateway
        .post("/v1/openai/app/chat/completions?after=a%2Fb&limit=2&order=")
        .header("connection", "x-hop, Keep-Alive")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic secret")
        .header("proxy-connection", "close")
        .header("cookie", "secret=1")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-forwarded-port", "443")
        .header("cf-connecting-ip", "192.0.2.1")
        .header("true-client-ip", "192.0.2.1")
        .header("x-client-ip", "192.0.2.1")
        .header("x-proxed-test-key", "not-the-test-key-at-all")
        .header("x-apple-device-development", "true")
        .header("openai-beta", "assistants=v2")
        .header("content-type", "application/json")
        .header("accept-encoding", "br")
        .body("{}")
        .send()
        .await
        .unwrap();
    // The provider's error, as it is.
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let mut names: Vec<_> = response.headers().keys().map(|name| name.as_str().to_owned()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["content-length", "content-type", "date", "retry-after", "x-gateway-request-id", "x-request-id"]
    );
    assert_eq!(response.text().await.unwrap(), r#"{"error":"slow down"}"#);

    let head = seen.lock().unwrap().remove(0);
    assert_eq!(head.uri.to_string(), "/base/v1/chat/completions?after=a%2Fb&limit=2&order=");
    let mut names: Vec<_> = head.headers.keys().map(axum::http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "openai-beta"
        ]
    );
    assert_eq!(head.headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(head.headers["host"], url.trim_start_matches("http://"));
    assert_eq!(head.headers["content-length"], "2");
    assert_eq!(gateway.apple.calls(), 1);
}

/// Anthropic answers 400 to a client without an SDK, which sends no version.
#[tokio::test]
async fn w03_a_version_is_added_for_anthropic_where_there_is_none() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::of("anthropic", ANTHROPIC_KEY, &url).await;
    for (sent, expected) in [(None, "2023-06-01"), (Some("2099-01-01"), "2099-01-01")] {
        let mut request = gateway.post("/v1/anthropic/app/v1/messages");
        if let Some(version) = sent {
            request = request.header("anthropic-version", version);
        }
        assert_eq!(request.body("{}").send().await.unwrap().status(), StatusCode::OK);
        let headers = seen.lock().unwrap().pop().unwrap().headers;
        let versions: Vec<_> = headers.get_all("anthropic-version").iter().collect();
        assert_eq!(versions, [expected]);
        assert_eq!(headers["x-api-key"], ANTHROPIC_KEY);
    }
    assert_eq!(gateway.apple.calls(), 2);
}

#[tokio::test]
async fn credentials_come_in_every_shape_that_clients_have() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let (part, token) = (gateway.part(), gateway.apple.genuine());
    let both = format!("{part}.{token}");
    let bearer = format!("Bearer {both}");
    let simulator = format!("Bearer {part}.{TEST_KEY}");
    let project = ("x-project-id", "app");
    type Row<'a> = (&'a str, &'a str, Vec<(&'static str, &'a str)>, u16);
    let cases: Vec<Row<'_>> = vec![
        ("bearer", CHAT, vec![("authorization", &bearer)], 200),
        ("Anthropic's header", CHAT, vec![("x-api-key", &both)], 200),
        ("Google's header", CHAT, vec![("x-goog-api-key", &both)], 200),
        ("two headers", CHAT, vec![("x-ai-key", part), ("x-device-token", &token)], 200),
        ("Bearer and a header", CHAT, vec![("x-api-key", part), ("x-device-token", &token)], 200),
        ("the project twice", CHAT, vec![("authorization", &bearer), project], 200),
        ("the project in a header", "/v1/openai/models", vec![("authorization", &bearer), project], 200),
        ("test key after the part", CHAT, vec![("authorization", &simulator)], 200),
        ("test key in a header", CHAT, vec![("x-ai-key", part), ("x-proxed-test-key", TEST_KEY)], 200),
        ("another project", "/v1/openai/other/models", vec![("authorization", &bearer)], 401),
        ("nothing", CHAT, vec![], 401),
        ("no device", CHAT, vec![("x-ai-key", part)], 401),
        ("no part", CHAT, vec![("x-device-token", &token)], 401),
        ("a whole key", CHAT, vec![("x-ai-key", KEY), ("x-device-token", &token)], 401),
        ("of another provider", "/v1/anthropic/app/v1/messages", vec![("x-api-key", &both)], 403),
    ];
    for (name, path, headers, status) in cases {
        let before = seen.lock().unwrap().len();
        let mut request = gateway.client.post(format!("{}{path}", gateway.url));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{name}");
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len() - before, usize::from(status == 200), "{name}");
        if status == 200 {
            let headers = &seen.last().unwrap().headers;
            assert_eq!(headers["authorization"], format!("Bearer {KEY}"), "{name}");
            let others = ["x-api-key", "x-goog-api-key", "x-ai-key", "x-device-token", "x-project-id"];
            assert!(others.iter().all(|name| !headers.contains_key(*name)), "{name}");
        }
    }
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn what_cannot_be_forwarded_reaches_neither_apple_nor_the_provider() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits { body: 10, ..Limits::default() }).await;
    // The client's URL parser would tidy such paths up, so the request is written by hand.
    let request = async |path: &str, length: usize| {
        let bearer = format!("Bearer {}.{}", gateway.part(), gateway.apple.genuine());
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {bearer}\r\n\
             content-length: {length}\r\n\r\n"
        );
        status(&gateway.exchange(&text).await).to_owned()
    };
    for (path, length, expected) in [
        ("/v1/openai/app/../../secrets", 0, "400"),
        ("/v1/openai/app//evil.example/", 0, "400"),
        ("/v1/openai/app/%2e%2e/secrets", 0, "400"),
        ("/v1/mistral/app/chat", 0, "404"),
        ("/v2/openai/app/chat", 0, "404"),
        (CHAT, 11, "413"),
    ] {
        assert_eq!(request(path, length).await, expected, "{path}");
    }
    assert_eq!(gateway.apple.calls(), 0);

    // With a genuine device, those that would come back with the key in it, or lead to a tunnel.
    let gateway = Gateway::new(&url, Limits::default()).await;
    for method in [Method::TRACE, Method::OPTIONS, Method::from_bytes(b"DEBUG").unwrap()] {
        let request = gateway.client.request(method.clone(), format!("{}{CHAT}", gateway.url));
        let bearer = format!("Bearer {}.{}", gateway.part(), gateway.apple.genuine());
        let response = request.header("authorization", bearer).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// The provider stands for a proxy as well: whatever reaches it there was sent in the clear to somebody else.
#[tokio::test]
async fn what_goes_to_loopback_does_not_go_through_a_proxy() {
    if std::env::var_os("TOWER_DEVICECHECK_BEHIND_PROXY").is_none() {
        let (proxy, seen) = provider(ok).await;
        // The environment is read once per process, so this runs in one of its own.
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "gateway::forwarding::what_goes_to_loopback_does_not_go_through_a_proxy",
                "--nocapture",
            ])
            .env("TOWER_DEVICECHECK_BEHIND_PROXY", "1")
            .env("HTTP_PROXY", &proxy)
            .env("http_proxy", &proxy)
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .await
            .unwrap();
        assert!(seen.lock().unwrap().is_empty(), "the API key went to the proxy, in the clear");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (url, seen) = provider(ok).await;
    let mut gateway = Gateway::new(&url, Limits::default()).await;
    gateway.client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn redirects_are_the_clients_to_follow() {
    let (elsewhere, seen) = provider(ok).await;
    let location = format!("{elsewhere}/stolen");
    let (url, _) = provider(move |_| {
        let location = location.clone();
        async { (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response() }
    })
    .await;
    let mut gateway = Gateway::new(&url, Limits::default()).await;
    gateway.client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), StatusCode::TEMPORARY_REDIRECT);
    assert!(seen.lock().unwrap().is_empty(), "the key went elsewhere");
    assert_eq!(gateway.apple.calls(), 1);
}
