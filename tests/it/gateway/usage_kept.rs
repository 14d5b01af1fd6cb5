//! Counts that outlive their process: in a folder, and in the Redis of a fleet.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::post};
use serde_json::{Value, json};
use tower_devicecheck::{
    Environment,
    split_key::{FileSplitKeyStore, Limits, Splitter},
    testing::{FakeApple, FakeAppleServer},
};

use super::{ADMIN, serve};
use crate::support::example;

/// The tokens that the provider states for each request.
const INPUT: u64 = 3;
const OUTPUT: u64 = 5;

/// All that gateways have in common. The folder is gone with the test.
struct World {
    fake: FakeApple,
    apple: FakeAppleServer,
    folder: PathBuf,
    provider: String,
    credential: String,
}

impl World {
    async fn new(name: &str) -> Self {
        // A token of the fake's does not wait for a build.
        example("ai_gateway");
        let answer = async |Json(request): Json<Value>| {
            let usage = json!({ "prompt_tokens": INPUT, "completion_tokens": OUTPUT });
            Json(json!({ "model": request["model"], "choices": [], "usage": usage }))
        };
        let provider = serve(Router::new().route("/v1/chat/completions", post(answer))).await;
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let keys = FileSplitKeyStore::open_or_create(folder.join("keys.json")).unwrap();
        let split = Splitter::new().issue(&keys, "app", "openai", super::KEY, Limits::none()).await.unwrap();
        let fake = FakeApple::new();
        let apple = fake.serve().await.unwrap();
        let token = fake.genuine_token(Environment::Production);
        let credential = format!("{}.{token}", split.client_part().expose());
        Self { fake, apple, folder, provider: format!("{provider}/v1"), credential }
    }

    /// A gateway, which asks Apple once at its start, to check the credentials.
    fn command(&self, more: &[(&str, &str)]) -> Command {
        let mut command = Command::new(example("ai_gateway"));
        command
            .env_clear()
            .env("APPLE_JWT_ISS", self.fake.team_id())
            .env("APPLE_JWT_KID", self.fake.key_id())
            .env("APPLE_JWT_PRIVATE_KEY", self.fake.private_key().to_pem())
            .env("DEVICECHECK_PRODUCTION_URL", self.apple.url(Environment::Production))
            .env("DEVICECHECK_DEVELOPMENT_URL", self.apple.url(Environment::Development))
            .env("KEYS_FILE", self.folder.join("keys.json"))
            .env("OPENAI_URL", &self.provider)
            .env("ADMIN_TOKEN", ADMIN)
            .env("LISTEN", "127.0.0.1:0")
            .envs(more.iter().copied());
        command
    }

    fn start(&self, more: &[(&str, &str)]) -> Process {
        let mut command = self.command(more);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("the first line").to_owned();
        Process { process, url, client: reqwest::Client::new() }
    }

    /// Whether the client has the whole answer to one request for this model.
    async fn ask(&self, gateway: &str, client: &reqwest::Client, model: &str) -> bool {
        let request = client
            .post(format!("{gateway}/v1/openai/app/chat/completions"))
            .header("authorization", format!("Bearer {}", self.credential))
            .json(&json!({ "model": model }));
        match request.send().await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                response.bytes().await.is_ok_and(|body| !body.is_empty())
            }
            Err(_) => false,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

struct Process {
    process: Child,
    url: String,
    client: reqwest::Client,
}

impl Process {
    /// SIGKILL.
    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// The requests and both numbers of tokens for this model.
    async fn counts(&self, model: &str) -> [u64; 3] {
        let request = self.client.get(format!("{}/usage", self.url));
        let report = request.header("authorization", format!("Bearer {ADMIN}")).send().await.unwrap();
        let report: Value = report.json().await.unwrap();
        let mut sums = [0; 3];
        for entry in report["entries"].as_array().unwrap() {
            let models = entry["models"].as_array().unwrap();
            for counts in models.iter().filter(|counts| counts["model"] == model) {
                for (sum, name) in sums.iter_mut().zip(["requests", "input_tokens", "output_tokens"]) {
                    *sum += counts[name].as_u64().unwrap();
                }
            }
        }
        sums
    }

    /// Waits until so many requests are counted.
    async fn wait_for(&self, model: &str, requests: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let counts = self.counts(model).await;
            if counts == tokens_of(requests) {
                return;
            }
            assert!(counts[0] < requests && Instant::now() < deadline, "{counts:?}, not {requests}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

const fn tokens_of(requests: u64) -> [u64; 3] {
    [requests, requests * INPUT, requests * OUTPUT]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_has_its_counts_again() {
    let world = World::new("usage-file").await;
    let mut gateway = world.start(&[]);
    for _ in 0..20 {
        assert!(world.ask(&gateway.url, &gateway.client, "gpt").await);
    }
    gateway.wait_for("gpt", 20).await;
    // The file has them within a second; it is replaced as a whole.
    let files =
        || fs::read_dir(world.folder.join("keys.json.usage")).unwrap().map(|file| file.unwrap().path());
    let days = || files().filter(|file| file.extension().is_some_and(|name| name == "json"));
    let is_kept = || {
        let mut texts = days().map(|file| fs::read_to_string(file).unwrap_or_default());
        texts.any(|text| text.contains("\"requests\":20,"))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_kept() {
        assert!(Instant::now() < deadline, "the counts are not kept");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.kill();

    let mut gateway = world.start(&[]);
    assert_eq!(gateway.counts("gpt").await, tokens_of(20));
    // Killed at once: the last second may be lost, and nothing else.
    for _ in 0..5 {
        assert!(world.ask(&gateway.url, &gateway.client, "gpt").await);
    }
    gateway.kill();
    let mut gateway = world.start(&[]);
    let counts = gateway.counts("gpt").await;
    assert!((20..=25).contains(&counts[0]) && counts == tokens_of(counts[0]), "{counts:?}");
    gateway.kill();

    // A file that was damaged by something else is an error at the start.
    let file = days().next().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() - 9]).unwrap();
    let output = world.command(&[]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("USAGE_FOLDER: "), "{error}");
    assert!(error.contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
    // Four starts, and the device's token once in each process that saw it.
    assert_eq!(world.fake.calls(), 4 + 2);
}

/// 1,000 requests over three gateways. One of them is killed while it serves.
#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_of_a_fleet_are_exact_but_for_what_was_in_flight_at_a_kill() {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

    const REQUESTS: usize = 1_000;
    const KILLED: usize = 1;
    const WORKERS: usize = 12;
    let server = crate::redis_server::RedisServer::start();
    let world = World::new("usage-fleet").await;
    let mut gateways: Vec<_> = (0..3).map(|_| world.start(&[("REDIS_URL", &server.url())])).collect();
    let names = ["of-the-first", "of-the-killed", "of-the-third"];
    let urls: Vec<_> = gateways.iter().map(|gateway| gateway.url.clone()).collect();
    // From here on, every gateway finds the verdict in Redis.
    assert!(world.ask(&urls[0], &gateways[0].client, names[0]).await);

    let sent = AtomicUsize::new(1);
    let answered = [AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0)];
    let failed = AtomicU64::new(0);
    let client = reqwest::Client::new();
    let worker = async || {
        loop {
            let number = sent.fetch_add(1, SeqCst);
            if number >= REQUESTS {
                return;
            }
            let gateway = number % 3;
            if world.ask(&urls[gateway], &client, names[gateway]).await {
                answered[gateway].fetch_add(1, SeqCst);
            } else {
                assert_eq!(gateway, KILLED);
                failed.fetch_add(1, SeqCst);
            }
        }
    };
    let killer = async {
        while answered[KILLED].load(SeqCst) < 150 {
            tokio::task::yield_now().await;
        }
        gateways[KILLED].kill();
    };
    futures::join!(futures::future::join_all((0..WORKERS).map(|_| worker())), killer);

    let answered = answered.map(|count| count.load(SeqCst));
    assert_eq!(answered.iter().sum::<u64>() + failed.load(SeqCst), REQUESTS as u64);
    for survivor in [0, 2] {
        gateways[0].wait_for(names[survivor], answered[survivor]).await;
    }
    let killed = gateways[2].counts(names[KILLED]).await;
    crate::captured::printed(&format!("answered {answered:?}, counted of the killed {}", killed[0]));
    assert_eq!(killed, tokens_of(killed[0]), "each request has its tokens");
    let in_flight = WORKERS as u64;
    assert!(killed[0].abs_diff(answered[KILLED]) <= in_flight, "{} of {}", killed[0], answered[KILLED]);
    assert_eq!(world.fake.calls(), 3 + 1);
}
