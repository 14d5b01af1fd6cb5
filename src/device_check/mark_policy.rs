//! The policy that reads the two bits of a device.

use crate::gate::bits::Bits;
use crate::runtime::SystemTime;

/// The decision of a [`MarkPolicy`] about a genuine device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MarkDecision {
    /// The request reaches the inner service.
    Admit,
    /// The request is rejected as [`Denied`](crate::Rejection::Denied).
    Deny,
    /// The request reaches the inner service, whose handler decides:
    /// [`Marks::is_left_to_handler`](crate::Marks::is_left_to_handler) is true.
    ///
    /// # Danger
    ///
    /// A handler that does not look admits the device.
    LeaveToHandler,
}

/// Decides about each genuine device by its two bits and the month in which they were last set.
///
/// Implemented by closures:
///
/// ```
/// use std::time::SystemTime;
/// use tower_devicecheck::{Bits, MarkDecision};
/// # use tower_devicecheck::MarkPolicy;
/// # fn check(_: impl MarkPolicy) {}
///
/// # check(
/// // The second bit means "blocked", and counts for half a year.
/// |bits: Bits, now: SystemTime| match (bits.bit1(), bits.months_since_update(now)) {
///     (true, Some(0..=6)) => MarkDecision::Deny,
///     _ => MarkDecision::Admit,
/// }
/// # );
/// ```
#[diagnostic::on_unimplemented(note = "use a closure `Fn(Bits, SystemTime) -> MarkDecision`")]
pub trait MarkPolicy: Send + Sync + 'static {
    /// Decides about a device with these bits. `now` is the wall clock. The layer calls this once for each request with a
    /// genuine token, remembered or not; it must not block or panic.
    fn decide(&self, bits: Bits, now: SystemTime) -> MarkDecision;
}

impl<F> MarkPolicy for F
where
    F: Fn(Bits, SystemTime) -> MarkDecision + Send + Sync + 'static,
{
    fn decide(&self, bits: Bits, now: SystemTime) -> MarkDecision {
        self(bits, now)
    }
}
