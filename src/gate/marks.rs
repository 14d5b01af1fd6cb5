//! Marks: the two bits of a device, as the layer's policy read them.

use crate::gate::bits::Bits;

/// The marks of an admitted device: its two bits, and whether the policy left the decision to the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    bits: Bits,
    is_left_to_handler: bool,
}

impl Marks {
    pub(crate) const fn new(bits: Bits, is_left_to_handler: bool) -> Self {
        Self { bits, is_left_to_handler }
    }

    /// The bits, as of [`verified_at`](crate::VerifiedDevice::verified_at).
    #[must_use]
    pub const fn bits(&self) -> Bits {
        self.bits
    }

    /// Whether the policy neither admitted nor denied the device, so that the handler must decide.
    #[must_use]
    pub const fn is_left_to_handler(&self) -> bool {
        self.is_left_to_handler
    }
}
