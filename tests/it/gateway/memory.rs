//! The copies of a key that are left in the gateway's memory after a request. Linux shows them.
#![cfg(target_os = "linux")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, extract::ConnectInfo, http::HeaderMap, routing::any};
use tokio::{net::TcpListener, sync::Semaphore};
use tower_devicecheck::{
    Environment,
    split_key::{FileSplitKeyStore, Limits, Splitter},
    testing::FakeApple,
};

use crate::{process_memory::copies, support::example};

/// The example, as an operator starts it.
struct Gateway {
    process: Child,
    url: String,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(variables: &[(&str, &str)]) -> (Gateway, std::process::ChildStderr) {
    let mut process = Command::new(example("ai_gateway"))
        .env_clear()
        .envs(variables.iter().copied())
        .env("LISTEN", "127.0.0.1:0")
        .env("RUST_LOG", "trace")
        // A proxy that does not exist: the way to the loopback interface must not lead through it.
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .env("ALL_PROXY", "http://127.0.0.1:9")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = process.stderr.take().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").expect("the first line").to_owned();
    (Gateway { process, url }, stderr)
}

/// The connection to the provider is kept, as by default: the same one for all requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_whole_key_is_left_in_the_memory_after_a_request() {
    memory_after_requests(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_whole_key_is_left_where_no_connection_is_kept() {
    memory_after_requests(Some("0")).await;
}

/// Starts the gateway, lets it keep so many connections, and looks for copies of a key.
#[allow(clippy::print_stderr, reason = "whoever runs the tests should know what was skipped")]
async fn memory_after_requests(idle_connections: Option<&str>) {
    // The provider: says that it has the request, and holds the response back.
    let (arrived, release) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let connections = Arc::new(Mutex::new(BTreeSet::new()));
    let handler = {
        let note = Arc::clone(&connections);
        let (arrived, release) = (Arc::clone(&arrived), Arc::clone(&release));
        move |ConnectInfo(client): ConnectInfo<SocketAddr>, headers: HeaderMap| {
            note.lock().unwrap().insert(client);
            let (arrived, release) = (Arc::clone(&arrived), Arc::clone(&release));
            async move {
                let key = headers["authorization"].to_str().unwrap().to_owned();
                arrived.add_permits(1);
                release.acquire().await.unwrap().forget();
                // A real provider had better not say this.
                format!("{} characters", key.len())
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = format!("http://{}/v1", listener.local_addr().unwrap());
    let app = Router::new().fallback(any(handler)).into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(axum::serve(listener, app).into_future());

    // The gateway is never told the key: it has the server part from the file, the client part from requests.
    let key = format!("sk-proj-{}", "marker".to_owned() + &uuid::Uuid::new_v4().simple().to_string());
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("memory-{idle_connections:?}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("keys.json");
    let store = FileSplitKeyStore::open_or_create(&file).unwrap();
    let split = Splitter::new().issue(&store, "app", "openai", &key, Limits::none()).await.unwrap();
    let part = split.client_part().expose();

    let fake = FakeApple::new();
    let apple = fake.serve().await.unwrap();
    let production = apple.url(Environment::Production);
    let development = apple.url(Environment::Development);
    let pem = fake.private_key().to_pem();
    let mut variables = vec![
        ("APPLE_JWT_ISS", fake.team_id()),
        ("APPLE_JWT_KID", fake.key_id()),
        ("APPLE_JWT_PRIVATE_KEY", &*pem),
        ("DEVICECHECK_PRODUCTION_URL", &*production),
        ("DEVICECHECK_DEVELOPMENT_URL", &*development),
        ("KEYS_FILE", file.to_str().unwrap()),
        ("OPENAI_URL", &provider),
    ];
    variables.extend(idle_connections.map(|number| ("IDLE_CONNECTIONS", number)));
    let (gateway, mut log) = start(&variables);
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    let process = gateway.process.id();
    let scan = || copies(process, key.as_bytes());
    if let Err(error) = scan() {
        eprintln!("SKIPPED: this system does not let a process read its child's memory: {error}");
        return;
    }
    assert_eq!(scan().unwrap(), 0);

    let token = fake.genuine_token(Environment::Production);
    let client = reqwest::Client::new();
    for round in 0..3 {
        let request = client
            .post(format!("{}/v1/openai/app/chat/completions", gateway.url))
            .header("authorization", format!("Bearer {part}.{token}"))
            .body("{}")
            .send();
        let mut request = tokio::spawn(request);
        tokio::select! {
            permit = arrived.acquire() => permit.unwrap().forget(),
            answer = &mut request => panic!("round {round}: the provider was not asked: {answer:?}"),
        }
        // The search does find what is there.
        assert!(scan().unwrap() > 0, "round {round}: the key was not found while it was in use");
        release.add_permits(1);
        let response = request.await.unwrap().unwrap();
        let text = response.text().await.unwrap();
        assert_eq!(text, format!("{} characters", "Bearer ".len() + key.len()));
        // The client may see the end before the gateway has closed its connection to the provider.
        let over = Instant::now();
        while scan().unwrap() > 0 {
            assert!(over.elapsed() < Duration::from_secs(60), "round {round}: the key is still there");
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(connections.lock().unwrap().len(), if idle_connections.is_none() { 1 } else { 3 });
    assert_eq!(fake.calls(), 2, "one of them at the start");
    drop(gateway);
    let log = log.join().unwrap();
    assert!(log.contains("key opened"), "{log}");
    for secret in [&key, part, &token] {
        assert!(!log.contains(secret), "a secret in the log");
    }
    fs::remove_dir_all(&folder).unwrap();
}
