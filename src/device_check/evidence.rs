//! The evidence that this proof leaves.

use std::sync::Arc;

use crate::gate::decision::Evidence;

/// The proof's name, in `WWW-Authenticate` and in evidence.
pub(super) const SCHEME: &str = "DeviceCheck";

/// The evidence of device tokens and debug tokens.
impl Evidence {
    /// Apple accepted the device token: for this request, or for another one with the same token at the same time.
    pub const APPLE: Self = Self::fresh(SCHEME, "apple");
    /// Apple accepted the device token earlier, and the verdict was still good.
    pub const CACHE: Self = Self::remembered(SCHEME, "cache");

    /// There is no device at all: the debug token of this name.
    #[must_use]
    pub fn debug_token(name: impl Into<Arc<str>>) -> Self {
        Self::stand_in(SCHEME, "debug-token", name.into())
    }
}
