//! Where records are kept.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::future::BoxFuture;

use crate::{
    BoxError,
    split_key::{SplitId, SplitKeyRecord},
};

/// Keeps the server's halves of split keys. [`MemorySplitKeyStore`] and `FileSplitKeyStore` are in this crate.
///
/// ```
/// use tower_devicecheck::split_key::{SplitKeyRecord, SplitKeyStore, MemorySplitKeyStore, SplitId, SplitKeyStoreError};
///
/// /// Keys that nobody can change.
/// struct Frozen(MemorySplitKeyStore);
///
/// impl SplitKeyStore for Frozen {
///     async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
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
    /// The record of a split. `project` and `split` come from the client and may be anything.
    ///
    /// Asked once for every request; it must end by itself, for the layer sets no deadline. When the client
    /// goes away, the future is dropped.
    ///
    /// # Errors
    ///
    /// If the store cannot say. The request is answered with
    /// [`Unavailable`](crate::split_key::SplitKeyRejection::Unavailable).
    fn get(
        &self,
        project: &str,
        split: SplitId,
    ) -> impl Future<Output = Result<Option<SplitKeyRecord>, SplitKeyStoreError>> + Send;

    /// Writes all of these records or none, whatever happens meanwhile.
    ///
    /// A record of revision 0 must be new to the store; one of revision `n` takes the place of revision
    /// `n - 1` of the same project and split. If the future is dropped, the records are written or not.
    ///
    /// # Errors
    ///
    /// [`SplitKeyStoreError::conflict`] if the store has another revision of one of them; any other error if the
    /// store failed.
    fn put(
        &self,
        records: Vec<SplitKeyRecord>,
    ) -> impl Future<Output = Result<(), SplitKeyStoreError>> + Send;

    /// Every record, in any order. For operators, not on the way of requests.
    ///
    /// # Errors
    ///
    /// If the store cannot say.
    fn list(&self) -> impl Future<Output = Result<Vec<SplitKeyRecord>, SplitKeyStoreError>> + Send;
}

impl<K: SplitKeyStore> SplitKeyStore for Arc<K> {
    fn get(
        &self,
        project: &str,
        split: SplitId,
    ) -> impl Future<Output = Result<Option<SplitKeyRecord>, SplitKeyStoreError>> + Send {
        K::get(self, project, split)
    }

    fn put(
        &self,
        records: Vec<SplitKeyRecord>,
    ) -> impl Future<Output = Result<(), SplitKeyStoreError>> + Send {
        K::put(self, records)
    }

    fn list(&self) -> impl Future<Output = Result<Vec<SplitKeyRecord>, SplitKeyStoreError>> + Send {
        K::list(self)
    }
}

/// What the layer needs of a [`SplitKeyStore`], as a trait object.
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

/// A key store failed, or has another revision than the one to be replaced.
#[derive(Debug)]
pub struct SplitKeyStoreError {
    conflict: bool,
    source: BoxError,
}

impl SplitKeyStoreError {
    /// The store cannot say or cannot keep. The cause must hold no secret: it is logged.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self { conflict: false, source: source.into() }
    }

    /// The store has another revision of a record than the one that was to be replaced.
    #[must_use]
    pub fn conflict() -> Self {
        Self { conflict: true, source: "another revision".into() }
    }

    /// Whether it was a [`conflict`](Self::conflict).
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        self.conflict
    }
}

impl fmt::Display for SplitKeyStoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.conflict {
            "the key store has another revision of the record"
        } else {
            "the key store failed"
        })
    }
}

impl Error for SplitKeyStoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Records by project and split.
#[derive(Clone, Default)]
pub(super) struct Records(BTreeMap<Arc<str>, BTreeMap<SplitId, SplitKeyRecord>>);

impl Records {
    pub(super) fn get(&self, project: &str, split: SplitId) -> Option<&SplitKeyRecord> {
        self.0.get(project)?.get(&split)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SplitKeyRecord> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// Adds a record as it is. `None` if there is one of the same project and split.
    pub(super) fn add(&mut self, record: SplitKeyRecord) -> Option<()> {
        let project = self.0.entry(Arc::clone(record.shared_project())).or_default();
        project.insert(record.split(), record).is_none().then_some(())
    }

    /// [`SplitKeyStore::put`]. On a conflict nothing is changed.
    pub(super) fn put(&mut self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        let mut changed = self.clone();
        for record in records {
            let present = changed.get(record.project(), record.split());
            let next = match present {
                Some(present) => present.revision().checked_add(1),
                None => Some(0),
            };
            if next != Some(record.revision()) {
                return Err(SplitKeyStoreError::conflict());
            }
            let project = changed.0.entry(Arc::clone(record.shared_project())).or_default();
            project.insert(record.split(), record);
        }
        *self = changed;
        Ok(())
    }
}

/// Records in the memory of this process, gone with it. For tests, and for keys that come from elsewhere at
/// each start.
#[derive(Default)]
pub struct MemorySplitKeyStore(RwLock<Records>);

impl MemorySplitKeyStore {
    /// No records yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl SplitKeyStore for MemorySplitKeyStore {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        let records = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(records.get(project, split).cloned())
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).put(records)
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        let records = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(records.iter().cloned().collect())
    }
}

impl fmt::Debug for MemorySplitKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("MemorySplitKeyStore").field("records", &records.iter().count()).finish()
    }
}
