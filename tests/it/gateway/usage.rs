//! Requests and tokens, as they pass: counted, logged, and shown to the operator.

use std::convert::Infallible;

use axum::{body::Bytes, http::StatusCode, response::IntoResponse};
use futures::channel::mpsc;
use http_body::Frame;
use http_body_util::StreamBody;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};
use tracing::Level;

use super::{ADMIN, CHAT, Gateway, KEY, ai_gateway::Limits, operator::usage, provider, provider_of_events};
use crate::support::Log;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// The models of the only entry, when the requests are over: a client may see the end of an answer before the gateway.
async fn models(gateway: &Gateway, requests: u64) -> Vec<Value> {
    loop {
        let usage = usage(gateway).await;
        let models = usage["entries"][0]["models"].as_array().cloned().unwrap_or_default();
        let sum: u64 = models.iter().map(|model| model["requests"].as_u64().unwrap()).sum();
        if sum >= requests {
            assert_eq!(sum, requests);
            assert_eq!(usage["entries"].as_array().unwrap().len(), 1);
            return models;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_is_counted_and_no_event_waits_for_another() {
    let (sender, receiver) = mpsc::unbounded::<Result<Frame<Bytes>, Infallible>>();
    let url = provider_of_events(StreamBody::new(receiver)).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    let chunk = |text: &str| json!({ "model": "gpt-5", "choices": [{ "delta": { "content": text } }] });
    let last =
        json!({ "model": "gpt-5", "choices": [], "usage": { "prompt_tokens": 11, "completion_tokens": 7 } });
    let events = [chunk("one"), chunk("\"usage\":{\"prompt_tokens\":99}"), chunk("three"), last];
    // Half an event passes as well, although nobody can read it yet.
    let mut pieces: Vec<_> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let half = pieces[3].split_off(70);
    pieces.extend([half, "data: [DONE]\n\n".to_owned()]);
    for piece in pieces {
        sender.unbounded_send(Ok(Frame::data(piece.clone().into()))).unwrap();
        // The next one is sent when this one was seen.
        assert_eq!(response.chunk().await.unwrap().unwrap(), piece);
    }
    drop(sender);
    assert_eq!(response.chunk().await.unwrap(), None);
    let expected =
        json!({ "model": "gpt-5", "requests": 1, "unstated": 0, "input_tokens": 11, "output_tokens": 7 });
    assert_eq!(models(&gateway, 1).await, [expected]);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_has_used_what_was_stated_by_then() {
    let (sender, receiver) = mpsc::unbounded::<Result<Frame<Bytes>, Infallible>>();
    let url = provider_of_events(StreamBody::new(receiver)).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    let start =
        json!({ "message": { "model": "claude", "usage": { "input_tokens": 25, "output_tokens": 1 } } });
    let event = Bytes::from(format!("event: message_start\ndata: {start}\n\n"));
    sender.unbounded_send(Ok(Frame::data(event.clone()))).unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), event);
    drop(response);
    let expected =
        json!({ "model": "claude", "requests": 1, "unstated": 0, "input_tokens": 25, "output_tokens": 1 });
    assert_eq!(models(&gateway, 1).await, [expected]);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn an_answer_without_a_statement_is_a_request_without_tokens() {
    let usage = json!({ "model": "m", "usage": { "input_tokens": 5, "output_tokens": 6 } });
    let (url, _) = provider(move |request| {
        let stated = usage.to_string();
        async move {
            match request.uri().path() {
                "/base/v1/audio/speech" => ([("content-type", "audio/mpeg")], stated).into_response(),
                "/base/v1/errors" => (StatusCode::BAD_REQUEST, JSON, stated).into_response(),
                _ => (JSON, stated).into_response(),
            }
        }
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let post = |path: &str| gateway.post(&format!("/v1/openai/app/{path}")).send();
    for path in ["responses", "audio/speech"] {
        assert_eq!(post(path).await.unwrap().status(), StatusCode::OK);
    }
    // An answer that was given before states its tokens again.
    let again = gateway.client.get(format!("{}/v1/openai/app/responses/resp_1", gateway.url));
    let again = again.header(AUTHORIZATION, format!("Bearer {}", gateway.credential())).send().await.unwrap();
    assert_eq!(again.json::<Value>().await.unwrap()["usage"]["input_tokens"], 5);
    let models = models(&gateway, 3).await;
    assert_eq!(
        models,
        [
            json!({ "model": "m", "requests": 1, "unstated": 0, "input_tokens": 5, "output_tokens": 6 }),
            json!({ "model": null, "requests": 2, "unstated": 2, "input_tokens": 0, "output_tokens": 0 }),
        ]
    );
    assert_eq!(gateway.apple.calls(), 3);
}

#[tokio::test]
async fn each_request_has_a_line_in_the_log_and_an_id() {
    let (url, seen) = provider(async |_| {
        let body = r#"{"model":"gpt-5","usage":{"prompt_tokens":11,"completion_tokens":7}}"#;
        ([("content-type", "application/json"), ("x-request-id", "req_1")], body).into_response()
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let log = Log::default();
    let _guard = log.listen(Level::INFO);
    let line = async || loop {
        let text = log.take();
        let mut lines = text.lines().filter(|line| line.contains("tower_devicecheck::access: request"));
        if let Some(line) = lines.next() {
            assert_eq!(lines.next(), None);
            return line.to_owned();
        }
        tokio::task::yield_now().await;
    };
    let id = |response: &reqwest::Response| {
        response.headers()["x-gateway-request-id"].to_str().unwrap().to_owned()
    };

    let credential = gateway.credential();
    let request = gateway.client.post(format!("{}{CHAT}?limit=7", gateway.url));
    let request = request.header("authorization", format!("Bearer {credential}")).body("{}");
    let response = request.header("x-gateway-request-id", "made-up").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "req_1", "the provider's");
    let first = id(&response);
    assert_eq!(first.len(), 32);
    response.bytes().await.unwrap();
    let written = line().await;
    for field in [
        &*format!("request_id=\"{first}\""),
        "method=\"POST\"",
        "status=200",
        "provider=\"openai\"",
        "project=\"app\"",
        &format!("split={}", gateway.split.record().split()),
        "model=\"gpt-5\"",
        "input_tokens=11",
        "output_tokens=7",
        "duration_ms=",
        "bytes_in=2",
        "bytes_out=68",
    ] {
        assert!(written.contains(field), "{field}: {written}");
    }
    let (part, token) = credential.rsplit_once('.').unwrap();
    for secret in [KEY, part, token, "made-up", "limit", "completions", "code="] {
        assert!(!written.contains(secret), "{written}");
    }
    assert!(!seen.lock().unwrap()[0].headers.contains_key("x-gateway-request-id"));

    // A refusal has one, too, without what the client claims.
    let response = gateway.client.post(format!("{}{CHAT}", gateway.url)).send().await.unwrap();
    assert_ne!(id(&response), first);
    let (refused, written) = (id(&response), line().await);
    for field in [&*refused, "status=401", "code=\"missing_token\"", "provider=\"openai\""] {
        assert!(written.contains(field), "{field}: {written}");
    }
    assert!(!written.contains("project="), "{written}");
    let health = gateway.client.get(format!("{}/health", gateway.url)).send().await.unwrap();
    assert!(!health.headers().contains_key("x-gateway-request-id"));
    assert_eq!(log.take(), "");
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn w08_only_one_admin_token_opens_the_usage() {
    let (url, _) = provider(super::ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let ask = async |values: &[&str]| {
        let mut request = gateway.client.get(format!("{}/usage", gateway.url));
        for value in values {
            request = request.header(AUTHORIZATION, *value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["cache-control"], "no-store", "{values:?}");
        response.status().as_u16()
    };
    let right = ["Bearer", "bearer", "BEARER"].map(|scheme| format!("{scheme} {ADMIN}"));
    for value in &right {
        assert_eq!(ask(&[value]).await, 200, "{value}");
    }
    let wrong = format!("Bearer {}x", &ADMIN[1..]);
    let refused: [&[&str]; 7] =
        [&[], &["Bearer"], &["Bearer "], &[ADMIN], &[&wrong], &[&right[0], &right[0]], &[&right[0], &wrong]];
    for values in refused {
        assert_eq!(ask(values).await, 401, "{values:?}");
    }
    assert_eq!(gateway.apple.calls(), 0);
}

#[tokio::test]
async fn the_page_holds_nothing_and_runs_nothing_but_its_own_script() {
    let (url, _) = provider(super::ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let page = gateway.client.get(format!("{}/usage.html", gateway.url)).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let headers = page.headers();
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["cache-control"], "no-store");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = page.text().await.unwrap();
    for danger in ["innerHTML", "insertAdjacent", "document.write", "src=", "href=", "style=", "//cdn", ADMIN]
    {
        assert!(!text.contains(danger), "{danger}");
    }
    assert_eq!(gateway.apple.calls(), 0);
}
