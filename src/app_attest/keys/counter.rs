//! The counter of a key: each number counts once.

/// The rule by which the counters of a key are admitted. Under both, each counter is admitted at most once.
///
/// All routes and servers that share keys should have the same rule. A change of rule admits no counter twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CounterRule {
    /// A counter must be greater than all before it. A device that sends two requests at once has one of them refused
    /// if they arrive in the other order.
    #[default]
    Strict,
    /// A counter must be new, and among the latest 64: greater than the greatest one, or at most 63 below it.
    ///
    /// Source: RFC 4303, section 3.4.3.
    Window,
}

/// The counters of a key that have been admitted: the greatest one, and a map of the 64 up to it.
///
/// A new key has 0, the counter of its attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KeyCounter {
    /// The greatest counter that was admitted.
    pub highest: u32,
    /// Bit `n`, counted from the lowest one, says whether the counter `highest - n` was admitted. Bit 0 is always set.
    pub seen: u64,
}

impl KeyCounter {
    const SIZE: u32 = u64::BITS;

    /// Takes the counters that a store has kept.
    #[must_use]
    pub const fn new(highest: u32, seen: u64) -> Self {
        Self { highest, seen: seen | 1 }
    }

    /// Returns the state after this counter, or `None` if the rule does not admit it.
    ///
    /// A store must compare and write in one atomic step: two requests with one counter must not both see the state
    /// before it.
    #[must_use]
    pub fn after(self, counter: u32, rule: CounterRule) -> Option<Self> {
        if let Some(ahead) = counter.checked_sub(self.highest).filter(|ahead| *ahead > 0) {
            let seen = if ahead < Self::SIZE { self.seen << ahead } else { 0 };
            return Some(Self { highest: counter, seen: seen | 1 });
        }
        let behind = self.highest - counter;
        let is_new = rule == CounterRule::Window && behind < Self::SIZE && self.seen & (1 << behind) == 0;
        is_new.then_some(Self { seen: self.seen | (1 << (behind % Self::SIZE)), ..self })
    }
}

impl Default for KeyCounter {
    fn default() -> Self {
        Self::new(0, 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules() {
        use CounterRule::{Strict, Window};
        let cases = [
            ("the counter of the attestation", 0, 1, 0, None, None),
            ("the first", 0, 1, 1, Some((1, 0b11)), Some((1, 0b11))),
            ("one was left out", 1, 0b11, 3, Some((3, 0b1101)), Some((3, 0b1101))),
            ("the one left out", 3, 0b1101, 2, None, Some((3, 0b1111))),
            ("again", 3, 0b1111, 2, None, None),
            ("the greatest again", 3, 0b1111, 3, None, None),
            ("the oldest of the map", 100, 1, 37, None, Some((100, 1 | 1 << 63))),
            ("too old", 100, 1, 36, None, None),
            ("63 ahead", 1, 0b11, 64, Some((64, 1 | 1 << 63)), Some((64, 1 | 1 << 63))),
            ("64 ahead", 1, 0b11, 65, Some((65, 1)), Some((65, 1))),
            ("the last one", 7, 1, u32::MAX, Some((u32::MAX, 1)), Some((u32::MAX, 1))),
            ("after the last one", u32::MAX, 1, 0, None, None),
        ];
        for (name, highest, seen, counter, strict, window) in cases {
            let before = KeyCounter::new(highest, seen);
            let pair = |after: KeyCounter| (after.highest, after.seen);
            assert_eq!(before.after(counter, Strict).map(pair), strict, "{name}, strict");
            assert_eq!(before.after(counter, Window).map(pair), window, "{name}, window");
        }
    }

    proptest! {
        #[test]
        fn no_counter_is_admitted_twice(
            steps in proptest::collection::vec((0_u32..200, any::<bool>()), 0..400),
        ) {
            let (mut state, mut admitted) = (KeyCounter::default(), BTreeSet::from([0]));
            for (counter, is_strict) in steps {
                let rule = if is_strict { CounterRule::Strict } else { CounterRule::Window };
                let highest = *admitted.last().unwrap();
                let is_in_reach = counter > highest || (!is_strict && highest - counter < 64);
                let next = state.after(counter, rule);
                prop_assert_eq!(next.is_some(), is_in_reach && !admitted.contains(&counter));
                if let Some(next) = next {
                    state = next;
                    admitted.insert(counter);
                }
            }
        }
    }
}
