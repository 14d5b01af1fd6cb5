//! A store in the memory of this process.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
};

use crate::app_attest::key_id::KeyId;
use crate::app_attest::keys::attested_key::{AttestedKey, KeyRevocation};
use crate::app_attest::keys::counter::CounterRule;
use crate::app_attest::keys::store::{AttestKeyStore, AttestKeyStoreError, Insertion};
use crate::runtime::{SystemTime, lock};
use crate::sync::{Mutex, MutexGuard};

/// A store in the memory of this process, for tests and for a single server.
///
/// The store is bounded. A full store forgets no key, because its owner would have to attest again: it fails, so that
/// further keys are [`Unavailable`](crate::Rejection::Unavailable). A key takes about 500 bytes.
///
/// # Danger
///
/// The keys are lost when the process ends. After a restart, each device has to attest a new key.
pub struct MemoryAttestKeyStore {
    capacity: usize,
    keys: Mutex<HashMap<(String, KeyId), AttestedKey>>,
}

impl MemoryAttestKeyStore {
    /// Makes a store for up to 1,000,000 keys.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(1_000_000)
    }

    /// Makes a store for up to this many keys. It allocates memory as needed.
    #[must_use]
    pub fn with_capacity(keys: usize) -> Self {
        Self { capacity: keys, keys: Mutex::default() }
    }

    /// The number of keys, those included that are revoked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys().len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys().is_empty()
    }

    /// Returns a copy of all keys, in any order. Requests wait meanwhile.
    #[must_use]
    pub fn list(&self) -> Vec<AttestedKey> {
        self.keys().values().cloned().collect()
    }

    /// Removes the keys that were last seen before this time, and returns their number. A revocation goes with its key.
    /// Requests wait meanwhile.
    pub fn purge(&self, last_seen_before: SystemTime) -> usize {
        let mut keys = self.keys();
        let before = keys.len();
        keys.retain(|_, key| key.last_seen_at >= last_seen_before);
        before - keys.len()
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<(String, KeyId), AttestedKey>> {
        lock(&self.keys)
    }
}

fn name(tenant: &str, key_id: &KeyId) -> (String, KeyId) {
    (tenant.to_owned(), *key_id)
}

impl AttestKeyStore for MemoryAttestKeyStore {
    async fn insert(&self, key: AttestedKey) -> Result<Insertion, AttestKeyStoreError> {
        let mut keys = self.keys();
        let is_full = keys.len() >= self.capacity;
        match keys.entry(name(&key.tenant, &key.key_id)) {
            Entry::Occupied(stored) => Ok(Insertion::of_stored(stored.get(), key.account.as_deref())),
            Entry::Vacant(_) if is_full => Err(AttestKeyStoreError::new("the store is full")),
            Entry::Vacant(place) => {
                place.insert(key);
                Ok(Insertion::New)
            }
        }
    }

    async fn find(&self, tenant: &str, key_id: &KeyId) -> Result<Option<AttestedKey>, AttestKeyStoreError> {
        Ok(self.keys().get(&name(tenant, key_id)).cloned())
    }

    async fn advance(
        &self,
        tenant: &str,
        key_id: &KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        let mut keys = self.keys();
        let key = keys.get_mut(&name(tenant, key_id)).filter(|key| key.revocation.is_none());
        let Some(key) = key else { return Ok(false) };
        let Some(after) = key.counter.after(counter, rule) else { return Ok(false) };
        key.counter = after;
        key.last_seen_at = key.last_seen_at.max(now);
        Ok(true)
    }

    async fn revoke(
        &self,
        tenant: &str,
        key_id: &KeyId,
        reason: &str,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        let mut keys = self.keys();
        let key = keys.get_mut(&name(tenant, key_id));
        Ok(key.map(|key| key.revocation.get_or_insert_with(|| KeyRevocation::new(now, reason))).is_some())
    }

    async fn revoke_account(
        &self,
        tenant: &str,
        account: &str,
        reason: &str,
        now: SystemTime,
    ) -> Result<Vec<KeyId>, AttestKeyStoreError> {
        let mut keys = self.keys();
        let of_account =
            |key: &&mut AttestedKey| key.tenant == tenant && key.account.as_deref() == Some(account);
        let revoke = |key: &mut AttestedKey| {
            key.revocation.get_or_insert_with(|| KeyRevocation::new(now, reason));
            key.key_id
        };
        Ok(keys.values_mut().filter(of_account).map(revoke).collect())
    }
}

impl Default for MemoryAttestKeyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryAttestKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryAttestKeyStore").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}
