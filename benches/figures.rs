//! The figures and plots of `docs/performance.md`: `cargo bench -p tower-devicecheck-benches --bench figures`, or with `-- entries`,
//! `-- length`, `-- threads`, `-- concurrency` one of them. Takes minutes and 2 GB of memory.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod baseline;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod loopback;
mod plot;

use std::{
    convert::Infallible,
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use common::{TEAM_ID, afternoon, bare_service, fresh_token, header_value, ours, request, resident_memory};
use futures::FutureExt;
use http::{HeaderValue, Request, Response};
use loopback::{Loopback, Spent, spend};
use plot::{Axis, Line, Panel, SeriesLabelPosition, plot};
use tokio::runtime::Runtime;
use tower::{Layer, Service};
use tower_devicecheck::{
    Candidate, DeviceToken, Environment, TokenDigest, Verdict,
    cache::{CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    testing::token_of_length,
};

const OURS: &str = "ours";
const AFTERNOON: &str = "afternoon layer";

fn main() {
    // `cargo bench` adds an argument of its own.
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if is_wanted("length") {
        length(&runtime);
    }
    if is_wanted("threads") {
        threads();
    }
    if is_wanted("concurrency") {
        concurrency(&runtime);
    }
    if is_wanted("entries") {
        entries();
    }
}

/// A hit with ever more entries, of which each request asks about a random one.
fn entries() {
    const ROUNDS: usize = 200;
    // So few that the texts of their tokens stay in the processor's cache, as those of a server do.
    const BATCH: u64 = 100;

    println!("\n| entries | ns a hit | resident bytes an entry |");
    println!("|---:|---:|---:|");
    let mut random = 0_u64;
    // Computing each would take most of the time.
    let any_digest = DeviceToken::try_from(Candidate::new(numbered(0))).unwrap().digest();
    for count in [1_000, 10_000, 100_000, 1_000_000, 10_000_000] {
        let before = resident_memory();
        // With some room, since its parts are not filled evenly.
        let cache = MemoryCache::with_capacity(count / 4 * 5, 1_000);
        for number in 0..count as u64 {
            let token = DeviceToken::try_from(Candidate::new(numbered(number))).unwrap();
            let key = VerdictKey::new(TEAM_ID, Environment::Production, &token);
            remember(&cache, &key, any_digest);
        }
        assert_eq!(cache.genuine_len(), count);
        let resident = resident_memory().zip(before).map(|(after, before)| after.saturating_sub(before));
        let mut service = ours(Verdict::Genuine).with_cache(cache).layer(bare_service());
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            let requests: Vec<_> = (0..BATCH)
                .map(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    request(numbered((random >> 33) % count as u64))
                })
                .collect();
            best = best.min(handle(&mut service, requests));
        }
        let nanoseconds = best.as_nanos() as f64 / BATCH as f64;
        let bytes = resident
            .filter(|_| count >= 1_000_000)
            .map_or_else(String::new, |bytes| (bytes / count).to_string());
        println!("| {count} | {nanoseconds:.0} | {bytes} |");
    }
}

/// A token of 2,952 characters with a number in it.
fn numbered(number: u64) -> HeaderValue {
    header_value(format!("{number:A>2952}"))
}

fn remember(cache: &MemoryCache, key: &VerdictKey<'_>, digest: TokenDigest) {
    let now = std::time::SystemTime::now();
    let cached = CachedVerdict::new(Verdict::Genuine, digest, now, Duration::from_secs(3_600));
    cache.put(key, cached).now_or_never().unwrap().unwrap();
}

fn handle<S, B>(service: &mut S, requests: Vec<Request<()>>) -> Duration
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let started = Instant::now();
    for request in requests {
        black_box(service.call(request).now_or_never());
    }
    started.elapsed()
}

/// A hit with tokens of different lengths.
fn length(runtime: &Runtime) {
    const ROUNDS: usize = 150;
    const BATCH: usize = 300;

    let _entered = runtime.enter();
    // In bytes, four thirds of which are characters; the longest is the limit.
    let lengths = [154, 384, 768, 1_152, 1_536, 2_214, 3_072, 4_608, 6_144];
    let mut best = vec![[Duration::MAX; 3]; lengths.len()];
    let mut bare = bare_service();
    let mut ours = ours(Verdict::Genuine).layer(bare_service());
    let mut theirs = afternoon(Verdict::Genuine);
    let tokens: Vec<_> = lengths.map(|bytes| header_value(token_of_length(bytes))).into_iter().collect();
    for _ in 0..ROUNDS {
        for (token, [bare_best, our_best, their_best]) in tokens.iter().zip(&mut best) {
            let requests = || (0..BATCH).map(|_| request(token.clone())).collect();
            *bare_best = (*bare_best).min(handle(&mut bare, requests()));
            *our_best = (*our_best).min(handle(&mut ours, requests()));
            *their_best = (*their_best).min(handle(&mut theirs, requests()));
        }
    }

    let nanoseconds = |duration: Duration| duration.as_nanos() as f64 / BATCH as f64;
    println!("\n| characters | {OURS} | {AFTERNOON} | ours / theirs |");
    println!("|---:|---:|---:|---:|");
    let mut lines = [Line::new(OURS), Line::new(AFTERNOON)];
    for (token, best) in tokens.iter().zip(best) {
        let [bare, ours, theirs] = best.map(nanoseconds);
        let (ours, theirs) = (ours - bare, theirs - bare);
        println!("| {} | {ours:.0} | {theirs:.0} | {:.2} |", token.len(), ours / theirs);
        lines[0].push(token.len() as f64, ours);
        lines[1].push(token.len() as f64, theirs);
    }
    plot(
        "performance-token-length.svg",
        &[Panel {
            title: "Cost of a hit, over the bare service",
            x: Axis::linear("characters of the token"),
            y: Axis::linear("ns"),
            lines: &lines,
            legend: SeriesLabelPosition::UpperLeft,
        }],
    );
}

/// Hits on one and two threads, of services that share one layer, with one token and with many.
fn threads() {
    const ROUNDS: usize = 300;
    const BATCH: usize = 2_000;

    let tokens: Vec<_> = (0..1_000).map(|_| fresh_token()).collect();
    println!("\n| million hits a second | 1 thread | 2 threads | gain |");
    println!("|---|---:|---:|---:|");
    let print = |name, tokens: &[HeaderValue], afternoon_layer: bool| {
        let ours = ours(Verdict::Genuine).layer(bare_service());
        let theirs = afternoon(Verdict::Genuine);
        let work = |barrier: &Barrier| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _entered = runtime.enter();
            // Requests share no buffer between threads.
            let copies = tokens.iter().map(|token| header_value(token.to_str().unwrap().to_owned()));
            let copies: Vec<_> = copies.collect();
            let requests: Vec<_> =
                (0..BATCH).map(|index| request(copies[index % copies.len()].clone())).collect();
            barrier.wait();
            if afternoon_layer {
                let mut service = theirs.clone();
                handle(&mut service, requests)
            } else {
                let mut service = ours.clone();
                handle(&mut service, requests)
            }
        };
        let [mut one, mut two] = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            one = one.min(work(&Barrier::new(1)));
            two = two.min(at_once(&work));
        }
        let (one, two) = (BATCH as f64 / one.as_micros() as f64, 2.0 * BATCH as f64 / two.as_micros() as f64);
        println!("| {name} | {one:.2} | {two:.2} | x {:.2} |", two / one);
    };
    print("ours, one token", &tokens[..1], false);
    print("ours, 1,000 tokens", &tokens, false);
    print("afternoon layer, one token", &tokens[..1], true);
    print("afternoon layer, 1,000 tokens", &tokens, true);
}

/// The time that the slower of two threads takes.
fn at_once(work: &(dyn Fn(&Barrier) -> Duration + Sync)) -> Duration {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| work(&barrier)));
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}

/// Misses over loopback, ever more of them at once.
fn concurrency(runtime: &Runtime) {
    const ROUNDS: usize = 7;

    let loopback = Loopback::start();
    println!("\n| at once | {OURS}: checks/s | p50 ms | p99 ms | {AFTERNOON}: checks/s | p50 ms | p99 ms |");
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    let mut throughput = [Line::new(OURS), Line::new(AFTERNOON)];
    let mut latency = [
        Line::new("ours, half of them"),
        Line::new("afternoon layer, half of them"),
        Line::new("ours, 99 %"),
        Line::new("afternoon layer, 99 %"),
    ];
    for at_once in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
        let count = (4 * at_once).max(500);
        let tokens = || (0..count).map(|_| loopback.fresh_token()).collect();
        let mut best: [Option<Spent>; 2] = [None, None];
        for _ in 0..ROUNDS {
            // New connections each time, since the kernel treats some worse than others.
            let spent = [
                runtime.block_on(spend(&loopback.ours(), tokens(), at_once)),
                runtime.block_on(spend(&loopback.afternoon(true), tokens(), at_once)),
            ];
            for (best, spent) in best.iter_mut().zip(spent) {
                if best.as_ref().is_none_or(|best| spent.wall < best.wall) {
                    *best = Some(spent);
                }
            }
        }
        let mut row = format!("| {at_once} |");
        for (index, spent) in best.into_iter().flatten().enumerate() {
            let a_second = count as f64 / spent.wall.as_secs_f64();
            let quantile = |share: usize| spent.latencies[(count - 1) * share / 100].as_secs_f64() * 1e3;
            row += &format!(" {a_second:.0} | {:.2} | {:.2} |", quantile(50), quantile(99));
            throughput[index].push(at_once as f64, a_second);
            latency[index].push(at_once as f64, quantile(50));
            latency[index + 2].push(at_once as f64, quantile(99));
        }
        println!("{row}");
    }
    plot(
        "performance-concurrency.svg",
        &[
            Panel {
                title: "Misses over loopback HTTP/2",
                x: Axis::log("requests at once"),
                y: Axis::linear("checks a second"),
                lines: &throughput,
                legend: SeriesLabelPosition::LowerLeft,
            },
            Panel {
                title: "Their latency",
                x: Axis::log("requests at once"),
                y: Axis::log("ms"),
                lines: &latency,
                legend: SeriesLabelPosition::UpperLeft,
            },
        ],
    );
}
