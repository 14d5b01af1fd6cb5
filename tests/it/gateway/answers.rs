//! The gateway's own answers: to faults, and to the admin.

use std::io::{Read, Write};

use axum::{
    body::{Body, Bytes},
    http::StatusCode,
    response::IntoResponse,
};
use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tower_devicecheck::{split_key::Limits as KeyLimits, testing::Reply};

use super::{ADMIN, CHAT, Gateway, OVER_THE_LIMIT, ai_gateway::Limits, code, ok, provider};

#[tokio::test]
async fn faults_have_their_own_answers() {
    let (url, seen) = provider(ok).await;
    let only_models = KeyLimits::none().with_paths(["/v1/openai/models"]);
    let gateway = Gateway::with(&url, Limits::default(), only_models).await;
    // The path without the project and the version is what the limits are about.
    for path in ["/v1/openai/app/models", "/v1/openai/app/v1/models"] {
        assert_eq!(gateway.post(path).send().await.unwrap().status(), StatusCode::OK, "{path}");
    }
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(code(response).await, "limit_not_met");
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert_eq!(gateway.apple.calls(), 3);

    // An outage of Apple's.
    gateway.apple.fake.always(Reply::status(500));
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(gateway.apple.calls(), 4);

    // An answer to a question that was not asked: the client would take the connection to be another protocol's.
    let (url, _) = provider(async |_| StatusCode::SWITCHING_PROTOCOLS.into_response()).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);

    // A port without a server: it was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Gateway::new(&format!("http://{free}"), Limits::default()).await;
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(code(response).await, "provider_unreachable");
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn usage_is_for_the_admin() {
    let (url, _) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    gateway.post(CHAT).send().await.unwrap();
    let usage = async |authorization: &str| {
        let request = gateway.client.get(format!("{}/usage", gateway.url));
        request.header("authorization", authorization).send().await.unwrap()
    };
    for wrong in ["", "Bearer ", "Bearer the-admin-toke", "Bearer the-admin-token2", "the-admin-token"] {
        assert_eq!(usage(wrong).await.status(), StatusCode::UNAUTHORIZED, "{wrong:?}");
    }
    let text = usage(&format!("Bearer {ADMIN}")).await.text().await.unwrap();
    let log: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(log["entries"][0]["project"], "app");
    assert_eq!(log["entries"][0]["opened"], 1);
    let health = gateway.client.get(format!("{}/health", gateway.url)).send().await.unwrap();
    assert_eq!(health.text().await.unwrap(), "ok");
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn g09_rejections_have_the_shape_that_the_providers_sdks_read() {
    let (url, _) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits { body: 10, ..Limits::default() }).await;
    let part = gateway.part();
    let bad_key = format!("x.y.{}", gateway.apple.genuine());
    let forged = format!("{part}.{}", gateway.apple.fake.forged_token());
    let good = format!("{part}.{}", gateway.apple.genuine());
    for (name, header) in
        [("openai", "authorization"), ("anthropic", "x-api-key"), ("google", "x-goog-api-key")]
    {
        for (credentials, body, status, code) in [
            ("", "{}", 401, "missing_token"),
            (&*forged, "{}", 401, "refused_token"),
            (&*bad_key, "{}", 401, "invalid_key"),
            (&*good, "more than ten bytes", 413, "body_too_large"),
        ] {
            for content_type in ["application/json", "application/grpc"] {
                let mut request = gateway.client.post(format!("{}/v1/{name}/app/x", gateway.url)).body(body);
                request = request.header("content-type", content_type);
                if !credentials.is_empty() {
                    let scheme = if name == "openai" { "Bearer " } else { "" };
                    request = request.header(header, format!("{scheme}{credentials}"));
                }
                let response = request.send().await.unwrap();
                assert_eq!(response.status().as_u16(), status, "{name} {code}");
                assert_eq!(response.headers()["content-type"], "application/json", "{name} {code}");
                assert_eq!(response.headers()["x-devicecheck-code"], code, "{name}");
                let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
                let error = &answer["error"];
                assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{name}: {answer}");
                let found = match name {
                    "openai" => &error["code"],
                    "anthropic" => {
                        assert_eq!(answer["type"], "error");
                        let kind = error["type"].as_str().unwrap();
                        assert!(kind.ends_with("_error") || kind == "request_too_large", "{answer}");
                        &error["code"]
                    }
                    _ => {
                        assert_eq!(error["code"], status);
                        assert!(error["status"].is_string());
                        &error["details"][0]["reason"]
                    }
                };
                assert_eq!(found, code, "{name}: {answer}");
            }
        }
    }
}

#[tokio::test]
async fn over_the_limit_in_the_words_of_the_provider() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for (name, header, scheme, pointer, expected) in [
        ("openai", "authorization", "Bearer ", "/error/type", "requests"),
        ("anthropic", "x-api-key", "", "/error/type", "rate_limit_error"),
        ("google", "x-goog-api-key", "", "/error/status", "RESOURCE_EXHAUSTED"),
    ] {
        let request = gateway.client.post(format!("{}/v1/{name}/app/x", gateway.url)).body("{}");
        let credential = format!("{scheme}{}", gateway.credential());
        let response = request.header(header, credential).header(OVER_THE_LIMIT, "1").send().await.unwrap();
        assert_eq!(response.status().as_u16(), 429, "{name}");
        assert_eq!(response.headers()["retry-after"], "2", "{name}");
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(answer.pointer(pointer), Some(&expected.into()), "{answer}");
        assert!(answer.to_string().contains("limit_exceeded"), "{answer}");
    }
    assert_eq!((gateway.apple.calls(), seen.lock().unwrap().len()), (0, 0));
}

/// Over the limit, and said before the upload is over: the provider closes, and the gateway's next write fails.
#[tokio::test]
async fn w13_an_early_answer_arrives_although_the_provider_hangs_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (arrived, has_arrived) = tokio::sync::oneshot::channel();
    let (go, may_answer) = std::sync::mpsc::channel::<()>();
    // A thread, so that it answers while nothing else moves.
    let provider = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut text, mut piece) = (Vec::new(), [0; 1024]);
        while !text.windows(4).any(|end| end == b"\r\n\r\n") {
            let length = stream.read(&mut piece).unwrap();
            text.extend_from_slice(&piece[..length]);
        }
        arrived.send(()).unwrap();
        may_answer.recv().unwrap();
        let answer = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 9\r\n\r\nslow down";
        stream.write_all(answer.as_bytes()).unwrap();
        // The rest of the upload finds a closed connection.
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let gateway = Gateway::new(&url, Limits::default()).await;
    let (pieces, upload) = futures::channel::mpsc::unbounded();
    let body = Body::from_stream(upload.map(Ok::<_, std::convert::Infallible>));
    let credential = format!("Bearer {}", gateway.credential());
    let request = axum::http::Request::post(CHAT).header("authorization", credential).body(body).unwrap();
    pieces.unbounded_send(Bytes::from_static(b"{")).unwrap();
    let answer = tokio::spawn(tower::ServiceExt::oneshot(gateway.app.clone(), request));
    has_arrived.await.unwrap();
    go.send(()).unwrap();
    provider.join().unwrap();
    for _ in 0..8 {
        // All at once: the second write fails before anybody has looked for an answer.
        pieces.unbounded_send(Bytes::from(vec![b' '; 256 * 1024])).unwrap();
    }
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers()["retry-after"], "7");
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, "slow down");
    assert_eq!(gateway.apple.calls(), 1);
}
