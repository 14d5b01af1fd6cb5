//! The client for Apple's DeviceCheck server.

mod bits;
mod builder;
mod call;
mod client;
mod credentials;
mod error;
mod http_transport;
mod limit;
mod pem;
mod provider_token;
#[cfg(all(feature = "reqwest", not(target_arch = "wasm32")))]
mod reqwest_transport;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

#[cfg(all(feature = "reqwest", not(target_arch = "wasm32")))]
pub use self::reqwest_transport::ReqwestTransport;
pub use self::{
    bits::{Bits, BitsError, BitsErrorKind},
    builder::AppleClientBuilder,
    client::AppleClient,
    credentials::{Credentials, CredentialsError},
    error::ClientError,
    http_transport::HttpTransport,
    transport::TransportError,
};
