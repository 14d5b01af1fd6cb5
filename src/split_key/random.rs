//! Sources of randomness.

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};

/// A source of random bytes: the operating system, or a seeded generator in tests.
pub(super) trait Random {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SplitKeyError>;

    fn next_u32(&mut self) -> Result<u32, SplitKeyError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A number below `bound`, all equally likely; zero if `bound` is zero.
    fn below(&mut self, bound: u32) -> Result<u32, SplitKeyError> {
        let Some(remainder) = u32::MAX.checked_rem(bound) else {
            return Ok(0);
        };
        // Numbers above the last whole multiple are skipped, because they would favour small results.
        let whole = u32::MAX - remainder;
        loop {
            let number = self.next_u32()?;
            if number < whole {
                return Ok(number % bound);
            }
        }
    }
}

/// The operating system's generator.
pub(super) struct OsRandom;

impl Random for OsRandom {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SplitKeyError> {
        getrandom::fill(bytes)
            .map_err(|error| SplitKeyError::with_source(SplitKeyErrorKind::Randomness, error.to_string()))
    }
}
