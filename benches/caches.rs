//! Which cache holds the verdicts: `cargo bench -p tower-devicecheck-benches --bench caches`.
//!
//! All candidates hold what `MemoryCache` holds, under its keys, and are measured in turns; the best round
//! counts. The allocator counts too, so that inserting is a little slower here than elsewhere, for all alike.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::{
    hint::black_box,
    sync::{Barrier, Mutex},
    thread,
    time::{Duration, Instant},
};

use allocation_counter::measure;

const CAPACITY: usize = 100_000;
const ROUNDS: usize = 7;
const LOOKUPS: usize = 1_000_000;
const MILLION: usize = 1_000_000;

fn main() {
    let hot = Keys::new(1).uniform(500_000, CAPACITY / 2);
    let zipf = Keys::new(2).zipf(LOOKUPS, 10 * CAPACITY);
    let zipf_2 = Keys::new(3).zipf(LOOKUPS, 10 * CAPACITY);
    let flood = Keys::new(4).flooded(LOOKUPS, CAPACITY / 4);

    let mut rows: Vec<_> = CANDIDATES.iter().map(|(name, make)| Row::new(name, *make)).collect();
    for row in &mut rows {
        row.bytes_full = row.bytes_per_entry(MILLION);
        row.bytes_flooded = row.bytes_per_entry(3 * MILLION);
        row.zipf_hits = row.fresh().hit_share(&zipf, |_| true);
        row.flood_hits = row.fresh().hit_share(&flood, is_known);
        row.warm.get_or_insert_all(&hot);
    }
    for _ in 0..ROUNDS {
        for row in &mut rows {
            row.hit = row.hit.min(time(|| row.warm.get_all(&hot)) / hot.len() as f64);
            let cold = row.fresh();
            let one = time(|| cold.get_or_insert_all(&zipf)) / zipf.len() as f64;
            row.one_thread = row.one_thread.min(one);
            let cold = row.fresh();
            let both = two_threads(&*cold, &zipf, &zipf_2) / (zipf.len() + zipf_2.len()) as f64;
            row.two_threads = row.two_threads.min(both);
            let both = two_threads_hit(&*row.warm, &hot) / (2 * hot.len()) as f64;
            row.two_threads_hit = row.two_threads_hit.min(both);
        }
    }

    println!("{CAPACITY} entries of {} bytes with their keys\n", size_of::<(u128, Entry)>());
    println!(
        "| cache | bytes an entry | after a flood | hits, Zipf | hits, flood | ns a hit | M hits/s, 2 threads | ns a lookup, Zipf | M lookups/s, Zipf, 2 threads |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for row in &rows {
        println!(
            "| {} | {:.0} | {:.0} | {:.1} % | {:.1} % | {:.0} | {:.1} | {:.0} | {:.1} |",
            row.name,
            row.bytes_full,
            row.bytes_flooded,
            row.zipf_hits * 100.0,
            row.flood_hits * 100.0,
            row.hit,
            1e3 / row.two_threads_hit,
            row.one_thread,
            1e3 / row.two_threads,
        );
    }
}

/// As large as what `MemoryCache` keeps.
type Entry = [u64; 6];

const ENTRY: Entry = [7; 6];

trait Store: Send + Sync {
    fn has(&self, key: u128) -> bool;
    fn insert(&self, key: u128);
    fn len(&self) -> usize;

    fn get_all(&self, keys: &[u128]) -> usize {
        keys.iter().filter(|key| self.has(**key)).count()
    }

    fn get_or_insert_all(&self, keys: &[u128]) -> usize {
        keys.iter()
            .filter(|key| {
                self.has(**key) || {
                    self.insert(**key);
                    false
                }
            })
            .count()
    }

    /// Of the keys that are asked about.
    fn hit_share(&self, keys: &[u128], asked: fn(u128) -> bool) -> f64 {
        let (mut hits, mut all) = (0, 0);
        for key in keys.iter().copied() {
            let hit = self.has(key);
            if !hit {
                self.insert(key);
            }
            if asked(key) {
                all += 1;
                hits += usize::from(hit);
            }
        }
        f64::from(hits as u32) / f64::from(all)
    }
}

type Make = fn(usize) -> Box<dyn Store>;

const CANDIDATES: [(&str, Make); 5] = [
    ("quick_cache", |capacity| Box::new(quick_cache::sync::Cache::<u128, Entry>::new(capacity))),
    ("quick_cache, no ghosts", |capacity| Box::new(without_ghosts(capacity))),
    ("moka (sync)", |capacity| Box::new(moka::sync::Cache::<u128, Entry>::new(capacity as u64))),
    ("scc::HashCache", |capacity| Box::new(scc::HashCache::<u128, Entry>::with_capacity(0, capacity))),
    ("lru in a mutex", |capacity| {
        Box::new(Mutex::new(lru::LruCache::<u128, Entry>::new(capacity.try_into().unwrap())))
    }),
];

/// A ghost is the key of an entry that was displaced, by which its return is noticed. By default there are half
/// as many as entries, and each takes as much room as an entry.
fn without_ghosts(capacity: usize) -> quick_cache::sync::Cache<u128, Entry> {
    let options = quick_cache::OptionsBuilder::new()
        .estimated_items_capacity(capacity)
        .weight_capacity(capacity as u64)
        .ghost_allocation(0.0)
        .build()
        .unwrap();
    quick_cache::sync::Cache::with_options(
        options,
        quick_cache::UnitWeighter,
        Default::default(),
        Default::default(),
    )
}

impl Store for quick_cache::sync::Cache<u128, Entry> {
    fn has(&self, key: u128) -> bool {
        black_box(self.get(&key)).is_some()
    }

    fn insert(&self, key: u128) {
        self.insert(key, ENTRY);
    }

    fn len(&self) -> usize {
        self.len()
    }
}

impl Store for moka::sync::Cache<u128, Entry> {
    fn has(&self, key: u128) -> bool {
        black_box(self.get(&key)).is_some()
    }

    fn insert(&self, key: u128) {
        self.insert(key, ENTRY);
    }

    fn len(&self) -> usize {
        self.run_pending_tasks();
        usize::try_from(self.entry_count()).unwrap()
    }
}

impl Store for scc::HashCache<u128, Entry> {
    fn has(&self, key: u128) -> bool {
        black_box(self.read_sync(&key, |_, entry| *entry)).is_some()
    }

    fn insert(&self, key: u128) {
        let _ = self.put_sync(key, ENTRY);
    }

    fn len(&self) -> usize {
        self.len()
    }
}

impl Store for Mutex<lru::LruCache<u128, Entry>> {
    fn has(&self, key: u128) -> bool {
        black_box(self.lock().unwrap().get(&key).copied()).is_some()
    }

    fn insert(&self, key: u128) {
        self.lock().unwrap().put(key, ENTRY);
    }

    fn len(&self) -> usize {
        self.lock().unwrap().len()
    }
}

/// One candidate; times in nanoseconds.
struct Row {
    name: &'static str,
    make: Make,
    warm: Box<dyn Store>,
    bytes_full: f64,
    bytes_flooded: f64,
    zipf_hits: f64,
    flood_hits: f64,
    hit: f64,
    one_thread: f64,
    two_threads: f64,
    two_threads_hit: f64,
}

impl Row {
    fn new(name: &'static str, make: Make) -> Self {
        let [hit, one_thread, two_threads, two_threads_hit] = [f64::INFINITY; 4];
        let [bytes_full, bytes_flooded, zipf_hits, flood_hits] = [0.0; 4];
        let warm = make(CAPACITY);
        Self {
            name,
            make,
            warm,
            bytes_full,
            bytes_flooded,
            zipf_hits,
            flood_hits,
            hit,
            one_thread,
            two_threads,
            two_threads_hit,
        }
    }

    fn fresh(&self) -> Box<dyn Store> {
        (self.make)(CAPACITY)
    }

    /// The bytes allocated for each entry of a cache for a million entries that was given this many.
    fn bytes_per_entry(&self, given: usize) -> f64 {
        let keys = Keys::new(5).unique(given);
        let mut filled = None;
        let used = measure(|| {
            let store = (self.make)(MILLION);
            store.get_or_insert_all(&keys);
            let len = store.len();
            filled = Some((store, len));
        });
        let (_store, len) = filled.unwrap();
        used.bytes_current as f64 / len as f64
    }
}

fn time<T>(work: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    black_box(work());
    nanoseconds(started.elapsed())
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

fn two_threads(store: &dyn Store, first: &[u128], second: &[u128]) -> f64 {
    at_once([&|| store.get_or_insert_all(first), &|| store.get_or_insert_all(second)])
}

fn two_threads_hit(store: &dyn Store, keys: &[u128]) -> f64 {
    at_once([&|| store.get_all(keys), &|| store.get_all(keys)])
}

/// Until the last one is done.
fn at_once(works: [&(dyn Fn() -> usize + Sync); 2]) -> f64 {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let threads = works.map(|work| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                time(work)
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    })
}

/// Keys are hashes already, so each rank has a random one.
struct Keys {
    state: u64,
}

/// Set in the keys that come once, of the flood.
const UNIQUE: u128 = 1;

const fn is_known(key: u128) -> bool {
    key & UNIQUE == 0
}

/// The key of an item that may be asked about again.
fn key_of(rank: usize) -> u128 {
    let mut keys = Keys::new(rank as u64 ^ 0xa5a5_5a5a_0f0f_f0f0);
    (u128::from(keys.next()) << 64 | u128::from(keys.next())) & !UNIQUE
}

impl Keys {
    const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// SplitMix64.
    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn unique_key(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next()) | UNIQUE
    }

    fn unique(mut self, count: usize) -> Vec<u128> {
        (0..count).map(|_| self.unique_key()).collect()
    }

    fn uniform(mut self, count: usize, items: usize) -> Vec<u128> {
        (0..count).map(|_| key_of((self.next() % items as u64) as usize)).collect()
    }

    /// The item of rank `n` comes in proportion to `1 / n`.
    fn zipf(mut self, count: usize, items: usize) -> Vec<u128> {
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=items)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        (0..count)
            .map(|_| {
                let point = self.fraction() * sum;
                key_of(sums.partition_point(|sum| *sum < point))
            })
            .collect()
    }

    /// Three of four keys come this once; the others are of so many items, by Zipf.
    fn flooded(mut self, count: usize, items: usize) -> Vec<u128> {
        let known = Self::new(self.next()).zipf(count, items);
        known
            .into_iter()
            .map(|key| if self.next().is_multiple_of(4) { key } else { self.unique_key() })
            .collect()
    }
}
