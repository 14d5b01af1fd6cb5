//! Calls whose answers lead around the gateway.

use axum::{
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Gateway, ai_gateway::Limits, code, ok, provider};

const BATCHES: &str = "/v1/anthropic/app/v1/messages/batches";
const RESULTS: &str = "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results";

fn batch() -> Value {
    json!({ "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended", "results_url": RESULTS })
}

/// Anthropic's batches, as far as they matter here.
async fn batches(request: Request) -> Response {
    match request.uri().path() {
        "/base/v1/messages/batches" if request.method() == "GET" => {
            let running = json!({ "id": "msgbatch_2", "results_url": null });
            axum::Json(json!({ "data": [batch(), running], "has_more": false })).into_response()
        }
        "/base/v1/messages/batches" | "/base/v1/messages/batches/msgbatch_1" => {
            axum::Json(batch()).into_response()
        }
        "/base/v1/messages/batches/msgbatch_1/results" => {
            // A model may say this, too.
            format!("{{\"results_url\": \"{RESULTS}\"}}\n").into_response()
        }
        "/base/v1/messages/batches/long" => format!("\"{}\"", "x".repeat(1024 * 1024)).into_response(),
        "/base/v1/messages/batches/text" => format!("see {RESULTS}").into_response(),
        "/base/v1/messages/batches/packed" => {
            ([("content-encoding", "gzip")], axum::Json(batch())).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test]
async fn w18_the_results_of_a_batch_are_fetched_through_the_gateway() {
    let (url, seen) = provider(batches).await;
    let gateway = Gateway::of("anthropic", "sk-ant-api03-0123456789012345678901234567890", &url).await;
    let get = async |path: &str| {
        let request = gateway.client.get(format!("{}{path}", gateway.url));
        request.header("x-api-key", gateway.credential()).send().await.unwrap()
    };
    let json = async |response: reqwest::Response| -> Value {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    };
    // SDKs append a path to the base URL that they were given.
    let path = "/v1/messages/batches/msgbatch_1/results";
    let created = gateway.post(BATCHES).body("{}").send().await.unwrap();
    assert_eq!(json(created).await["results_url"], path);
    let found = json(get(&format!("{BATCHES}/msgbatch_1")).await).await;
    assert_eq!(found["results_url"], path);
    assert_eq!(found["processing_status"], "ended");
    let listed = json(get(BATCHES).await).await;
    assert_eq!(
        (&listed["data"][0]["results_url"], &listed["data"][1]["results_url"]),
        (&json!(path), &Value::Null)
    );
    // The results are streamed as they are.
    let results = get(&format!("/v1/anthropic/app{path}")).await;
    assert_eq!(results.text().await.unwrap(), format!("{{\"results_url\": \"{RESULTS}\"}}\n"));

    for (kind, sent) in [("long", 1), ("text", 1), ("packed", 1)] {
        let before = seen.lock().unwrap().len();
        let response = get(&format!("{BATCHES}/{kind}")).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{kind}");
        assert_eq!(code(response).await, "provider_error", "{kind}");
        assert_eq!(seen.lock().unwrap().len() - before, sent, "{kind}");
    }
    assert_eq!(get(&format!("{BATCHES}/none")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn w18_a_resumable_upload_is_refused_unasked() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for protocol in ["resumable", "Resumable"] {
        let request = gateway.post("/v1/google/app/upload/v1beta/files");
        let request =
            request.header("x-goog-upload-protocol", protocol).header("x-goog-upload-command", "start");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
        assert_eq!(code(response).await, "resumable_upload_not_supported");
    }
    assert_eq!(gateway.apple.calls(), 0);
    assert!(seen.lock().unwrap().is_empty());
}
