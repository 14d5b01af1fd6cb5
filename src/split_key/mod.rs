//! API keys in two parts that are joined only for verified devices (feature `split-key`).
//!
//! An app talks to an AI provider through your server. The provider's API key is split: the app holds the [client
//! part](ClientPart), your database the [server part](ServerPart). [`SplitKeyLayer`] restores the key for one request
//! at a time, and only for a [`VerifiedDevice`](crate::VerifiedDevice). The layer therefore belongs inside
//! [`DeviceCheckLayer`](crate::DeviceCheckLayer).
//!
//! ```
//! use http::{HeaderName, Request};
//! use tower::ServiceBuilder;
//! use tower_devicecheck::{
//!     BearerToken, DeviceCheckLayer, DeviceVerifier, HeaderToken,
//!     split_key::{ApiKey, FileSplitKeyStore, SplitKeyLayer, SplitKeyStoreError},
//! };
//!
//! # fn stack(apple: impl DeviceVerifier) -> Result<(), SplitKeyStoreError> {
//! // A Proxed client sends the device token in a header of its own, or after the client part.
//! let gate = DeviceCheckLayer::new(apple)
//!     .with_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
//!     .add_token_source(BearerToken::new());
//! let stack = ServiceBuilder::new()
//!     .layer(gate)
//!     .layer(SplitKeyLayer::new(FileSplitKeyStore::open("keys.json")?));
//! # let _ = stack.service(());
//! # Ok(())
//! # }
//!
//! /// Runs inside of both layers.
//! fn authorize<B>(request: &mut Request<B>) {
//!     if let Some(key) = request.extensions_mut().remove::<ApiKey>() {
//!         request.headers_mut().insert("authorization", key.bearer_value());
//!     }
//! }
//! ```
//!
//! # The two versions
//!
//! | | server part | client part | each alone reveals |
//! |---|---|---|---|
//! | [version 2](Version::Sealed), the default | the key, sealed with XChaCha20-Poly1305 under the client part, metadata and project as associated data | 32 random bytes | nothing |
//! | [version 1](Version::Cut), Proxed.AI's | prefix, head of the key, salt | tail of the key, the same salt | its characters |
//!
//! In both versions, the client part ends in a dot and [`Metadata`], so that clients treat both versions alike. Version
//! 1 is for migration only: a changed character in a version 1 part goes unnoticed unless it is in the salt, and a part
//! may leave only a few characters of the key unknown. [`lint`] counts them.
//!
//! # Headers
//!
//! A client sends the client part in `x-ai-key` or in `Authorization: Bearer <client part>.<device token>`. From the
//! latter, the gate takes the device token ([`BearerToken`](crate::BearerToken)). The client sends the project id in
//! `x-project-id`, or [elsewhere](SplitKeyLayer::with_project). The layer removes these headers before the inner
//! service gets the request.
//!
//! # Revocation
//!
//! A revoked or expired key opens no further request. A response that is already under way ends only if its service
//! asks: [`ApiKey::revoked`] is a future that ends with the key.
//!
//! # Memory
//!
//! This module wipes its copies of a key when the request is over. It cannot wipe the buffer in which an HTTP server
//! received the client part, nor the one from which an HTTP client sent the key.

mod api_key;
mod audit;
mod cut;
mod error;
#[cfg(not(target_arch = "wasm32"))]
mod file_store;
#[cfg(test)]
mod fixtures;
#[cfg(feature = "gateway")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "gateway")))]
pub mod gateway;
#[cfg(not(target_arch = "wasm32"))]
mod key_file;
mod key_format;
mod layer;
mod limits;
mod memory_store;
mod metadata;
mod parts;
mod provider;
mod random;
mod record;
#[cfg(feature = "redis")]
mod redis_store;
mod rejection;
mod revocations;
mod sealed;
mod service;
mod splitter;
mod store;
mod usage;

pub use self::audit::event::{SplitKeyEvent, SplitKeyOutcome, SuspicionKind, SuspiciousUse};
pub use self::audit::observer::{SplitKeyObserver, TracingSplitKeyObserver};
pub use self::audit::suspicion::Suspicion;
pub use self::cut::{CutLint, lint};
pub use self::error::{SplitKeyError, SplitKeyErrorKind};
#[cfg(not(target_arch = "wasm32"))]
pub use self::file_store::FileSplitKeyStore;
pub use self::limits::{Limit, Limits};
pub use self::metadata::{Metadata, SplitId, Version};
pub use self::parts::{ClientPart, ServerPart};
pub use self::provider::{Provider, Providers};
pub use self::record::{SplitKeyRecord, SplitKeyState};
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_store::RedisSplitKeyStore;
pub use self::rejection::{SplitKeyRejection, SplitKeyRejectionResponse};
pub use self::service::{KeyGate, SplitKey};
pub use self::splitter::{Split, Splitter, retire, revoke};
pub use self::store::{SplitKeyStore, SplitKeyStoreError};
pub use self::usage::body::{Metered, MeteredBody};
pub use self::usage::log::{AnswerCounter, UsageError, UsageLog};
pub use self::usage::report::{ModelUsage, UsageEntry, UsageReport};
pub use self::usage::stated::TokenUsage;
pub use self::{api_key::ApiKey, layer::SplitKeyLayer, memory_store::MemorySplitKeyStore};
