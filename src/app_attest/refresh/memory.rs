//! A receipt store in the memory of the process.

use std::{collections::BTreeMap, fmt, sync::Mutex};

use crate::app_attest::refresh::store::{ReceiptStore, ReceiptStoreError};
use crate::app_attest::refresh::stored::{DAY, ReceiptKey, StoredReceipt};
use crate::runtime::{SystemTime, lock};

/// A receipt store in the memory of this process, for tests and for servers of one process. It is empty after a start.
///
/// It forgets receipts a day after they have expired, so it holds no more than 90 days of attestations, 4 KB each.
/// [`due`](ReceiptStore::due) reads all of them.
#[derive(Default)]
pub struct MemoryReceiptStore(Mutex<BTreeMap<ReceiptKey, StoredReceipt>>);

impl MemoryReceiptStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl ReceiptStore for MemoryReceiptStore {
    async fn put(&self, key: &ReceiptKey, mut receipt: StoredReceipt) -> Result<(), ReceiptStoreError> {
        let mut receipts = lock(&self.0);
        if let Some(old) = receipts.get(key) {
            receipt.seen_at = receipt.seen_at.max(old.seen_at);
        }
        receipts.insert(key.clone(), receipt);
        Ok(())
    }

    async fn get(&self, key: &ReceiptKey) -> Result<Option<StoredReceipt>, ReceiptStoreError> {
        Ok(lock(&self.0).get(key).cloned())
    }

    async fn touch(&self, key: &ReceiptKey, now: SystemTime) -> Result<(), ReceiptStoreError> {
        if let Some(receipt) = lock(&self.0).get_mut(key) {
            receipt.seen_at = receipt.seen_at.max(now);
        }
        Ok(())
    }

    async fn due(
        &self,
        now: SystemTime,
        until: SystemTime,
        limit: usize,
    ) -> Result<Vec<ReceiptKey>, ReceiptStoreError> {
        let mut receipts = lock(&self.0);
        receipts.retain(|_, receipt| receipt.expiry + DAY > now);
        let mut due: Vec<_> = receipts.iter_mut().filter(|(_, receipt)| receipt.is_due(now)).collect();
        due.sort_by_key(|(_, receipt)| receipt.next_attempt);
        due.truncate(limit);
        let put_off = |(key, receipt): (&ReceiptKey, &mut StoredReceipt)| {
            receipt.next_attempt = Some(until);
            key.clone()
        };
        Ok(due.into_iter().map(put_off).collect())
    }

    async fn remove(&self, key: &ReceiptKey) -> Result<(), ReceiptStoreError> {
        lock(&self.0).remove(key);
        Ok(())
    }
}

impl fmt::Debug for MemoryReceiptStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReceiptStore").field("receipts", &lock(&self.0).len()).finish()
    }
}
