//! The handle with which a handler changes the bits of a device.

use std::{fmt, sync::Arc, time::Duration};

use crate::apple::{AppleClient, BitsError, BitsErrorKind};
use crate::device_check::ask::Checks;
use crate::gate::decision::VerifiedDevice;
use crate::runtime::Instant;

/// Changes the bits of a device, and makes a layer [with marks](crate::DeviceCheckLayer::with_marks) forget the old ones
/// at once. Made by [`DeviceCheckLayer::mark_writer`](crate::DeviceCheckLayer::mark_writer). Cloning is cheap.
///
/// [`guide::marks`](crate::guide::marks) tells for how long an old mark can still count.
#[derive(Clone)]
pub struct MarkWriter {
    checks: Arc<Checks>,
    client: AppleClient,
}

/// An update that takes longer may outlast what its beginning made the cache forget.
const LONG_UPDATE: Duration = Duration::from_secs(10);

impl MarkWriter {
    pub(super) const fn new(checks: Arc<Checks>, client: AppleClient) -> Self {
        Self { checks, client }
    }

    /// Sets one or both bits of a device, as [`AppleClient::update_bits`] does. The next request with the same token
    /// reads the new bits from Apple, over every server that shares the cache.
    ///
    /// This costs one call to Apple. For 20 seconds the marks of this token are not remembered, so each request with it
    /// costs a call, too. Other tokens of the device may be remembered with the old bits for the
    /// [time to live of marks](crate::DeviceCheckLayer::with_mark_time_to_live).
    ///
    /// If this future is dropped, Apple may or may not change the bits; the old ones are forgotten in both cases.
    ///
    /// # Errors
    ///
    /// The same as for [`update_bits`](AppleClient::update_bits). Also
    /// [`StillRemembered`](BitsErrorKind::StillRemembered) if the bits are set, but the cache did not forget the old
    /// ones, or if this handle was made from a layer without the tenant or the team of the device: then the old ones
    /// count for the time to live of marks at most.
    pub async fn update(
        &self,
        device: &VerifiedDevice,
        bit0: impl Into<Option<bool>> + Send,
        bit1: impl Into<Option<bool>> + Send,
    ) -> Result<(), BitsError> {
        let (bit0, bit1) = (bit0.into(), bit1.into());
        if bit0.is_none() && bit1.is_none() {
            return Ok(());
        }
        let (token, scope) = (self.client.token_of(device)?, self.client.team_id());
        let began = Instant::now();
        // Before the update, so that it counts even if this future is dropped while Apple is asked.
        let forgotten = self.checks.forget_marks(device, &token, scope).await;
        let updated = self.client.update_bits(device, bit0, bit1).await;
        if updated.as_ref().is_err_and(|error| error.kind() != BitsErrorKind::Unavailable) {
            return updated;
        }
        // An update without an answer may have taken effect.
        self.checks.leave_checks_under_way(device, scope);
        if forgotten.is_err() || began.elapsed() > LONG_UPDATE {
            let forgotten = self.checks.forget_marks(device, &token, scope).await;
            return updated.and(forgotten.map_err(BitsError::still_remembered));
        }
        updated
    }
}

impl fmt::Debug for MarkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MarkWriter").field("client", &self.client).finish_non_exhaustive()
    }
}
