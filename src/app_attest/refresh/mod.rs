//! Receipts in the course of time: stored, exchanged at Apple for newer ones, and read for the risk metric.

mod event;
mod keeper;
mod memory;
mod plan;
#[cfg(feature = "redis")]
mod redis;
mod refresher;
mod store;
mod stored;
#[cfg(test)]
mod tests;

pub(super) use self::keeper::ReceiptKeeper;
#[cfg(feature = "redis")]
pub use self::redis::RedisReceiptStore;
pub use self::{
    event::{ReceiptEvent, RefreshFailure, RefreshFailureKind, RiskMetric},
    memory::MemoryReceiptStore,
    refresher::ReceiptRefresher,
    store::{ReceiptStore, ReceiptStoreError},
    stored::{ReceiptKey, StoredReceipt},
};
