//! App Attest: `cargo run --example app_attest --features app-attest,axum,testing`.
//!
//! | request | answer |
//! |---|---|
//! | `POST /challenge` | a challenge to attest a key with: `{"challenge": "…", "expires_in": 300}` |
//! | `POST /challenge/assertion` | with `FRESHNESS=challenge`: a challenge to sign a request with |
//! | `POST /attest` | takes `{"key_id": "…", "challenge": "…", "attestation": "…"}`, and stores the key |
//! | `POST /pay` | for a signed request, or a device token in its place: what the server knows of the device, as JSON |
//! | `GET /health` | `ok`, for anybody |
//!
//! | variable | value |
//! |---|---|
//! | `APP_IDS` | the apps, with commas between them; default, beside the fake only: `TEAM123456.com.example.app` |
//! | `ENVIRONMENTS` | `production` (default), `development`, or `production,development` |
//! | `FRESHNESS` | `time` (default): `X-App-Attest-Time` within 2 minutes of this server's clock. `challenge`: a challenge for each request |
//! | `COUNTERS` | `strict` (default), or `window`: for apps that send requests in parallel |
//! | `MINIMUM_BUILD` | the oldest `CFBundleVersion` that is admitted, of devices that tell theirs |
//! | `CHALLENGE_KEY` | the key that copies of this server share; see `tower_devicecheck::app_attest::ChallengeKey`. Without it, a new key, which no other copy of this server knows |
//! | `REDIS_URL` | Redis or Valkey, in which all copies of this server keep keys, receipts and used challenges (build with `--features redis`). Never that of a real server while a fake device is trusted: its keys would stay |
//! | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY` | team id, key id and `.p8` file: for device tokens, and for newer receipts. Without them, a fake Apple and a fake device in this process |
//! | `DEVICECHECK_PRODUCTION_URL`, `DEVICECHECK_DEVELOPMENT_URL` | asked in the place of Apple's two servers |
//! | `LISTEN` | default `127.0.0.1:3000` |
//! | `REQUEST_HEAD_TIMEOUT`, `SHUTDOWN_TIMEOUT`, `METRICS_LISTEN`, `RUST_LOG` | as for the example `axum` |
//!
//! With the argument `explain`, it is no server, but a tool:
//! `cargo run --example app_attest --features app-attest,axum,testing -- explain < QUESTION.json`.
//!
//! `explain` verifies one attestation, assertion or receipt. It reads one JSON object from stdin, and prints one to
//! stdout:
//!
//! | member of the question | value |
//! |---|---|
//! | `kind` | `attestation`, `assertion` or `receipt` |
//! | `object_base64` | the object |
//! | `app_id` | such as `TEAM123456.com.example.app` |
//! | `key_id_base64` | the key id: needed for attestations; otherwise compared if it is there |
//! | `client_data_hash_base64` | attestations, assertions: the bytes that the app passed as `clientDataHash` |
//! | `public_key_base64` | 65 bytes: needed for assertions; for receipts, compared if it is there |
//! | `at_unix` | attestations, receipts: the time, in Unix seconds, at which certificates must be valid; without it, the present |
//! | `environments` | attestations: the environments to admit, `production` and `development`; without it, only `production` |
//!
//! | member of the answer | value |
//! |---|---|
//! | `ok` | whether the object verifies. The exit status is 0 if it does, otherwise 1 |
//! | `step`, `reason` | if not: the check that failed, as in `ObjectError::step`, or `input` for a wrong question; and a text |
//! | `environment`, `app_id`, `counter`, `risk_metric` and others | otherwise, the object's words; `null` where it is silent |
//! | `category`, `category_number` | the name in lower case, such as `app_store`, and Apple's number |
//! | members that end in `_unix` | Unix seconds |
//!
//! The age of an attestation is not limited, and the counter of an assertion is compared with none: those are the
//! server's to know.

#[path = "app_attest/explain.rs"]
mod explain;
#[path = "app_attest/fake_device.rs"]
mod fake_device;
mod shared;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    routing::{get, post},
};
use fake_device::FakeDevice;
use serde_json::{Value, json};
use shared::{Apple, Server};
use tower_devicecheck::{
    AppleClient, BoxError, DeviceCheckLayer, Environment, LayerError, ReadBodies, Route, VerifiedDevice,
    app_attest::{
        Anchors, AppAttestProof, AppId, AttestEndpoint, AttestKeyStore, AttestPolicy, AttestedDevice,
        Category, ChallengeEndpoint, ChallengeKey, ChallengePurpose, Challenges, CounterRule, Freshness,
        MemoryAttestKeyStore, MemoryReceiptStore, ReceiptKey, ReceiptRefresher, ReceiptStore,
    },
    replay::MemoryReplayGuard,
};

/// The longest question, in bytes.
const LONGEST: u64 = 1024 * 1024;
/// The app of the fake device.
const FAKE_APP_ID: &str = "TEAM123456.com.example.app";
/// The risk metric that the fake Apple tells.
const FAKE_METRIC: u32 = 1;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => shared::run(serve()),
        Some("explain") => run_explain().unwrap_or(ExitCode::FAILURE),
        Some(_) => {
            let _ = writeln!(io::stderr(), "usage: app_attest, or app_attest explain < QUESTION.json");
            ExitCode::FAILURE
        }
    }
}

fn run_explain() -> io::Result<ExitCode> {
    let mut text = Vec::new();
    io::stdin().lock().take(LONGEST).read_to_end(&mut text)?;
    let (is_ok, answer) = explain::explain(&text);
    writeln!(io::stdout(), "{answer}")?;
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn serve() -> Result<(), BoxError> {
    shared::metrics::serve().await?;
    let mut settings = Settings::from_env()?;
    let has_app_ids = !settings.app_ids.is_empty();
    let fake = settings.fake_device()?;
    let (device, ca) = (fake.clone(), fake.ca().clone());
    let apple = Apple::from_env_with(move |apple| {
        apple.exchange_receipts(&ca, FAKE_METRIC);
        device.orders()
    })
    .await?;
    apple.check(settings.environments[0]).await?;
    if apple.orders().is_some() {
        settings.anchors = fake.anchors()?;
    } else if !has_app_ids {
        return Err("APP_IDS: it is not set: set it to a team id, a dot and a bundle id".into());
    }
    let hints = settings.clone();
    let parts = settings.parts_from_env(&apple.client).await?;
    let by_token = shared::remembering(DeviceCheckLayer::new(apple.client.clone())).await?;
    let refresher = parts.refresher.clone();
    tokio::spawn(async move { refresher.run().await });
    let server = Server::from_env().await?;
    let address = server.address()?;
    shared::announce(address, &hints.curl_hints(&apple, &shared::local_url(address)));
    server.run(parts.app(by_token)?).await;
    Ok(())
}

/// The operator's choices.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) app_ids: Vec<AppId>,
    pub(crate) environments: Vec<Environment>,
    pub(crate) anchors: Anchors,
    pub(crate) is_by_challenge: bool,
    pub(crate) counters: CounterRule,
    pub(crate) policy: AttestPolicy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            app_ids: Vec::new(),
            environments: vec![Environment::Production],
            anchors: Anchors::apple(),
            is_by_challenge: false,
            counters: CounterRule::Strict,
            policy: AttestPolicy::new(),
        }
    }
}

impl Settings {
    fn from_env() -> Result<Self, BoxError> {
        let mut settings = Self::default();
        if let Some(names) = shared::variable("APP_IDS")? {
            let app_ids = names.split(',').map(|name| name.trim().parse());
            settings.app_ids =
                app_ids.collect::<Result<_, _>>().map_err(|error| format!("APP_IDS: {error}"))?;
        }
        if let Some(names) = shared::variable("ENVIRONMENTS")? {
            let environments = names.split(',').map(|name| name.trim().parse());
            settings.environments =
                environments.collect::<Result<_, _>>().map_err(|error| format!("ENVIRONMENTS: {error}"))?;
        }
        settings.is_by_challenge = match shared::variable("FRESHNESS")?.as_deref().map(str::trim) {
            None | Some("time") => false,
            Some("challenge") => true,
            Some(_) => return Err("FRESHNESS: it is neither \"time\" nor \"challenge\"".into()),
        };
        settings.counters = match shared::variable("COUNTERS")?.as_deref().map(str::trim) {
            None | Some("strict") => CounterRule::Strict,
            Some("window") => CounterRule::Window,
            Some(_) => return Err("COUNTERS: it is neither \"strict\" nor \"window\"".into()),
        };
        if let Some(build) = shared::variable("MINIMUM_BUILD")? {
            let build = build.trim().parse().map_err(|error| format!("MINIMUM_BUILD: {error}"))?;
            settings.policy = settings.policy.with_minimum_build(build);
        }
        Ok(settings)
    }

    /// A device with the first app, or with one of its own, which is admitted then.
    pub(crate) fn fake_device(&mut self) -> Result<FakeDevice, BoxError> {
        if self.app_ids.is_empty() {
            self.app_ids.push(FAKE_APP_ID.parse()?);
        }
        Ok(FakeDevice::new(&self.app_ids[0], self.environments[0]))
    }

    /// The route of the layer, by which environments are admitted.
    fn route(&self) -> Route {
        match self.environments[..] {
            [Environment::Production] => Route::Production,
            [Environment::Development] => Route::Development,
            _ => Route::ProductionThenDevelopment,
        }
    }

    async fn parts_from_env(self, apple: &AppleClient) -> Result<Parts, BoxError> {
        let key = match shared::variable("CHALLENGE_KEY")? {
            Some(text) => text.trim().parse().map_err(|error| format!("CHALLENGE_KEY: {error}"))?,
            None => ChallengeKey::random()?,
        };
        match shared::variable("REDIS_URL")? {
            Some(url) => self.parts_in_redis(apple, key, url.trim()).await,
            None => Ok(self.parts_in_memory(apple, key)),
        }
    }

    pub(crate) fn parts_in_memory(self, apple: &AppleClient, key: ChallengeKey) -> Parts {
        let challenges = Challenges::new(key, MemoryReplayGuard::new());
        let (keys, receipts) = (MemoryAttestKeyStore::new(), MemoryReceiptStore::new());
        self.parts(apple, challenges, Arc::new(keys), Arc::new(receipts))
    }

    #[cfg(feature = "redis")]
    async fn parts_in_redis(
        self,
        apple: &AppleClient,
        key: ChallengeKey,
        url: &str,
    ) -> Result<Parts, BoxError> {
        use tower_devicecheck::{
            Redis,
            app_attest::{RedisAttestKeyStore, RedisReceiptStore},
            replay::RedisReplayGuard,
        };

        // The error may quote a part of the URL.
        let redis = Redis::connect(url).await.map_err(|_| "REDIS_URL: it is not a URL of Redis")?;
        let challenges = Challenges::new(key, RedisReplayGuard::new(redis.clone()));
        let keys = RedisAttestKeyStore::new(redis.clone());
        Ok(self.parts(apple, challenges, keys, RedisReceiptStore::new(redis)))
    }

    #[cfg(not(feature = "redis"))]
    async fn parts_in_redis(self, _: &AppleClient, _: ChallengeKey, _: &str) -> Result<Parts, BoxError> {
        Err("REDIS_URL: build the example with --features redis".into())
    }

    fn parts(
        self,
        apple: &AppleClient,
        challenges: Challenges,
        keys: impl AttestKeyStore + Clone,
        receipts: impl ReceiptStore + Clone,
    ) -> Parts {
        let route = self.route();
        let freshness =
            if self.is_by_challenge { Freshness::challenge(challenges.clone()) } else { Freshness::time() };
        let endpoint = AttestEndpoint::new(keys.clone(), self.app_ids.clone(), challenges.clone())
            .with_environments(self.environments)
            .with_anchors(self.anchors.clone())
            .with_policy(self.policy.clone())
            .with_receipts(receipts.clone());
        let proof = AppAttestProof::new(keys, self.app_ids, freshness)
            .with_counter_rule(self.counters)
            .with_policy(self.policy)
            .with_receipts(receipts.clone());
        let refresher = ReceiptRefresher::new(apple.clone(), receipts).with_anchors(self.anchors);
        Parts { challenges, endpoint, proof, route, is_by_challenge: self.is_by_challenge, refresher }
    }

    /// The life of a key, as commands to paste. Empty where Apple is the real one.
    fn curl_hints(&self, apple: &Apple, url: &str) -> String {
        let Some(orders) = apple.orders() else { return String::new() };
        let challenge = if self.is_by_challenge {
            format!(
                "?challenge=$(curl -s -X POST {url}/challenge/assertion | grep -oE '[A-Za-z0-9_-]{{55}}')"
            )
        } else {
            String::new()
        };
        let signed = format!("curl -s -d amount=1 \"{orders}/fake/assert{challenge}\"");
        let pay = format!("curl -i -H @- {url}/pay -d amount");
        format!(
            "{}\n\n\
             # the fake device gets a challenge, and attests its key:\n\
             curl -s -X POST {url}/challenge | curl -s -d @- {orders}/fake/attest | curl -i -d @- {url}/attest\n\n\
             # it signs a request:\n{signed} | {pay}=1\n\n\
             # someone has captured that request, and sends it again:\ncurl -s {orders}/fake/captured | {pay}=1\n\n\
             # someone changes a byte of a signed request:\n{signed} | {pay}=2\n\n\
             # a device without App Attest sends a device token:\n\
             curl -i -H \"X-Apple-Device-Token: $(curl -s {orders}/fake/token)\" {url}/pay -d amount=1\n\n\
             # a reinstalled app, and more; outages of Apple's:\ncurl {orders}/fake/device\ncurl {orders}/fake\n",
            shared::apple::NO_CREDENTIALS,
        )
    }
}

/// The parts of the server that share its stores.
#[derive(Debug)]
pub(crate) struct Parts {
    challenges: Challenges,
    endpoint: AttestEndpoint,
    proof: AppAttestProof,
    route: Route,
    is_by_challenge: bool,
    pub(crate) refresher: ReceiptRefresher,
}

impl Parts {
    /// The whole server but for its socket.
    pub(crate) fn app(self, by_token: DeviceCheckLayer) -> Result<Router, LayerError> {
        let layer = by_token.with_routing(self.route).with_bodies(ReadBodies::new());
        let layer = layer.add_proof_before(self.proof)?;
        let challenges = |purpose| ChallengeEndpoint::new(self.challenges.clone(), purpose);
        let mut app = Router::new()
            .route("/pay", post(pay))
            .with_state(self.refresher)
            .route_layer(layer)
            .route_service("/challenge", challenges(ChallengePurpose::Attestation))
            .route_service("/attest", self.endpoint)
            .route("/health", get(|| async { "ok" }));
        if self.is_by_challenge {
            app = app.route_service("/challenge/assertion", challenges(ChallengePurpose::Assertion));
        }
        Ok(app)
    }
}

/// The handler decides by the evidence: here, a device token is good for small amounts only.
async fn pay(State(receipts): State<ReceiptRefresher>, device: VerifiedDevice, body: Bytes) -> Json<Value> {
    let attested = AttestedDevice::of(&device);
    let attested = attested.as_deref();
    let metric = match attested.map(|attested| ReceiptKey { tenant: None, key_id: *attested.key_id() }) {
        // Without the store, there is no metric, and that alone denies nobody anything.
        Some(key) => receipts.risk_metric(&key).await.ok().flatten(),
        None => None,
    };
    Json(json!({
        "evidence": device.evidence().to_string(),
        "environment": device.environment().as_str(),
        "subject": device.subject(),
        "app_id": attested.map(|attested| attested.app_id().as_str()),
        "counter": attested.map(AttestedDevice::counter),
        "category": attested.and_then(AttestedDevice::category).map(Category::as_str),
        "build": attested.and_then(AttestedDevice::bundle_version).map(|build| build.as_str()),
        "risk_metric": metric,
        "limit": if attested.is_some() { 1000 } else { 10 },
        "body": String::from_utf8_lossy(&body),
    }))
}
