//! A tower layer that lets only requests from genuine Apple devices through.
//!
//! An app asks Apple for a device token (`DCDevice.generateToken`) and sends it with each request, as base64 in the
//! header `X-Apple-Device-Token`. [`DeviceCheckLayer`] takes the token out of the request and asks Apple whether it is
//! genuine. If it is, the inner service finds a [`VerifiedDevice`] in the request's extensions. Otherwise, or if Apple
//! does not answer, the client gets a [`Rejection`], and the inner service is not called.
//!
//! A request passes these steps, always in this order:
//!
//! 1. The [`RoutingPolicy`] chooses one of Apple's two servers, or exempts the request.
//! 2. The gate looks at its [proofs](Proof) in order. The check with device tokens is a proof, and the only one unless
//!    you add others. The first proof that is present in the request decides.
//! 3. The [`TokenSource`]s take the device token out of the request.
//! 4. If the text is one of the [`DebugTokens`], the layer admits the request under the debug token's name. It rejects
//!    any other text that is not canonical base64.
//! 5. The [cache](cache::VerdictCache) answers if it has a verdict that has not expired. With [single use](replay), a
//!    guard reserves the token instead.
//! 6. The [`DeviceVerifier`], usually an [`AppleClient`], asks Apple: once for all concurrent requests with the same
//!    token. The cache stores the verdict.
//! 7. The [`Observer`] receives the decision. The request goes on to the inner service, or the layer answers it.
//!
//! ```text
//!            DeviceCheckLayer
//! request ─▶ routing ─▶ token ─▶ cache ─▶ Apple ─▶ your service, with a VerifiedDevice
//!               │         │        │        │
//!             exempt    none,   refused  refused, or no answer
//!               │     malformed    │        │
//!               ▼         └────────┴────────┴───▶ a Rejection: 401, 503 or 500
//!         your service
//! ```
//!
//! # A server
//!
//! Make an [`AppleClient`] from environment variables or from [`Credentials`], and pass it to
//! [`DeviceCheckLayer::new`]. This example uses axum, and needs the features `axum` and `reqwest`:
//!
//! ```no_run
//! # #[cfg(all(feature = "axum", feature = "reqwest", not(target_arch = "wasm32")))] {
//! use axum::{Router, routing::get};
//! use tower_devicecheck::{AppleClient, BoxError, DeviceCheckLayer, VerifiedDevice};
//!
//! async fn hello(device: VerifiedDevice) -> String {
//!     format!("hello, device verified by {}", device.evidence())
//! }
//!
//! async fn serve() -> Result<(), BoxError> {
//!     let apple = AppleClient::from_env()?;
//!     let app = Router::new()
//!         .route("/", get(hello))
//!         .route_layer(DeviceCheckLayer::new(apple))
//!         .route("/health", get(|| async { "ok" })); // after the layer: not protected
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     axum::serve(listener, app).await?;
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # In a test
//!
//! A fake Apple (feature `testing`) replaces the real one.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_devicecheck::{
//!     AppleClient, DeviceCheckLayer, Environment, Rejection, VerifiedDevice, testing::FakeApple,
//! };
//!
//! async fn hello(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, std::io::Error> {
//!     // The layer has left this for us, and taken the token.
//!     assert!(request.extensions().get::<VerifiedDevice>().is_some());
//!     assert!(request.headers().get("x-apple-device-token").is_none());
//!     Ok(Response::new(Full::from("hello")))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fake = FakeApple::new();
//! let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build()?;
//!
//! let service = ServiceBuilder::new().layer(DeviceCheckLayer::new(apple)).service_fn(hello);
//!
//! let token = fake.genuine_token(Environment::Production);
//! let request = Request::get("/").header("x-apple-device-token", token).body(Full::default())?;
//! let response = service.clone().oneshot(request).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//!
//! let request = Request::get("/").header("x-apple-device-token", fake.forged_token()).body(Full::default())?;
//! let response = service.oneshot(request).await?;
//! assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
//! assert_eq!(response.extensions().get(), Some(&Rejection::RefusedToken));
//! assert_eq!(fake.calls(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! # Customised
//!
//! In this example, the health check is exempt, the token comes in another header, a debug token admits simulators, and
//! the body of a rejection is one word.
//!
//! ```
//! use bytes::Bytes;
//! use http::{HeaderName, Request, Response, StatusCode, request};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_devicecheck::{
//!     AppleClient, DebugTokens, DeviceCheckLayer, HeaderToken, Rejection, Route, testing::{FakeApple, Reply},
//! };
//!
//! # async fn hello(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, std::io::Error> {
//! #     Ok(Response::new(Full::from("hello")))
//! # }
//! #
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let fake = FakeApple::new();
//! # let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build()?;
//! let layer = DeviceCheckLayer::new(apple)
//!     .with_routing(|head: &request::Parts| match head.uri.path() {
//!         "/health" => Route::Exempt,
//!         _ => Route::Production,
//!     })
//!     .with_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
//!     .with_debug_tokens(DebugTokens::new().add("simulator", "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a")?)
//!     .with_rejection_response(|rejection: &Rejection, _: &request::Parts| {
//!         let mut response = Response::new(Bytes::from(rejection.code()));
//!         *response.status_mut() = rejection.status();
//!         response
//!     });
//! let service = ServiceBuilder::new().layer(layer).service_fn(hello);
//!
//! let health = Request::get("/health").body(Full::default())?;
//! assert_eq!(service.clone().oneshot(health).await?.status(), StatusCode::OK);
//!
//! let simulator = Request::get("/").header("x-debug-token", "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a");
//! let response = service.clone().oneshot(simulator.body(Full::default())?).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//! assert_eq!(fake.calls(), 0);
//!
//! // An outage is not a verdict.
//! fake.always(Reply::status(500));
//! let device = Request::get("/").header("x-device-token", fake.forged_token());
//! let response = service.oneshot(device.body(Full::default())?).await?;
//! assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
//! # Ok(())
//! # }
//! ```
//!
//! # What the client sees
//!
//! | request | HTTP | gRPC |
//! |---|---|---|
//! | genuine token | the inner service's answer | the same |
//! | no token, or one that is malformed, refused by Apple, or spent | 401 | 16 `UNAUTHENTICATED` |
//! | Apple is down or slow, or throttles the server | 503 with `Retry-After` | 14 `UNAVAILABLE` |
//! | Apple does not accept the server's credentials | 500 | 13 `INTERNAL` |
//! | the operator's own [limit] is used up | 429 with `Retry-After` | 8 `RESOURCE_EXHAUSTED` |
//! | a body that a proof needs is too long, or does not arrive in time | 413, 408 | 8 `RESOURCE_EXHAUSTED`, 4 `DEADLINE_EXCEEDED` |
//!
//! HTTP clients get problem details (RFC 9457), gRPC clients a status without a body, and Connect clients a Connect
//! error. Every rejection has its code in the header `x-devicecheck-code`. [`Rejection`] has the whole table, and
//! [`RejectionResponse`] customises the responses. Errors of the inner service pass unchanged.
//!
//! # Features
//!
//! Features only add API. No feature changes a decision.
//!
//! | feature | Default? | adds |
//! |---|---|---|
//! | `reqwest` | yes | `ReqwestTransport`, the default transport to Apple: rustls, HTTP/2. Turns on `tokio` |
//! | `memory-cache` | yes | `MemoryCache`, the default cache |
//! | `aws-lc-rs` | yes | `AppleClient` and `Credentials`, signing with aws-lc |
//! | `rust-crypto` | no | the same, signing in pure Rust. If both are on, aws-lc signs |
//! | `tokio` | by `reqwest` | deadlines: on calls to Apple, caches, guards and the reading of bodies |
//! | `axum` | no | [`VerifiedDevice`] and `Option<VerifiedDevice>` as extractors; rejections and errors as responses |
//! | `redis` | no | `Redis`, and on top of it `RedisCache` and `RedisReplayGuard`, with `split-key` also `RedisSplitKeyStore` and `UsageLog::in_redis`, with `app-attest` `RedisAttestKeyStore`, shared by replicas. Turns on `tokio` |
//! | `redis-tls` | no | `redis`, with `rediss://` addresses: rustls, with the platform's root certificates |
//! | `redis-sentinel` | no | `redis`, with `Redis::connect_sentinel`: connects to the primary that sentinels name |
//! | `split-key` | no | `split_key`: API keys in two parts, joined for verified devices only |
//! | `gateway` | no | `split_key::gateway`: a gateway to AI providers, as tower layers and services. Turns on `split-key` |
//! | `session` | no | `session`: a token that this server signs after one check, and checks by itself for an hour |
//! | `jwt` | no | `session`, and `session::Jwts`: sessions as JSON Web Tokens for other services. Turns on `aws-lc-rs` |
//! | `app-attest` | no | `app_attest`: keys that devices attest with App Attest, and a proof by the requests that they sign, verified here. Exists with `aws-lc-rs` or `rust-crypto`; with both, aws-lc verifies |
//! | `limit` | no | `limit::RateLimiter`: how often each client may cause a question to Apple |
//! | `metrics` | no | counters, gauges and histograms for the application's recorder of the [`metrics`](https://docs.rs/metrics) crate: [guide](guide::metrics) |
//! | `testing` | no | a fake Apple, and builders for tokens and keys, for your tests; with `app-attest`, fake devices. Turns on `tokio`, and `AppleClient` |
//!
//! # Caveats
//!
//! * A genuine token proves a genuine Apple device and an app of your team. It does not prove which app it is, that the
//!   app is unmodified, or who uses it. The token is not bound to the request: see [`guide::threat_model`].
//! * Build one layer at start-up and clone it, because each new layer has its own cache. [`guide::ordering`] shows its
//!   place among other layers.
//! * A genuine token admits requests for 5 minutes, including those of an attacker who has captured it.
//!   [`DeviceCheckLayer::with_time_to_live`] shortens this time. With [single use](replay), a token admits only one
//!   request.
//! * The token is about 3 KB long. Proxies in front of the server must accept a header of this size.
//! * Without a tokio runtime this crate enforces no deadlines, except on `wasm32-unknown-unknown`, where the host has
//!   timers. Elsewhere the transport must enforce its own. [`guide::platforms`] covers Workers and other hosts.
//! * Everything but [`Enforcement::Enforce`], and some other switches, weaken the gate: [`guide::threat_model`] lists them.
//! * [`guide::operating`] explains the log lines. [`guide::architecture`] is for contributors.

#![cfg_attr(tower_devicecheck_docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(all(test, not(all(feature = "app-attest", feature = "gateway", feature = "testing"))))]
compile_error!(
    "the tests of the package need features: cargo test --features app-attest,axum,gateway,session,testing"
);

#[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "app-attest")))]
pub mod app_attest;
mod apple;
mod device_check;
mod gate;
pub mod guide;
mod layer;
mod meter;
mod quote;
#[cfg(feature = "redis")]
mod redis;
pub mod replay;
mod runtime;
#[cfg(feature = "session")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "session")))]
pub mod session;
#[cfg(feature = "split-key")]
pub mod split_key;
mod sync;
pub mod tenant;
#[cfg(feature = "testing")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
#[cfg(any(feature = "_apple", feature = "session", feature = "split-key"))]
mod wipe;

#[cfg(all(feature = "_apple", feature = "tokio", not(target_arch = "wasm32")))]
pub use self::apple::CredentialsWatch;
#[cfg(all(feature = "_apple", feature = "app-attest"))]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "app-attest")))]
pub use self::apple::ReceiptAnswer;
#[cfg(feature = "_apple")]
pub use self::apple::{
    AppleClient, AppleClientBuilder, Availability, BitsError, BitsErrorKind, ClientError, Credentials,
    CredentialsError, HttpTransport, TransportError,
};
pub use self::apple::{DeviceToken, Verdict};
#[cfg(all(feature = "_apple", feature = "reqwest", not(target_arch = "wasm32")))]
pub use self::apple::{ReqwestTransport, ReqwestTransportBuilder};
pub use self::device_check::debug_token::{DebugTokenError, DebugTokens};
pub use self::device_check::mark_policy::{MarkDecision, MarkPolicy};
#[cfg(feature = "_apple")]
pub use self::device_check::mark_writer::MarkWriter;
pub use self::device_check::token_source::{BearerToken, HeaderToken, TokenSource};
pub use self::device_check::verifier::{DeviceVerifier, TokenQuestion};
pub use self::device_check::{cache, limit};
pub use self::gate::bits::{Bits, Month};
pub use self::gate::checked_body::GateBodyError;
pub use self::gate::credential::{Candidate, TokenDigest};
pub use self::gate::decision::{DeviceOutcome, Rejected, VerifiedDevice};
pub use self::gate::enforcement::{Enforcement, EnforcementPolicy};
pub use self::gate::error::{VerifyError, VerifyErrorKind};
pub use self::gate::evidence::Evidence;
#[cfg(feature = "axum")]
pub use self::gate::extract::MissingDevice;
pub use self::gate::gate_body::{GateBody, HeadOnly, ReadBodies};
pub use self::gate::marks::Marks;
pub use self::gate::observer::{Event, Observer, Outage, Outcome};
pub use self::gate::proof::{Facts, Proof, Step};
pub use self::gate::rejection::{
    HttpProblemDetails, MalformedToken, ProblemDetails, Rejection, RejectionResponse,
};
pub use self::gate::rollout::RolloutReport;
pub use self::gate::routing::{Environment, EnvironmentHeader, Route, RoutingPolicy, UnknownEnvironment};
pub use self::gate::tracing_observer::TracingObserver;
pub use self::gate::{DeviceCheck, Gate, body::ResponseBody, future::ResponseFuture, service::Gated};
pub use self::layer::{DeviceCheckLayer, LayerError};
#[cfg(feature = "metrics")]
pub use self::meter::describe_metrics;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::Redis;
pub use self::replay::owner::Owner;

/// Any error: the type of causes in this crate's errors.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Compiles the code blocks of the README.
#[cfg(all(doctest, feature = "reqwest", feature = "memory-cache"))]
#[doc = include_str!("../README.md")]
struct Readme;
