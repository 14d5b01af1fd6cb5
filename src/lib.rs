//! Lets only requests from genuine Apple devices through.

#![cfg_attr(tower_devicecheck_docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(any(feature = "aws-lc-rs", feature = "rust-crypto"))]
mod apple;
mod body;
pub mod cache;
mod clock;
mod debug_token;
mod erased;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod layer;
mod observer;
mod pipeline;
mod rejection;
mod routing;
mod service;
mod single_flight;
#[cfg(feature = "testing")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod token;
mod token_source;
mod verdict;
mod verifier;

#[cfg(all(
    feature = "reqwest",
    any(feature = "aws-lc-rs", feature = "rust-crypto"),
    not(target_arch = "wasm32")
))]
pub use self::apple::ReqwestTransport;
#[cfg(any(feature = "aws-lc-rs", feature = "rust-crypto"))]
pub use self::apple::{
    AppleClient, AppleClientBuilder, Bits, BitsError, BitsErrorKind, ClientError, Credentials,
    CredentialsError, TransportError,
};
#[cfg(feature = "axum")]
pub use self::extract::MissingDevice;
pub use self::{
    body::ResponseBody,
    debug_token::{DebugTokenError, DebugTokens},
    future::ResponseFuture,
    layer::{DeviceCheckLayer, Enforcement},
    observer::{Event, Observer, Outcome, TracingObserver},
    rejection::{ProblemDetails, Rejection, RejectionResponse},
    routing::{Environment, EnvironmentHeader, Route, RoutingPolicy, UnknownEnvironment},
    service::DeviceCheck,
    token::{Candidate, DeviceToken, MAX_TOKEN_LENGTH, MalformedToken, TokenDigest},
    token_source::{BearerToken, HeaderToken, TokenSource},
    verdict::{DeviceOutcome, Evidence, Verdict, VerifiedDevice},
    verifier::{DeviceVerifier, VerifyError, VerifyErrorKind},
};

/// Any error, as constructors of this crate's errors take it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
