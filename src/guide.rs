//! Longer texts, for people who run a server with this crate or change the crate. There is nothing to call here.

#[doc = include_str!("../docs/ordering.md")]
pub mod ordering {}

#[doc = include_str!("../docs/threat-model.md")]
pub mod threat_model {}

#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

#[doc = include_str!("../docs/scaling.md")]
pub mod scaling {}

#[doc = include_str!("../docs/from-bearologics.md")]
pub mod from_bearologics {}

#[doc = include_str!("../docs/split-keys.md")]
pub mod split_keys {}

#[doc = include_str!("../docs/from-proxed.md")]
pub mod from_proxed {}

#[doc = include_str!("../docs/architecture.md")]
pub mod architecture {}
