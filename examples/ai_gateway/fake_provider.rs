//! OpenAI, Anthropic and Google in one small fake: enough for their SDKs to be content.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Its one answer, word by word.
const WORDS: [&str; 5] = ["Hello", " from", " a", " fake", " provider."];
/// Between two events of a stream, so that one can see them come.
const PAUSE: Duration = Duration::from_millis(50);

/// The API keys that it accepts, all made up at start.
#[derive(Clone)]
pub(crate) struct FakeProvider(Arc<[(&'static str, String)]>);

impl FakeProvider {
    pub(crate) fn new() -> Self {
        let random = || uuid::Uuid::new_v4().simple();
        Self(Arc::new([
            ("openai", format!("sk-proj-{}{}", random(), random())),
            ("anthropic", format!("sk-ant-api03-{}{}", random(), random())),
            ("google", format!("AIza{}{}", random(), random())),
        ]))
    }

    /// Provider and API key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(provider, key)| (*provider, key.as_str()))
    }

    /// Serves on the loopback interface until the process ends.
    pub(crate) async fn serve(self) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/openai/v1/chat/completions", post(chat))
            .route("/openai/v1/models", get(models))
            .route("/anthropic/v1/messages", post(messages))
            .route("/google/v1beta/models/{call}", post(generate))
            .with_state(self);
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(address)
    }

    fn accepts(&self, provider: &str, key: Option<&str>) -> bool {
        self.keys().any(|(name, expected)| name == provider && key == Some(expected))
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    header(headers, "authorization")?.strip_prefix("Bearer ")
}

fn refused(status: StatusCode, kind: &str, message: &str) -> Response {
    // Google's reason is in the details.
    let error = json!({ "type": kind, "message": message, "code": kind, "details": [{ "reason": kind }] });
    let error = json!({ "type": "error", "error": error });
    (status, Json(error)).into_response()
}

/// Server-sent events, each in a piece of its own.
fn events(events: impl Stream<Item = String> + Send + 'static) -> Response {
    let pieces = events.enumerate().then(|(index, event)| async move {
        if index > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok::<_, Infallible>(Bytes::from(event))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
}

fn wants_stream(request: &Value) -> bool {
    request["stream"] == true
}

async fn chat(State(fake): State<FakeProvider>, headers: HeaderMap, Json(request): Json<Value>) -> Response {
    if !fake.accepts("openai", bearer(&headers)) {
        return refused(StatusCode::UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided");
    }
    let Some(model) = request["model"].as_str().map(str::to_owned) else {
        return refused(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "you must provide a model parameter",
        );
    };
    if !wants_stream(&request) {
        return Json(json!({
            "id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": model,
            "choices": [{
                "index": 0, "finish_reason": "stop", "logprobs": null,
                "message": { "role": "assistant", "content": WORDS.concat(), "refusal": null },
            }],
            "usage": { "prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6 },
        }))
        .into_response();
    }
    let chunk = move |delta: Value, finish: Value| {
        let choices = json!([{ "index": 0, "delta": delta, "finish_reason": finish, "logprobs": null }]);
        let chunk = json!({
            "id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": model,
            "choices": choices,
        });
        format!("data: {chunk}\n\n")
    };
    let mut pieces = vec![chunk(json!({ "role": "assistant", "content": "" }), Value::Null)];
    pieces.extend(WORDS.map(|word| chunk(json!({ "content": word }), Value::Null)));
    pieces.push(chunk(json!({}), "stop".into()));
    if request["stream_options"]["include_usage"] == true {
        let usage = json!({ "prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6 });
        let last = json!({ "id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "choices": [], "usage": usage });
        pieces.push(format!("data: {last}\n\n"));
    }
    pieces.push("data: [DONE]\n\n".to_owned());
    events(stream::iter(pieces))
}

async fn models(State(fake): State<FakeProvider>, headers: HeaderMap) -> Response {
    if !fake.accepts("openai", bearer(&headers)) {
        return refused(StatusCode::UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided");
    }
    let model = json!({ "id": "fake-1", "object": "model", "created": 1, "owned_by": "nobody" });
    Json(json!({ "object": "list", "data": [model] })).into_response()
}

async fn messages(
    State(fake): State<FakeProvider>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Response {
    if !fake.accepts("anthropic", header(&headers, "x-api-key")) {
        return refused(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    if header(&headers, "anthropic-version").is_none() {
        return refused(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "anthropic-version: header is required",
        );
    }
    let message = |content: Value, stop: Value| {
        json!({
            "id": "msg_fake", "type": "message", "role": "assistant", "model": request["model"],
            "content": content, "stop_reason": stop, "stop_sequence": null,
            "usage": { "input_tokens": 1, "output_tokens": 5 },
        })
    };
    if !wants_stream(&request) {
        let content = json!([{ "type": "text", "text": WORDS.concat() }]);
        return Json(message(content, "end_turn".into())).into_response();
    }
    let event = |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        format!("event: {kind}\ndata: {data}\n\n")
    };
    let delta = |word| json!({ "index": 0, "delta": { "type": "text_delta", "text": word } });
    let end = json!({ "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": { "output_tokens": 5 } });
    let mut pieces = vec![
        event("message_start", json!({ "message": message(json!([]), Value::Null) })),
        event("content_block_start", json!({ "index": 0, "content_block": { "type": "text", "text": "" } })),
    ];
    pieces.extend(WORDS.map(|word| event("content_block_delta", delta(word))));
    pieces.push(event("content_block_stop", json!({ "index": 0 })));
    pieces.push(event("message_delta", end));
    pieces.push(event("message_stop", json!({})));
    events(stream::iter(pieces))
}

/// `models/{model}:generateContent` and `models/{model}:streamGenerateContent`.
async fn generate(
    State(fake): State<FakeProvider>,
    Path(call): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !fake.accepts("google", header(&headers, "x-goog-api-key")) {
        return refused(StatusCode::BAD_REQUEST, "API_KEY_INVALID", "API key not valid");
    }
    let candidate = |text: &str| {
        let content = json!({ "role": "model", "parts": [{ "text": text }] });
        let usage = json!({ "promptTokenCount": 1, "candidatesTokenCount": 5, "totalTokenCount": 6 });
        let candidates = json!([{ "index": 0, "content": content, "finishReason": "STOP" }]);
        json!({ "candidates": candidates, "usageMetadata": usage, "modelVersion": "fake-1" })
    };
    match call.rsplit_once(':') {
        Some((_, "generateContent")) => Json(candidate(&WORDS.concat())).into_response(),
        Some((_, "streamGenerateContent")) => {
            events(stream::iter(WORDS.map(|word| format!("data: {}\r\n\r\n", candidate(word)))))
        }
        _ => refused(StatusCode::NOT_FOUND, "NOT_FOUND", "no such call"),
    }
}
