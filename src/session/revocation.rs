//! Revocations: how an operator ends sessions.

use std::{fmt, sync::Arc};

use crate::BoxError;
use crate::gate::error::impl_error;
use crate::runtime::{SystemTime, since_epoch, wall_clock};
use crate::session::claims::{SessionId, subject_bytes};
use crate::session::revoked::{Change, Revoked, capped, unix_seconds};
#[cfg(feature = "redis")]
use crate::session::shared_revocations::Link;

/// The revocations of one [`Sessions`](crate::session::Sessions). Made by
/// [`Sessions::revocations`](crate::session::Sessions::revocations).
///
/// While nothing is revoked, a check costs two loads; otherwise one look-up for the session, and one for its subject.
/// Nothing can be taken back: what is revoked stays so until the time that was named.
///
/// # Clone
///
/// Clones share what is revoked. With the feature `redis`, so do all servers that share a Redis: see
/// `Sessions::share_revocations`.
#[derive(Clone)]
pub struct Revocations {
    pub(super) state: Arc<Revoked>,
    #[cfg(feature = "redis")]
    pub(super) link: Option<Arc<Link>>,
}

impl Revocations {
    /// The most sessions and subjects that can be denied at a time. Each takes about 40 bytes.
    pub const CAPACITY: usize = Revoked::CAPACITY;

    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
            #[cfg(feature = "redis")]
            link: None,
        }
    }

    /// Revokes all sessions that were issued before `time`, rounded up to a second. A time in the future counts as the
    /// current time.
    ///
    /// # Errors
    ///
    /// The same as for [`revoke_session`](Self::revoke_session), except that there is always room.
    pub async fn revoke_issued_before(&self, time: SystemTime) -> Result<(), RevocationError> {
        let time = since_epoch(time.min(wall_clock()));
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        self.apply(Change { issued_before: capped(seconds), denied: Vec::new() }).await
    }

    /// Revokes one session, until this time. Name the session's [end](crate::session::Session::expires_at), or two days
    /// from now if you know only the id; with [grace](crate::session::SessionProof::with_grace), a session counts for
    /// longer than to its end.
    ///
    /// # Errors
    ///
    /// Returns an error if the set is full. With a shared Redis, also if Redis did not take the revocation: it counts
    /// in this process, which tries to share it with the others for as long as it runs.
    pub async fn revoke_session(&self, id: SessionId, until: SystemTime) -> Result<(), RevocationError> {
        self.deny(*id.as_bytes(), until).await
    }

    /// Revokes all sessions of a [subject](crate::VerifiedDevice::subject), and lets it buy no others, until this time.
    /// A device token has no subject, and neither have the sessions that it buys.
    ///
    /// # Errors
    ///
    /// The same as for [`revoke_session`](Self::revoke_session).
    pub async fn revoke_subject(&self, subject: &str, until: SystemTime) -> Result<(), RevocationError> {
        self.deny(subject_bytes(Some(subject)), until).await
    }

    /// The number of denied sessions and subjects. Those whose time is over count until the set is next cleaned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// Whether no session and no subject is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn deny(&self, denied: [u8; 16], until: SystemTime) -> Result<(), RevocationError> {
        let until = capped(since_epoch(until).as_secs().saturating_add(1));
        self.apply(Change { issued_before: 0, denied: vec![(denied, until)] }).await
    }

    async fn apply(&self, change: Change) -> Result<(), RevocationError> {
        self.state.merge(&change, unix_seconds(wall_clock())).map_err(|_full| RevocationError::full())?;
        #[cfg(feature = "redis")]
        if let Some(link) = &self.link {
            return link.publish(&change).await.map_err(RevocationError::unshared);
        }
        Ok(())
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("issued_before", &self.state.issued_before())
            .field("denied", &self.len())
            .finish_non_exhaustive()
    }
}

/// The error of a revocation that does not count everywhere.
#[derive(Debug)]
pub struct RevocationError {
    source: Option<BoxError>,
}

impl RevocationError {
    const fn full() -> Self {
        Self { source: None }
    }

    #[cfg(feature = "redis")]
    fn unshared(source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()) }
    }

    /// Whether the set is full, and the revocation counts nowhere. Otherwise it counts in this process only, for now.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.source.is_none()
    }
}

impl_error!(
    RevocationError,
    |error| error.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static)),
    "{}",
    if error.is_full() {
        "too many sessions are revoked: revoke all that were issued before a time"
    } else {
        "the revocation counts in this process only"
    }
);
