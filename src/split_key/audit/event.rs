//! The events that observers get.

use std::{sync::Arc, time::Duration};

use crate::gate::credential::TokenDigest;
use crate::runtime::{SystemTime, Timestamp, spread};
use crate::split_key::metadata::{Metadata, SplitId};
use crate::split_key::{limits::Limit, rejection::SplitKeyRejection, store::SplitKeyStoreError};

/// The result of a use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitKeyOutcome {
    /// The request reaches the inner service with the key.
    Opened,
    /// The request reaches the inner service with a key that retires soon: the client has not yet moved to the new
    /// split.
    OpenedRetiring,
    /// The request has no client part, or no project id.
    Missing,
    /// A client part or a project id is malformed, or the request has two different ones.
    Malformed,
    /// The store has no such split.
    Unknown,
    /// The client part does not open this split.
    Mismatch,
    /// The client part is right, but the key has retired.
    Retired,
    /// The client part is right, but the key is revoked.
    Revoked,
    /// The client part is right, but the key may not be used for this request.
    LimitNotMet(Limit),
    /// The key is blocked for a while because its use is suspicious. The store was not asked.
    #[non_exhaustive]
    Blocked {
        /// The time until the block ends.
        retry_after: Duration,
    },
    /// The store failed.
    StoreFailed,
    /// The request has no verified device.
    Unverified,
}

impl SplitKeyOutcome {
    /// `opened`, `opened_retiring`, `missing`, `malformed`, `unknown`, `mismatch`, `retired`, `revoked`,
    /// `limit_not_met`, `blocked`, `store_failed` or `unverified`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::OpenedRetiring => "opened_retiring",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Mismatch => "mismatch",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
            Self::LimitNotMet(_) => "limit_not_met",
            Self::Blocked { .. } => "blocked",
            Self::StoreFailed => "store_failed",
            Self::Unverified => "unverified",
        }
    }

    /// The rejection of the request; `None` if the request reaches the inner service. If the store failed, the waiting
    /// time is random and differs from call to call.
    pub(crate) fn rejection(&self) -> Option<SplitKeyRejection> {
        Some(match self {
            Self::Opened | Self::OpenedRetiring => return None,
            Self::Missing => SplitKeyRejection::MissingKey,
            Self::Malformed | Self::Unknown | Self::Mismatch | Self::Retired | Self::Revoked => {
                SplitKeyRejection::InvalidKey
            }
            Self::LimitNotMet(limit) => SplitKeyRejection::LimitNotMet(*limit),
            Self::Blocked { retry_after } => SplitKeyRejection::Blocked { retry_after: *retry_after },
            Self::StoreFailed => {
                SplitKeyRejection::Unavailable { retry_after: Duration::from_secs(spread(1, 5)) }
            }
            Self::Unverified => SplitKeyRejection::Unverified,
        })
    }
}

/// One use of a key.
#[derive(Debug)]
pub struct SplitKeyEvent {
    pub(crate) project: Option<Arc<str>>,
    pub(crate) provider: Option<Arc<str>>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) device: Option<TokenDigest>,
    pub(crate) outcome: SplitKeyOutcome,
    pub(crate) error: Option<SplitKeyStoreError>,
    pub(crate) started: Timestamp,
}

impl SplitKeyEvent {
    /// The result.
    #[must_use]
    pub const fn outcome(&self) -> SplitKeyOutcome {
        self.outcome
    }

    /// The project id as the client sent it: 1 to 128 visible ASCII characters, or `None` if the client sent none. The
    /// id is untrusted unless [`provider`](Self::provider) is `Some`.
    #[must_use]
    pub fn project(&self) -> Option<&str> {
        self.project.as_deref()
    }

    /// The provider of the key; `None` if the store does not have the split, or was not asked.
    #[must_use]
    pub fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
    }

    /// The metadata of the client part, with its split id, as the client sent it; `None` if the client sent none.
    #[must_use]
    pub const fn metadata(&self) -> Option<Metadata> {
        self.metadata
    }

    /// The digest of the device token; `None` without a verified device.
    #[must_use]
    pub const fn device(&self) -> Option<TokenDigest> {
        self.device
    }

    /// The store's error, for operators only.
    #[must_use]
    pub const fn error(&self) -> Option<&SplitKeyStoreError> {
        self.error.as_ref()
    }

    /// The time at which the request arrived.
    #[must_use]
    pub const fn at(&self) -> SystemTime {
        self.started.wall
    }

    /// The time since the request arrived.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.started.monotonic.elapsed()
    }
}

/// A kind of suspicious use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuspicionKind {
    /// Within one window, one client part was used with more device tokens than the threshold.
    ManyDevices,
    /// Within one window, one split was refused more often than the threshold.
    ManyRefusals,
    /// The right client part of a retired key is in use. Reported once per window.
    RetiredPart,
    /// The right client part of a revoked key is in use. Reported once per window.
    RevokedPart,
}

impl SuspicionKind {
    /// `many_devices`, `many_refusals`, `retired_part` or `revoked_part`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::ManyDevices => "many_devices",
            Self::ManyRefusals => "many_refusals",
            Self::RetiredPart => "retired_part",
            Self::RevokedPart => "revoked_part",
        }
    }
}

/// A suspicious use of a key.
#[derive(Clone, Debug)]
pub struct SuspiciousUse {
    pub(crate) kind: SuspicionKind,
    pub(crate) project: Arc<str>,
    pub(crate) split: SplitId,
    pub(crate) device: Option<TokenDigest>,
    pub(crate) blocked_for: Option<Duration>,
}

impl SuspiciousUse {
    /// The kind of suspicion.
    #[must_use]
    pub const fn kind(&self) -> SuspicionKind {
        self.kind
    }

    /// The project id as the client sent it.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The split id as the client sent it.
    #[must_use]
    pub const fn split(&self) -> SplitId {
        self.split
    }

    /// The digest of the device token of the request that reached the threshold.
    #[must_use]
    pub const fn device(&self) -> Option<TokenDigest> {
        self.device
    }

    /// The time for which the split is blocked from now on; `None` if it is not blocked.
    #[must_use]
    pub const fn blocked_for(&self) -> Option<Duration> {
        self.blocked_for
    }
}
