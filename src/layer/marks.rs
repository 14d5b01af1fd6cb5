//! The layer's settings about marks.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "_apple")]
use crate::apple::AppleClient;
use crate::device_check::mark_policy::MarkPolicy;
#[cfg(feature = "_apple")]
use crate::device_check::mark_writer::MarkWriter;
use crate::gate::gate_body::BodyMode;
use crate::layer::DeviceCheckLayer;

impl<M: BodyMode> DeviceCheckLayer<M> {
    /// Reads the two bits of each device, and lets this policy decide by them: it admits the device, denies it
    /// ([`Denied`](crate::Rejection::Denied), 403), or leaves the decision to the handler. One call to Apple answers both
    /// questions, whether the token is genuine and what the bits are. Default: no policy, and no bits. See
    /// [`guide::marks`](crate::guide::marks).
    ///
    /// The device in the extensions has the bits: [`VerifiedDevice::marks`](crate::VerifiedDevice::marks). The policy
    /// applies to device tokens. Debug tokens, sessions and other proofs have no bits, and do not pass through it.
    ///
    /// The verifiers must implement [`verify_marks`](crate::DeviceVerifier::verify_marks), as `AppleClient` does. With
    /// one that does not, every device token is rejected as [`Misconfigured`](crate::Rejection::Misconfigured).
    ///
    /// [Stale verdicts](Self::with_stale_verdicts) count as configured, by their old bits. A device that those deny is
    /// rejected as [`Unavailable`](crate::Rejection::Unavailable) while Apple is down.
    pub fn with_marks(self, policy: impl MarkPolicy) -> Self {
        self.with_settings(|settings| settings.mark_policy = Some(Arc::new(policy)))
    }

    /// Sets the longest time for which the layer remembers the bits of a device, counted from the start of the check. The
    /// [time to live](Self::with_time_to_live) of genuine verdicts applies as well. With zero, the layer asks Apple about
    /// every request. Default: 30 seconds.
    ///
    /// # Danger
    ///
    /// A device that was marked on another of its tokens is admitted for as long as the bits of this one are remembered.
    pub fn with_mark_time_to_live(self, time_to_live: Duration) -> Self {
        self.with_settings(|settings| settings.mark_time_to_live = time_to_live)
    }

    /// Makes the handle with which handlers change the bits of a device, so that the old ones no longer count. `client`
    /// is the one that this layer asks. A layer with clients of several teams needs a handle for each; see
    /// [`AppleClient::has_admitted`].
    ///
    /// Make it from the layer as it is served: a clone with other settings has checks under way of its own.
    #[cfg(feature = "_apple")]
    #[must_use]
    pub fn mark_writer(&self, client: AppleClient) -> MarkWriter {
        self.tokens.mark_writer(client)
    }
}
