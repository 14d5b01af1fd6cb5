//! The evidence of this proof.

use std::sync::Arc;

use crate::gate::evidence::Evidence;

/// The proof's name, in `WWW-Authenticate` and in evidence.
pub(super) const SCHEME: &str = "DeviceCheck";

/// The evidence of device tokens and debug tokens.
impl Evidence {
    /// Apple accepted the device token just now: for this request, or for a concurrent request with the same token.
    pub const APPLE: Self = Self::fresh(SCHEME, "apple");
    /// Apple accepted the device token earlier, and the verdict had not expired.
    pub const CACHE: Self = Self::remembered(SCHEME, "cache");
    /// Apple accepted the device token earlier, the verdict had expired, and Apple was known to be down: see
    /// [`with_stale_verdicts`](crate::DeviceCheckLayer::with_stale_verdicts).
    pub const STALE: Self = Self::remembered(SCHEME, "stale");

    /// The debug token of this name admitted the request. There is no device.
    #[must_use]
    pub fn debug_token(name: impl Into<Arc<str>>) -> Self {
        Self::stand_in(SCHEME, "debug-token", name.into())
    }
}
