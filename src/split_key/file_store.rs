//! A key store in one JSON file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use std::{ffi::OsString, fmt};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::runtime::{Instant, lock};
use crate::split_key::store::{SplitKeyStore, SplitKeyStoreError};
use crate::split_key::{memory_store::RecordMap, metadata::SplitId, record::SplitKeyRecord};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// The minimum age of a file's modification time that guarantees a new modification time for the next change. It is
/// coarser than the timestamps of all common file systems.
const SETTLED: Duration = Duration::from_secs(2);

/// A key store in one JSON file, for a single server, or for a file that is mounted into many servers.
///
/// * Reading: the store holds all records in memory. At most once a second ([`with_check_interval`]) a request checks,
///   on its own thread, whether the file has changed (one `stat` call), and reads the file again if it has. A
///   revocation takes effect within this interval. Put the file on a local disk. While the file cannot be read, or
///   holds anything but records, the layer answers every request with
///   [`Unavailable`](crate::split_key::SplitKeyRejection::Unavailable).
/// * Writing, by the operations of operators: the store writes a file beside the old one, flushes it to the disk, and
///   renames it over the old one. At any time, the file holds either all old or all new records. The operation blocks
///   the calling thread until the records are on the disk. Writers, including those in other processes, wait for each
///   other with a lock on another file (`.lock`).
///
/// Only its owner can read a new file. An existing file keeps its permissions.
///
/// [`with_check_interval`]: Self::with_check_interval
pub struct FileSplitKeyStore {
    path: PathBuf,
    check_interval: Duration,
    loaded: Mutex<LoadedFile>,
}

struct LoadedFile {
    records: Result<RecordMap, String>,
    /// The stamp of the file at the last read; `None` if the file must be read again in any case.
    stamp: Option<FileStamp>,
    checked_at: Instant,
}

/// The state of a file according to `stat`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile<R> {
    /// The version of this format.
    format: u32,
    keys: Vec<R>,
}

const FORMAT: u32 = 1;

impl FileSplitKeyStore {
    /// Reads the records from an existing file.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read or holds anything but records.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, SplitKeyStoreError> {
        let path = path.into();
        let (records, stamp) = read(&path).map_err(SplitKeyStoreError::unavailable)?;
        Ok(Self {
            path,
            check_interval: Duration::from_secs(1),
            loaded: Mutex::new(LoadedFile { records: Ok(records), stamp, checked_at: Instant::now() }),
        })
    }

    /// Reads the records from a file. Creates a file without records if there is none.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can be neither read nor created, or if it holds anything but records.
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self, SplitKeyStoreError> {
        let path = path.into();
        let create = || {
            let _lock = lock_file(&path)?;
            // Another process may have created the file meanwhile.
            if !path.try_exists()? {
                write(&path, &RecordMap::default())?;
            }
            io::Result::Ok(())
        };
        create().map_err(SplitKeyStoreError::unavailable)?;
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

    /// Returns the records as of the last check of the file. Checks the file now if the interval is over.
    fn current(&self) -> MutexGuard<'_, LoadedFile> {
        let mut loaded = lock(&self.loaded);
        if loaded.checked_at.elapsed() >= self.check_interval {
            loaded.refresh(&self.path);
        }
        loaded
    }

    fn put(&self, changes: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        let _lock = lock_file(&self.path).map_err(SplitKeyStoreError::unavailable)?;
        let (mut records, _) = read(&self.path).map_err(SplitKeyStoreError::unavailable)?;
        let result = records.put(changes);
        if result.is_ok() {
            write(&self.path, &records).map_err(SplitKeyStoreError::unavailable)?;
        }
        // This happens after a conflict, too, because a second attempt must see the changes of others.
        *lock(&self.loaded) = LoadedFile {
            records: Ok(records),
            // The next check reads the file again, because others may write as soon as the lock is released.
            stamp: None,
            checked_at: Instant::now(),
        };
        result
    }
}

impl LoadedFile {
    fn refresh(&mut self, path: &Path) {
        self.checked_at = Instant::now();
        let is_same = |stamp| fs::metadata(path).is_ok_and(|metadata| FileStamp::from(metadata) == stamp);
        if self.stamp.is_some_and(is_same) {
            return;
        }
        (self.records, self.stamp) = match read(path) {
            Ok((records, stamp)) => (Ok(records), stamp),
            Err(error) => (Err(error.to_string()), None),
        };
    }

    fn records(&self) -> Result<&RecordMap, SplitKeyStoreError> {
        self.records.as_ref().map_err(|error| SplitKeyStoreError::unavailable(error.clone()))
    }
}

impl SplitKeyStore for FileSplitKeyStore {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        Ok(self.current().records()?.get(project, split).cloned())
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        Self::put(self, records)
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        let mut loaded = lock(&self.loaded);
        loaded.refresh(&self.path);
        Ok(loaded.records()?.iter().cloned().collect())
    }
}

impl From<fs::Metadata> for FileStamp {
    fn from(metadata: fs::Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Self {
            // On a platform without modification times, the stamp still has the length.
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            length: metadata.len(),
            inode,
        }
    }
}

/// Reads the file. Returns its stamp if the next change is certain to change the stamp.
fn read(path: &Path) -> io::Result<(RecordMap, Option<FileStamp>)> {
    let now = SystemTime::now();
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other("the key file is too large"));
    }
    let stamp = FileStamp::from(metadata);
    let capacity = usize::try_from(stamp.length).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; capacity]);
    file.read_exact(&mut bytes)?;
    let records = parse(&bytes)?;
    let settled = now.duration_since(stamp.modified).is_ok_and(|age| age >= SETTLED);
    Ok((records, settled.then_some(stamp)))
}

fn parse(bytes: &[u8]) -> io::Result<RecordMap> {
    let contents: KeyFile<SplitKeyRecord> = serde_json::from_slice(bytes).map_err(|error| {
        // serde's message may quote the file, so this error gives only the position.
        let (line, column) = (error.line(), error.column());
        io::Error::other(format!("the key file is not right at line {line}, column {column}"))
    })?;
    if contents.format != FORMAT {
        return Err(io::Error::other("the key file has a format that is not known"));
    }
    let mut records = RecordMap::default();
    for record in contents.keys {
        records
            .add(record)
            .ok_or_else(|| io::Error::other("the key file has two records of one project and split"))?;
    }
    Ok(records)
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(extension);
    PathBuf::from(name)
}

/// Resolves a symbolic link, so that the store replaces the file and not the link. All names of a file share one lock
/// and one temporary file.
fn target(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Waits until no other writer holds the lock. Dropping the returned file releases the lock.
fn lock_file(path: &Path) -> io::Result<File> {
    let file = options().create(true).truncate(false).open(beside(&target(path), ".lock"))?;
    file.lock()?;
    Ok(file)
}

/// Options for files that only their owner can read.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Replaces the file of records. The caller holds the lock.
fn write(path: &Path, records: &RecordMap) -> io::Result<()> {
    let contents = KeyFile { format: FORMAT, keys: records.iter().collect() };
    let mut length = ByteCounter(0);
    serde_json::to_writer_pretty(&mut length, &contents)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0 + 1));
    serde_json::to_writer_pretty(&mut *bytes, &contents)?;
    bytes.push(b'\n');
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("the key file would be too large"));
    }
    replace(path, &bytes)
}

/// Replaces a file. At any time, either the old or the new file exists. The caller is the only writer.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = target(path);
    let temporary = beside(&target, ".tmp");
    // A writer that was killed may have left this file.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().create_new(true).open(&temporary)?;
    if let Ok(present) = fs::metadata(&target) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, fchown};
            // Only root may give files away. Any other writer owns the new file.
            let _ = fchown(&file, Some(present.uid()), Some(present.gid()));
        }
        file.set_permissions(present.permissions())?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, &target)?;
    // On unix, the new name is durable only once the folder is synced.
    #[cfg(unix)]
    if let Some(folder) = target.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Counts the bytes first, so that the buffer never grows and leaves copies of secrets behind.
struct ByteCounter(usize);

impl Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
