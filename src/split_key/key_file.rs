//! The JSON file of a key store: its format, and how it is read and replaced.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::split_key::{memory_store::RecordMap, record::SplitKeyRecord};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// The minimum age of a file's modification time that guarantees a new modification time for the next change. It is
/// coarser than the timestamps of all common file systems.
const SETTLED: Duration = Duration::from_secs(2);

/// The state of a file according to `stat`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
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

impl FileStamp {
    /// The stamp of the file as it is.
    pub(super) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&fs::Metadata> for FileStamp {
    fn from(metadata: &fs::Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
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
pub(super) fn read(path: &Path) -> io::Result<(RecordMap, Option<FileStamp>)> {
    let now = SystemTime::now();
    // Opening a FIFO would wait for a writer, and some devices never end.
    let present = fs::metadata(path)?;
    if !present.is_file() {
        return Err(io::Error::other(
            "the key file is a directory, a FIFO or a device: it must be a regular file",
        ));
    }
    let mut file = File::open(path).map_err(|error| unreadable(error, &present))?;
    let metadata = file.metadata()?;
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other("the key file is too large"));
    }
    let stamp = FileStamp::from(&metadata);
    let capacity = usize::try_from(stamp.length).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; capacity]);
    file.read_exact(&mut bytes)?;
    let records = parse(&bytes)?;
    let settled = now.duration_since(stamp.modified).is_ok_and(|age| age >= SETTLED);
    Ok((records, settled.then_some(stamp)))
}

/// Creates a file without records, if there is none.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let _lock = lock_file(path)?;
    // Another process may have created the file meanwhile.
    if path.try_exists()? { Ok(()) } else { write(path, &RecordMap::default()) }
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

pub(super) fn beside(path: &Path, extension: &str) -> PathBuf {
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
pub(super) fn lock_file(path: &Path) -> io::Result<File> {
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
pub(super) fn write(path: &Path, records: &RecordMap) -> io::Result<()> {
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
        let kept = keep_owner(&file, &present).and_then(|()| file.set_permissions(present.permissions()));
        if let Err(error) = kept {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
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

/// Gives the new file the owner and group of the present one. If that is not allowed, the server might be unable to read
/// the new file, so the present one must stay.
#[cfg(unix)]
fn keep_owner(file: &File, present: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let new = file.metadata()?;
    let changed = |new: u32, present: u32| (new != present).then_some(present);
    let (owner, group) = (changed(new.uid(), present.uid()), changed(new.gid(), present.gid()));
    if owner.is_none() && group.is_none() {
        return Ok(());
    }
    fchown(file, owner, group).map_err(|error| {
        let why = format!(
            "the key file belongs to user {} and group {}, and this process may not make a file for them ({error}): \
             run it as that user",
            present.uid(),
            present.gid()
        );
        io::Error::new(io::ErrorKind::PermissionDenied, why)
    })
}

#[cfg(not(unix))]
fn keep_owner(_: &File, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

/// Says who may read the file, if this process may not.
fn unreadable(error: io::Error, present: &fs::Metadata) -> io::Error {
    #[cfg(unix)]
    if error.kind() == io::ErrorKind::PermissionDenied {
        use std::os::unix::fs::MetadataExt;
        let (owner, group, mode) = (present.uid(), present.gid(), present.mode() & 0o777);
        let why = format!(
            "this process may not read the key file, which belongs to user {owner} and group {group}, with mode {mode:o}"
        );
        return io::Error::new(error.kind(), why);
    }
    let _ = present;
    error
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
