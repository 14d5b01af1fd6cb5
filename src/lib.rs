//! Lets only requests from genuine Apple devices through.
//!
//! An app asks Apple for a device token (`DCDevice.generateToken`) and sends it with its request, base64 in
//! the header `X-Apple-Device-Token`. [`DeviceCheckLayer`] takes it out of the request and asks Apple whether
//! it is genuine. If it is, the inner service finds a [`VerifiedDevice`] in the request's extensions. If it
//! is not, or if there is no answer, the client gets a [`Rejection`], and the inner service is not called.
//!
//! A request's way, and the order never changes:
//!
//! 1. The [`RoutingPolicy`] decides which of Apple's two servers to ask, or that the request is exempt.
//! 2. The [`TokenSource`]s take the token out of the request.
//! 3. If the text is one of the [`DebugTokens`], the request is admitted under that name. Anything else that is
//!    not canonical base64 is rejected.
//! 4. The [cache](cache::VerdictCache) is asked for a verdict that is still good.
//! 5. The [`DeviceVerifier`], usually an `AppleClient`, asks Apple: once for all requests that hold the same
//!    token at the same time.
//! 6. The verdict is remembered, the [`Observer`] is told, and the request goes on or is answered.
//!
//! # Default use
//!
//! A real server makes its client with `AppleClient::new(Credentials::from_env()?)?`; here a fake Apple
//! (feature `testing`) stands in.
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
//! The health check is exempt, the token has another header, simulators come in with a secret, and an
//! answer is one word.
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
//! | | HTTP | gRPC |
//! |---|---|---|
//! | genuine token | the inner service's answer | the same |
//! | no token, a malformed one, one that Apple refuses, one that is spent | 401 | 16 `UNAUTHENTICATED` |
//! | Apple is down, slow, or asked too often | 503 with `Retry-After` | 14 `UNAVAILABLE` |
//! | Apple does not accept the server's credentials | 500 | 13 `INTERNAL` |
//!
//! HTTP answers are problem details (RFC 9457), gRPC ones a status without a body, those of Connect its errors; all name
//! the rejection in the header `x-devicecheck-code`. [`Rejection`] has the whole table, [`RejectionResponse`] changes the answers. Errors of the inner service pass untouched.
//!
//! # Features
//!
//! Features only add: none changes a decision.
//!
//! | feature | Default? | what |
//! |---|---|---|
//! | `reqwest` | yes | the default transport to Apple: rustls, HTTP/2. Turns on `tokio` |
//! | `memory-cache` | yes | `MemoryCache`, the default cache |
//! | `aws-lc-rs` | yes | `AppleClient` and `Credentials`, signing with aws-lc |
//! | `rust-crypto` | no | the same, signing in pure Rust. With both, aws-lc signs |
//! | `tokio` | by `reqwest` | deadlines on calls to Apple |
//! | `axum` | no | [`VerifiedDevice`] and `Option<VerifiedDevice>` as extractors |
//! | `redis` | no | `Redis`, and on it `RedisCache` and `RedisReplayGuard`, with `split-key` also `RedisSplitKeyStore` and `RedisUsageLog`, shared by replicas. Turns on `tokio` |
//! | `split-key` | no | `split_key`: API keys in two parts, put together for verified devices only |
//! | `testing` | no | a fake Apple, and builders for tokens and keys, for your tests |
//!
//! # Caveats
//!
//! * A genuine token proves a genuine Apple device and an app of your team. It does not prove which app, that
//!   it is unmodified, or who uses it, and it is not bound to the request: see [`guide::threat_model`].
//! * Build one layer at start-up and clone it. Each new one has a cache of its own. Where it goes among other
//!   layers is in [`guide::ordering`].
//! * A token that was found genuine is good for 5 minutes, whoever sends it:
//!   [`DeviceCheckLayer::with_time_to_live`].
//! * The token is about 3 KB long. Proxies in front of the server must let such a header through.
//! * Where there is no tokio runtime, deadlines on calls to Apple are the transport's to keep.
//! * What the log lines mean, and what to do about them, is in [`guide::operating`].

#![cfg_attr(tower_devicecheck_docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod apple;
mod device_check;
mod gate;
pub mod guide;
mod layer;
#[cfg(feature = "redis")]
mod redis;
pub mod replay;
mod runtime;
#[cfg(feature = "split-key")]
pub mod split_key;
#[cfg(feature = "testing")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

#[cfg(all(feature = "_apple", feature = "reqwest", not(target_arch = "wasm32")))]
pub use self::apple::ReqwestTransport;
#[cfg(feature = "_apple")]
pub use self::apple::{
    AppleClient, AppleClientBuilder, Bits, BitsError, BitsErrorKind, ClientError, Credentials,
    CredentialsError, HttpTransport, TransportError,
};
#[cfg(feature = "axum")]
pub use self::gate::extract::MissingDevice;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::Redis;
pub use self::{
    apple::{DeviceToken, MAX_TOKEN_LENGTH, Verdict},
    device_check::{
        cache,
        debug_token::{DebugTokenError, DebugTokens},
        token_source::{BearerToken, HeaderToken, TokenSource},
        verifier::{DeviceVerifier, TokenQuestion},
    },
    gate::{
        DeviceCheck, Gate,
        body::ResponseBody,
        credential::{Candidate, TokenDigest},
        decision::{DeviceOutcome, Enforcement, Evidence, Rejected, VerifiedDevice},
        error::{VerifyError, VerifyErrorKind},
        future::ResponseFuture,
        gate_body::{GateBody, HeadOnly, ReadBodies},
        observer::{Event, Observer, Outage, Outcome, TracingObserver},
        proof::{Facts, Proof, Step},
        rejection::{HttpProblemDetails, MalformedToken, ProblemDetails, Rejection, RejectionResponse},
        routing::{Environment, EnvironmentHeader, Route, RoutingPolicy, UnknownEnvironment},
        service::Gated,
    },
    layer::{DeviceCheckLayer, LayerError},
    replay::owner::Owner,
};

/// Any error, as constructors of this crate's errors take it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Compiles the code blocks of the README.
#[cfg(all(doctest, feature = "reqwest", feature = "memory-cache"))]
#[doc = include_str!("../README.md")]
struct Readme;
