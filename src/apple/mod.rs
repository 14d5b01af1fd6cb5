//! Device tokens, and the client that asks Apple's DeviceCheck server about them.
//!
//! The modules, from a user's call to the bytes on the wire: `builder` makes the client, `client` has its methods,
//! `call` runs one call with its attempts and deadlines, `wire` writes the request and reads the answer, and a
//! transport sends the request.

#[cfg(feature = "_apple")]
mod answer_headers;
#[cfg(feature = "_apple")]
mod attempt;
#[cfg(feature = "_apple")]
mod bits;
#[cfg(feature = "_apple")]
mod breaker;
#[cfg(feature = "_apple")]
mod builder;
#[cfg(feature = "_apple")]
mod call;
#[cfg(feature = "_apple")]
mod client;
#[cfg(feature = "_apple")]
mod credentials;
#[cfg(feature = "_apple")]
mod error;
#[cfg(feature = "_apple")]
mod es256;
#[cfg(feature = "_apple")]
mod failure;
#[cfg(feature = "_apple")]
mod from_env;
#[cfg(feature = "_apple")]
mod http_transport;
#[cfg(feature = "_apple")]
mod limit;
#[cfg(feature = "_apple")]
mod pem;
#[cfg(feature = "_apple")]
mod per_environment;
#[cfg(all(feature = "_apple", feature = "reqwest", not(target_arch = "wasm32")))]
mod pools;
#[cfg(feature = "_apple")]
mod provider_token;
#[cfg(all(feature = "_apple", feature = "app-attest"))]
mod receipts;
#[cfg(feature = "_apple")]
mod refusals;
#[cfg(all(feature = "_apple", feature = "reqwest", not(target_arch = "wasm32")))]
mod reqwest_transport;
#[cfg(all(feature = "_apple", feature = "reqwest", not(target_arch = "wasm32")))]
mod resolver;
#[cfg(all(feature = "_apple", feature = "redis"))]
mod shared_hold;
#[cfg(feature = "_apple")]
mod task;
#[cfg(test)]
mod tests;
pub(crate) mod token;
#[cfg(feature = "_apple")]
mod transport;
#[cfg(all(feature = "_apple", feature = "tokio", not(target_arch = "wasm32")))]
mod watch;
#[cfg(feature = "_apple")]
mod wire;

#[cfg(feature = "_apple")]
pub(crate) use self::call::Check;
#[cfg(all(feature = "_apple", feature = "app-attest"))]
pub use self::receipts::ReceiptAnswer;
#[cfg(all(feature = "_apple", feature = "reqwest", not(target_arch = "wasm32")))]
pub use self::reqwest_transport::{ReqwestTransport, ReqwestTransportBuilder};
pub use self::token::{DeviceToken, Verdict};
#[cfg(all(feature = "_apple", feature = "tokio", not(target_arch = "wasm32")))]
pub use self::watch::CredentialsWatch;
#[cfg(feature = "_apple")]
pub use self::{
    bits::{BitsError, BitsErrorKind},
    breaker::Availability,
    builder::AppleClientBuilder,
    client::AppleClient,
    credentials::{Credentials, CredentialsError},
    error::ClientError,
    http_transport::HttpTransport,
    transport::TransportError,
};
