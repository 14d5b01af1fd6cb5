//! A key store in one JSON file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;
use std::{fmt, future::poll_fn, thread};

use crate::runtime::{Instant, lock};
use crate::split_key::key_file::{self, FileStamp};
use crate::split_key::store::{SplitKeyStore, SplitKeyStoreError};
use crate::split_key::{memory_store::RecordMap, metadata::SplitId, record::SplitKeyRecord};

/// A key store in one JSON file, for a single server, or for a file that is mounted into many servers.
/// `docs/split-keys.md` describes the format.
///
/// * Reading: the store holds all records in memory. At most twice in the check interval ([`with_check_interval`]), a
///   request checks whether the file has changed (one `stat` call, on the request's own thread). If it has, another
///   thread reads it, and then replaces all records at once. Requests wait for that only if the records are older than
///   the interval. A revocation therefore takes effect within this interval. Put the file on a local disk.
/// * Damage: while the file cannot be read, or holds anything but records, the last good records stay in use, the log
///   has one error, and [`check`](SplitKeyStore::check) fails. A revocation that damages the file has no effect.
/// * Writing, by the operations of operators: the store writes a file beside the old one, flushes it to the disk, and
///   renames it over the old one. At any time, the file holds either all old or all new records. The operation blocks
///   the calling thread until the records are on the disk. Writers, including those in other processes, wait for each
///   other with a lock on another file (`.lock`).
///
/// Only its owner can read a new file. An existing file keeps its owner, group and permissions. A writer that may not
/// keep them gets an error, and the file stays as it was. The file must be a regular file of at most 16 MiB.
///
/// [`with_check_interval`]: Self::with_check_interval
pub struct FileSplitKeyStore {
    path: Arc<Path>,
    check_interval: Duration,
    loaded: Arc<Mutex<LoadedFile>>,
}

struct LoadedFile {
    records: Arc<RecordMap>,
    /// The reason for which the last read failed. The records are those of the read before.
    failure: Option<String>,
    /// The stamp of the file at the last read; `None` if the file must be read again in any case.
    stamp: Option<FileStamp>,
    /// The time at which the last check began.
    checked_at: Instant,
    is_reading: bool,
    /// The number of writes by this process. A read that began before a write has old records.
    writes: u64,
    /// The tasks that wait for the reader.
    waiting: Vec<Waker>,
}

impl LoadedFile {
    fn new((records, stamp): (RecordMap, Option<FileStamp>)) -> Self {
        Self {
            records: Arc::new(records),
            failure: None,
            stamp,
            checked_at: Instant::now(),
            is_reading: false,
            writes: 0,
            waiting: Vec::new(),
        }
    }

    /// Ends a check that began at this time. One error and one line about its end are logged for each incident.
    fn checked(&mut self, began: Instant, read: Result<(RecordMap, Option<FileStamp>), String>) {
        self.checked_at = began;
        match read {
            Ok((records, stamp)) => {
                (self.records, self.stamp) = (Arc::new(records), stamp);
                if self.failure.take().is_some() {
                    tracing::info!("the key file can be read again");
                }
            }
            Err(error) => {
                self.stamp = None;
                if self.failure.is_none() {
                    tracing::error!(
                        error,
                        "the key file cannot be read: the records from before stay in use"
                    );
                }
                self.failure = Some(error);
            }
        }
    }
}

impl FileSplitKeyStore {
    /// Reads the records from an existing file. Blocks the calling thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read or holds anything but records.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, SplitKeyStoreError> {
        let path: Arc<Path> = path.into().into();
        let loaded = LoadedFile::new(key_file::read(&path).map_err(SplitKeyStoreError::unavailable)?);
        Ok(Self { path, check_interval: Duration::from_secs(1), loaded: Arc::new(Mutex::new(loaded)) })
    }

    /// Reads the records from a file. Creates a file without records if there is none. Blocks the calling thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can be neither read nor created, or if it holds anything but records.
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self, SplitKeyStoreError> {
        let path = path.into();
        key_file::create(&path).map_err(SplitKeyStoreError::unavailable)?;
        Self::open(path)
    }

    /// Sets the time for which requests use the records without a check of the file. Default: 1 second.
    ///
    /// # Danger
    ///
    /// A revoked key continues to work for up to this time.
    #[must_use]
    pub const fn with_check_interval(mut self, interval: Duration) -> Self {
        self.check_interval = interval;
        self
    }

    /// Returns the records as of a check within the interval, and the reason for which they could not be renewed.
    async fn current(&self) -> (Arc<RecordMap>, Option<String>) {
        let arrived = Instant::now();
        poll_fn(|cx| {
            let mut loaded = lock(&self.loaded);
            let mut age = loaded.checked_at.elapsed();
            if age >= self.check_interval / 2 && loaded.checked_at < arrived && !loaded.is_reading {
                self.renew(&mut loaded);
                age = loaded.checked_at.elapsed();
            }
            if age < self.check_interval || loaded.checked_at >= arrived {
                return Poll::Ready((Arc::clone(&loaded.records), loaded.failure.clone()));
            }
            loaded.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Checks the file. If it has changed, another thread reads it.
    fn renew(&self, loaded: &mut LoadedFile) {
        let began = Instant::now();
        if loaded.stamp.is_some() && loaded.stamp == FileStamp::of(&self.path) {
            loaded.checked_at = began;
            return;
        }
        let (path, shared, writes) = (Arc::clone(&self.path), Arc::clone(&self.loaded), loaded.writes);
        let read = move || {
            let read = key_file::read(&path).map_err(|error| error.to_string());
            // The old records are wiped after the lock is released.
            let _old;
            let mut loaded = lock(&shared);
            _old = Arc::clone(&loaded.records);
            loaded.is_reading = false;
            if loaded.writes == writes {
                loaded.checked(began, read);
            }
            loaded.waiting.drain(..).for_each(Waker::wake);
        };
        match thread::Builder::new().name("key-file".to_owned()).spawn(read) {
            Ok(_) => loaded.is_reading = true,
            Err(error) => loaded.checked(began, Err(error.to_string())),
        }
    }

    fn put(&self, changes: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        let _lock = key_file::lock_file(&self.path).map_err(SplitKeyStoreError::unavailable)?;
        let (mut records, _) = key_file::read(&self.path).map_err(SplitKeyStoreError::unavailable)?;
        let result = records.put(changes);
        if result.is_ok() {
            key_file::write(&self.path, &records).map_err(SplitKeyStoreError::unavailable)?;
        }
        // This happens after a conflict, too, because a second attempt must see the changes of others. The next check
        // reads the file again, because others may write as soon as the lock is released.
        let mut loaded = lock(&self.loaded);
        loaded.writes += 1;
        loaded.checked(Instant::now(), Ok((records, None)));
        result
    }
}

impl SplitKeyStore for FileSplitKeyStore {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        Ok(self.current().await.0.get(project, split).cloned())
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        Self::put(self, records)
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        let (records, _) = key_file::read(&self.path).map_err(SplitKeyStoreError::unavailable)?;
        Ok(records.iter().cloned().collect())
    }

    async fn check(&self) -> Result<(), SplitKeyStoreError> {
        match self.current().await.1 {
            Some(failure) => Err(SplitKeyStoreError::unavailable(failure)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for FileSplitKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSplitKeyStore")
            .field("path", &self.path)
            .field("check_interval", &self.check_interval)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
