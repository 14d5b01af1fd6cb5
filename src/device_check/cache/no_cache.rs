//! A cache that keeps nothing.

use crate::device_check::cache::{
    cached_verdict::CachedVerdict, verdict_cache::VerdictCache, verdict_key::VerdictKey,
};
use crate::gate::observer::CacheError;

/// Keeps nothing: every token that no other request is asking about is asked about.
pub(crate) struct NoCache;

impl VerdictCache for NoCache {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        Ok(())
    }
}
