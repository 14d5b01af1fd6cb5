//! The servers of the examples, as processes: clients that keep a part back, and the end by SIGTERM.
#![cfg(unix)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tower_devicecheck::{
    AppleClient, Environment, Verdict,
    split_key::{FileSplitKeyStore, Limits, Splitter},
    testing::{FakeApple, FakeAppleServer, Reply},
};

use crate::{
    captured,
    examples::{shared, tonic_example},
    support::{TOKEN_HEADER, example},
};

const EXAMPLES: [&str; 6] = ["axum", "hyper", "tonic", "ai_gateway", "fake_apple", "session"];
/// Much longer than anything takes here, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A running example, with an Apple and a provider that are both this test.
struct Example {
    name: &'static str,
    process: Child,
    address: SocketAddr,
    /// Where the example `fake_apple` takes orders.
    orders: Option<SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    fake: FakeApple,
    _apple: FakeAppleServer,
    provider: Provider,
    /// The client part of a key for the gateway.
    part: String,
    client: reqwest::Client,
}

/// `/held` answers when the test lets it, `/endless` never stops, and everything else wants the whole body.
#[derive(Clone)]
struct Provider {
    arrived: Arc<Semaphore>,
    release: Arc<Semaphore>,
}

impl Provider {
    async fn start() -> (Self, String) {
        let own = Self { arrived: Arc::new(Semaphore::new(0)), release: Arc::new(Semaphore::new(0)) };
        let provider = own.clone();
        let held = async move || {
            provider.arrived.add_permits(1);
            provider.release.acquire().await.unwrap().forget();
            "held"
        };
        let endless = async || {
            Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from("."))).then(
                async |piece| {
                    sleep(Duration::from_millis(50)).await;
                    piece
                },
            ))
        };
        let app = Router::new()
            .route("/v1/held", any(held))
            .route("/v1/endless", any(endless))
            .fallback(any(async |body: String| body));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, app).into_future());
        (own, url)
    }
}

impl Example {
    async fn start(name: &'static str, variables: &[(&str, &str)]) -> Self {
        let program = tokio::task::spawn_blocking(move || example(name)).await.unwrap();
        Self::start_with(name, Command::new(program), variables).await
    }

    async fn start_with(name: &'static str, mut command: Command, variables: &[(&str, &str)]) -> Self {
        let fake = FakeApple::new();
        let apple = fake.serve().await.unwrap();
        let (provider, provider_url) = Provider::start().await;
        let keys = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("servers-{}.json", uuid::Uuid::new_v4().simple()));
        let store = FileSplitKeyStore::open_or_create(&keys).unwrap();
        let key = "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9";
        let split = Splitter::new().issue(&store, "app", "openai", key, Limits::none()).await.unwrap();
        command
            .env_clear()
            .env("LISTEN", "127.0.0.1:0")
            .env("RUST_LOG", "debug")
            .env("APPLE_JWT_ISS", fake.team_id())
            .env("APPLE_JWT_KID", fake.key_id())
            .env("APPLE_JWT_PRIVATE_KEY", fake.private_key().to_pem())
            .env("DEVICECHECK_PRODUCTION_URL", apple.url(Environment::Production))
            .env("DEVICECHECK_DEVELOPMENT_URL", apple.url(Environment::Development))
            .env("KEYS_FILE", &keys)
            .env("OPENAI_URL", provider_url)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut errors = BufReader::new(process.stderr.take().unwrap()).lines();
        let lines = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = errors.next_line().await {
                captured::printed(&line);
                lines.lock().unwrap().push(line);
            }
        });
        let mut printed = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut address_after = async |prefix: &str| loop {
            let line = printed.next_line().await.unwrap().expect("a line with an address");
            if let Some(url) = line.strip_prefix(prefix) {
                break url.trim_start_matches("http://").parse().unwrap();
            }
        };
        let address = address_after("listening on ").await;
        let orders =
            if name == "fake_apple" { Some(address_after("export FAKE_APPLE=").await) } else { None };
        let part = split.client_part().expose().to_owned();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        // It is read once, at the start.
        std::fs::remove_file(keys).unwrap();
        Self { name, process, address, orders, log, fake, _apple: apple, provider, part, client }
    }

    /// The server that the example runs itself: of `fake_apple`, that for orders.
    fn own(&self) -> SocketAddr {
        self.orders.unwrap_or(self.address)
    }

    async fn order(&self, method: reqwest::Method, path: &str) -> String {
        let request = self.client.request(method, format!("http://{}/fake/{path}", self.orders.unwrap()));
        request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    fn credential(&self) -> String {
        format!("Bearer {}.{}", self.part, self.fake.genuine_token(Environment::Production))
    }

    /// A request that the server cannot answer before Apple or the provider does, and that has got as far. The task
    /// ends when the right answer has come.
    async fn request_under_way(&self, delay: Duration) -> JoinHandle<()> {
        let token = self.fake.genuine_token(Environment::Production);
        let url = format!("http://{}", self.address);
        let name = self.name;
        let calls = self.fake.calls();
        self.fake.always(Reply::normal().delay(delay));
        match name {
            "axum" | "hyper" | "session" => {
                let request = self.client.get(url).header(TOKEN_HEADER, token);
                let answer = tokio::spawn(async move {
                    let response = request.send().await.unwrap();
                    assert_eq!(response.status(), 200, "{name}");
                    assert!(response.text().await.unwrap().contains("\"evidence\":\"apple\""), "{name}");
                });
                self.called(calls).await;
                answer
            }
            "tonic" => {
                let answer = tokio::spawn(async move {
                    let reply = tonic_example::greet(url, Some(&token)).await.unwrap().unwrap();
                    assert_eq!(reply.evidence, "apple");
                });
                self.called(calls).await;
                answer
            }
            "ai_gateway" => {
                self.fake.clear();
                let request = self.client.post(format!("{url}/v1/openai/app/held"));
                let request = request.header("authorization", self.credential()).body("{}");
                let release = Arc::clone(&self.provider.release);
                let answer = tokio::spawn(async move {
                    let response = request.send();
                    let (response, ()) = tokio::join!(response, async {
                        sleep(delay).await;
                        release.add_permits(1);
                    });
                    let response = response.unwrap();
                    assert_eq!((response.status().as_u16(), &*response.text().await.unwrap()), (200, "held"));
                });
                self.provider.arrived.acquire().await.unwrap().forget();
                answer
            }
            _ => {
                let token = self.order(reqwest::Method::GET, "token").await;
                // Requests of the test itself count, too.
                let calls = self.order(reqwest::Method::GET, "calls").await;
                let order = format!("outage?delay_ms={}", delay.as_millis());
                self.order(reqwest::Method::POST, &order).await;
                let client = AppleClient::builder(self.fake.credentials())
                    .base_url(Environment::Production, &url)
                    // One attempt, however busy the machine is: nobody accepts a second one.
                    .attempt_timeout(Duration::from_secs(20))
                    .total_timeout(Duration::from_secs(20))
                    .retry(false)
                    .build()
                    .unwrap();
                let answer = tokio::spawn(async move {
                    let token = token.parse().unwrap();
                    let verdict = client.validate(&token, Environment::Production).await.unwrap();
                    assert_eq!(verdict, Verdict::Genuine);
                });
                while self.order(reqwest::Method::GET, "calls").await == calls {
                    sleep(Duration::from_millis(5)).await;
                }
                answer
            }
        }
    }

    async fn called(&self, before: usize) {
        while self.fake.calls() == before {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The head of a request with a body of 100 bytes, and the first of them.
    async fn half_bodies(&self) -> Vec<TcpStream> {
        let token = format!("x-apple-device-token: {}", self.fake.genuine_token(Environment::Production));
        let credential = format!("authorization: {}", self.credential());
        let requests: &[(SocketAddr, &str, &str)] = match self.name {
            "axum" => &[(self.address, "PUT /bits", &format!("content-type: application/json\r\n{token}"))],
            "hyper" | "session" => &[(self.address, "GET /", &token)],
            "tonic" => {
                let content_type = "content-type: application/grpc";
                &[(self.address, "POST /greeter.Greeter/Greet", &format!("{content_type}\r\n{token}"))]
            }
            "ai_gateway" => &[(self.address, "POST /v1/openai/app/echo", &credential)],
            _ => &[
                (self.own(), "POST /fake/expire", "a: b"),
                (self.address, "POST /v1/validate_device_token", "a: b"),
            ],
        };
        let mut streams = Vec::new();
        for (address, line, headers) in requests {
            let head = format!(
                "{line} HTTP/1.1\r\nhost: here\r\n{headers}\r\ncontent-length: 100\r\n\r\n{{\"bit0\""
            );
            streams.push(sent(*address, head.as_bytes()).await);
        }
        streams
    }

    fn terminate(&self) {
        let id = self.process.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args(["-s", "TERM", &id]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until it has ended with success, and no longer than `limit` after `signal`.
    async fn ended(&mut self, signal: Instant, limit: Duration) {
        let left = limit.saturating_sub(signal.elapsed());
        let ended = timeout(left, self.process.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{} still runs after {limit:?}", self.name)).unwrap();
        assert!(status.success(), "{}: {status}, {:?}", self.name, self.log.lock().unwrap());
    }
}

/// A new connection on which these bytes were sent.
async fn sent(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// A connection that is kept after one answer.
async fn kept(address: SocketAddr) -> TcpStream {
    let mut stream = sent(address, b"GET /nowhere HTTP/1.1\r\nhost: here\r\n\r\n").await;
    let mut answer = [0; 4096];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    stream
}

/// An HTTP/2 client that answers pings and sends no request.
async fn http2_without_request(address: SocketAddr) -> (h2::client::SendRequest<Bytes>, JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    (requests, connection)
}

/// Reads until the server closes.
async fn closed(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
}

async fn for_every_example<F: Future<Output = ()>>(test: impl Fn(&'static str) -> F) {
    futures::future::join_all(EXAMPLES.map(test)).await;
}

/// Its limits are the defaults: 30 seconds for a head, 25 seconds for the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_every_example_within_26_s_whatever_its_clients_keep_back() {
    for_every_example(|name| async move {
        let mut example = Example::start(name, &[]).await;
        let mut held = example.half_bodies().await;
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\nhost: he", &PREFACE[..9], PREFACE] {
            held.push(sent(example.own(), bytes).await);
            held.push(sent(example.address, bytes).await);
        }
        let pieces = Arc::new(AtomicUsize::new(0));
        if name == "ai_gateway" {
            let request = example.client.get(format!("http://{}/v1/openai/app/endless", example.address));
            let response = request.header("authorization", example.credential()).send().await.unwrap();
            assert_eq!(response.status(), 200);
            let pieces = Arc::clone(&pieces);
            tokio::spawn(async move {
                let mut response = response;
                while let Ok(Some(_)) = response.chunk().await {
                    pieces.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let answer = example.request_under_way(Duration::from_secs(1)).await;

        let signal = Instant::now();
        example.terminate();
        answer.await.unwrap();
        let before = pieces.load(Ordering::SeqCst);
        while TcpStream::connect(example.own()).await.is_ok() {
            assert!(signal.elapsed() < PATIENCE, "{name} still accepts connections");
            sleep(Duration::from_millis(20)).await;
        }
        example.ended(signal, PATIENCE).await;
        // They had their time.
        assert!(signal.elapsed() > Duration::from_secs(24), "{name}: {:?}", signal.elapsed());
        assert!(name != "ai_gateway" || pieces.load(Ordering::SeqCst) > before, "the stream did not go on");
        drop(held);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_every_example_with_its_last_answer() {
    for_every_example(|name| async move {
        let mut example = Example::start(name, &[("SHUTDOWN_TIMEOUT", "600")]).await;
        let mut idle = vec![kept(example.own()).await, kept(example.address).await];
        for bytes in [&b""[..], &PREFACE[..9]] {
            idle.push(sent(example.own(), bytes).await);
            idle.push(sent(example.address, bytes).await);
        }
        let http2 = http2_without_request(example.own()).await;
        let answer = example.request_under_way(Duration::from_secs(1)).await;
        let signal = Instant::now();
        example.terminate();
        answer.await.unwrap();
        example.ended(signal, PATIENCE).await;
        drop((idle, http2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_cuts_after_the_time_that_is_set() {
    for_every_example(|name| async move {
        let mut example = Example::start(name, &[("SHUTDOWN_TIMEOUT", "1")]).await;
        let mut held = example.half_bodies().await;
        held.push(sent(example.own(), b"GET / HTTP/1.1\r\nhost: he").await);
        // A request shows that the others have arrived.
        drop(kept(example.own()).await);
        let signal = Instant::now();
        example.terminate();
        // The default is longer: see above.
        example.ended(signal, PATIENCE).await;
        drop(held);
    })
    .await;
}

/// HTTP/2 frames: the head of `GET /` for `here` on stream 1, and the beginning of one on stream 3.
const FIRST_HEAD: &[u8] = b"\0\0\x09\x01\x05\0\0\0\x01\x82\x86\x84\x41\x04here";
const HALF_HEAD: &[u8] = b"\0\0\x01\x01\x01\0\0\0\x03\x82";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_closes_a_connection_whose_head_does_not_come() {
    for_every_example(|name| async move {
        let example = Example::start(name, &[("REQUEST_HEAD_TIMEOUT", "1")]).await;
        let address = example.own();
        // A slow answer is no slow head, and an answer that takes longer than the limit comes all the same.
        let answer = example.request_under_way(Duration::from_secs(2)).await;
        let mut cases = JoinSet::new();
        for (case, bytes) in [
            ("nothing", Vec::new()),
            ("half a head", b"GET / HTTP/1.1\r\nhost: he".to_vec()),
            ("half a preface", PREFACE[..9].to_vec()),
            ("HTTP/2 without a request", PREFACE.to_vec()),
            ("half a head of HTTP/2", [PREFACE, HALF_HEAD].concat()),
            ("half a second head of HTTP/2", [PREFACE, FIRST_HEAD, HALF_HEAD].concat()),
        ] {
            let stream = sent(address, &bytes).await;
            cases.spawn(async move {
                let end = timeout(PATIENCE, closed(stream)).await;
                assert!(end.is_ok(), "{name}: {case}");
            });
        }
        cases.spawn(async move {
            let mut stream = kept(address).await;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: he").await.unwrap();
            assert!(timeout(PATIENCE, closed(stream)).await.is_ok(), "{name}: half a second head");
        });
        cases.spawn(async move {
            let mut stream = sent(address, b"GET / HTTP/1.1\r\na: ").await;
            let drip = async {
                while stream.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            assert!(timeout(PATIENCE, drip).await.is_ok(), "{name}: a head that comes byte by byte");
        });
        cases.spawn(async move {
            let (_requests, connection) = http2_without_request(address).await;
            assert!(timeout(PATIENCE, connection).await.is_ok(), "{name}: HTTP/2 with pings alone");
        });
        while let Some(outcome) = cases.join_next().await {
            outcome.unwrap();
        }
        answer.await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_open_files_are_an_incident_and_not_the_end() {
    let program = tokio::task::spawn_blocking(|| example("axum")).await.unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 40; exec \"$0\""]).arg(program);
    let example = Example::start_with("axum", shell, &[]).await;
    let failures = || example.log.lock().unwrap().iter().filter(|line| line.contains("accept: ")).count();
    let mut connections = Vec::new();
    for _ in 0..60 {
        connections.push(TcpStream::connect(example.address).await.unwrap());
    }
    while failures() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let (before, began) = (failures(), Instant::now());
    sleep(Duration::from_secs(1)).await;
    // It waits for 100 ms after each.
    let most = 2 + began.elapsed().as_millis() / 100;
    assert!((failures() - before) as u128 <= most, "{} failures", failures());
    drop(connections);
    let health = example.client.get(format!("http://{}/health", example.address)).send();
    assert_eq!(timeout(PATIENCE, health).await.unwrap().unwrap().status(), 200);
}

/// The thread stands for the look-up of a name, which may take the operating system half a minute.
#[test]
fn a_thread_that_is_stuck_does_not_keep_an_example_from_its_end() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let outcome = shared::block_on(async {
        let (began, begins) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _ = began.send(());
            let _ = wait.recv();
        });
        begins.await?;
        Ok("done")
    });
    assert_eq!(outcome.unwrap(), "done");
    drop(done);
}

/// Users copy them from there.
#[test]
fn the_docs_have_the_lines_of_the_examples() {
    let source = include_str!("../../examples/shared/serve.rs");
    let (_, code) = source.split_once("\n\n").unwrap();
    let code = code.split_once("use std::").unwrap().1.replace("pub(crate) ", "pub ");
    assert!(include_str!("../../docs/operating.md").contains(&code), "docs/operating.md and serve.rs differ");
}
