//! The memory that crowds leave behind in a server, which is a process of its own.
#![cfg(target_os = "linux")]

use std::{convert::Infallible, process::Stdio, time::Duration};

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
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::{Instant, sleep},
};
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    AppleClientBuilder, BoxError, DeviceCheckLayer, Environment, ReqwestTransport,
    testing::{FakeApple, FakeAppleServer, Reply, realistic_token},
};

use crate::support::TOKEN_HEADER;

const SECOND: Duration = Duration::from_secs(1);

/// A server in a process of its own, and the fake Apple that it asks.
struct OtherProcess {
    process: Child,
    url: String,
    apple: FakeAppleServer,
    /// As many as connections: hyper lets a connection have 200 requests at once.
    clients: Vec<reqwest::Client>,
}

impl OtherProcess {
    /// Runs one of the two tests below that serve.
    async fn start(name: &str) -> Self {
        let fake = FakeApple::new();
        let apple = fake.serve().await.unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .env("APPLE_JWT_ISS", fake.team_id())
            .env("APPLE_JWT_KID", fake.key_id())
            .env("APPLE_JWT_PRIVATE_KEY", fake.private_key().to_pem())
            .env("DEVICECHECK_PRODUCTION_URL", apple.url(Environment::Production))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
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

    /// Sends so many waves of 5,000 new devices. Returns the megabytes that are left behind after each.
    async fn waves(&self, number: usize) -> Vec<u64> {
        let apple = self.apple.apple();
        let genuine = || apple.genuine_token(Environment::Production);
        join_all((0..25).map(|number| self.status(number, genuine()))).await;
        let before = self.resident_megabytes();
        let mut more = Vec::new();
        for _ in 0..number {
            apple.always(Reply::hang());
            let calls = apple.calls();
            let (began, requests) =
                (Instant::now(), (0..5_000).map(|number| self.status(number, realistic_token())));
            let statuses = join_all(requests).await;
            assert!(statuses.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
            // The more seconds a busy machine takes, the more probes there are: one a second.
            let most = 2 * 256 + 2 + usize::try_from(began.elapsed().as_secs()).unwrap();
            assert!(apple.calls() - calls <= most, "{} of {most}", apple.calls() - calls);
            more.push(self.resident_megabytes().saturating_sub(before));
            // The breaker would answer the next wave at once.
            apple.clear();
            while apple.calls() > calls && self.status(0, genuine()).await != StatusCode::OK {
                sleep(SECOND / 4).await;
            }
        }
        more
    }
}

/// Serves until the standard input ends, which it does with the process that started this one.
#[allow(clippy::print_stdout, reason = "the address")]
async fn serve<S, B>(service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    let mut input = tokio::io::stdin();
    loop {
        let stream = tokio::select! {
            _ = input.read_u8() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a test below, in a process of its own"]
async fn server_with_the_layer() {
    // Somebody runs all tests that are ignored.
    let Ok(client) = AppleClientBuilder::from_env() else { return };
    let client = client.transport(ReqwestTransport::http2_prior_knowledge().unwrap()).build().unwrap();
    let inner = async |_| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()));
    serve(DeviceCheckLayer::new(client).layer(service_fn(inner))).await;
}

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

/// A server that holds as many requests without the layer keeps memory, too: glibc does not give it back. What the layer
/// adds depends on how busy the machine is. It should be 20 MB at most, and that of a leak would be far more than 40.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, reason = "figures for people")]
async fn a10_three_waves_of_5000_leave_little_more_than_without_the_layer() {
    let with = OtherProcess::start("overload_memory::server_with_the_layer").await.waves(3).await;
    let without = OtherProcess::start("overload_memory::server_without_the_layer").await.waves(1).await;
    let within = |most| with.iter().all(|with| *with <= without[0] + most);
    let verdict = if within(20) { "kept" } else { "MISSED" };
    println!(
        "MB more after each wave: {with:?} with the layer, {without:?} without; at most 20 more: {verdict}"
    );
    assert!(within(40), "{with:?} MB with the layer, {without:?} without");
}
