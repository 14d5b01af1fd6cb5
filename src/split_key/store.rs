//! The `SplitKeyStore` trait and its error.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::{metadata::SplitId, record::SplitKeyRecord};
use crate::{BoxError, gate::error::impl_error};

/// A store for the records of split keys. This crate has
/// [`MemorySplitKeyStore`](crate::split_key::MemorySplitKeyStore), `FileSplitKeyStore` and `RedisSplitKeyStore`.
///
/// ```
/// use tower_devicecheck::split_key::{
///     MemorySplitKeyStore, SplitId, SplitKeyRecord, SplitKeyStore, SplitKeyStoreError,
/// };
///
/// /// Keys that never change.
/// struct Frozen(MemorySplitKeyStore);
///
/// impl SplitKeyStore for Frozen {
///     async fn get(
///         &self,
///         project: &str,
///         split: SplitId,
///     ) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
///         self.0.get(project, split).await
///     }
///
///     async fn put(&self, _: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
///         Err(SplitKeyStoreError::unavailable("these keys do not change"))
///     }
///
///     async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
///         self.0.list().await
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    note = "use `FileSplitKeyStore` or `MemorySplitKeyStore`, or implement `get`, `put`, `list`"
)]
pub trait SplitKeyStore: Send + Sync + 'static {
    /// Returns the record of a split. `project` and `split` come from the client and may be anything.
    ///
    /// The layer calls this at most once for a request and sets no deadline, so the future must end by itself. If the
    /// client disconnects, the layer drops the future.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. The layer answers the request with
    /// [`Unavailable`](crate::split_key::SplitKeyRejection::Unavailable).
    fn get(
        &self,
        project: &str,
        split: SplitId,
    ) -> impl Future<Output = Result<Option<SplitKeyRecord>, SplitKeyStoreError>> + Send;

    /// Writes all of these records or none, atomically.
    ///
    /// A record of revision 0 must be new to the store. A record of revision `n` replaces revision `n - 1` of
    /// the same project and split. If the future is dropped, either all records are written or none.
    ///
    /// # Errors
    ///
    /// Returns [`SplitKeyStoreError::conflict`] if the store has another revision of one of the records, and any other
    /// error if the store failed.
    fn put(
        &self,
        records: Vec<SplitKeyRecord>,
    ) -> impl Future<Output = Result<(), SplitKeyStoreError>> + Send;

    /// Returns every record, in any order. This is for operators: the layer does not call it.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    fn list(&self) -> impl Future<Output = Result<Vec<SplitKeyRecord>, SplitKeyStoreError>> + Send;

    /// Checks that the store can be read, for the readiness endpoint of a server. The layer does not call it. By default,
    /// the store is always ready.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed, or goes on with records that it cannot renew.
    fn check(&self) -> impl Future<Output = Result<(), SplitKeyStoreError>> + Send {
        async { Ok(()) }
    }
}

impl<K: SplitKeyStore> SplitKeyStore for Arc<K> {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        K::get(self, project, split).await
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        K::put(self, records).await
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        K::list(self).await
    }

    async fn check(&self) -> Result<(), SplitKeyStoreError> {
        K::check(self).await
    }
}

/// The part of [`SplitKeyStore`] that the layer calls, as a trait object.
pub(super) trait ErasedSplitKeyStore: Send + Sync {
    fn get<'a>(
        &'a self,
        project: &'a str,
        split: SplitId,
    ) -> BoxFuture<'a, Result<Option<SplitKeyRecord>, SplitKeyStoreError>>;
}

impl<K: SplitKeyStore> ErasedSplitKeyStore for K {
    fn get<'a>(
        &'a self,
        project: &'a str,
        split: SplitId,
    ) -> BoxFuture<'a, Result<Option<SplitKeyRecord>, SplitKeyStoreError>> {
        Box::pin(SplitKeyStore::get(self, project, split))
    }
}

/// The error of a key store: it failed, or has another revision than the one to replace.
#[derive(Debug)]
pub struct SplitKeyStoreError {
    conflict: bool,
    source: BoxError,
}

impl SplitKeyStoreError {
    /// Makes the error of a store that failed. The cause is logged, so it must hold no secret.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self { conflict: false, source: source.into() }
    }

    /// Makes the error of a store that has another revision of a record than the one to replace.
    #[must_use]
    pub fn conflict() -> Self {
        Self { conflict: true, source: "another revision".into() }
    }

    /// Whether this is a [`conflict`](Self::conflict).
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        self.conflict
    }
}

impl_error!(
    SplitKeyStoreError,
    |error| Some(&*error.source),
    "the key store {}",
    if error.conflict { "has another revision of the record" } else { "failed" }
);

impl From<SplitKeyStoreError> for SplitKeyError {
    fn from(error: SplitKeyStoreError) -> Self {
        let kind = if error.is_conflict() { SplitKeyErrorKind::Conflict } else { SplitKeyErrorKind::Store };
        Self::with_source(kind, error)
    }
}
