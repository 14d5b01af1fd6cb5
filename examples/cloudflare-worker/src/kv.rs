//! Verdicts in Workers KV, shared by all isolates.

use std::time::Duration;

use tower_devicecheck::{
    Verdict,
    cache::{CacheError, CachedVerdict, VerdictCache, VerdictKey},
};
use web_time::{SystemTime, UNIX_EPOCH};
use worker::{KvStore, send::SendFuture};

/// Anyone who can write to the namespace decides who is admitted.
pub(crate) struct KvCache(KvStore);

impl KvCache {
    /// KV keeps nothing for a shorter time. A value has the true end of its time in it.
    const SHORTEST_TIME: u64 = 60;

    pub(crate) const fn new(namespace: KvStore) -> Self {
        Self(namespace)
    }
}

impl VerdictCache for KvCache {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        let read = self.0.get(&name(key)).text();
        let text = SendFuture::new(read).await.map_err(|error| CacheError::new(error.to_string()))?;
        Ok(text.and_then(|text| read_value(&text, key)))
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        let time = verdict.time_to_live().as_secs().max(Self::SHORTEST_TIME);
        let write = async { self.0.put(&name(key), value(&verdict))?.expiration_ttl(time).execute().await };
        SendFuture::new(write).await.map_err(|error| CacheError::new(error.to_string()))
    }
}

/// The token's digest, not the token: KV shows names in its dashboard.
fn name(key: &VerdictKey<'_>) -> String {
    format!("{}-{}-{}", key.scope(), key.environment(), key.digest())
}

/// The verdict, when the check began, and when its time is over.
fn value(verdict: &CachedVerdict) -> String {
    let letter = match verdict.verdict() {
        Verdict::Genuine => 'G',
        Verdict::Refused => 'R',
    };
    let ends = SystemTime::now() + verdict.time_to_live();
    format!("{letter} {} {}", millis(verdict.checked_at()), millis(ends))
}

/// `None` for a value that is over, or is none of ours.
fn read_value(text: &str, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
    let mut parts = text.split(' ');
    let verdict = match parts.next()? {
        "G" => Verdict::Genuine,
        "R" => Verdict::Refused,
        _ => return None,
    };
    let mut time = || Some(UNIX_EPOCH + Duration::from_millis(parts.next()?.parse().ok()?));
    let (checked_at, ends) = (time()?, time()?);
    let left = ends.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero())?;
    Some(CachedVerdict::new(verdict, key.digest(), checked_at, left))
}

fn millis(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}
