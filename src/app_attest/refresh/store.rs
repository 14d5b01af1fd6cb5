//! The store of receipts.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::BoxError;
use crate::app_attest::refresh::stored::{ReceiptKey, StoredReceipt};
use crate::gate::error::impl_error;
use crate::runtime::SystemTime;

/// A store of receipts, apart from that of the keys: no request needs a receipt, and a receipt is twenty times as long as
/// all else about a key.
///
/// [`MemoryReceiptStore`](crate::app_attest::MemoryReceiptStore) is for one process, `RedisReceiptStore` for several. In
/// SQL, the fields of [`StoredReceipt`] are columns of a table whose primary key is tenant and key id, and `due` is
/// `UPDATE receipts SET next_attempt = $2 WHERE (tenant, key_id) IN (SELECT tenant, key_id FROM receipts WHERE
/// next_attempt <= $1 AND seen_at >= fetched_at ORDER BY next_attempt LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING tenant,
/// key_id`.
///
/// A store may forget what has [expired](StoredReceipt::expiry).
pub trait ReceiptStore: Send + Sync + 'static {
    /// Stores the receipt of a key in place of an older one. Of the two [`seen_at`](StoredReceipt::seen_at), the later
    /// one stays, because a [`touch`](Self::touch) may have come in between.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    fn put(
        &self,
        key: &ReceiptKey,
        receipt: StoredReceipt,
    ) -> impl Future<Output = Result<(), ReceiptStoreError>> + Send;

    /// Returns what is stored for a key.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    fn get(
        &self,
        key: &ReceiptKey,
    ) -> impl Future<Output = Result<Option<StoredReceipt>, ReceiptStoreError>> + Send;

    /// Notes that a key was seen at this time. Only keys that were seen since their last receipt are refreshed. A key
    /// without a receipt is no error.
    ///
    /// Once an hour for each key is often enough.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    fn touch(
        &self,
        key: &ReceiptKey,
        now: SystemTime,
    ) -> impl Future<Output = Result<(), ReceiptStoreError>> + Send;

    /// Returns at most `limit` keys whose refresh [is due](StoredReceipt::is_due), those that have waited longest first,
    /// and puts off their next attempt to `until` in the same step. Two processes that ask at once therefore never get
    /// the same key, and a key whose process ends meanwhile is due again at that time.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    fn due(
        &self,
        now: SystemTime,
        until: SystemTime,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ReceiptKey>, ReceiptStoreError>> + Send;

    /// Forgets the receipt of a key. A refresh that is under way may store another one; it expires within 90 days.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    fn remove(&self, key: &ReceiptKey) -> impl Future<Output = Result<(), ReceiptStoreError>> + Send;
}

impl<S: ReceiptStore> ReceiptStore for Arc<S> {
    async fn put(&self, key: &ReceiptKey, receipt: StoredReceipt) -> Result<(), ReceiptStoreError> {
        S::put(self, key, receipt).await
    }

    async fn get(&self, key: &ReceiptKey) -> Result<Option<StoredReceipt>, ReceiptStoreError> {
        S::get(self, key).await
    }

    async fn touch(&self, key: &ReceiptKey, now: SystemTime) -> Result<(), ReceiptStoreError> {
        S::touch(self, key, now).await
    }

    async fn due(
        &self,
        now: SystemTime,
        until: SystemTime,
        limit: usize,
    ) -> Result<Vec<ReceiptKey>, ReceiptStoreError> {
        S::due(self, now, until, limit).await
    }

    async fn remove(&self, key: &ReceiptKey) -> Result<(), ReceiptStoreError> {
        S::remove(self, key).await
    }
}

type Answered<'a, T> = BoxFuture<'a, Result<T, ReceiptStoreError>>;

/// [`ReceiptStore`] as a trait object.
pub(super) trait ErasedReceiptStore: Send + Sync {
    fn put<'a>(&'a self, key: &'a ReceiptKey, receipt: StoredReceipt) -> Answered<'a, ()>;
    fn get<'a>(&'a self, key: &'a ReceiptKey) -> Answered<'a, Option<StoredReceipt>>;
    fn touch<'a>(&'a self, key: &'a ReceiptKey, now: SystemTime) -> Answered<'a, ()>;
    fn due(&self, now: SystemTime, until: SystemTime, limit: usize) -> Answered<'_, Vec<ReceiptKey>>;
    fn remove<'a>(&'a self, key: &'a ReceiptKey) -> Answered<'a, ()>;
}

impl<S: ReceiptStore> ErasedReceiptStore for S {
    fn put<'a>(&'a self, key: &'a ReceiptKey, receipt: StoredReceipt) -> Answered<'a, ()> {
        Box::pin(ReceiptStore::put(self, key, receipt))
    }

    fn get<'a>(&'a self, key: &'a ReceiptKey) -> Answered<'a, Option<StoredReceipt>> {
        Box::pin(ReceiptStore::get(self, key))
    }

    fn touch<'a>(&'a self, key: &'a ReceiptKey, now: SystemTime) -> Answered<'a, ()> {
        Box::pin(ReceiptStore::touch(self, key, now))
    }

    fn due(&self, now: SystemTime, until: SystemTime, limit: usize) -> Answered<'_, Vec<ReceiptKey>> {
        Box::pin(ReceiptStore::due(self, now, until, limit))
    }

    fn remove<'a>(&'a self, key: &'a ReceiptKey) -> Answered<'a, ()> {
        Box::pin(ReceiptStore::remove(self, key))
    }
}

/// The error of a receipt store that failed.
#[derive(Debug)]
pub struct ReceiptStoreError(BoxError);

impl ReceiptStoreError {
    /// Makes the error. The cause is logged, so it must hold no secret.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self(source.into())
    }
}

impl_error!(ReceiptStoreError, |error| Some(&*error.0), "the receipt store failed");
