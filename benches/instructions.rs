//! Requests to be counted in instructions, which repeat where nanoseconds do not: `.ci/instructions`.
//!
//! Runs under callgrind, one kind of request a run, and counts what happens inside of `measured`. The kinds over
//! loopback are for profiles; they do not repeat exactly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod baseline;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod loopback;

use std::{convert::Infallible, hint::black_box};

use baseline::TOKEN_HEADER;
use bytes::Bytes;
use common::{TEAM_ID, afternoon, bare_service, fresh_token, ours, request, session_request, with_session};
use futures::FutureExt;
use http::{HeaderValue, Request, Response, request};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use loopback::{Loopback, spend};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    runtime::Runtime,
};
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    DebugTokens, DeviceCheckLayer, DeviceVerifier, Enforcement, RolloutReport, Route, TokenDigest,
    TokenQuestion, TracingObserver, Verdict, VerifyError,
};

const WARM_UP: usize = 100;
const REQUESTS: usize = 200;

fn main() {
    // `cargo bench` adds an argument of its own.
    let kind = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = kind.as_ref().filter(|kind| !kind.ends_with("loopback")).map(|_| runtime.enter());
    #[cfg(feature = "metrics")]
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let token = fresh_token();
    let known = || token.clone();
    let exempt = ours(Verdict::Genuine).with_routing(|_: &request::Parts| Route::Exempt);
    match kind.as_deref() {
        Some("bare") => count(bare_service(), known),
        Some("exempt") => count(exempt.layer(bare_service()), known),
        Some("hit") => count(ours(Verdict::Genuine).layer(bare_service()), known),
        Some("shadow-left-out") => count(shadow().with_shadow_checks(0).layer(bare_service()), fresh_token),
        Some("shadow-miss") => {
            count(shadow().with_shadow_checks(usize::MAX).layer(bare_service()), fresh_token)
        }
        Some("served-exempt") => over_http(&runtime, &exempt),
        Some("served-shadow") => {
            let layer = DeviceCheckLayer::new(Hanging).with_enforcement(Enforcement::Shadow);
            over_http(&runtime, &layer.with_shadow_checks(WARM_UP / 2));
        }
        Some("reported-hit") => count(reported().layer(bare_service()), known),
        Some("refused") => count(ours(Verdict::Refused).layer(bare_service()), known),
        Some("miss") => count(ours(Verdict::Genuine).layer(bare_service()), fresh_token),
        Some("session") => {
            let (layer, session) = with_session();
            count_with(layer.layer(bare_service()), || session_request(session.clone()));
        }
        Some(place) if place.starts_with("debug-") => {
            let text = debug_token(place);
            let request = || Request::builder().header("x-debug-token", &text).body(()).unwrap();
            count_with(debug_tokens().layer(bare_service()), request);
        }
        Some("afternoon-hit") => count(afternoon(Verdict::Genuine), known),
        Some("afternoon-refused") => count(afternoon(Verdict::Refused), known),
        Some("afternoon-miss") => count(afternoon(Verdict::Genuine), fresh_token),
        Some("loopback") => over_loopback(&runtime, Loopback::ours),
        Some("hyper-util-loopback") => over_loopback(&runtime, Loopback::ours_with_hyper_util),
        Some("afternoon-loopback") => over_loopback(&runtime, |loopback| loopback.afternoon(true)),
        Some("reqwest-loopback") => over_loopback(&runtime, Loopback::transport),
        #[cfg(feature = "metrics")]
        Some("series") => {
            for tokens in [10, 1_000_000] {
                let mut service = ours(Verdict::Genuine).layer(bare_service());
                for _ in 0..tokens {
                    drop(service.call(request(fresh_token())).now_or_never());
                }
                metrics.run_upkeep();
                let text = metrics.render();
                let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
                // For the script, which compares the numbers.
                println!("{series} series after {tokens} different tokens");
            }
        }
        _ => println!("run by .ci/instructions"),
    }
}

/// The secret of the debug token with this number: 64 letters that it shares with no other one.
fn debug_secret(number: u8) -> String {
    char::from(b'a' + number).to_string().repeat(64)
}

/// A layer with 16 debug tokens.
fn debug_tokens() -> DeviceCheckLayer {
    let add =
        |tokens: DebugTokens, number: u8| tokens.add(&number.to_string(), &debug_secret(number)).unwrap();
    ours(Verdict::Genuine).with_debug_tokens((0..16).fold(DebugTokens::new(), add))
}

/// The text of a client that guesses a debug token, or knows one.
fn debug_token(kind: &str) -> String {
    let wrong = "z".repeat(64);
    match kind {
        "debug-first" => debug_secret(0),
        "debug-last" => debug_secret(15),
        "debug-half" => format!("{}{}", &debug_secret(0)[..32], &wrong[..32]),
        // The digest of this one begins with the two bytes of the first secret's.
        "debug-digest" => (0_u64..)
            .map(|number| format!("{number:064}"))
            .find(|text| {
                let first = TokenDigest::of(debug_secret(0).as_bytes());
                TokenDigest::of(text.as_bytes()).as_bytes()[..2] == first.as_bytes()[..2]
            })
            .unwrap(),
        _ => wrong,
    }
}

/// With a report by version beside the log.
fn reported() -> DeviceCheckLayer {
    let report = RolloutReport::by(|_| Some("1.4.2"));
    ours(Verdict::Genuine).with_observer((TracingObserver, report))
}

/// The check runs beside the request, and is not counted: this thread's runtime does not run.
fn shadow() -> DeviceCheckLayer {
    ours(Verdict::Genuine).with_enforcement(Enforcement::Shadow)
}

fn count<S, B>(service: S, token: impl Fn() -> HeaderValue)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    count_with(service, || request(token()));
}

fn count_with<S, B>(mut service: S, request: impl Fn() -> Request<()>)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let requests = |count: usize| (0..count).map(|_| request()).collect::<Vec<_>>();
    for request in requests(WARM_UP) {
        drop(service.call(request).now_or_never());
    }
    measured(requests(REQUESTS), &mut service);
    // For the script, which divides by it.
    println!("{REQUESTS} requests");
}

#[inline(never)]
fn measured<S, B>(requests: Vec<Request<()>>, service: &mut S)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    for request in requests {
        drop(black_box(service.call(request).now_or_never()));
    }
}

/// Requests over HTTP/1.1 through a pipe in this process's memory. The client only writes and reads bytes, so that most
/// of the cost is the server's.
fn over_http(runtime: &Runtime, layer: &DeviceCheckLayer) {
    let service = layer.layer(service_fn(async |_: Request<Incoming>| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let server = Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(server), TowerToHyperService::new(service))
        .into_owned();
    runtime.spawn(async move { drop(server.await) });
    let requests = |count: usize| {
        let tokens = (0..count).map(|_| fresh_token());
        let request = |token: HeaderValue| {
            let token = token.to_str().unwrap();
            format!(
                "GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: app/1.4.2\r\naccept: */*\r\n{TOKEN_HEADER}: {token}\r\n\r\n"
            )
        };
        tokens.map(request).collect::<Vec<_>>()
    };
    runtime.block_on(exchange(&mut client, requests(WARM_UP)));
    measured_exchange(runtime, &mut client, requests(REQUESTS));
    println!("{REQUESTS} requests");
}

#[inline(never)]
fn measured_exchange(runtime: &Runtime, client: &mut DuplexStream, requests: Vec<String>) {
    runtime.block_on(exchange(client, requests));
}

async fn exchange(client: &mut DuplexStream, requests: Vec<String>) {
    let mut answer = [0; 1024];
    for request in requests {
        client.write_all(request.as_bytes()).await.unwrap();
        let read = client.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
        assert!(answer[..read].ends_with(b"\r\n\r\n"));
    }
}

/// Never answers.
struct Hanging;

impl DeviceVerifier for Hanging {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        std::future::pending().await
    }

    fn scope(&self) -> &str {
        TEAM_ID
    }
}

fn over_loopback<S, B>(runtime: &Runtime, service: fn(&Loopback) -> S)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    let loopback = Loopback::start();
    let service = service(&loopback);
    let tokens = |count: usize| (0..count).map(|_| loopback.fresh_token()).collect::<Vec<_>>();
    runtime.block_on(spend(&service, tokens(WARM_UP), 1));
    measured_misses(runtime, &service, tokens(REQUESTS));
    println!("{REQUESTS} requests");
}

#[inline(never)]
fn measured_misses<S, B>(runtime: &Runtime, service: &S, tokens: Vec<HeaderValue>)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    runtime.block_on(spend(service, tokens, 1));
}
