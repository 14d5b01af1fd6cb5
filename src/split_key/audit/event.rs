//! What observers are told.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    gate::credential::TokenDigest,
    runtime::{Moment, SystemTime},
    split_key::{
        limits::Limit,
        metadata::{Metadata, SplitId, Version},
        rejection::SplitKeyRejection,
        store::SplitKeyStoreError,
    },
};

/// What came of the use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitKeyOutcome {
    /// The request reaches the inner service with the key.
    Opened,
    /// The same, with a key that retires soon: a client that has not moved to the new split yet.
    OpenedRetiring,
    /// No client part, or no project id.
    Missing,
    /// What cannot be a client part or a project id, or two different ones.
    Malformed,
    /// The store has no such split.
    Unknown,
    /// A client part that does not open this split.
    Mismatch,
    /// The right client part, but its key's time to retire has come.
    Retired,
    /// The right client part, but its key is revoked.
    Revoked,
    /// The right client part, used for what it may not be used for.
    LimitNotMet(Limit),
    /// The key is blocked for a while because its use is suspicious. Nothing was looked up.
    #[non_exhaustive]
    Blocked {
        /// When it is released.
        retry_after: Duration,
    },
    /// The store failed.
    StoreFailed,
    /// Nobody verified the device.
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

    /// How the request is answered; `None` where it reaches the inner service.
    #[must_use]
    pub const fn rejection(&self) -> Option<SplitKeyRejection> {
        Some(match self {
            Self::Opened | Self::OpenedRetiring => return None,
            Self::Missing => SplitKeyRejection::MissingKey,
            Self::Malformed | Self::Unknown | Self::Mismatch | Self::Retired | Self::Revoked => {
                SplitKeyRejection::InvalidKey
            }
            Self::LimitNotMet(limit) => SplitKeyRejection::LimitNotMet(*limit),
            Self::Blocked { retry_after } => SplitKeyRejection::Blocked { retry_after: *retry_after },
            Self::StoreFailed => SplitKeyRejection::Unavailable { retry_after: Duration::from_secs(5) },
            Self::Unverified => SplitKeyRejection::Unverified,
        })
    }
}

impl fmt::Display for SplitKeyOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
    pub(crate) started: Moment,
}

impl SplitKeyEvent {
    /// What came of it.
    #[must_use]
    pub const fn outcome(&self) -> SplitKeyOutcome {
        self.outcome
    }

    /// The project that the client names: 1 to 128 visible ASCII characters, and anything at all unless
    /// [`provider`](Self::provider) is there. `None` where it names none.
    #[must_use]
    pub fn project(&self) -> Option<&str> {
        self.project.as_deref()
    }

    /// The provider of the key; `None` where the store has no such split, or was not asked.
    #[must_use]
    pub fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
    }

    /// The split that the client names; `None` where it names none.
    #[must_use]
    pub fn split(&self) -> Option<SplitId> {
        self.metadata.map(|metadata| metadata.split())
    }

    /// How the key is split, by what the client says; `None` where it says nothing.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.metadata.map(|metadata| metadata.version())
    }

    /// The digest of the device token; `None` without a verified device.
    #[must_use]
    pub const fn device(&self) -> Option<TokenDigest> {
        self.device
    }

    /// Why the store failed, for the operator's eyes.
    #[must_use]
    pub const fn error(&self) -> Option<&SplitKeyStoreError> {
        self.error.as_ref()
    }

    /// When the request came.
    #[must_use]
    pub const fn at(&self) -> SystemTime {
        self.started.wall
    }

    /// How long it took, up to now.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.started.monotonic.elapsed()
    }
}

/// What is suspicious.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuspicionKind {
    /// One client part was used with more device tokens than the threshold, within one window.
    ManyDevices,
    /// One split was refused more often than the threshold, within one window.
    ManyRefusals,
    /// The right client part of a retired key is in use. Once in a window.
    RetiredPart,
    /// The right client part of a revoked key is in use. Once in a window.
    RevokedPart,
}

impl SuspicionKind {
    /// `many_devices`, `many_refusals`, `retired_part` or `revoked_part`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ManyDevices => "many_devices",
            Self::ManyRefusals => "many_refusals",
            Self::RetiredPart => "retired_part",
            Self::RevokedPart => "revoked_part",
        }
    }
}

/// A use of a key that is suspicious.
#[derive(Clone, Debug)]
pub struct SuspiciousUse {
    pub(crate) kind: SuspicionKind,
    pub(crate) project: Arc<str>,
    pub(crate) split: SplitId,
    pub(crate) device: Option<TokenDigest>,
    pub(crate) blocked_for: Option<Duration>,
}

impl SuspiciousUse {
    /// What is suspicious about it.
    #[must_use]
    pub const fn kind(&self) -> SuspicionKind {
        self.kind
    }

    /// The project that the client names.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The split that the client names.
    #[must_use]
    pub const fn split(&self) -> SplitId {
        self.split
    }

    /// The digest of the device token of the request that reached the threshold.
    #[must_use]
    pub const fn device(&self) -> Option<TokenDigest> {
        self.device
    }

    /// For how long the split is blocked from now on; `None` if it is not.
    #[must_use]
    pub const fn blocked_for(&self) -> Option<Duration> {
        self.blocked_for
    }
}
