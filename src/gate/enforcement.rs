//! The treatment of rejected requests.

/// The layer's treatment of requests that it rejects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Enforcement {
    /// The layer answers the request, and the inner service is not called. The default.
    #[default]
    Enforce,
    /// The request reaches the inner service anyway. Every request that is not exempt carries a [`DeviceOutcome`](crate::DeviceOutcome). This
    /// mode is for a roll-out.
    ///
    /// A request still waits for the check; during an outage at Apple it waits until the deadline. With the feature
    /// `axum`, a handler that takes a [`VerifiedDevice`](crate::VerifiedDevice) still refuses requests without one: take an `Option`.
    ///
    /// # Danger
    ///
    /// Nothing is protected: every request reaches the inner service.
    Monitor,
}
