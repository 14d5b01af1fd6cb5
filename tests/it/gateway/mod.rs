//! The example `ai_gateway`, between a client and a provider that are both this test.

#[path = "../../../examples/ai_gateway/gateway.rs"]
#[allow(dead_code, reason = "the tests need not all of the example")]
pub(crate) mod ai_gateway;
mod answers;
mod bodies;
mod coming_back;
mod credentials_in_urls;
mod crossing;
mod forwarding;
mod memory;
mod operator;
mod paths;
mod projects;
mod upgrades;

use std::sync::{Arc, Mutex};

use ai_gateway::{App, Limits, Settings, app};
use axum::{
    Router,
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
    DebugTokens,
    split_key::{Limits as KeyLimits, MemorySplitKeyStore, Provider, Providers, Split, Splitter},
};

use crate::support::Apple;

const KEY: &str = "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9";
const TEST_KEY: &str = "a-key-for-the-simulator";
const ADMIN: &str = "the-admin-token";
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
        let (apple, keys) = (Apple::new(), MemorySplitKeyStore::new());
        let split = Splitter::new().issue(&keys, "app", "openai", KEY, key_limits).await.unwrap();
        let base = |path| format!("{provider}{path}");
        let settings = Settings {
            providers: Providers::none()
                .with(Provider::openai().with_base_url(&base("/base/v1")).unwrap())
                .with(Provider::anthropic().with_base_url(&base("/base/v1")).unwrap())
                .with(Provider::google().with_base_url(&base("/base/v1beta")).unwrap()),
            limits,
            admin_token: Some(ADMIN.to_owned()),
            debug_tokens: DebugTokens::new().add("simulator", TEST_KEY).unwrap(),
        };
        let limiter = |head: &http::request::Parts| match head.headers.get(OVER_THE_LIMIT) {
            Some(_) => Err(std::time::Duration::from_millis(1_500)),
            None => Ok(()),
        };
        let app = app(apple.layer().with_limiter(limiter), keys, settings).unwrap();
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
