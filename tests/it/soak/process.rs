//! Memory, threads and file descriptors of this process, as Linux and glibc tell them.

use std::{env, fs};

/// The use of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// Memory in KiB that was allocated and is not freed, of all threads, in Rust and in C.
    pub(super) live: u64,
    /// The most of it so far.
    pub(super) peak: u64,
    /// Resident memory in KiB that is no file: heap and stacks, with what the allocator keeps after a peak.
    pub(super) memory: u64,
    /// All resident memory in KiB. The rest of it is mostly the program, of which more is resident the more of it has run.
    pub(super) resident: u64,
    pub(super) threads: u64,
    pub(super) files: u64,
}

impl Usage {
    pub(super) fn measure() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("the soak needs Linux");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let files = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let [live, peak] = live();
        Self {
            live,
            peak,
            memory: field("RssAnon:"),
            resident: field("VmRSS:"),
            threads: field("Threads:"),
            files,
        }
    }

    fn median(samples: &[Self], of: impl Fn(&Self) -> u64) -> u64 {
        let mut values: Vec<_> = samples.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    }

    /// The medians of a tenth of the samples, counted from 0.
    pub(super) fn tenth(samples: &[Self], number: usize) -> Self {
        let part = &samples[samples.len() * number / 10..samples.len() * (number + 1) / 10];
        Self {
            live: Self::median(part, |usage| usage.live),
            peak: Self::median(part, |usage| usage.peak),
            memory: Self::median(part, |usage| usage.memory),
            resident: Self::median(part, |usage| usage.resident),
            threads: Self::median(part, |usage| usage.threads),
            files: Self::median(part, |usage| usage.files),
        }
    }

    /// Says in which way a late usage is more than an early one allows.
    ///
    /// The allowances: for heap and stacks the peak of live memory, which glibc keeps, and 32 MiB and a tenth for its gaps;
    /// for threads 4, because tokio keeps idle threads for blocking work for 10 seconds; for file descriptors 64, because
    /// clients keep a connection for each request of their last crowd. `growth_at_rest` judges live memory.
    pub(super) fn growth(early: Self, late: Self) -> Option<String> {
        let memory = late.peak + late.peak / 10 + 32 * 1024;
        let (threads, files) = (early.threads + 4, early.files + 64);
        let is_flat = late.memory <= memory && late.threads <= threads && late.files <= files;
        (!is_flat).then(|| {
            format!("from {early:?} to {late:?}, allowed is {memory} KiB, {threads} threads, {files} files")
        })
    }
}

/// Says by how much live memory in KiB has grown between two rests, if it is more than the 4 MiB that are allowed: it grew by
/// 1.7 MiB in 11 minutes, and by 6.7 MiB with a leak of 32 bytes for each digest of a token. The fake authority keeps about
/// 1 KiB of each attestation.
pub(super) fn growth_at_rest(early: u64, late: u64) -> Option<String> {
    (late > early + 4 * 1024).then(|| format!("from {early} to {late} KiB of live memory at rest"))
}

/// The KiB in use, and the most so far, as `.ci/soak-memory.c` writes them.
fn live() -> [u64; 2] {
    let file = env::var_os("LIVE").expect("the soak is run by .ci/soak");
    let bytes = fs::read(file).unwrap();
    [&bytes[..8], &bytes[8..]].map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()) / 1024)
}
