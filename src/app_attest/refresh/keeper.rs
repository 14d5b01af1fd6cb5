//! The first receipt of a key, and the times at which the key is seen.

use std::{fmt, sync::Arc};

use tracing::warn;

use crate::app_attest::attestation::Attestation;
use crate::app_attest::keys::attested_key::AttestedKey;
use crate::app_attest::refresh::store::{ErasedReceiptStore, ReceiptStore, ReceiptStoreError};
use crate::app_attest::refresh::stored::{ReceiptKey, StoredReceipt};
use crate::gate::observer::{Chain, TARGET};
use crate::gate::tenant::name::TenantName;
use crate::runtime::{SystemTime, since_epoch};

const HOUR: u64 = 60 * 60;

/// The receipt store as the endpoint and the proof use it. Its failures are logged, and decide about no request.
#[derive(Clone)]
pub(in crate::app_attest) struct ReceiptKeeper(Arc<dyn ErasedReceiptStore>);

impl ReceiptKeeper {
    pub(in crate::app_attest) fn new(store: impl ReceiptStore) -> Self {
        Self(Arc::new(store))
    }

    /// Stores the receipt of an attestation, if it has one. A receipt that is there stays: a later one holds the metric.
    pub(in crate::app_attest) async fn keep(
        &self,
        tenant: Option<&TenantName>,
        attestation: &Attestation,
        now: SystemTime,
    ) {
        let key = ReceiptKey { tenant: tenant.cloned(), key_id: *attestation.key_id() };
        let Some(receipt) = StoredReceipt::attested(attestation, now) else { return };
        let put = async {
            match self.0.get(&key).await? {
                Some(_) => Ok(()),
                None => self.0.put(&key, receipt).await,
            }
        };
        log(put.await);
    }

    /// Notes that a key is seen, if this is its first request in an hour by the clock.
    pub(in crate::app_attest) async fn see(
        &self,
        tenant: Option<&TenantName>,
        key: &AttestedKey,
        now: SystemTime,
    ) {
        let hour = |time| since_epoch(time).as_secs() / HOUR;
        if hour(key.last_seen_at) < hour(now) {
            let key = ReceiptKey { tenant: tenant.cloned(), key_id: key.key_id };
            log(self.0.touch(&key, now).await);
        }
    }
}

fn log(outcome: Result<(), ReceiptStoreError>) {
    if let Err(error) = outcome {
        let error = tracing::field::display(Chain(&error));
        warn!(target: TARGET, error, "a receipt was not stored");
    }
}

impl fmt::Debug for ReceiptKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiptKeeper").finish_non_exhaustive()
    }
}
