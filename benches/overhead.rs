//! What the layer adds to a request, beside the afternoon layer: `cargo bench --bench overhead`.
//!
//! Not with criterion, which measures one thing after the other: here all rows are measured in turns, in many
//! short rounds of which the best counts. So whatever else the machine does strikes all rows alike, and the
//! ratios hold on a noisy machine even where the nanoseconds do not. Requests are made outside of the time that
//! is taken, with a header value that shares its buffer, as an HTTP server makes it.
//!
//! Misses over a socket are counted in CPU time of the thread that asks; the fake Apple has another thread.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

mod baseline;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod loopback;

use std::{
    convert::Infallible,
    hint::black_box,
    time::{Duration, Instant},
};

use common::{TEAM_ID, afternoon, bare_service, fresh_token, ours, request, resident_memory};
use cpu_time::ThreadTime;
use futures::{FutureExt, future::join_all};
use http::{HeaderValue, Request, Response, request};
use loopback::{Loopback, spend};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt};
use tower_devicecheck::{
    Environment, Route, Verdict,
    cache::{CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    testing::Reply,
};

const BATCH: usize = 500;
const ROUNDS: usize = 300;

const MISSES: usize = 200;
const MISS_ROUNDS: usize = 40;
const WARM_UP: usize = 20;
const CONCURRENCY: [usize; 2] = [1, 64];

fn main() {
    let memory = memory_of_a_million();
    // moka's timeout wants a runtime around it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut bounds = in_process(&runtime);
    bounds.push(over_loopback(&runtime));
    bounds.extend(crowds(&runtime));
    bounds.push(memory);

    println!("\n| bound | measured | at most | |");
    println!("|---|---:|---:|---|");
    for Bound { name, measured, at_most } in bounds {
        let Some(measured) = measured else {
            println!("| {name} | not measured here | {at_most} | |");
            continue;
        };
        let verdict = if measured <= at_most { "kept" } else { "MISSED" };
        println!("| {name} | {measured:.2} | {at_most} | {verdict} |");
    }
}

/// What is promised.
struct Bound {
    name: &'static str,
    measured: Option<f64>,
    at_most: f64,
}

impl Bound {
    fn new(name: &'static str, measured: impl Into<Option<f64>>, at_most: f64) -> Self {
        Self { name, measured: measured.into(), at_most }
    }
}

/// One service under one kind of request.
struct Case {
    run: Box<dyn FnMut(Request<()>) -> bool>,
    token: Option<HeaderValue>,
    best: Duration,
}

impl Case {
    /// Every request with this token, or each with a new one.
    fn new<S, B>(token: Option<&HeaderValue>, mut service: S) -> Self
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + 'static,
    {
        let run = move |request| {
            let response = service.call(request).now_or_never().unwrap().unwrap();
            black_box(response).status().is_success()
        };
        Self { run: Box::new(run), token: token.cloned(), best: Duration::MAX }
    }

    fn round(&mut self) {
        let requests: Vec<_> =
            (0..BATCH).map(|_| request(self.token.clone().unwrap_or_else(fresh_token))).collect();
        let started = Instant::now();
        for request in requests {
            black_box((self.run)(request));
        }
        self.best = self.best.min(started.elapsed());
    }

    fn nanoseconds(&self) -> f64 {
        self.best.as_nanos() as f64 / BATCH as f64
    }
}

fn in_process(runtime: &Runtime) -> Vec<Bound> {
    let _entered = runtime.enter();
    let token = fresh_token();
    let known = Some(&token);
    let exempt = |_: &request::Parts| Route::Exempt;
    let mut bare = Case::new(known, bare_service());
    let genuine = || ours(Verdict::Genuine).layer(bare_service());
    let exempt = ours(Verdict::Genuine).with_routing(exempt).layer(bare_service());
    let refused = ours(Verdict::Refused).layer(bare_service());
    let mut rows = [
        ("exempt", Case::new(known, exempt), None),
        ("hit", Case::new(known, genuine()), Some(Case::new(known, afternoon(Verdict::Genuine)))),
        ("refused, cached", Case::new(known, refused), Some(Case::new(known, afternoon(Verdict::Refused)))),
        (
            "miss, instant verifier",
            Case::new(None, genuine()),
            Some(Case::new(None, afternoon(Verdict::Genuine))),
        ),
    ];
    for _ in 0..ROUNDS {
        bare.round();
        for (_, ours, theirs) in &mut rows {
            ours.round();
            if let Some(theirs) = theirs {
                theirs.round();
            }
        }
    }

    println!("2,952-character tokens, nanoseconds a request, best of {ROUNDS} rounds of {BATCH} requests\n");
    println!("| | ours | afternoon layer | ours, over bare | ours / theirs, over bare |");
    println!("|---|---:|---:|---:|---:|");
    let bare = bare.nanoseconds();
    println!("| bare service | {bare:.0} | | | |");
    let mut ratios = Vec::new();
    for (name, ours, theirs) in &rows {
        let ours = ours.nanoseconds();
        let over = ours - bare;
        match theirs.as_ref().map(Case::nanoseconds) {
            Some(theirs) => {
                let ratio = over / (theirs - bare);
                println!("| {name} | {ours:.0} | {theirs:.0} | {over:.0} | {ratio:.2} |");
                ratios.push(ratio);
            }
            None => println!("| {name} | {ours:.0} | | {over:.0} | |"),
        }
    }
    vec![
        Bound::new("hit, ours / the afternoon layer's, both over bare", ratios[0], 0.4),
        Bound::new("exempt request over bare, ns", rows[0].1.nanoseconds() - bare, 60.0),
    ]
}

/// The least CPU time that a round took, for a miss, in microseconds.
struct Cpu(f64);

impl Cpu {
    const NONE: Self = Self(f64::INFINITY);

    /// With a service that is new, and so has a connection of its own: the kernel treats each a little
    /// differently, and for as long as it lives.
    fn round<S, B>(&mut self, runtime: &Runtime, loopback: &Loopback, service: &S, concurrency: usize)
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
    {
        let tokens = |count| (0..count).map(|_| loopback.fresh_token()).collect();
        runtime.block_on(spend(service, tokens(WARM_UP), 1));
        let spent = runtime.block_on(spend(service, tokens(MISSES), concurrency));
        self.0 = self.0.min(spent.cpu.as_secs_f64() * 1e6 / MISSES as f64);
    }
}

fn over_loopback(runtime: &Runtime) -> Bound {
    let loopback = Loopback::start();
    println!(
        "\nMisses over loopback, microseconds of the client's CPU, best of {MISS_ROUNDS} rounds of {MISSES}\n"
    );
    println!(
        "| at once | ours | afternoon layer | over HTTP/1.1 | reqwest alone | ours, over reqwest | ours / theirs |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    let mut worst = 0.0_f64;
    for concurrency in CONCURRENCY {
        let [mut our, mut their, mut over_http1, mut alone] = [const { Cpu::NONE }; 4];
        for _ in 0..MISS_ROUNDS {
            our.round(runtime, &loopback, &loopback.ours(), concurrency);
            their.round(runtime, &loopback, &loopback.afternoon(true), concurrency);
            over_http1.round(runtime, &loopback, &loopback.afternoon(false), concurrency);
            alone.round(runtime, &loopback, &loopback.transport(), concurrency);
        }
        let ratio = our.0 / their.0;
        println!(
            "| {concurrency} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {ratio:.2} |",
            our.0,
            their.0,
            over_http1.0,
            alone.0,
            our.0 - alone.0
        );
        worst = worst.max(ratio);
    }
    Bound::new("CPU a miss over loopback, ours / the afternoon layer's", worst, 0.9)
}

/// 500 requests at once. The afternoon layer's connections are those of HTTP/1.1, its default here.
fn crowds(runtime: &Runtime) -> [Bound; 3] {
    const CROWD: usize = 500;

    /// Returns the microseconds of CPU that a request took, connections included.
    async fn send<S, B>(service: S, tokens: Vec<HeaderValue>) -> f64
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
    {
        let calls: Vec<_> = tokens.into_iter().map(|token| service.clone().oneshot(request(token))).collect();
        let cpu = ThreadTime::now();
        let responses = join_all(calls).await;
        let cpu = cpu.elapsed();
        assert!(
            responses
                .iter()
                .all(|response| response.as_ref().is_ok_and(|response| response.status().is_success()))
        );
        cpu.as_secs_f64() * 1e6 / CROWD as f64
    }

    /// Calls, connections and provider tokens.
    fn counts(loopback: &Loopback) -> [usize; 3] {
        let apple = loopback.apple();
        [apple.calls(), loopback.server().connections(), apple.provider_tokens()]
    }

    println!("\n{CROWD} requests at once, over loopback\n");
    println!("| | calls | connections | provider tokens | microseconds of CPU a request |");
    println!("|---|---:|---:|---:|---:|");
    let print = |name, [calls, connections, provider_tokens]: [usize; 3], cpu: f64| {
        println!("| {name} | {calls} | {connections} | {provider_tokens} | {cpu:.0} |");
    };
    let slow = || Reply::normal().delay(Duration::from_millis(50));
    let one = |loopback: &Loopback| vec![loopback.fresh_token(); CROWD];
    let many = |loopback: &Loopback| (0..CROWD).map(|_| loopback.fresh_token()).collect();

    let loopback = Loopback::start();
    loopback.apple().always(slow());
    let cpu = runtime.block_on(send(loopback.ours(), one(&loopback)));
    let our_one = counts(&loopback);
    print("one token, ours", our_one, cpu);

    let loopback = Loopback::start();
    loopback.apple().always(slow());
    let cpu = runtime.block_on(send(loopback.afternoon(false), one(&loopback)));
    print("one token, afternoon layer", counts(&loopback), cpu);

    let loopback = Loopback::start();
    let cpu = runtime.block_on(send(loopback.ours(), many(&loopback)));
    let our_many = counts(&loopback);
    print("500 tokens, ours", our_many, cpu);

    for (name, http2) in
        [("500 tokens, afternoon layer", false), ("500 tokens, afternoon layer over HTTP/2", true)]
    {
        let loopback = Loopback::start();
        let cpu = runtime.block_on(send(loopback.afternoon(http2), many(&loopback)));
        print(name, counts(&loopback), cpu);
    }

    let [calls, ..] = our_one;
    let [_, connections, provider_tokens] = our_many;
    [
        Bound::new("calls for 500 concurrent requests with one token", calls as f64, 1.0),
        Bound::new("connections for 500 concurrent requests with 500 tokens", connections as f64, 2.0),
        Bound::new("provider tokens signed for them", provider_tokens as f64, 1.0),
    ]
}

/// By what the process grows. A test has the exact count of what is allocated.
fn memory_of_a_million() -> Bound {
    const MILLION: usize = 1_000_000;
    let before = resident_memory();
    let cache = MemoryCache::with_capacity(MILLION, 1_000);
    for number in 0..MILLION {
        let token = format!("{number:012}").parse().unwrap();
        let key = VerdictKey::new(TEAM_ID, Environment::Production, &token);
        let now = std::time::SystemTime::now();
        let cached = CachedVerdict::new(Verdict::Genuine, key.digest(), now, Duration::from_secs(300));
        cache.put(&key, cached).now_or_never().unwrap().unwrap();
    }
    let megabytes =
        resident_memory().zip(before).map(|(after, before)| after.saturating_sub(before) as f64 / 1e6);
    assert!(cache.genuine_len() > MILLION * 95 / 100);
    Bound::new("resident memory for 1,000,000 cached verdicts, MB", megabytes, 150.0)
}
