//! The gateway's clocks: each measures what its name says.

#[path = "../../../examples/shared/serve.rs"]
#[allow(dead_code, reason = "the tests need not all of the example")]
mod serve;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, http::StatusCode};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, channel::mpsc, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::split_key::{
    Limits as KeyLimits, MemorySplitKeyStore, Providers, Split, SplitKeyLayer, Splitter,
    gateway::{Forward, GatewayLayer, PassedBody, ProviderErrors},
};

use super::{ai_gateway::Limits, code};

/// The gateway's own layers, without sockets, so that the clock can be paused. Nobody asks Apple.
pub(super) struct Clocked {
    pub(super) keys: Arc<MemorySplitKeyStore>,
    pub(super) split: Split,
    pub(super) provider: &'static str,
}

pub(super) type Outgoing = Request<PassedBody<Body>>;

impl Clocked {
    pub(super) async fn new(provider: &'static str) -> Self {
        let keys = Arc::new(MemorySplitKeyStore::new());
        let key = "a-key-that-is-none-of-theirs-0123456789";
        let split = Splitter::new().issue(&keys, "app", provider, key, KeyLimits::none()).await.unwrap();
        Self { keys, split, provider }
    }

    /// Sends a request. `client` stands for the HTTP client and the provider.
    pub(super) async fn send<F>(
        &self,
        body: Body,
        client: impl Fn(Outgoing) -> F + Clone + Send + 'static,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let client = service_fn(move |request| client(request).map(Ok::<_, Infallible>));
        let keys = SplitKeyLayer::new(Arc::clone(&self.keys))
            .with_rejection_response(ProviderErrors)
            .with_dangerous_unverified_devices(true);
        let stack = ServiceBuilder::new().layer(GatewayLayer::new(Providers::default())).layer(keys);
        let request = Request::post(format!("/v1/{}/models/m:stream", self.provider))
            .header("x-ai-key", self.split.client_part().expose())
            .header("x-project-id", "app")
            .body(body)
            .unwrap();
        let mut service = stack.service(Forward::new(client));
        service.ready().await.unwrap().call(request).await.unwrap().map(Body::new)
    }
}

/// Pieces, each after a pause in seconds.
pub(super) fn pieces(
    pieces: Vec<(u64, &'static str)>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    stream::iter(pieces).then(async |(pause, text)| {
        sleep(Duration::from_secs(pause)).await;
        Ok(Bytes::from_static(text.as_bytes()))
    })
}

/// Answers when all of the request has come, and some time has passed.
async fn after_upload(request: Outgoing, seconds: u64) -> Response<Body> {
    match request.into_body().collect().await {
        Ok(body) => {
            sleep(Duration::from_secs(seconds)).await;
            Response::new(Body::from(body.to_bytes()))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn w10_the_clock_of_the_answer_begins_after_the_upload() {
    let gateway = Clocked::new("openai").await;
    // 1,100 seconds of upload, and an answer that takes nearly as long as SDKs wait.
    let upload = || Body::from_stream(pieces(vec![(110, "x"); 10]));
    let response = gateway.send(upload(), |request| after_upload(request, 599)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "x".repeat(10));

    let started = Instant::now();
    let response = gateway.send(upload(), |request| after_upload(request, 601)).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(started.elapsed().as_secs(), 1_100 + 600);

    // An upload that is taken slowly is no sign of life of the provider's.
    let started = Instant::now();
    let response = gateway.send(Body::from("{}"), async |_| std::future::pending().await).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(started.elapsed().as_secs(), 600);
}

#[tokio::test(start_paused = true)]
async fn w10_a_silent_client_has_a_clock_of_its_own() {
    let gateway = Clocked::new("openai").await;
    let client = async |request: Outgoing| -> Response<Body> {
        // As an HTTP client does: the error of the body is that of the request.
        let error = request.into_body().collect().await.unwrap_err();
        let body = Body::from_stream(stream::iter([Err::<Bytes, _>(error)]));
        Response::builder().status(500).body(body).unwrap()
    };
    let started = Instant::now();
    let upload = Body::from_stream(pieces(vec![(0, "{"), (121, "}")]));
    let response = gateway.send(upload, client).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(started.elapsed().as_secs(), 120);
}

/// The texts of a stream of events, one for each piece.
async fn events(
    gateway: &Clocked,
    headers: &[(&str, &str)],
    stream: Vec<(u64, &'static str)>,
) -> (Response<()>, String) {
    let mut answer = Response::new(());
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    let client = move |_: Outgoing| {
        let answer = answer.clone().map(|()| Body::from_stream(pieces(stream.clone())));
        async { answer }
    };
    let response = gateway.send(Body::empty(), client).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (Response::from_parts(head, ()), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn w10_a_stream_that_thinks_is_kept_alive_between_its_events() {
    const SSE: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");
    const COMMENT: &str = ": keep-alive\n\n";
    let gateway = Clocked::new("openai").await;
    let stream = vec![
        (16, "data: 1\n\n"),
        // Half an event, and a silence within it.
        (1, "data: "),
        (40, "2\r\n"),
        (1, "\r\n"),
        (31, "data: 3\n"),
        (1, "\n"),
        (599, ""),
    ];
    let (response, text) = events(&gateway, &[SSE], stream.clone()).await;
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let (begin, rest) = text.split_once("data: 1\n\n").unwrap();
    assert_eq!(begin, COMMENT);
    let (between, rest) = rest.split_once("data: 2\r\n\r\n").unwrap();
    assert_eq!(between, "", "not within an event");
    let (between, rest) = rest.split_once("data: 3\n\n").unwrap();
    assert_eq!(between, COMMENT.repeat(2));
    assert_eq!(rest, COMMENT.repeat(39), "ten minutes of thought, one comment each 15 seconds");

    // Other answers, and streams of known length, are passed on as they are.
    let plain: String = stream.iter().map(|(_, text)| *text).collect();
    let length = plain.len().to_string();
    for headers in [
        &[("content-type", "application/json")][..],
        &[("content-type", "application/x-ndjson")],
        &[SSE, ("content-length", &length)],
        &[SSE, ("content-encoding", "gzip")],
        &[],
    ] {
        let (response, text) = events(&gateway, headers, stream.clone()).await;
        assert_eq!(text, plain, "{headers:?}");
        assert!(!response.headers().contains_key("x-accel-buffering"), "{headers:?}");
    }
    // Google's SDKs take a comment to be a broken event.
    let google = Clocked::new("google").await;
    let (response, text) = events(&google, &[SSE], stream).await;
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert_eq!(text, plain);
}

#[tokio::test(start_paused = true)]
async fn w10_a_stream_that_is_silent_for_too_long_is_cut() {
    let gateway = Clocked::new("openai").await;
    let client = async |_: Outgoing| {
        let body = Body::from_stream(pieces(vec![(0, "data: 1\n\n"), (601, "data: 2\n\n")]));
        Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
    };
    let started = Instant::now();
    let mut body = gateway.send(Body::empty(), client).await.into_body();
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(started.elapsed().as_secs(), 600, "{error}");
}

/// A client that reads slowly is served; one that reads nothing for a minute is not.
#[tokio::test(start_paused = true)]
async fn w10_a_writer_waits_for_a_minute_and_no_longer() {
    let (ours, mut theirs) = duplex(16);
    let mut ours = serve::Written::new(ours, Duration::from_secs(60));
    let writer = tokio::spawn(async move {
        let error = loop {
            if let Err(error) = ours.write_all(&[0; 16]).await {
                break error;
            }
        };
        (error.kind(), Instant::now())
    });
    for _ in 0..20 {
        sleep(Duration::from_secs(59)).await;
        theirs.read_exact(&mut [0; 16]).await.unwrap();
    }
    let stopped = Instant::now();
    let (kind, ended) = writer.await.unwrap();
    assert_eq!(kind, std::io::ErrorKind::TimedOut);
    assert_eq!((ended - stopped).as_secs(), 60);
}

/// The body is dropped, and so is all that it comes from.
#[tokio::test]
async fn w10_a_client_that_stops_reading_holds_nothing() {
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.unbounded_send(());
        }
    }
    let (dropped, mut seen) = mpsc::unbounded();
    let app = service_fn(move |_: Request<hyper::body::Incoming>| {
        let guard = Dropped(dropped.clone());
        let endless = stream::repeat_with(move || {
            let _ = &guard;
            Ok::<_, Infallible>(Bytes::from_static(&[0; 65_536]))
        });
        async { Ok::<_, Infallible>(Response::new(Body::from_stream(endless))) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = serve::Limits { write: Duration::from_millis(300), ..serve::Limits::default() };
    tokio::spawn(serve::serve(listener, app, limits, std::future::pending()));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // It reads no further.
    client.read_exact(&mut [0; 64]).await.unwrap();
    seen.next().await.unwrap();
}

/// Over sockets, with a clock for each.
#[tokio::test]
async fn w10_the_settings_are_those_of_the_three_clocks() {
    let defaults = Limits::default();
    let seconds = [defaults.upload, defaults.head, defaults.idle].map(|time| time.as_secs());
    assert_eq!(seconds, [120, 600, 600]);
    let (url, _) = super::provider(async |_| std::future::pending().await).await;
    let short = Duration::from_millis(50);
    let limits = Limits { head: short, ..defaults };
    let gateway = super::Gateway::new(&url, limits).await;
    let response = gateway.post(super::CHAT).send().await.unwrap();
    assert_eq!(code(response).await, "provider_timeout");
    assert_eq!(gateway.apple.calls(), 1);
}
