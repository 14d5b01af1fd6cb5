//! A cache in the memory of this process.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quick_cache::{OptionsBuilder, UnitWeighter, sync::Cache};
use web_time::UNIX_EPOCH;

use crate::apple::token::Verdict;
use crate::device_check::cache::{
    cached_verdict::CachedVerdict, keyed_hash::HashSecret, verdict_cache::VerdictCache,
    verdict_key::VerdictKey,
};
use crate::gate::{bits::Bits, credential::TokenDigest, observer::CacheError};
use crate::meter::{CACHE_ENTRIES, CACHE_LOOKUPS, HotCounter, label};
use crate::runtime::{Instant, lock, millis, since_epoch};

/// A cache in the memory of this process. This is the default cache.
///
/// The cache is bounded. Refused tokens have a smaller space of their own, so that a flood of them does not displace
/// genuine tokens. An entry takes about 100 bytes. After its time to live, an entry is no longer found, and its memory
/// is reused.
pub struct MemoryCache {
    secret: HashSecret,
    genuine: Cache<u128, KeptVerdict>,
    refused: Cache<u128, KeptVerdict>,
    /// The start of the entries' clock.
    origin: Instant,
    lookups: HotCounter<&'static str>,
    /// The number of entries as the metric has it.
    reported: AtomicUsize,
    /// Makes changes of entries with marks one at a time.
    marks: Mutex<()>,
}

/// The entry of one token. It is as small as possible, because there can be millions.
#[derive(Clone, Copy)]
struct KeptVerdict {
    digest: TokenDigest,
    /// Milliseconds since the Unix epoch.
    checked_at: u64,
    /// Milliseconds since the cache was made.
    expires_at: u64,
    bits: Option<Bits>,
    /// Whether there is no verdict, and none may be stored.
    is_forgotten: bool,
}

impl MemoryCache {
    /// Makes a cache for 100,000 genuine and 10,000 refused tokens.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(100_000, 10_000)
    }

    /// Makes a cache for the given numbers of genuine and refused tokens.
    #[must_use]
    pub fn with_capacity(genuine: usize, refused: usize) -> Self {
        Self {
            secret: HashSecret::random(),
            genuine: cache(genuine),
            refused: cache(refused),
            origin: Instant::now(),
            lookups: HotCounter::default(),
            reported: AtomicUsize::new(0),
            marks: Mutex::new(()),
        }
    }

    /// The number of genuine tokens in memory, expired ones included.
    #[must_use]
    pub fn genuine_len(&self) -> usize {
        self.genuine.len()
    }

    /// The number of refused tokens in memory, expired ones included.
    #[must_use]
    pub fn refused_len(&self) -> usize {
        self.refused.len()
    }

    fn find(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        let hash = self.secret.hash(key);
        let find = |cache: &Cache<u128, KeptVerdict>, verdict| {
            let entry = cache.get(&hash).filter(|entry| !entry.is_forgotten)?;
            let left = entry.expires_at.checked_sub(self.now()).filter(|left| *left > 0)?;
            let checked_at = UNIX_EPOCH + Duration::from_millis(entry.checked_at);
            let found = CachedVerdict::new(verdict, entry.digest, checked_at, Duration::from_millis(left));
            Some(found.with_bits(entry.bits))
        };
        find(&self.genuine, Verdict::Genuine).or_else(|| find(&self.refused, Verdict::Refused))
    }

    /// Whether no genuine verdict may be stored.
    fn is_forgotten(&self, hash: u128) -> bool {
        self.genuine.get(&hash).is_some_and(|entry| entry.is_forgotten && entry.expires_at > self.now())
    }

    fn report_entries(&self, entries: usize) {
        CACHE_ENTRIES.move_by(self.reported.swap(entries, Ordering::Relaxed), entries);
    }

    fn now(&self) -> u64 {
        millis(self.origin.elapsed())
    }
}

impl Default for MemoryCache {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryCache {
    fn drop(&mut self) {
        self.report_entries(0);
    }
}

impl fmt::Debug for MemoryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache")
            .field("genuine", &self.genuine.len())
            .field("refused", &self.refused.len())
            .finish_non_exhaustive()
    }
}

impl VerdictCache for MemoryCache {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        // The hash covers the whole text.
        let found = self.find(key).map(CachedVerdict::for_exact_text);
        let result = || if found.is_some() { "hit" } else { "miss" };
        let labels = |result| [label("cache", "memory"), label("result", result)];
        self.lookups.add(&CACHE_LOOKUPS, result, labels);
        found
    }

    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(self.find(key))
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        let entry = KeptVerdict {
            digest: verdict.digest(),
            checked_at: millis(since_epoch(verdict.checked_at())),
            expires_at: self.now().saturating_add(millis(verdict.time_to_live())),
            bits: verdict.bits(),
            is_forgotten: false,
        };
        let hash = self.secret.hash(key);
        let _alone = key.is_for_marks().then(|| lock(&self.marks));
        if key.is_for_marks() && self.is_forgotten(hash) {
            // A refusal lets nobody in.
            if verdict.verdict() == Verdict::Refused {
                self.refused.insert(hash, entry);
            }
            return Ok(());
        }
        let (cache, other) = match verdict.verdict() {
            Verdict::Genuine => (&self.genuine, &self.refused),
            Verdict::Refused => (&self.refused, &self.genuine),
        };
        // Only the newest verdict counts.
        other.remove(&hash);
        cache.insert(hash, entry);
        self.report_entries(self.genuine.len() + self.refused.len());
        Ok(())
    }

    async fn forget(&self, key: &VerdictKey<'_>, hold: Duration) -> Result<(), CacheError> {
        let expires_at = self.now().saturating_add(millis(hold));
        let digest = key.digest();
        let entry = KeptVerdict { digest, checked_at: 0, expires_at, bits: None, is_forgotten: true };
        let hash = self.secret.hash(key);
        let _alone = lock(&self.marks);
        self.refused.remove(&hash);
        self.genuine.insert(hash, entry);
        Ok(())
    }
}

/// Makes a cache without ghost entries: remembering evicted keys would double the memory of a full cache for a few more
/// hits.
fn cache(capacity: usize) -> Cache<u128, KeptVerdict> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(capacity)
        .weight_capacity(capacity as u64)
        .ghost_allocation(0.0)
        .build();
    match options {
        Ok(options) => Cache::with_options(options, UnitWeighter, Default::default(), Default::default()),
        // Unreachable, because no option is missing.
        Err(_) => Cache::new(capacity),
    }
}
