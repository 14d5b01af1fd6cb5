//! The endpoints of Apple's DeviceCheck, and that of App Attest.

/// An endpoint of Apple's DeviceCheck, or that of App Attest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "Apple documents exactly these")]
pub enum Endpoint {
    /// `/v1/validate_device_token`: is this token genuine?
    Validate,
    /// `/v1/query_two_bits`: reads the bits of a device.
    QueryBits,
    /// `/v1/update_two_bits`: writes them.
    UpdateBits,
    /// `/v1/attestationData`: gives a newer receipt of App Attest for an older one.
    AttestationData,
}

impl Endpoint {
    /// The path on Apple's server.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Validate => "/v1/validate_device_token",
            Self::QueryBits => "/v1/query_two_bits",
            Self::UpdateBits => "/v1/update_two_bits",
            Self::AttestationData => "/v1/attestationData",
        }
    }

    pub(super) fn from_path(path: &str) -> Option<Self> {
        [Self::Validate, Self::QueryBits, Self::UpdateBits, Self::AttestationData]
            .into_iter()
            .find(|endpoint| endpoint.path() == path)
    }
}
