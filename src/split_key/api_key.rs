//! The whole key, while a request needs it.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::future::{Either, pending};
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::gate::credential::BEARER;
use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::metadata::Metadata;
use crate::split_key::revocations::{KeyUse, Revocations};

/// Key material, wiped on drop. Reserve the capacity before filling it: a buffer that grows leaves copies
/// behind.
pub(super) type KeyBytes = Zeroizing<Vec<u8>>;

/// The provider's API key: a request extension for the inner service.
///
/// All clones, and all values of [`header_value`](Self::header_value), share one copy of the key. Dropping the last of
/// them wipes it. `Debug` reveals nothing of the key.
#[derive(Clone)]
pub struct ApiKey {
    value: HeaderValue,
    project: Arc<str>,
    provider: Arc<str>,
    metadata: Metadata,
    revocations: Option<Arc<Revocations>>,
}

impl ApiKey {
    pub(super) fn new(
        key: KeyBytes,
        project: Arc<str>,
        provider: Arc<str>,
        metadata: Metadata,
    ) -> Result<Self, SplitKeyError> {
        if key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
            return Err(SplitKeyErrorKind::NotOpened.into());
        }
        let value = sensitive(key).ok_or(SplitKeyErrorKind::NotOpened)?;
        Ok(Self { value, project, provider, metadata, revocations: None })
    }

    pub(super) fn with_revocations(mut self, revocations: &Arc<Revocations>) -> Self {
        self.revocations = Some(Arc::clone(revocations));
        self
    }

    /// The key. The caller must wipe its own copies.
    #[must_use]
    pub fn expose(&self) -> &str {
        // The key is visible ASCII, so the default is never used.
        self.value.to_str().unwrap_or_default()
    }

    /// The key as the value of a header such as `x-api-key`, marked sensitive. This does not copy the key.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        self.value.clone()
    }

    /// `Bearer` and the key, for the header `Authorization`, marked sensitive. Dropping the last clone of the value
    /// wipes this copy of the key.
    #[must_use]
    pub fn bearer_value(&self) -> HeaderValue {
        self.after(BEARER)
    }

    /// The key after this text.
    fn after(&self, text: &str) -> HeaderValue {
        let key = self.value.as_bytes();
        let mut value = Zeroizing::new(Vec::with_capacity(text.len() + key.len()));
        value.extend_from_slice(text.as_bytes());
        value.extend_from_slice(key);
        sensitive(value).unwrap_or_else(|| self.header_value())
    }

    /// The key after a word and a space. The same goes for this copy.
    #[cfg(feature = "gateway")]
    pub(super) fn value_with(&self, scheme: &str) -> HeaderValue {
        self.after(&format!("{scheme} "))
    }

    /// The project to which the key belongs.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The name of the provider to which the key may be sent.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The metadata of the split from which the key was restored.
    #[must_use]
    pub const fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// A future that ends when the key may no longer be used: its split is revoked, retired or expired, or gone from the
    /// store.
    ///
    /// For responses that stream for long: poll this beside the body, and end the response with an error. While the future
    /// is polled, the store is asked five times a second for each split, however many futures wait for it. With the
    /// stores of this crate, the future ends within a second of the revocation, or of the expiry in the record's
    /// [limits](crate::split_key::Limits::with_expiry). While the store fails, it does not end.
    ///
    /// The future never ends if the key does not come from a [`SplitKeyLayer`](crate::split_key::SplitKeyLayer), or where
    /// there are no timers (without the feature `tokio`). Dropping it is always safe.
    ///
    /// ```
    /// use tower_devicecheck::split_key::ApiKey;
    ///
    /// # async fn ask_provider(key: &ApiKey) -> Result<String, &'static str> { Ok(String::new()) }
    /// async fn answer(key: ApiKey) -> Result<String, &'static str> {
    ///     tokio::select! {
    ///         answer = ask_provider(&key) => answer,
    ///         () = key.revoked() => Err("the key is revoked"),
    ///     }
    /// }
    /// ```
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + Unpin + use<> {
        let revoked = self.key_use().map(|key_use| key_use.revoked());
        revoked.map_or_else(|| Either::Left(pending()), Either::Right)
    }

    pub(super) fn key_use(&self) -> Option<KeyUse> {
        let revocations = Arc::clone(self.revocations.as_ref()?);
        Some(KeyUse { revocations, project: Arc::clone(&self.project), metadata: self.metadata })
    }
}

/// A header value that owns the text and wipes it.
fn sensitive(text: KeyBytes) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for ApiKey {
    // Omits the key, which is the whole secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("project", &self.project)
            .field("provider", &self.provider)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}
