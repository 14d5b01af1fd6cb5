//! A gateway to AI providers, as tower layers and services (feature `gateway`).
//!
//! A request passes these, from the outermost:
//!
//! | layer | does |
//! |---|---|
//! | [`AccessLogLayer`] | writes one line for each request, and gives it an id |
//! | [`GatewayLayer`] | finds out where the request goes, and leaves a [`Target`]; refuses what must not cross |
//! | [`DeviceCheckLayer`](crate::DeviceCheckLayer) | lets genuine devices through |
//! | [`SplitKeyLayer`](crate::split_key::SplitKeyLayer) | restores the [`ApiKey`](crate::split_key::ApiKey) |
//! | [`Forward`] | sends the request to the provider through your HTTP client, and cleans the response |
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode, request};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_devicecheck::{
//!     AppleClient, BearerToken, DeviceCheckLayer, Environment,
//!     split_key::{
//!         Limits, MemorySplitKeyStore, Providers, SplitKeyLayer, Splitter,
//!         gateway::{Forward, GatewayLayer, PassedBody, ProviderErrors, Target},
//!     },
//!     testing::FakeApple,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_devicecheck::BoxError> {
//! # let fake = FakeApple::new();
//! # let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build()?;
//! let keys = MemorySplitKeyStore::new();
//! let split = Splitter::new().issue(&keys, "my-app", "openai", "sk-proj-1234567890abcdef", Limits::none()).await?;
//!
//! // In the place of an HTTP client.
//! let client = service_fn(async |request: Request<PassedBody<Full<Bytes>>>| {
//!     assert_eq!(request.uri(), "https://api.openai.com/v1/models");
//!     assert_eq!(request.headers()["authorization"], "Bearer sk-proj-1234567890abcdef");
//!     Ok::<_, Infallible>(Response::new(Full::from("{}")))
//! });
//! let gateway = ServiceBuilder::new()
//!     .layer(GatewayLayer::new(Providers::default()))
//!     .layer(
//!         DeviceCheckLayer::new(apple)
//!             .with_token_source(BearerToken::new())
//!             .with_rejection_response(ProviderErrors),
//!     )
//!     .layer(
//!         SplitKeyLayer::new(keys)
//!             .with_project(|head: &request::Parts| {
//!                 head.extensions.get::<Target>()?.project().map(str::to_owned)
//!             })
//!             .with_rejection_response(ProviderErrors),
//!     )
//!     .service(Forward::new(client));
//!
//! let credential = format!("{}.{}", split.client_part().expose(), fake.genuine_token(Environment::Production));
//! let request = Request::get("/v1/openai/my-app/models").header("authorization", format!("Bearer {credential}"));
//! let response = gateway.oneshot(request.body(Full::default())?).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "{}");
//! assert_eq!(fake.calls(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Paths
//!
//! `/v1/{provider}/{project}/{path}`, or `/v1/{provider}/{path}` with the header `X-Project-Id`. The
//! [limits](crate::split_key::Limits) of a key see `/v1/{provider}/{path}` in both cases, without the version of the API
//! that the provider's base URL ends in.
//!
//! # Memory
//!
//! [`Forward`] copies no body. It wipes its own copies of the key; see [`split_key`](crate::split_key#memory) for those
//! of the HTTP client.

mod access;
mod body;
pub(super) mod endpoint;
pub(super) mod error_shape;
mod errors;
mod forward;
mod headers;
mod layer;
mod query;
mod refusals;
mod rejection;
mod target;
mod token_source;

pub use self::access::{AccessLog, AccessLogFuture, AccessLogLayer, LoggedBody};
pub use self::body::PassedBody;
pub use self::endpoint::ProviderError;
pub use self::error_shape::ErrorShape;
pub use self::errors::ProviderErrors;
pub use self::forward::Forward;
pub use self::layer::{Gateway, GatewayLayer, GatewayRules};
pub use self::refusals::Refusals;
pub use self::rejection::GatewayRejection;
pub use self::target::Target;
pub use self::token_source::ProviderHeaderToken;
