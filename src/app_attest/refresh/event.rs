//! The events of refreshes.

use std::fmt;

use crate::BoxError;
use crate::app_attest::refresh::stored::ReceiptKey;
use crate::gate::error::VerifyErrorKind;
use crate::runtime::SystemTime;

/// The end of a refresh, for [`ReceiptRefresher::with_observer`](crate::app_attest::ReceiptRefresher::with_observer).
#[derive(Debug)]
#[non_exhaustive]
pub enum ReceiptEvent {
    /// A newer receipt came, with a risk metric. It is stored.
    RiskMetric(RiskMetric),
    /// No newer receipt was stored.
    Failed(RefreshFailure),
}

/// A risk metric that has come: how many keys the device has attested in about 30 days.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RiskMetric {
    /// The key.
    pub key: ReceiptKey,
    /// The metric before. `None` for the first one.
    pub old: Option<u32>,
    /// The metric of the newer receipt.
    pub new: u32,
}

/// A refresh without a newer receipt. The stored receipt and its metric stay.
#[derive(Debug)]
#[non_exhaustive]
pub struct RefreshFailure {
    /// The key.
    pub key: ReceiptKey,
    /// The kind.
    pub kind: RefreshFailureKind,
    /// The cause, if there is more to say. It holds no secret.
    pub source: Option<BoxError>,
    /// The time of the next attempt. `None` if there is none for this key.
    pub next_attempt: Option<SystemTime>,
}

/// The kinds of [`RefreshFailure`], each with what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefreshFailureKind {
    /// Apple says that it is too early (status 304). The next attempt is a day or two later, and not before the time that
    /// the receipt names.
    NotYet,
    /// Apple has no data about the key (status 404), as happens 30 days after its last attestation. The next attempt is 3
    /// to 5 days later.
    NoData,
    /// Apple does not take the receipt, or not in this environment (status 400). There is no further attempt.
    Rejected,
    /// The receipt has expired. Apple was not asked, and there is no further attempt.
    Expired,
    /// Apple does not accept the credentials (status 401), or its URL leads elsewhere. The next attempt is an hour or two
    /// later.
    Misconfigured,
    /// Apple throttles the exchange (status 429). The next attempt is an hour or two later, and not before the time that
    /// Apple names. The time doubles with each failure, up to 16 hours.
    Throttled,
    /// Apple gave no answer, or one that says nothing about the receipt. The next attempt is as after `Throttled`.
    Unavailable,
    /// The receipt that came does not verify, or is not for this key and app. The next attempt is a day or two later.
    Unverified,
    /// The store failed. The next attempt is 10 minutes after this one began.
    Store,
}

impl RefreshFailureKind {
    /// The kind in one word, such as `not_yet`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYet => "not_yet",
            Self::NoData => "no_data",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Misconfigured => "misconfigured",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Unverified => "unverified",
            Self::Store => "store",
        }
    }

    /// Whether the next refresh would most likely fail in the same way.
    pub(super) const fn is_trouble(self) -> bool {
        matches!(self, Self::Misconfigured | Self::Throttled | Self::Unavailable | Self::Store)
    }
}

impl From<VerifyErrorKind> for RefreshFailureKind {
    fn from(kind: VerifyErrorKind) -> Self {
        match kind {
            VerifyErrorKind::Throttled => Self::Throttled,
            VerifyErrorKind::Unavailable => Self::Unavailable,
            VerifyErrorKind::Misconfigured => Self::Misconfigured,
        }
    }
}

impl fmt::Display for RefreshFailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
