//! The process under test: one client for Apple, one handle for Redis, and all kinds of servers around them.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    routing::{get, post},
};
use futures::FutureExt;
use tokio::sync::Mutex;
use tonic::service::Routes;
use tower::Layer;
use tower_devicecheck::{
    AppleClient, DebugTokens, DeviceCheckLayer, DeviceToken, Environment, ReadBodies, Redis,
    ReqwestTransport, Verdict, VerifiedDevice,
    app_attest::{
        Anchors, AppAttestProof, AttestEndpoint, ChallengeEndpoint, ChallengeKey, ChallengePurpose,
        Challenges, Freshness, RedisAttestKeyStore,
    },
    cache::{CachedVerdict, MemoryCache, RedisCache, Tiered, VerdictCache, VerdictKey},
    replay::RedisReplayGuard,
    session::{Exchange, KeyRing, MasterKey, SessionProof, Sessions},
    split_key::{Limits, Provider, Providers, RedisSplitKeyStore, Splitter, UsageLog},
    testing::{FakeApple, app_attest::FakeAttestCa},
};

use super::{
    books::{Books, Door, SLOTS, TIME_TO_LIVE},
    storms::Weather,
    streams::{self, Open},
};
use crate::{
    examples::{serve, socket, tonic_example},
    gateway::ai_gateway,
    redis_server::RedisServer,
};

pub(super) const APP_ID: &str = "A1B2C3D4E5.com.example.app";
/// The life of a session, which is the shortest that there is.
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(60);
/// A busy machine must not look like a slow Redis.
const REDIS_DEADLINE: Duration = Duration::from_millis(500);

/// The servers, and how to reach them.
pub(super) struct Servers {
    pub(super) client: AppleClient,
    pub(super) fake: FakeApple,
    pub(super) ca: FakeAttestCa,
    pub(super) http: String,
    pub(super) grpc: String,
    pub(super) gateway: GatewayOfAi,
    pub(super) weather: Mutex<Weather>,
    layers: Vec<Box<dyn fmt::Debug + Send + Sync>>,
    folder: PathBuf,
}

/// The gateway to an AI provider, and the client part of its key.
pub(super) struct GatewayOfAi {
    pub(super) url: String,
    pub(super) part: String,
    pub(super) open: Open,
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Servers {
    pub(super) async fn start(books: &Arc<Books>) -> Self {
        let fake = FakeApple::new();
        // Tokens are genuine until the soak says otherwise.
        fake.set_token_lifetime(Duration::from_secs(24 * 60 * 60));
        let apple = fake.serve().await.unwrap();
        let (server, folder) = redis();
        let redis = Redis::connect(server.url()).await.unwrap().with_deadline(REDIS_DEADLINE);
        let client = AppleClient::builder(fake.credentials())
            .base_url(Environment::Production, apple.url(Environment::Production))
            .base_url(Environment::Development, apple.url(Environment::Development))
            .transport(ReqwestTransport::http2_prior_knowledge().unwrap())
            .in_flight_limit(SLOTS)
            .share_retry_after(redis.clone())
            .build()
            .unwrap();
        let ca = FakeAttestCa::new();
        let mut gates = Gates { client: client.clone(), redis, books: Arc::clone(books), layers: Vec::new() };
        let (http, grpc, gateway) = (gates.http(&ca).await, gates.grpc().await, gates.gateway().await);
        let weather = Mutex::new(Weather::new(apple, server));
        Self { client, fake, ca, http, grpc, gateway, weather, layers: gates.layers, folder }
    }
}

impl Servers {
    /// The checks that requests wait for, as the layers show them.
    pub(super) fn checks_in_flight(&self) -> usize {
        let count = |layer: &dyn fmt::Debug| -> usize {
            let text = format!("{layer:?}");
            let (_, rest) = text.split_once("checks_in_flight: ").expect("a layer with device tokens");
            rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        self.layers.iter().map(|layer| count(&**layer)).sum()
    }
}

/// A Redis that loses nothing when it is killed: each command is in the system's hands before it is answered. With one
/// that forgets, a token that was spent before the kill may count again, and no invariant could be strict.
fn redis() -> (RedisServer, PathBuf) {
    let folder =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    let server = RedisServer::start_with(|port| {
        let port = port.to_string();
        let settings = ["--port", &port, "--save", "", "--appendonly", "yes", "--appendfsync", "no"];
        let folder = ["--dir", folder.to_str().unwrap(), "--maxmemory-policy", "noeviction"];
        settings.into_iter().chain(folder).map(str::to_owned).collect()
    });
    (server, folder)
}

/// A cache that has no room, as a server's cache after a while: it grows no more.
fn full_cache() -> MemoryCache {
    let (genuine, refused) = (20_000, 5_000);
    let cache = MemoryCache::with_capacity(genuine, refused);
    for number in 0..genuine + refused {
        let verdict = if number < genuine { Verdict::Genuine } else { Verdict::Refused };
        let token: DeviceToken = format!("{number:012}").parse().unwrap();
        let key = VerdictKey::new("", Environment::Production, &token);
        let verdict = CachedVerdict::new(verdict, key.digest(), SystemTime::now(), Duration::ZERO);
        cache.put(&key, verdict).now_or_never().expect("memory does not wait").unwrap();
    }
    cache
}

struct Gates {
    client: AppleClient,
    redis: Redis,
    books: Arc<Books>,
    layers: Vec<Box<dyn fmt::Debug + Send + Sync>>,
}

impl Gates {
    /// Keeps a layer as it is used, to look at it later.
    fn kept<L: Clone + fmt::Debug + Send + Sync + 'static>(&mut self, layer: L) -> L {
        self.layers.push(Box::new(layer.clone()));
        layer
    }

    fn layer(&self, door: Door) -> DeviceCheckLayer {
        let cache = Tiered::new(full_cache(), RedisCache::new(self.redis.clone()));
        DeviceCheckLayer::new(self.client.clone())
            .with_cache(cache)
            .with_time_to_live(Verdict::Genuine, TIME_TO_LIVE)
            .with_observer(self.books.at(door))
    }

    fn guard(&self) -> RedisReplayGuard {
        RedisReplayGuard::new(self.redis.clone())
    }

    async fn http(&mut self, ca: &FakeAttestCa) -> String {
        let greet = async |_: VerifiedDevice| "hello";
        let ring = KeyRing::new(MasterKey::random().unwrap());
        let sessions = Sessions::new("", APP_ID, &ring).unwrap().with_lifetime(SESSION_LIFE);
        let by_token = self.layer(Door::Remembering);
        let by_token = self.kept(by_token);
        let exchanges = Router::new()
            .route_service("/session", Exchange::new(sessions.clone()))
            .route_service("/session/once", Exchange::new(sessions.clone()).with_limited_use(true))
            .route_layer(by_token);
        let by_session = SessionProof::new(sessions).with_limited_use(self.guard());
        let members = Router::new()
            .route("/member", get(greet))
            .route_layer(self.layer(Door::Other).with_sessions(by_session));
        let once = self.layer(Door::Once).with_single_use(self.guard());
        let (once, by_token) = (self.kept(once), self.layer(Door::Remembering));
        let app = Router::new()
            .route("/", get(greet))
            .route_layer(self.kept(by_token))
            .merge(Router::new().route("/once", get(greet)).route_layer(once))
            .merge(exchanges)
            .merge(members)
            .merge(self.attested(ca));
        listen(app).await
    }

    fn attested(&mut self, ca: &FakeAttestCa) -> Router {
        let anchors = Anchors::apple().with_attestation_roots(ca.attestation_root_der()).unwrap();
        let anchors = anchors.with_receipt_roots(ca.receipt_root_der()).unwrap();
        let keys = RedisAttestKeyStore::new(self.redis.clone());
        let challenges = Challenges::new(ChallengeKey::random().unwrap(), self.guard());
        let app_ids = || [APP_ID.parse().unwrap()];
        let endpoint = AttestEndpoint::new(keys.clone(), app_ids(), challenges.clone()).with_anchors(anchors);
        let proof = AppAttestProof::new(keys, app_ids(), Freshness::challenge(challenges.clone()));
        let layer = self.layer(Door::Other).with_bodies(ReadBodies::new()).add_proof_before(proof).unwrap();
        let issue = |purpose| ChallengeEndpoint::new(challenges.clone(), purpose);
        // A handler that reads the body, so that it has to be the one that was signed.
        let pay = async |_: VerifiedDevice, body: Bytes| body;
        Router::new()
            .route("/pay", post(pay))
            .route_layer(layer)
            .route_service("/challenge", issue(ChallengePurpose::Attestation))
            .route_service("/challenge/assertion", issue(ChallengePurpose::Assertion))
            .route_service("/attest", endpoint)
    }

    async fn grpc(&mut self) -> String {
        let gate = self.layer(Door::Remembering).with_exempt_preflights(false);
        let gate = self.kept(gate);
        let (listener, address) = socket().await;
        serve(listener, gate.layer(Routes::new(tonic_example::service())));
        format!("http://{address}")
    }

    async fn gateway(&self) -> GatewayOfAi {
        let open = Open::default();
        let provider = listen(streams::provider(open.clone())).await;
        let keys = RedisSplitKeyStore::new(self.redis.clone());
        let split =
            Splitter::new().issue(&keys, "app", "openai", streams::KEY, Limits::none()).await.unwrap();
        let provider = Provider::openai().with_base_url(&format!("{provider}/v1")).unwrap();
        let settings = ai_gateway::Settings {
            providers: Providers::none().with(provider),
            models: ai_gateway::models::Models::default(),
            roots: None,
            limits: ai_gateway::Limits::default(),
            usage: UsageLog::new(),
            admin_token: None,
            debug_tokens: DebugTokens::new(),
            cors: None,
            single_use: false,
        };
        let app = ai_gateway::app(self.layer(Door::Remembering), keys, settings).unwrap();
        let url = listen(Router::new().fallback_service(app)).await;
        GatewayOfAi { url, part: split.client_part().expose().to_owned(), open }
    }
}

async fn listen(app: Router) -> String {
    let (listener, address) = socket().await;
    serve(listener, app);
    format!("http://{address}")
}
