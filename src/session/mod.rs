//! Sessions: one call to Apple buys an hour (feature `session`).
//!
//! Apple wants a new device token for each request, and throttles servers that ask too often. A client that has proved
//! itself once gets a *session*: 126 characters that this server has signed, and checks by arithmetic until they
//! expire. [`guide::sessions`](crate::guide::sessions) has the client's side, and the threat model.
//!
//! ```
//! use tower::{Layer, ServiceExt};
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::{BodyExt, Full};
//! # use tower_devicecheck::{AppleClient, Environment, testing::FakeApple};
//! use tower_devicecheck::{DeviceCheckLayer, session::{Exchange, KeyRing, SessionProof, Sessions}};
//!
//! # async fn hello(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
//! #     Ok(Response::new(Full::from("hello")))
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let fake = FakeApple::new();
//! # let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build()?;
//! # let keys = "0a0b0c0d:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
//! let ring: KeyRing = keys.parse()?; // or `KeyRing::from_env()?`
//! let sessions = Sessions::new("", "TEAM123456.com.example.app", &ring)?;
//! let by_token = DeviceCheckLayer::new(apple);
//!
//! // `POST /session`: buys a session. This layer takes no sessions.
//! let exchange = by_token.layer(Exchange::new(sessions.clone()));
//! // Every other route: takes a session, or a device token.
//! let app = by_token.with_sessions(SessionProof::new(sessions)).layer(tower::service_fn(hello));
//!
//! # let token = fake.genuine_token(Environment::Production);
//! let purchase = Request::post("/session").header("x-apple-device-token", token).body(Full::<Bytes>::default())?;
//! let bought = exchange.oneshot(purchase).await?.into_body().collect().await?.to_bytes();
//! # let bought: serde_json::Value = serde_json::from_slice(&bought)?;
//! # let session = bought["session"].as_str().ok_or("no session")?;
//! let request = Request::get("/").header("x-device-session", session).body(Full::<Bytes>::default())?;
//! assert_eq!(app.oneshot(request).await?.status(), 200);
//! # assert_eq!(fake.calls(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! The keys of an app are derived from the operator's [`MasterKey`]s with HKDF-SHA-256, and sessions are signed with
//! HMAC-SHA-256. The source of this module has the layout of the 94 bytes, which no client needs.

mod claims;
mod error;
mod evidence;
mod exchange;
#[cfg(feature = "jwt")]
mod jwt;
#[cfg(feature = "jwt")]
mod jwt_key;
mod key;
mod key_watch;
mod proof;
mod recent;
mod revocation;
mod revoked;
mod ring;
mod sessions;
#[cfg(feature = "redis")]
mod shared_revocations;
mod token;

pub use self::claims::{BoughtWith, Session, SessionId};
pub use self::error::SessionError;
pub use self::exchange::Exchange;
#[cfg(feature = "jwt")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "jwt")))]
pub use self::jwt::{Jwks, Jwts};
#[cfg(feature = "jwt")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "jwt")))]
pub use self::jwt_key::JwtKey;
pub use self::key::MasterKey;
pub use self::key_watch::SessionKeyWatch;
#[cfg(all(feature = "app-attest", feature = "_apple"))]
pub(crate) use self::proof::Companion;
pub use self::proof::SessionProof;
pub use self::revocation::{RevocationError, Revocations};
pub use self::ring::{KeyRing, KeySource};
pub use self::sessions::Sessions;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::shared_revocations::WithoutRedis;

#[cfg(test)]
mod tests;
