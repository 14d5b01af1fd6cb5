//! The device that a handler sees.

use std::sync::Arc;

use crate::app_attest::app_id::AppId;
use crate::app_attest::bundle_version::BundleVersion;
use crate::app_attest::category::Category;
use crate::app_attest::key_id::KeyId;
use crate::gate::decision::VerifiedDevice;
use crate::gate::evidence::Evidence;

/// The proof's name, in `WWW-Authenticate` and in evidence.
pub(super) const SCHEME: &str = "AppAttest";
/// The evidence of an attestation or an assertion, which is always fresh.
pub(super) const EVIDENCE: Evidence = Evidence::fresh(SCHEME, "app-attest");

/// The facts about a device that App Attest has verified, beside those of [`VerifiedDevice`].
///
/// ```
/// use tower_devicecheck::{VerifiedDevice, app_attest::AttestedDevice};
///
/// fn account(device: &VerifiedDevice) -> Option<String> {
///     AttestedDevice::of(device)?.account().map(str::to_owned)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedDevice {
    pub(super) key_id: KeyId,
    pub(super) app_id: AppId,
    pub(super) category: Option<Category>,
    pub(super) bundle_version: Option<BundleVersion>,
    pub(super) counter: u32,
    pub(super) account: Option<String>,
}

impl AttestedDevice {
    /// The facts about a device, if App Attest has verified it for this very request. A session that was bought with App
    /// Attest has none.
    #[must_use]
    pub fn of(device: &VerifiedDevice) -> Option<Arc<Self>> {
        device.value()
    }

    /// The id of the key.
    #[must_use]
    pub const fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The app that made the key.
    #[must_use]
    pub const fn app_id(&self) -> &AppId {
        &self.app_id
    }

    /// The category of the app, if the device tells it, or told it at the attestation.
    #[must_use]
    pub const fn category(&self) -> Option<Category> {
        self.category
    }

    /// The build of the app, if the device tells it.
    #[must_use]
    pub const fn bundle_version(&self) -> Option<&BundleVersion> {
        self.bundle_version.as_ref()
    }

    /// The counter of the assertion; 0 for an attestation.
    #[must_use]
    pub const fn counter(&self) -> u32 {
        self.counter
    }

    /// The account that is stored with the key.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }
}
