//! The three endpoints of Apple's DeviceCheck.

/// An endpoint of Apple's DeviceCheck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "Apple documents exactly these three")]
pub enum Endpoint {
    /// `/v1/validate_device_token`: is this token genuine?
    Validate,
    /// `/v1/query_two_bits`: reads the bits of a device.
    QueryBits,
    /// `/v1/update_two_bits`: writes them.
    UpdateBits,
}

impl Endpoint {
    /// The path on Apple's server.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Validate => "/v1/validate_device_token",
            Self::QueryBits => "/v1/query_two_bits",
            Self::UpdateBits => "/v1/update_two_bits",
        }
    }

    pub(super) fn from_path(path: &str) -> Option<Self> {
        [Self::Validate, Self::QueryBits, Self::UpdateBits]
            .into_iter()
            .find(|endpoint| endpoint.path() == path)
    }
}
