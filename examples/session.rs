//! Sessions with axum: `cargo run --example session --features axum,session,testing`.
//!
//! | request | answer |
//! |---|---|
//! | `POST /session` | sells a session to a device token: `{"session": "…", "expires_in": 3600, "refresh_in": 1800}` |
//! | `POST /session/once` | sells a session that admits one request |
//! | `POST /session/jwt` | with `JWT_KEYS_FILE`: sells a session as a JSON Web Token, which `GET /` takes, too |
//! | `GET /.well-known/jwks.json` | with `JWT_KEYS_FILE`: the public keys for it |
//! | `GET /` | for a session in `X-Device-Session`, or a device token: the verified device as JSON |
//! | `POST /sign-out` | revokes the session with which it is called |
//! | `POST /revoke` | for `Authorization: Bearer <ADMIN_TOKEN>`: revokes `{"session": "<id>"}`, `{"subject": "…"}` or `{"issued_before": <Unix seconds>}`; what is left out stays |
//! | `GET /health` | `ok`, for anybody |
//!
//! | variable | value |
//! |---|---|
//! | `SESSION_KEYS_FILE` or `SESSION_KEYS` | the key ring; see `tower_devicecheck::session::KeyRing`. The file is read again every 2 seconds. Without them, a new key, which no other copy of this server knows |
//! | `APP_ID`, `TENANT` | the names that the keys are derived with; default `TEAM123456.com.example.app` and none |
//! | `ADMIN_TOKEN` | at least 16 visible ASCII characters; without it there is no `POST /revoke` |
//! | `REDIS_URL` | Redis or Valkey, with which all copies of this server share verdicts, revocations and used sessions (build with `--features redis`) |
//! | `WITHOUT_REDIS` | `refuse` (default) or `accept`: what becomes of sessions while Redis is gone |
//! | `HAND_OUT` | `1`: a response to a new device token holds a session |
//! | `BIND_TO` | a header, such as `Authorization`, to whose value sessions are bound |
//! | `GRACE` | minutes for which a session counts past its end while Apple is down; default 0 |
//! | `JWT_KEYS_FILE` | private keys of Ed25519 or P-256 in PEM, the signing one first (build with `--features jwt`) |
//! | `JWT_ISSUER`, `JWT_AUDIENCE` | the claims `iss` and `aud`; default `https://api.example.com` and `example` |
//! | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY` | team id, key id and `.p8` file; without them, a fake Apple in this process is asked |
//! | `DEVICECHECK_PRODUCTION_URL`, `DEVICECHECK_DEVELOPMENT_URL` | asked in the place of Apple's two servers |
//! | `LISTEN` | default `127.0.0.1:3000` |
//! | `REQUEST_HEAD_TIMEOUT`, `SHUTDOWN_TIMEOUT`, `METRICS_LISTEN`, `RUST_LOG` | as for the example `axum` |

mod shared;

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header::AUTHORIZATION},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{Apple, Server};
use tower_devicecheck::{
    AppleClient, Availability, BoxError, DeviceCheckLayer, Environment, TokenDigest, VerifiedDevice,
    replay::MemoryReplayGuard,
    session::{Exchange, KeyRing, MasterKey, RevocationError, Session, SessionId, SessionProof, Sessions},
};

fn main() -> ExitCode {
    shared::run(serve())
}

async fn serve() -> Result<(), BoxError> {
    shared::metrics::serve().await?;
    let apple = Apple::from_env().await?;
    apple.check(Environment::Production).await?;
    let settings = Settings::from_env(&apple.client).await?;
    let by_token = shared::remembering(DeviceCheckLayer::new(apple.client.clone())).await?;
    let _watch = match shared::variable("SESSION_KEYS_FILE")? {
        Some(path) => {
            let load = move || std::future::ready(KeyRing::from_file(path.trim()));
            Some(settings.sessions.watch_keys(Duration::from_secs(2), load)?)
        }
        None => None,
    };
    let server = Server::from_env().await?;
    let address = server.address()?;
    shared::announce(address, &hints(&apple, &shared::local_url(address)));
    server.run(app(by_token, settings)).await;
    Ok(())
}

/// The operator's choices.
pub(crate) struct Settings {
    pub(crate) sessions: Sessions,
    pub(crate) proof: SessionProof,
    /// The digest of the administrator's token.
    pub(crate) admin: Option<TokenDigest>,
    pub(crate) jwts: Option<Jwts>,
}

#[cfg(feature = "jwt")]
pub(crate) use tower_devicecheck::session::Jwts;
#[cfg(not(feature = "jwt"))]
pub(crate) type Jwts = std::convert::Infallible;

impl Settings {
    async fn from_env(apple: &AppleClient) -> Result<Self, BoxError> {
        let ring = match shared::variable("SESSION_KEYS_FILE")? {
            Some(path) => KeyRing::from_file(path.trim())?,
            None if shared::variable("SESSION_KEYS")?.is_some() => KeyRing::from_env()?,
            None => KeyRing::new(MasterKey::random()?),
        };
        let app_id = shared::variable("APP_ID")?.unwrap_or_else(|| "TEAM123456.com.example.app".to_owned());
        let tenant = shared::variable("TENANT")?.unwrap_or_default();
        let mut sessions = Sessions::new(tenant.trim(), app_id.trim(), &ring)?;
        if let Some(name) = shared::variable("BIND_TO")? {
            let name = HeaderName::from_bytes(name.trim().as_bytes());
            sessions = sessions.with_binding(name.map_err(|_| "BIND_TO: it is not the name of a header")?);
        }
        let proof = |sessions| SessionProof::new(sessions);
        let (sessions, mut proof) = match shared::variable("REDIS_URL")? {
            Some(url) => sharing(sessions, url.trim(), proof).await?,
            None => (sessions.clone(), proof(sessions).with_limited_use(MemoryReplayGuard::new())),
        };
        proof = proof.with_hand_out(shared::switch("HAND_OUT")?);
        if let Some(minutes) = shared::variable("GRACE")? {
            let minutes: u64 = minutes.trim().parse().map_err(|_| "GRACE: it is not a number of minutes")?;
            let apple = apple.clone();
            proof = proof.with_grace(Duration::from_secs(minutes.saturating_mul(60)), move |environment| {
                apple.availability(environment) != Availability::Available
            });
        }
        let admin = shared::admin_token()?.map(|token| TokenDigest::of(token.as_bytes()));
        let jwts = match shared::variable("JWT_KEYS_FILE")? {
            Some(path) => Some(jwts(path.trim(), &sessions)?),
            None => None,
        };
        Ok(Self { sessions, proof, admin, jwts })
    }
}

#[cfg(feature = "redis")]
async fn sharing(
    sessions: Sessions,
    url: &str,
    proof: impl FnOnce(Sessions) -> SessionProof,
) -> Result<(Sessions, SessionProof), BoxError> {
    use tower_devicecheck::{Redis, replay::RedisReplayGuard, session::WithoutRedis};

    let without_redis = match shared::variable("WITHOUT_REDIS")?.as_deref().map(str::trim) {
        None | Some("refuse") => WithoutRedis::Refuse,
        Some("accept") => WithoutRedis::Accept,
        Some(_) => return Err("WITHOUT_REDIS: it is neither \"refuse\" nor \"accept\"".into()),
    };
    // The error may quote a part of the URL.
    let redis = Redis::connect(url).await.map_err(|_| "REDIS_URL: it is not a URL of Redis")?;
    let sessions = sessions.share_revocations(redis.clone(), without_redis).await;
    Ok((sessions.clone(), proof(sessions).with_limited_use(RedisReplayGuard::new(redis))))
}

#[cfg(not(feature = "redis"))]
async fn sharing(
    _: Sessions,
    _: &str,
    _: impl FnOnce(Sessions) -> SessionProof,
) -> Result<(Sessions, SessionProof), BoxError> {
    Err("REDIS_URL: build the example with --features redis".into())
}

#[cfg(feature = "jwt")]
fn jwts(path: &str, sessions: &Sessions) -> Result<Jwts, BoxError> {
    use tower_devicecheck::session::JwtKey;

    let text = std::fs::read_to_string(path).map_err(|error| format!("JWT_KEYS_FILE: {error}"))?;
    let end = "-----END PRIVATE KEY-----";
    let keys = text.split_inclusive(end).filter(|key| key.contains(end)).map(JwtKey::from_pem);
    let issuer = shared::variable("JWT_ISSUER")?.unwrap_or_else(|| "https://api.example.com".to_owned());
    let audience = shared::variable("JWT_AUDIENCE")?.unwrap_or_else(|| "example".to_owned());
    Ok(Jwts::new(issuer.trim(), [audience.trim().to_owned()], sessions, keys.collect::<Result<_, _>>()?)?)
}

#[cfg(not(feature = "jwt"))]
fn jwts(_: &str, _: &Sessions) -> Result<Jwts, BoxError> {
    Err("JWT_KEYS_FILE: build the example with --features jwt".into())
}

/// Adds the routes of the export.
#[cfg(feature = "jwt")]
fn with_jwt(app: Router, by_token: DeviceCheckLayer, sessions: Sessions, jwts: Jwts) -> Router {
    use tower_devicecheck::session::Jwks;

    let exchange =
        Router::new().route_service("/session/jwt", Exchange::new(sessions).with_jwt(jwts.clone()));
    app.merge(exchange.route_layer(by_token)).route_service("/.well-known/jwks.json", Jwks::new(jwts))
}

#[cfg(not(feature = "jwt"))]
fn with_jwt(_: Router, _: DeviceCheckLayer, _: Sessions, jwts: Jwts) -> Router {
    match jwts {}
}

/// The whole server but for its socket.
pub(crate) fn app(by_token: DeviceCheckLayer, settings: Settings) -> Router {
    let Settings { sessions, proof, admin, jwts } = settings;
    #[cfg(feature = "jwt")]
    let proof = match &jwts {
        Some(jwts) => proof.with_jwt(jwts.clone()),
        None => proof,
    };
    // A session buys no session, so these routes take device tokens only.
    let exchanges = Router::new()
        .route_service("/session", Exchange::new(sessions.clone()))
        .route_service("/session/once", Exchange::new(sessions.clone()).with_limited_use(true))
        .route_layer(by_token.clone());
    let protected = Router::new()
        .route("/", get(device))
        .route("/sign-out", post(sign_out))
        .route_layer(by_token.clone().with_sessions(proof))
        .with_state(sessions.clone());
    let mut app = Router::new().merge(exchanges).merge(protected).route("/health", get(|| async { "ok" }));
    if let Some(jwts) = jwts {
        app = with_jwt(app, by_token, sessions.clone(), jwts);
    }
    if let Some(admin) = admin {
        app = app.merge(Router::new().route("/revoke", post(revoke)).with_state((sessions, admin)));
    }
    app
}

async fn device(device: VerifiedDevice) -> Json<Value> {
    let session = Session::of(&device);
    Json(json!({
        "environment": device.environment().as_str(),
        "evidence": device.evidence().to_string(),
        "subject": device.subject(),
        "session": session.map(|session| session.id().to_string()),
        "expires_at": session.map(|session| unix_seconds(session.expires_at())),
    }))
}

async fn sign_out(
    State(sessions): State<Sessions>,
    device: VerifiedDevice,
) -> Result<StatusCode, (StatusCode, String)> {
    let Some(session) = Session::of(&device) else { return Ok(StatusCode::NO_CONTENT) };
    // With grace, a session counts for longer than to its end.
    let until = session.expires_at() + DAY;
    answer(sessions.revocations().revoke_session(session.id(), until).await)
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The body of `POST /revoke`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    session: Option<String>,
    subject: Option<String>,
    issued_before: Option<u64>,
}

async fn revoke(
    State((sessions, admin)): State<(Sessions, TokenDigest)>,
    headers: HeaderMap,
    Json(revocation): Json<Revocation>,
) -> Result<StatusCode, (StatusCode, String)> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // The token itself is never compared, so the time tells nothing about it.
    if token.is_none_or(|token| TokenDigest::of(token) != admin) {
        return Err((StatusCode::UNAUTHORIZED, "not the administrator's token".to_owned()));
    }
    let (revocations, until) = (sessions.revocations(), SystemTime::now() + 2 * DAY);
    let mut answers = Vec::new();
    if let Some(id) = revocation.session {
        let id: SessionId = id.parse().map_err(|_| {
            (StatusCode::BAD_REQUEST, "session: it is not the 32 digits that GET / shows".to_owned())
        })?;
        answers.push(revocations.revoke_session(id, until).await);
    }
    if let Some(subject) = revocation.subject {
        answers.push(revocations.revoke_subject(&subject, until).await);
    }
    if let Some(seconds) = revocation.issued_before {
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or_else(SystemTime::now);
        answers.push(revocations.revoke_issued_before(time).await);
    }
    answers.into_iter().try_fold(StatusCode::NO_CONTENT, |_, done| answer(done))
}

/// 503 where a revocation does not count everywhere, so that the administrator learns of it.
fn answer(revoked: Result<(), RevocationError>) -> Result<StatusCode, (StatusCode, String)> {
    match revoked {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, shared::Chain(&error).to_string())),
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// How to buy a session, and to show it. Empty where Apple is the real one.
fn hints(apple: &Apple, url: &str) -> String {
    let Some(orders) = apple.orders() else { return String::new() };
    let token = format!("-H \"X-Apple-Device-Token: $(curl -s {orders}/fake/token)\"");
    let buy = format!("-X POST {token} {url}/session");
    let session = format!("$(curl -s {buy} | grep -oE '[A-Za-z0-9_-]{{126}}')");
    format!(
        "{}\n\n# buy a session with a new token:\ncurl -i {buy}\n\n\
         # show one, without a token:\ncurl -i -H \"X-Device-Session: {session}\" {url}/\n\n\
         # a session buys no session:\ncurl -i -X POST -H \"X-Device-Session: {session}\" {url}/session\n",
        shared::apple::NO_CREDENTIALS,
    )
}
