//! UsageFolder: one JSON file for each day.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::runtime::lock;
use crate::split_key::file_store;
use crate::split_key::usage::days::{Day, Days};
use crate::split_key::usage::report::{UsageReport, day_name};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// A folder that belongs to one process at a time.
pub(super) struct UsageFolder {
    path: PathBuf,
    /// Taken by the one that writes.
    writing: Mutex<()>,
    /// Locked as long as this process runs.
    _lock: File,
}

/// The contents of a file.
#[derive(Serialize, Deserialize)]
struct DayFile {
    /// The version of this format.
    format: u32,
    /// The days since 1970-01-01.
    day: u64,
    usage: UsageReport,
}

const FORMAT: u32 = 1;

impl UsageFolder {
    /// Opens a folder, perhaps a new one, and reads its days.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Days)> {
        fs::create_dir_all(path)?;
        let lock = file_store::options().create(true).truncate(false).open(path.join(".lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::other("another process counts in this folder"),
            fs::TryLockError::Error(error) => error,
        })?;
        let mut days = Days::default();
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "json") {
                let (day, counts) =
                    read(&file).map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
                days.days.insert(day, counts);
            }
        }
        Ok((Self { path: path.to_owned(), writing: Mutex::new(()), _lock: lock }, days))
    }

    /// Writes the days that have changed, and removes those that are gone. Blocks until they are on the disk.
    pub(super) fn write(&self, days: &Mutex<Days>) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let (changed, gone) = {
            let mut days = lock(days);
            let gone = std::mem::take(&mut days.gone);
            let changed: Vec<_> = days.changed().map(|(day, counts)| (day, counts.report())).collect();
            (changed, gone)
        };
        let mut written = Ok(());
        for (day, usage) in changed {
            if let Err(error) = self.write_day(day, usage) {
                lock(days).days.entry(day).and_modify(|counts| counts.is_changed = true);
                written = Err(error);
            }
        }
        for day in gone {
            match fs::remove_file(self.file(day)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => written = Err(error),
                _ => {}
            }
        }
        written
    }

    fn write_day(&self, day: u64, usage: UsageReport) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(&DayFile { format: FORMAT, day, usage })?;
        bytes.push(b'\n');
        file_store::replace(&self.file(day), &bytes)
    }

    fn file(&self, day: u64) -> PathBuf {
        self.path.join(format!("{}.json", day_name(day)))
    }
}

/// Reads one day. It was written whole, or not at all.
fn read(path: &Path) -> io::Result<(u64, Day)> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other("the file is too large"));
    }
    let DayFile { format, day, usage } = serde_json::from_slice(&fs::read(path)?)?;
    if format != FORMAT {
        return Err(io::Error::other("the file has a format that is not known"));
    }
    if path.file_stem().and_then(|name| name.to_str()) != Some(&day_name(day)) {
        return Err(io::Error::other("the file has the counts of another day"));
    }
    Ok((day, Day::of(usage)))
}

#[cfg(test)]
mod tests;
