//! App Attest: requests that are signed by a key in the device, which Apple has attested (feature `app-attest`).
//!
//! A device makes a key and has Apple attest it: an [`Attestation`]. With the key, it signs what it sends: an
//! [`Assertion`]. A [`Receipt`] comes with the attestation; a server can ask Apple for newer ones, which hold a risk
//! metric, and the [`ReceiptRefresher`] does so. No request waits for Apple.
//!
//! # A server
//!
//! A [`ChallengeEndpoint`] and an [`AttestEndpoint`] take each device's key once, and an [`AppAttestProof`] admits the
//! requests that it signs.
//!
//! ```
//! use std::sync::Arc;
//!
//! use tower::{Layer, ServiceExt};
//! use tower_devicecheck::app_attest::{
//!     AppAttestProof, AppId, AttestEndpoint, ChallengeEndpoint, ChallengeKey, ChallengePurpose, Challenges, Freshness,
//!     MemoryAttestKeyStore,
//! };
//! use tower_devicecheck::{DeviceCheckLayer, ReadBodies, replay::MemoryReplayGuard};
//! # use std::time::{SystemTime, UNIX_EPOCH};
//! # use base64::{Engine, engine::general_purpose::STANDARD};
//! # use bytes::Bytes;
//! # use http::{Method, Request, Response};
//! # use http_body_util::{BodyExt, Full};
//! # use sha2::{Digest, Sha256};
//! # use tower_devicecheck::app_attest::{Anchors, ClientFacts};
//! # use tower_devicecheck::testing::app_attest::{FakeAttestCa, Shape};
//! # use tower_devicecheck::{AppleClient, Environment, GateBody, testing::FakeApple};
//! # async fn pay(_: Request<GateBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
//! #     Ok(Response::new(Full::from("paid")))
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let fake = FakeApple::new();
//! # let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build()?;
//! # let ca = FakeAttestCa::new();
//! # let anchors = Anchors::apple().with_attestation_roots(ca.attestation_root_der())?;
//! # let anchors = anchors.with_receipt_roots(ca.receipt_root_der())?;
//! # let device = ca.device("TEAM123456.com.example.app", Shape::Ios27, Environment::Production);
//!
//! let app_id: AppId = "TEAM123456.com.example.app".parse()?;
//! let store = Arc::new(MemoryAttestKeyStore::new()); // or a `RedisAttestKeyStore`
//! let challenges = Challenges::new(ChallengeKey::random()?, MemoryReplayGuard::new());
//!
//! // `GET /challenge` and `POST /attest`, once for each key.
//! let challenge = ChallengeEndpoint::new(challenges.clone(), ChallengePurpose::Attestation);
//! let attest = AttestEndpoint::new(store.clone(), [app_id.clone()], challenges);
//! # let attest = attest.with_anchors(anchors);
//! // Every other route: a request that the key has signed, or a device token.
//! let proof = AppAttestProof::new(store, [app_id], Freshness::time());
//! let app = DeviceCheckLayer::new(apple).with_bodies(ReadBodies::new()).add_proof_before(proof)?;
//! let app = app.layer(tower::service_fn(pay));
//!
//! # let answer = challenge.oneshot(Request::get("/challenge").body(())?).await?.into_body().collect().await?;
//! # let answer: serde_json::Value = serde_json::from_slice(&answer.to_bytes())?;
//! # let challenge = answer["challenge"].as_str().ok_or("no challenge")?;
//! # let attestation = device.attest(&Sha256::digest(challenge), SystemTime::now());
//! # let body = serde_json::json!({
//! #     "key_id": device.key_id(), "challenge": challenge, "attestation": STANDARD.encode(attestation),
//! # });
//! # let request = Request::post("/attest").body(Full::<Bytes>::from(body.to_string()))?;
//! # assert_eq!(attest.oneshot(request).await?.status(), 201);
//! # let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
//! # let digest = Sha256::digest("amount=1").into();
//! # let text = ClientFacts::new(&Method::POST, "/pay", &now, Some(&digest)).text();
//! # let assertion = STANDARD.encode(device.assert(&Sha256::digest(text)));
//! let request = Request::post("/pay")
//!     .header("x-app-attest-key-id", device.key_id())
//!     .header("x-app-attest-time", now)
//!     .header("x-app-attest-assertion", assertion)
//!     .body(Full::from("amount=1"))?;
//! assert_eq!(app.oneshot(request).await?.status(), 200);
//! # assert_eq!(fake.calls(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Objects alone
//!
//! The types that verify objects ask nobody, keep no state and read no clock.
//!
//! ```no_run
//! # #[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
//! # fn verify(attested: &[u8], asserted: &[u8], key_id: &str, challenge: &[u8], request: &[u8])
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::SystemTime;
//!
//! use sha2::{Digest, Sha256};
//! use tower_devicecheck::Environment;
//! use tower_devicecheck::app_attest::{
//!     Anchors, AppId, Assertion, AssertionExpected, Attestation, AttestationExpected, KeyId,
//! };
//!
//! let app_ids: [AppId; 1] = ["TEAM123456.com.example.app".parse()?];
//! let key_id: KeyId = key_id.parse()?;
//!
//! // Once for each key, with a challenge that this server made:
//! let expected = AttestationExpected {
//!     key_id: &key_id,
//!     client_data_hash: &Sha256::digest(challenge),
//!     app_ids: &app_ids,
//!     environments: &[Environment::Production],
//!     now: SystemTime::now(),
//!     max_age: Some(AttestationExpected::MAX_AGE),
//! };
//! let attestation = Attestation::verify(attested, &expected, &Anchors::apple())?;
//! // … store the key with its id, app, environment and a counter of 0.
//!
//! // With each request:
//! let expected = AssertionExpected {
//!     public_key: attestation.public_key(),
//!     client_data_hash: &Sha256::digest(request),
//!     app_id: attestation.app_id(),
//! };
//! let assertion = Assertion::verify(asserted, &expected)?;
//! // … admit it only if `assertion.counter()` is greater than the stored one, and store it in the same step.
//! # let _ = assertion.counter();
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! Attestations and receipts have at most 16 KiB, assertions at most 4 KiB. Verification allocates a few times the
//! object's length, never blocks, and never panics. The body of a request to an [`AttestEndpoint`] has at most 32 KiB.

mod anchors;
mod app_id;
mod assertion;
mod attest_endpoint;
mod attestation;
mod attested_device;
mod auth_data;
mod ber;
mod bundle_version;
mod category;
mod cbor;
mod certificate;
mod chain;
mod challenge;
mod challenge_endpoint;
mod client_data;
mod content_digest;
mod date;
mod der;
mod error;
mod extensions;
mod freshness;
mod key_id;
mod keys;
mod leaf;
mod policy;
mod proof;
mod public_key;
mod receipt;
mod receipt_fields;
mod refresh;
mod refusals;
mod roots;
mod signature;
mod signed_data;
mod submission;

pub use self::anchors::Anchors;
pub use self::app_id::AppId;
pub use self::assertion::{Assertion, AssertionExpected};
pub use self::attest_endpoint::AttestEndpoint;
pub use self::attestation::{Attestation, AttestationExpected};
pub use self::attested_device::AttestedDevice;
pub use self::bundle_version::BundleVersion;
pub use self::category::Category;
pub use self::challenge::{ChallengeError, ChallengeKey, ChallengePurpose, Challenges};
pub use self::challenge_endpoint::ChallengeEndpoint;
pub use self::client_data::{ClientData, ClientFacts};
pub use self::error::{ObjectError, ObjectErrorKind};
pub use self::freshness::Freshness;
pub use self::key_id::KeyId;
pub use self::keys::attested_key::{AttestedKey, KeyRevocation};
pub use self::keys::counter::{CounterRule, KeyCounter};
pub use self::keys::memory::MemoryAttestKeyStore;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::keys::redis::RedisAttestKeyStore;
pub use self::keys::store::{AttestKeyStore, AttestKeyStoreError, Insertion};
pub use self::policy::AttestPolicy;
pub use self::proof::AppAttestProof;
pub use self::public_key::PublicKey;
pub use self::receipt::{Receipt, ReceiptExpected, ReceiptKind};
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::refresh::RedisReceiptStore;
pub use self::refresh::{
    MemoryReceiptStore, ReceiptEvent, ReceiptKey, ReceiptRefresher, ReceiptStore, ReceiptStoreError,
    RefreshFailure, RefreshFailureKind, RiskMetric, StoredReceipt,
};

#[cfg(test)]
mod tests;
