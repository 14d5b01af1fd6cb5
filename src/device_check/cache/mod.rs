//! Caches for Apple's verdicts: in the process, in Redis, and both.

mod cached_verdict;
#[cfg(feature = "memory-cache")]
mod keyed_hash;
#[cfg(feature = "memory-cache")]
mod memory;
mod no_cache;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod stored_verdict;
mod tiered;
mod verdict_cache;
mod verdict_key;

#[cfg(feature = "memory-cache")]
pub use self::memory::MemoryCache;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisCache;
pub use self::verdict_cache::{MayAsk, VerdictCache};
pub use self::{cached_verdict::CachedVerdict, tiered::Tiered, verdict_key::VerdictKey};
pub(crate) use self::{no_cache::NoCache, verdict_cache::ErasedCache};
pub use crate::gate::observer::CacheError;
