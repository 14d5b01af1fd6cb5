//! UsageLog: counts the uses of keys, and keeps the counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::{fmt, time::Duration};

use crate::BoxError;
use crate::gate::error::impl_error;
use crate::gate::observer::TARGET;
use crate::runtime::{has_tasks, lock, pause, since_epoch, spawn, wall_clock};
use crate::split_key::api_key::ApiKey;
use crate::split_key::audit::event::{SplitKeyEvent, SplitKeyOutcome};
use crate::split_key::audit::observer::SplitKeyObserver;
use crate::split_key::metadata::SplitId;
#[cfg(not(target_arch = "wasm32"))]
use crate::split_key::usage::folder::UsageFolder;
#[cfg(feature = "redis")]
use crate::split_key::usage::hashes::UsageHashes;
use crate::split_key::usage::{days::Days, report::UsageReport, stated::TokenUsage};

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// The time between two attempts to keep the counts.
const RETRY: Duration = Duration::from_secs(1);

/// An observer that counts uses and tokens per project, split, model and day (UTC).
///
/// Uses of splits that the store does not have are counted together, because clients can make up any number of them.
/// Tokens are counted by [`count_answers`](Self::count_answers).
///
/// | made by | the counts are in | a process that is killed loses |
/// |---|---|---|
/// | [`new`](Self::new) | the memory of this process | all of them |
/// | `open` | a folder, for one process | those of its last second |
/// | `in_redis` | Redis, for all replicas (feature `redis`) | those that Redis has not yet confirmed |
///
/// Each count first goes to the memory. A task keeps it elsewhere, in a folder after a second, in Redis at once; the
/// counts of requests that end meanwhile go together. No request waits for that. While it fails, the counts wait in the
/// memory. Before the process ends, call [`flush`](Self::flush). Without a tokio runtime, nothing else keeps the counts.
///
/// Clones share the counts.
///
/// ```
/// use tower_devicecheck::split_key::{MemorySplitKeyStore, SplitKeyLayer, TracingSplitKeyObserver, UsageLog};
///
/// # async fn log() -> Result<(), tower_devicecheck::split_key::UsageError> {
/// let usage = UsageLog::new();
/// let layer = SplitKeyLayer::new(MemorySplitKeyStore::new())
///     .with_observer((TracingSplitKeyObserver, usage.clone()));
/// println!("{}", usage.report().await?.to_json());
/// # Ok(())
/// # }
/// ```
///
/// # Limits
///
/// The log holds 90 days and 10,000 entries, each for one project, split and day; see
/// [`with_retention`](Self::with_retention) and [`with_capacity`](Self::with_capacity). An entry tells 32 models apart
/// and needs about 300 bytes, and 100 for each model. In Redis, the number of entries is that of the splits in use.
#[derive(Clone)]
pub struct UsageLog {
    shared: Arc<Shared>,
}

struct Shared {
    days: Mutex<Days>,
    keeper: Keeper,
    /// A task is about to keep the counts.
    is_keeping: AtomicBool,
    /// The last attempt failed.
    has_failed: AtomicBool,
}

/// The place that keeps the counts.
enum Keeper {
    Memory,
    #[cfg(not(target_arch = "wasm32"))]
    Folder(Arc<UsageFolder>),
    #[cfg(feature = "redis")]
    Redis(UsageHashes),
}

impl Keeper {
    /// The time in which counts are gathered before they are kept.
    const fn interval(&self) -> Option<Duration> {
        match self {
            Self::Memory => None,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Folder(_) => Some(Duration::from_secs(1)),
            #[cfg(feature = "redis")]
            Self::Redis(_) => Some(Duration::ZERO),
        }
    }
}

/// An error of reading or keeping the counts.
#[derive(Debug)]
pub struct UsageError {
    source: BoxError,
}

impl_error!(
    UsageError,
    |error| Some(&*error.source),
    "the counts of the uses of keys cannot be read or kept"
);

impl UsageLog {
    /// Makes a log in the memory of this process.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Keeper::Memory, Days::default())
    }

    /// Opens a log in a folder, and makes the folder if there is none. It has one JSON file for each day.
    ///
    /// A file is replaced as a whole, so that it is never half written, and is on the disk then. Each second in which
    /// there was a use costs one such file, of about 400 bytes for each entry of the day. Only one process at a time
    /// can use the folder: a lock on its file `.lock` ends with the process. Only their owner can read new files.
    ///
    /// # Errors
    ///
    /// Returns an error if another process uses the folder, if it cannot be written, or if a file in it whose name ends
    /// in `.json` is no file of this log.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(folder: impl AsRef<std::path::Path>) -> Result<Self, UsageError> {
        let opened = UsageFolder::open(folder.as_ref());
        let (folder, days) = opened.map_err(|error| UsageError { source: error.into() })?;
        Ok(Self::with(Keeper::Folder(Arc::new(folder)), days))
    }

    /// Makes a log for all replicas that use the same server and prefix.
    ///
    /// Each batch of counts counts once, even if its answer was lost and it was sent again. While Redis is down, up to
    /// the capacity of entries wait in the memory.
    #[cfg(feature = "redis")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
    #[must_use]
    pub fn in_redis(redis: crate::Redis) -> Self {
        Self::with(Keeper::Redis(UsageHashes::new(redis)), Days::default())
    }

    fn with(keeper: Keeper, days: Days) -> Self {
        let shared = Shared {
            days: Mutex::new(days),
            keeper,
            is_keeping: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Sets the most entries that the memory of this process holds, at least one. A full log drops an entry of the
    /// oldest day for each new entry. Default: 10,000.
    #[must_use]
    pub fn with_capacity(self, entries: usize) -> Self {
        lock(&self.shared.days).capacity = entries.max(1);
        self
    }

    /// Sets the number of days that are kept, at least one. Default: 90. In a folder, the newest days with uses are
    /// kept, and the files of older ones are removed with the next use on a new day. In Redis, a day is kept for that
    /// long after its last use.
    #[must_use]
    pub fn with_retention(self, days: usize) -> Self {
        lock(&self.shared.days).retention = days.clamp(1, 10_000);
        self
    }

    /// Returns the counter of one answer to a request with this key. The answer counts for the day of this call, even
    /// if it ends on the next one. The counter has no copy of the key.
    ///
    /// ```
    /// use http::{Method, Response};
    /// use tower_devicecheck::split_key::{ApiKey, MeteredBody, UsageLog};
    ///
    /// fn metered<B>(usage: &UsageLog, key: &ApiKey, answer: Response<B>) -> Response<MeteredBody<B>> {
    ///     let counter = usage.count_answers(key);
    ///     let (head, body) = answer.into_parts();
    ///     let body = MeteredBody::new(body, &Method::POST, &head.headers, move |metered| {
    ///         counter.count(&metered.usage);
    ///     });
    ///     Response::from_parts(head, body)
    /// }
    /// ```
    #[must_use]
    pub fn count_answers(&self, key: &ApiKey) -> AnswerCounter {
        AnswerCounter {
            log: self.clone(),
            day: since_epoch(wall_clock()).as_secs() / SECONDS_PER_DAY,
            project: key.project().into(),
            provider: key.provider().into(),
            split: key.metadata().split(),
        }
    }

    /// Returns all counts. In Redis, these are the counts of all replicas, today and on the days before.
    ///
    /// # Errors
    ///
    /// Returns an error if Redis does not answer within 5 seconds for each day, or holds something other than counts.
    pub async fn report(&self) -> Result<UsageReport, UsageError> {
        #[cfg(feature = "redis")]
        if let Keeper::Redis(hashes) = &self.shared.keeper {
            self.flush().await?;
            let retention = lock(&self.shared.days).retention;
            return hashes.read(retention).await.map_err(|error| UsageError { source: error.into() });
        }
        Ok(lock(&self.shared.days).report())
    }

    /// Keeps all counts of this process where they outlive it. After an error, the counts are still in the memory.
    ///
    /// If the returned future is dropped, the counts may be kept or not; a later call keeps them.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder cannot be written, or Redis does not answer within its deadline.
    pub async fn flush(&self) -> Result<(), UsageError> {
        match &self.shared.keeper {
            Keeper::Memory => Ok(()),
            #[cfg(not(target_arch = "wasm32"))]
            Keeper::Folder(folder) => {
                // A use from here on needs another task.
                self.shared.is_keeping.store(false, Ordering::Release);
                let (folder, shared) = (Arc::clone(folder), Arc::clone(&self.shared));
                let written = crate::runtime::blocking(move || folder.write(&shared.days)).await;
                written.map_err(|error| UsageError { source: error.into() })
            }
            #[cfg(feature = "redis")]
            Keeper::Redis(hashes) => {
                let taken = || self.shared.is_keeping.store(false, Ordering::Release);
                let written = hashes.write(&self.shared.days, taken).await;
                written.map_err(|error| UsageError { source: error.into() })
            }
        }
    }

    /// Changes the counts, and has them kept.
    fn change(&self, change: impl FnOnce(&mut Days)) {
        change(&mut lock(&self.shared.days));
        let Some(interval) = self.shared.keeper.interval() else { return };
        if has_tasks() && !self.shared.is_keeping.swap(true, Ordering::AcqRel) {
            spawn(self.clone().keep(interval));
        }
    }

    /// Keeps the counts, sooner or later.
    async fn keep(self, interval: Duration) {
        pause(interval).await;
        while let Err(error) = self.flush().await {
            if !self.shared.has_failed.swap(true, Ordering::AcqRel) {
                tracing::warn!(target: TARGET, error = %error.source, "the counts of uses of keys cannot be kept; they wait");
            }
            // Another task has begun meanwhile, and will try again.
            if self.shared.is_keeping.swap(true, Ordering::AcqRel) {
                return;
            }
            pause(RETRY).await;
        }
        if self.shared.has_failed.swap(false, Ordering::AcqRel) {
            tracing::info!(target: TARGET, "the counts of uses of keys are kept again");
        }
    }
}

impl Default for UsageLog {
    fn default() -> Self {
        Self::new()
    }
}

impl SplitKeyObserver for UsageLog {
    fn used(&self, event: &SplitKeyEvent) {
        let now = since_epoch(event.at()).as_secs();
        let day = now / SECONDS_PER_DAY;
        let (Some(project), Some(provider), Some(metadata)) =
            (&event.project, &event.provider, event.metadata)
        else {
            self.change(|days| {
                days.change(day, |counts| counts.unattributed = counts.unattributed.saturating_add(1))
            });
            return;
        };
        self.change(|days| {
            days.change_entry(day, project, metadata.split(), |entry| {
                provider.as_ref().clone_into(&mut entry.provider);
                entry.version = metadata.version().number().into();
                match event.outcome() {
                    SplitKeyOutcome::Opened | SplitKeyOutcome::OpenedRetiring => {
                        entry.opened = entry.opened.saturating_add(1);
                        let is_retiring = event.outcome() == SplitKeyOutcome::OpenedRetiring;
                        entry.opened_retiring = entry.opened_retiring.saturating_add(is_retiring.into());
                        entry.last_used = entry.last_used.max(now);
                    }
                    SplitKeyOutcome::LimitNotMet(_) => entry.limited = entry.limited.saturating_add(1),
                    SplitKeyOutcome::Blocked { .. } => entry.blocked = entry.blocked.saturating_add(1),
                    _ => entry.refused = entry.refused.saturating_add(1),
                }
            });
        });
    }
}

impl fmt::Debug for UsageLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = lock(&self.shared.days);
        f.debug_struct("UsageLog")
            .field("entries", &days.len())
            .field("capacity", &days.capacity)
            .field("retention", &days.retention)
            .finish_non_exhaustive()
    }
}

/// Counts one answer of a provider in a [`UsageLog`].
#[derive(Clone, Debug)]
pub struct AnswerCounter {
    log: UsageLog,
    day: u64,
    project: Arc<str>,
    provider: Arc<str>,
    split: SplitId,
}

impl AnswerCounter {
    /// Counts the answer, with the tokens that it states.
    pub fn count(self, usage: &TokenUsage) {
        let Self { log, day, project, provider, split } = self;
        log.change(|days| {
            days.change_entry(day, &project, split, |entry| {
                provider.as_ref().clone_into(&mut entry.provider);
                entry.count(usage);
            });
        });
    }
}

#[cfg(test)]
mod tests;
