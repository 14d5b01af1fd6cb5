//! A key store in the memory of the process.

use std::sync::{Arc, Mutex};
use std::{collections::BTreeMap, fmt};

use crate::runtime::lock;
use crate::split_key::store::{SplitKeyStore, SplitKeyStoreError};
use crate::split_key::{metadata::SplitId, record::SplitKeyRecord};

/// Records by project and split.
#[derive(Clone, Default)]
pub(super) struct RecordMap(BTreeMap<Arc<str>, BTreeMap<SplitId, SplitKeyRecord>>);

impl RecordMap {
    pub(super) fn get(&self, project: &str, split: SplitId) -> Option<&SplitKeyRecord> {
        self.0.get(project)?.get(&split)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SplitKeyRecord> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// Adds a record unchanged. Returns `None` if the map already has a record of the same project and split.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn add(&mut self, record: SplitKeyRecord) -> Option<()> {
        let project = self.0.entry(Arc::clone(record.shared_project())).or_default();
        project.insert(record.split(), record).is_none().then_some(())
    }

    /// Implements [`SplitKeyStore::put`]. A conflict changes nothing.
    pub(super) fn put(&mut self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        let mut changed = self.clone();
        for record in records {
            let present = changed.get(record.project(), record.split());
            let next = present.map_or(Some(0), |present| present.revision().checked_add(1));
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

/// A key store in the memory of this process. It is for tests, and for keys that the program loads from elsewhere at
/// each start.
#[derive(Default)]
pub struct MemorySplitKeyStore(Mutex<RecordMap>);

impl MemorySplitKeyStore {
    /// Makes a store without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl SplitKeyStore for MemorySplitKeyStore {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        Ok(lock(&self.0).get(project, split).cloned())
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        lock(&self.0).put(records)
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        Ok(lock(&self.0).iter().cloned().collect())
    }
}

impl fmt::Debug for MemorySplitKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySplitKeyStore").field("records", &lock(&self.0).iter().count()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split_key::{
        fixtures::{KEYS, split},
        metadata::Version,
        record::SplitKeyState,
    };

    #[tokio::test]
    async fn a_store_takes_all_records_or_none() {
        let (provider, key) = KEYS[0];
        let store = MemorySplitKeyStore::new();
        let one = split(Version::Sealed, provider, key, 1).record().clone();
        let two = split(Version::Sealed, provider, key, 2).record().clone();
        store.put(vec![one.clone()]).await.unwrap();
        let revoked = |record: &SplitKeyRecord| record.changed_to(SplitKeyState::Revoked);
        let conflicts = [
            ("not new", vec![two.clone(), one.clone()]),
            ("nothing to change", vec![revoked(&one), revoked(&two)]),
            ("changed twice", vec![revoked(&revoked(&one))]),
        ];
        for (name, records) in conflicts {
            assert!(store.put(records).await.unwrap_err().is_conflict(), "{name}");
            let records = store.list().await.unwrap();
            assert_eq!(records.len(), 1, "{name}");
            assert_eq!(records[0].revision(), 0, "{name}");
        }
        store.put(vec![revoked(&one), two]).await.unwrap();
        assert!(store.put(vec![revoked(&one)]).await.unwrap_err().is_conflict());
    }
}
