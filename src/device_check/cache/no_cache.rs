//! A cache that keeps nothing.

use std::time::Duration;

use crate::device_check::cache::{
    cached_verdict::CachedVerdict, verdict_cache::VerdictCache, verdict_key::VerdictKey,
};
use crate::gate::observer::CacheError;

/// A cache that keeps nothing: the layer asks Apple about every token, unless another request is already asking about
/// it.
pub(crate) struct NoCache;

impl VerdictCache for NoCache {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        Ok(())
    }

    async fn forget(&self, _: &VerdictKey<'_>, _: Duration) -> Result<(), CacheError> {
        Ok(())
    }
}
