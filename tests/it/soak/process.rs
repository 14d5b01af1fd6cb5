//! Memory, threads and file descriptors of this process, as Linux tells them.

use std::fs;

/// The use of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// Resident memory in KiB.
    pub(super) resident: u64,
    /// The part of it that is no file, in KiB: heap and stacks. The rest is mostly the program, of which more is resident
    /// the more of it has run.
    pub(super) memory: u64,
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
        Self { resident: field("VmRSS:"), memory: field("RssAnon:"), threads: field("Threads:"), files }
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
            resident: Self::median(part, |usage| usage.resident),
            memory: Self::median(part, |usage| usage.memory),
            threads: Self::median(part, |usage| usage.threads),
            files: Self::median(part, |usage| usage.files),
        }
    }

    /// Says in which way a late usage is more than an early one allows.
    ///
    /// The allowances: for memory 48 MiB and a tenth, because glibc keeps what crowds have needed once, and caches fill up
    /// to their capacity; for threads 4, because tokio keeps idle threads for blocking work for 10 seconds; for file
    /// descriptors 64, because clients keep a connection for each request of their last crowd.
    pub(super) fn growth(early: Self, late: Self) -> Option<String> {
        let most = Self {
            resident: u64::MAX,
            memory: early.memory + early.memory / 10 + 48 * 1024,
            threads: early.threads + 4,
            files: early.files + 64,
        };
        let is_flat = late.memory <= most.memory && late.threads <= most.threads && late.files <= most.files;
        (!is_flat).then(|| format!("from {early:?} to {late:?}, allowed is {most:?}"))
    }
}
