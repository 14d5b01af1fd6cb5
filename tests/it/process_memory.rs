//! A look into the memory of another process, as a core dump would show it. Linux allows it to the process's parent.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
};

/// How often the bytes are in the memory that the process may write to: heap, stacks, everything that changes.
pub(crate) fn copies(process: u32, needle: &[u8]) -> io::Result<usize> {
    let mut memory = File::open(format!("/proc/{process}/mem"))?;
    let mut pagemap = File::open(format!("/proc/{process}/pagemap"))?;
    let (mut count, page_size) = (0, page_size());
    for line in fs::read_to_string(format!("/proc/{process}/maps"))?.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else { continue };
        if !permissions.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let page = |text| u64::from_str_radix(text, 16).unwrap() / page_size;
        let (start, end) = (page(start), page(end));
        let mut entries = vec![0; usize::try_from((end - start) * ENTRY).unwrap()];
        pagemap.seek(SeekFrom::Start(start * ENTRY))?;
        // A part that was unmapped meanwhile is gone.
        if pagemap.read_exact(&mut entries).is_err() {
            continue;
        }
        // The allocator reserves far more than it touches.
        let pages: Vec<_> =
            (start..end).zip(entries.chunks_exact(8).map(|entry| holds_data(entry[7]))).collect();
        for pages in pages.chunk_by(|(_, before), (_, after)| before == after).filter(|pages| pages[0].1) {
            let mut bytes = vec![0; pages.len() * usize::try_from(page_size).unwrap()];
            if memory.seek(SeekFrom::Start(pages[0].0 * page_size)).is_ok()
                && memory.read_exact(&mut bytes).is_ok()
            {
                count += memchr::memmem::find_iter(&bytes, needle).count();
            }
        }
    }
    Ok(count)
}

/// Bytes of a page.
fn page_size() -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let size = maps.lines().find_map(|line| line.strip_prefix("KernelPageSize:")).unwrap();
    size.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Bytes of an entry in `/proc/<pid>/pagemap`.
const ENTRY: u64 = 8;

/// Whether a page is in memory or in swap: the two highest bits of its entry, here of the last byte.
const fn holds_data(last_byte: u8) -> bool {
    last_byte & 0b1100_0000 != 0
}
