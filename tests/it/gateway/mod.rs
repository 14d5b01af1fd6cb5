//! The example `ai_gateway`, between a client and a provider that are both this test.

#[path = "../../../examples/ai_gateway/gateway.rs"]
#[allow(dead_code, reason = "the tests need not all of the example")]
pub(crate) mod ai_gateway;
mod answers;
mod any_provider;
mod batches;
mod bodies;
mod clocks;
mod coming_back;
mod cors;
mod credentials_in_urls;
mod crossing;
mod forwarding;
mod hidden_keys;
mod memory;
mod operator;
mod paths;
mod projects;
mod promises;
mod refused_keys;
mod revocation;
mod settings;
mod upgrades;
mod usage;
mod usage_kept;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use ai_gateway::{App, Limits, Settings, app, models::Models};
use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderName, StatusCode, request},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_devicecheck::{
    BoxError, DebugTokens, DeviceCheckLayer,
    split_key::{
        Limits as KeyLimits, MemorySplitKeyStore, Provider, Providers, Split, SplitKeyStore, Splitter,
        UsageLog,
    },
};

use crate::support::Apple;

const KEY: &str = "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9";
const ANTHROPIC_KEY: &str = "sk-ant-api03-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6g";
const TEST_KEY: &str = "a-key-for-the-simulator";
const ADMIN: &str = "the-admin-token-of-the-tests";
/// A request with this header is over the limit.
const OVER_THE_LIMIT: &str = "x-over-the-limit";

/// Serves on the loopback interface until the test ends.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

/// A provider that keeps the heads of the requests that it sees, and answers as the test says.
async fn provider<F, R>(answer: F) -> (String, Arc<Mutex<Vec<request::Parts>>>)
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response> + Send,
{
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let handler = move |request: Request| {
        let (head, body) = request.into_parts();
        note.lock().unwrap().push(head.clone());
        answer(Request::from_parts(head, body))
    };
    (serve(Router::new().fallback(handler)).await, seen)
}

/// A provider that answers one request with this stream of events.
async fn provider_of_events<B>(body: B) -> String
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let body = Arc::new(Mutex::new(Some(body)));
    let answer = move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async { ([("content-type", "text/event-stream")], Body::new(body)).into_response() }
    };
    provider(answer).await.0
}

/// The three that are built in, all at this server.
fn providers_at(url: &str) -> Providers {
    let base = |path| format!("{url}{path}");
    Providers::none()
        .with(Provider::openai().with_base_url(&base("/base/v1")).unwrap())
        .with(Provider::anthropic().with_base_url(&base("/base/v1")).unwrap())
        .with(Provider::google().with_base_url(&base("/base/v1beta")).unwrap())
}

struct Gateway {
    url: String,
    app: App,
    apple: Apple,
    split: Split,
    client: reqwest::Client,
}

impl Gateway {
    async fn new(provider: &str, limits: Limits) -> Self {
        Self::with(provider, limits, KeyLimits::none()).await
    }

    async fn with(provider: &str, limits: Limits, key_limits: KeyLimits) -> Self {
        Self::start(("openai", KEY), providers_at(provider), limits, key_limits).await
    }

    /// With a key of this provider.
    async fn of(name: &str, key: &str, provider: &str) -> Self {
        Self::start((name, key), providers_at(provider), Limits::default(), KeyLimits::none()).await
    }

    async fn start(key: (&str, &str), providers: Providers, limits: Limits, key_limits: KeyLimits) -> Self {
        Self::start_with(key, providers, None, limits, key_limits).await
    }

    /// With roots of the operator's own.
    async fn trusting(provider: &str, roots: Option<PathBuf>) -> Self {
        let (limits, key_limits) = (Limits::default(), KeyLimits::none());
        Self::start_with(("openai", KEY), providers_at(provider), roots, limits, key_limits).await
    }

    async fn start_with(
        (name, key): (&str, &str),
        providers: Providers,
        roots: Option<PathBuf>,
        limits: Limits,
        key_limits: KeyLimits,
    ) -> Self {
        Self::put_together(
            (name, key),
            providers,
            MemorySplitKeyStore::new(),
            key_limits,
            |settings, gate| {
                settings.limits = limits;
                settings.roots = roots;
                gate
            },
        )
        .await
    }

    /// With these keys, and with other settings or another gate.
    async fn put_together(
        (name, key): (&str, &str),
        providers: Providers,
        keys: impl SplitKeyStore,
        key_limits: KeyLimits,
        change: impl FnOnce(&mut Settings, DeviceCheckLayer) -> DeviceCheckLayer,
    ) -> Self {
        let apple = Apple::new();
        let splitter = Splitter::new().with_providers(providers.clone());
        let split = splitter.issue(&keys, "app", name, key, key_limits).await.unwrap();
        let mut settings = Settings {
            providers,
            models: Models::default(),
            roots: None,
            limits: Limits::default(),
            usage: UsageLog::new(),
            admin_token: Some(ADMIN.to_owned()),
            debug_tokens: DebugTokens::new().add("simulator", TEST_KEY).unwrap(),
            cors: None,
            single_use: false,
        };
        let limiter = |head: &http::request::Parts| match head.headers.get(OVER_THE_LIMIT) {
            Some(_) => Err(std::time::Duration::from_millis(1_500)),
            None => Ok(()),
        };
        let gate = change(&mut settings, apple.layer().with_limiter(limiter));
        let app = app(gate, keys, settings).unwrap();
        let url = serve(Router::new().fallback_service(app.clone())).await;
        Self { url, app, apple, split, client: reqwest::Client::new() }
    }

    fn part(&self) -> &str {
        self.split.client_part().expose()
    }

    /// With the credentials of a new device.
    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        let token = self.apple.genuine();
        let request = self.client.post(format!("{}{path}", self.url));
        request.header("authorization", format!("Bearer {}.{token}", self.part()))
    }

    /// The client part and the token of a new device, as one credential.
    fn credential(&self) -> String {
        format!("{}.{}", self.part(), self.apple.genuine())
    }

    /// The whole answer to a request that is written by hand, which should ask for the connection to be closed.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// The status in an answer of [`Gateway::exchange`].
fn status(answer: &str) -> &str {
    answer.split_whitespace().nth(1).unwrap_or("none")
}

/// The names of headers, in order.
fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

const CHAT: &str = "/v1/openai/app/chat/completions";

async fn ok(_: Request) -> Response {
    StatusCode::OK.into_response()
}

async fn code(response: reqwest::Response) -> String {
    let code = response.headers().get("x-devicecheck-code").map(|code| code.to_str().unwrap().to_owned());
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default();
    // As OpenAI and Anthropic have it, Google, and those who know no provider.
    let error = &body["error"];
    let in_body =
        [&error["code"], &error["details"][0]["reason"], &body["code"]].into_iter().find_map(Value::as_str);
    assert_eq!(in_body, code.as_deref());
    code.unwrap_or_else(|| "no problem".to_owned())
}
