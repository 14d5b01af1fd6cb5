//! The name of a stored receipt, and what is stored.

use std::{fmt, time::Duration};

use crate::app_attest::app_id::AppId;
use crate::app_attest::attestation::Attestation;
use crate::app_attest::key_id::KeyId;
use crate::app_attest::receipt::Receipt;
use crate::gate::{routing::Environment, tenant::name::TenantName};
use crate::runtime::{SystemTime, millis, spread};

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The life of a receipt, as Apple documents it.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// The key that a receipt is about, within its tenant. No receipt is looked up across tenants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_structs, reason = "a store needs both parts")]
pub struct ReceiptKey {
    /// The tenant; `None` in a layer without [tenants](crate::tenant).
    pub tenant: Option<TenantName>,
    /// The id of the attested key.
    pub key_id: KeyId,
}

/// The entry of a [`ReceiptStore`](crate::app_attest::ReceiptStore) for one key: 4 KB for the receipt, and some 200 bytes.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store of your own writes and reads all of it")]
pub struct StoredReceipt {
    /// The last receipt, as it was verified. It buys the metric of a device, so it belongs into no log.
    pub receipt: Vec<u8>,
    /// The app of the key.
    pub app_id: AppId,
    /// The environment in which the key was attested.
    pub environment: Environment,
    /// The time before which Apple gives no newer receipt. The receipt of an attestation has none.
    pub not_before: Option<SystemTime>,
    /// The time from which Apple takes the receipt no longer.
    pub expiry: SystemTime,
    /// The last risk metric. `None` until the first refresh.
    pub risk_metric: Option<u32>,
    /// The time at which the receipt came.
    pub fetched_at: SystemTime,
    /// The time at which the key was seen last.
    pub seen_at: SystemTime,
    /// The failed refreshes in a row of which Apple's answer said nothing about the receipt.
    pub failures: u32,
    /// The time of the next refresh. `None` ends the refreshes of this key.
    pub next_attempt: Option<SystemTime>,
}

impl StoredReceipt {
    /// Makes the entry to store after an attestation. `None` if it came without a receipt.
    ///
    /// The receipt of an attestation names no time before which Apple would give no newer one. Its first refresh is due
    /// at a random time within a day, so that the metric is there soon, and a launch does not become a wave. If that
    /// is too early, Apple says so (status 304), and the refresh is tried a day or two later.
    #[must_use]
    pub fn attested(attestation: &Attestation, now: SystemTime) -> Option<Self> {
        let receipt = attestation.receipt()?;
        Some(Self {
            receipt: receipt.as_bytes().to_vec(),
            app_id: attestation.app_id().clone(),
            environment: attestation.environment(),
            not_before: receipt.not_before(),
            expiry: expiry(receipt),
            risk_metric: receipt.risk_metric(),
            fetched_at: now,
            seen_at: now,
            failures: 0,
            next_attempt: Some(now + random(DAY)),
        })
    }

    /// Whether a refresh is due: its time has come, and the key was seen since the receipt came.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.seen_at >= self.fetched_at && self.next_attempt.is_some_and(|next| next <= now)
    }
}

/// The time until which Apple takes a receipt.
pub(super) fn expiry(receipt: &Receipt) -> SystemTime {
    receipt.expiry().unwrap_or(receipt.creation() + LIFETIME)
}

/// A random duration of at most `most`.
pub(super) fn random(most: Duration) -> Duration {
    Duration::from_millis(spread(0, millis(most)))
}

impl fmt::Display for ReceiptKey {
    /// Writes the tenant, if there is one, a colon, and the key id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tenant.as_ref().map_or("", TenantName::as_str), self.key_id)
    }
}

impl fmt::Debug for StoredReceipt {
    /// Leaves out the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredReceipt")
            .field("app_id", &self.app_id.as_str())
            .field("environment", &self.environment)
            .field("not_before", &self.not_before)
            .field("expiry", &self.expiry)
            .field("risk_metric", &self.risk_metric)
            .field("fetched_at", &self.fetched_at)
            .field("seen_at", &self.seen_at)
            .field("failures", &self.failures)
            .field("next_attempt", &self.next_attempt)
            .finish_non_exhaustive()
    }
}
