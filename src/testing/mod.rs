//! A fake Apple, tokens and keys, for the tests of servers that use this crate.
//!
//! The feature `testing` only adds this module and changes no decision of the crate. Enable it in `dev-dependencies`.
//!
//! # A fake Apple
//!
//! [`FakeApple`] behaves like Apple's DeviceCheck server. In the process, it replaces the transport to Apple:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, StatusCode};
//! use tower::ServiceExt;
//! use tower_devicecheck::{Environment, testing::{Endpoint, FakeApple, Reply}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_devicecheck::BoxError> {
//! let apple = FakeApple::new();
//! let token = apple.genuine_token(Environment::Production);
//! # let now = std::time::SystemTime::now();
//! # let provider_token = apple.private_key().provider_token(apple.team_id(), apple.key_id(), now);
//! # let timestamp = now.duration_since(std::time::UNIX_EPOCH)?.as_millis();
//! let request = || {
//!     Request::post("https://api.devicecheck.apple.com/v1/validate_device_token")
//!         .header("authorization", format!("Bearer {provider_token}"))
//!         .body(Bytes::from(format!(
//!             r#"{{"device_token":"{token}","transaction_id":"1","timestamp":{timestamp}}}"#
//!         )))
//! };
//!
//! // An outage of one call.
//! apple.script(Reply::status(503));
//! let response = apple.transport().oneshot(request()?).await?;
//! assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
//!
//! let response = apple.transport().oneshot(request()?).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//! assert_eq!(apple.calls_to(Endpoint::Validate), 2);
//! # Ok(())
//! # }
//! ```
//!
//! As a server on the loopback interface, it answers any HTTP client, and a test can stop and restart it:
//!
//! ```
//! use tower_devicecheck::{Environment, testing::{FakeApple, Reply}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let apple = FakeApple::new();
//! let mut server = apple.serve().await?;
//! // Start the server under test with these instead of Apple's two hosts.
//! println!("{} {}", server.url(Environment::Production), server.url(Environment::Development));
//!
//! apple.share(0.1, Reply::reset()); // each tenth connection breaks
//! apple.always(Reply::normal().delay(std::time::Duration::from_millis(200)));
//!
//! server.stop().await; // connections are refused
//! server.restart().await?; // Apple is back, on the same ports
//! apple.clear(); // and well
//! # Ok(())
//! # }
//! ```
//!
//! # Its answers
//!
//! The first row that applies decides. Texts are those seen in practice, if there are any.
//!
//! | call | answer |
//! |---|---|
//! | scripted | the scripted reply |
//! | any path but the four | 404 |
//! | not POST | 405 `Method Not Allowed` |
//! | provider token missing, not a bearer token (for a receipt, also without the word `Bearer`), not a JWT, not ES256, without `kid` | 400 `Missing or badly formatted authorization token` |
//! | its key or team unknown, its signature wrong, its `iat` missing, over an hour old or in the future | 401 `Unable to verify authorization token` |
//! | receipt that is not base64, or that the authority of `FakeApple::exchange_receipts` has not signed | 400 `Bad Payload` |
//! | receipt of the other environment | 400 `Incorrect Environment` |
//! | receipt, before `exchange_receipts` was called | 404 `No Data Found` |
//! | any other receipt | 200, a newer receipt in base64 |
//! | body not a JSON object, `transaction_id` missing or no text | 400 `Bad Payload` |
//! | `device_token` missing or no text | 400 `Missing or incorrectly formatted device token payload` |
//! | `timestamp` missing, no integer, or over a day off | 400 `Missing or incorrectly formatted time stamp` |
//! | update with neither bit, or with one that is no boolean | 400 `Missing or incorrectly formatted bits` |
//! | device token forged, expired or of the other environment | 400 `Missing or incorrectly formatted device token payload` |
//! | validate | 200, no body |
//! | query, bits were set | 200, JSON: `bit0`, `bit1`, `last_update_time` as `YYYY-MM` |
//! | query, bits were never set | 200 `Failed to find bit state`, plain text |
//! | update | 200, no body; a bit that is left out keeps its value |
//!
//! Every answer has an `x-b3-traceid`, and the time of the fake's clock as `Date`. Some rows are guesses, because Apple
//! does not document them: the tolerances for clocks, the answers to a bad `transaction_id`, to an unknown path and to
//! an update with neither bit, and the effect of leaving out a bit. Here, a genuine token stays genuine for [two
//! minutes](FakeApple::set_token_lifetime), or until a test [expires](FakeApple::expire) it. Apple documents its tokens
//! as single-use, but does not enforce this.
//!
//! The fake compares device tokens as text, in standard base64 with padding. Apple documents this form, and does not
//! say whether it accepts another.

#[cfg(feature = "app-attest")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "app-attest")))]
pub mod app_attest;
mod endpoint;
mod fake_apple;
mod keys;
mod rules;
mod script;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod tokens;
mod transport;

pub use self::keys::{InvalidKey, PrivateKey};
pub use self::tokens::{realistic_token, token_of_length};
pub use self::{
    endpoint::Endpoint, fake_apple::FakeApple, script::Reply, server::FakeAppleServer,
    transport::FakeAppleService,
};
use crate::gate::decision::VerifiedDevice;
use crate::gate::evidence::Evidence;
use crate::gate::routing::Environment;
use crate::{apple::token::DeviceToken, runtime::SystemTime};

/// Makes a verified device without any verification, as if Apple had just accepted `token`. This is for unit tests of
/// handlers.
///
/// # Danger
///
/// In a server, this device as a request extension admits a request that no device sent.
///
/// ```
/// use tower_devicecheck::{Environment, VerifiedDevice, testing};
///
/// fn greet(device: &VerifiedDevice) -> String {
///     format!("hello, {} device", device.environment())
/// }
///
/// # fn main() -> Result<(), tower_devicecheck::MalformedToken> {
/// let token = testing::realistic_token().parse()?;
/// let device = testing::verified_device(token, Environment::Development);
/// assert_eq!(greet(&device), "hello, development device");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn verified_device(token: DeviceToken, environment: Environment) -> VerifiedDevice {
    let digest = token.digest();
    VerifiedDevice::new(digest, environment, Evidence::APPLE, SystemTime::now()).with_text(&token.into_text())
}
