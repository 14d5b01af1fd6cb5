//! The same over sockets, with the real client.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, BoxError, DeviceCheckLayer, Environment, ReqwestTransport,
    testing::{FakeApple, FakeAppleServer, Reply, realistic_token},
};

use crate::support::{App, TOKEN_HEADER};

const SECOND: Duration = Duration::from_secs(1);

async fn start(slots: usize) -> (FakeAppleServer, App) {
    let server = FakeApple::new().serve().await.unwrap();
    let client = AppleClient::builder(server.apple().credentials())
        .base_url(Environment::Production, server.url(Environment::Production))
        .transport(ReqwestTransport::http2_prior_knowledge().unwrap())
        .in_flight_limit(slots)
        .build()
        .unwrap();
    (server, App::new(&DeviceCheckLayer::new(client)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a06_over_sockets_apple_is_used_to_the_full() {
    // Apple bears 64 calls a second, and is offered 192.
    let (server, app) = start(64).await;
    let apple = server.apple();
    apple.always(Reply::normal().delay(SECOND));
    let started = Instant::now();
    let mut requests = Vec::new();
    while started.elapsed() < 14 * SECOND {
        let (app, token) = (app.clone(), apple.genuine_token(Environment::Production));
        requests.push(tokio::spawn(async move {
            let arrived = Instant::now();
            let status = app.status(&token).await;
            (status, arrived.elapsed(), started.elapsed())
        }));
        sleep(SECOND / 192).await;
    }
    let answers: Vec<_> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
    let admitted = |(status, _, _): &&(StatusCode, Duration, Duration)| *status == StatusCode::OK;
    for window in 3..7 {
        let (from, to) = (2 * window * SECOND, 2 * (window + 1) * SECOND);
        let count = answers.iter().filter(admitted).filter(|(_, _, at)| (from..to).contains(at)).count();
        assert!(count * 10 >= 9 * 128, "window {window}: {count} of 128");
    }
    let mut waits: Vec<_> =
        answers.iter().filter(|answer| !admitted(answer)).map(|(_, wait, _)| *wait).collect();
    waits.sort_unstable();
    assert!(waits[waits.len() / 2] < Duration::from_millis(100), "{:?}", waits[waits.len() / 2]);
    assert!(apple.calls() <= answers.iter().filter(admitted).count() + 64);
}

/// A server in a process of its own, and the fake Apple that it asks.
#[cfg(target_os = "linux")]
struct OtherProcess {
    process: tokio::process::Child,
    url: String,
    apple: FakeAppleServer,
    /// As many as connections: hyper lets a connection have 200 requests at once.
    clients: Vec<reqwest::Client>,
}

#[cfg(target_os = "linux")]
impl OtherProcess {
    /// Runs one of the two tests below that serve for ever.
    async fn start(name: &str) -> Self {
        use tokio::io::{AsyncBufReadExt, BufReader};

        let fake = FakeApple::new();
        let apple = fake.serve().await.unwrap();
        let mut process = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .env("APPLE_JWT_ISS", fake.team_id())
            .env("APPLE_JWT_KID", fake.key_id())
            .env("APPLE_JWT_PRIVATE_KEY", fake.private_key().to_pem())
            .env("DEVICECHECK_PRODUCTION_URL", apple.url(Environment::Production))
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next_line().await.unwrap().expect("a line with the address");
            if let Some((_, url)) = line.split_once("listening on ") {
                break url.to_owned();
            }
        };
        let client = || reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
        Self { process, url, apple, clients: (0..25).map(|_| client()).collect() }
    }

    async fn status(&self, number: usize, token: String) -> StatusCode {
        let client = &self.clients[number % self.clients.len()];
        client.get(&self.url).header(TOKEN_HEADER, token).send().await.unwrap().status()
    }

    fn resident_megabytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }

    /// What each of three waves of 5,000 new devices has left behind, in megabytes.
    async fn waves(&self) -> [u64; 3] {
        let apple = self.apple.apple();
        let genuine = || apple.genuine_token(Environment::Production);
        join_all((0..25).map(|number| self.status(number, genuine()))).await;
        let before = self.resident_megabytes();
        let mut more = [0; 3];
        for more in &mut more {
            apple.always(Reply::hang());
            let calls = apple.calls();
            let requests = (0..5_000).map(|number| self.status(number, realistic_token()));
            let statuses = join_all(requests).await;
            assert!(statuses.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
            assert!(apple.calls() - calls <= 2 * 256, "{}", apple.calls() - calls);
            *more = self.resident_megabytes().saturating_sub(before);
            // The breaker would answer the next wave at once.
            apple.clear();
            while apple.calls() > calls && self.status(0, genuine()).await != StatusCode::OK {
                sleep(SECOND / 4).await;
            }
        }
        more
    }
}

/// Serves for ever, in the process of its own that [`OtherProcess`] starts.
#[cfg(target_os = "linux")]
#[allow(clippy::print_stdout, reason = "the address")]
async fn serve<S, B>(service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
        });
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a test below, in a process of its own"]
async fn server_with_the_layer() {
    let client = AppleClientBuilder::from_env().unwrap();
    let client = client.transport(ReqwestTransport::http2_prior_knowledge().unwrap()).build().unwrap();
    let inner = async |_| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()));
    serve(DeviceCheckLayer::new(client).layer(service_fn(inner))).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a test below, in a process of its own"]
async fn server_without_the_layer() {
    let wait = async |request: Request<Incoming>| {
        // As long as the layer at most.
        sleep(5 * SECOND).await;
        drop(request);
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok(response)
    };
    serve(service_fn(wait)).await;
}

/// A server that holds as many requests without the layer keeps memory, too: glibc does not give it back. The layer may
/// add 20 MB.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, reason = "figures for people")]
async fn a10_three_waves_of_5000_leave_little_more_than_without_the_layer() {
    let mut more = Vec::new();
    for name in ["server_with_the_layer", "server_without_the_layer"] {
        more.push(OtherProcess::start(&format!("overload_sockets::{name}")).await.waves().await);
    }
    println!("MB more after each wave: {:?} with the layer, {:?} without", more[0], more[1]);
    for (with, without) in more[0].iter().zip(more[1]) {
        assert!(*with <= without + 20, "{more:?} MB");
    }
}
