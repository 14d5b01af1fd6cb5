//! The cost that the layer adds to a request, beside the afternoon layer: `cargo bench -p tower-devicecheck-benches --bench overhead`.
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

use common::{
    TEAM_ID, afternoon, bare_service, fresh_token, ours, request, resident_memory, session_request, with_jwt,
    with_session,
};
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
const CROWD: usize = 500;
const CROWD_ROUNDS: usize = 10;
/// How many misses at once, and what that is called among the bounds.
const CONCURRENCY: [(usize, &str); 2] =
    [(64, "… 64 at a time, on a warm connection"), (1, "… one at a time, on a warm connection")];
const WITH_HYPER_UTIL: &str = "… the same, with hyper-util's client";

fn main() {
    let memory = memory_of_a_million();
    // moka's timeout wants a runtime around it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut bounds = in_process(&runtime);
    let warm = over_loopback(&runtime);
    bounds.extend(crowds(&runtime));
    bounds.extend(warm);
    bounds.push(memory);

    println!("\n| bound | measured | at most | result |");
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

/// The promised bounds.
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
    request: Box<dyn Fn() -> Request<()>>,
    best: Duration,
}

impl Case {
    /// Every request with this token, or each with a new one.
    fn new<S, B>(token: Option<&HeaderValue>, service: S) -> Self
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + 'static,
    {
        let token = token.cloned();
        Self::with(move || request(token.clone().unwrap_or_else(fresh_token)), service)
    }

    fn with<S, B>(request: impl Fn() -> Request<()> + 'static, mut service: S) -> Self
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + 'static,
    {
        let run = move |request| {
            let response = service.call(request).now_or_never().unwrap().unwrap();
            black_box(response).status().is_success()
        };
        Self { run: Box::new(run), request: Box::new(request), best: Duration::MAX }
    }

    fn round(&mut self) {
        let requests: Vec<_> = (0..BATCH).map(|_| (self.request)()).collect();
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
    let (with_sessions, session) = with_session();
    let shown = move || session_request(session.clone());
    let with_session = Case::with(shown, with_sessions.layer(bare_service()));
    let (with_jwts, jwt) = with_jwt();
    let with_jwt = Case::with(move || session_request(jwt.clone()), with_jwts.layer(bare_service()));
    let mut rows = [
        ("exempt", Case::new(known, exempt), None),
        ("hit", Case::new(known, genuine()), Some(Case::new(known, afternoon(Verdict::Genuine)))),
        ("refused, cached", Case::new(known, refused), Some(Case::new(known, afternoon(Verdict::Refused)))),
        ("session", with_session, None),
        ("session as JWT, remembered", with_jwt, None),
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
    println!("| request | ours | afternoon layer | ours, over bare | ours / theirs, over bare |");
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
        Bound::new("hit, ours / the afternoon layer's, both over bare", ratios[0], 0.3),
        Bound::new("exempt request over bare, ns", rows[0].1.nanoseconds() - bare, 60.0),
        Bound::new("request with a session over bare, ns", rows[3].1.nanoseconds() - bare, 1_000.0),
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

fn over_loopback(runtime: &Runtime) -> Vec<Bound> {
    let loopback = Loopback::start();
    println!(
        "\nMisses over loopback, microseconds of the client's CPU, best of {MISS_ROUNDS} rounds of {MISSES}\n"
    );
    println!(
        "| at once | ours | ours, hyper-util's client | afternoon layer | over HTTP/1.1 | reqwest alone | ours / theirs | with hyper-util's client |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut bounds = Vec::new();
    for (concurrency, name) in CONCURRENCY {
        let [mut our, mut hyper_util, mut their, mut over_http1, mut alone] = [const { Cpu::NONE }; 5];
        for _ in 0..MISS_ROUNDS {
            our.round(runtime, &loopback, &loopback.ours(), concurrency);
            hyper_util.round(runtime, &loopback, &loopback.ours_with_hyper_util(), concurrency);
            their.round(runtime, &loopback, &loopback.afternoon(true), concurrency);
            over_http1.round(runtime, &loopback, &loopback.afternoon(false), concurrency);
            alone.round(runtime, &loopback, &loopback.transport(), concurrency);
        }
        let [ratio, hyper_util_ratio] = [our.0 / their.0, hyper_util.0 / their.0];
        println!(
            "| {concurrency} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {ratio:.2} | {hyper_util_ratio:.2} |",
            our.0, hyper_util.0, their.0, over_http1.0, alone.0,
        );
        bounds.push(Bound::new(name, ratio, 1.0));
        bounds.push(Bound::new(WITH_HYPER_UTIL, hyper_util_ratio, 0.8));
    }
    bounds
}

/// 500 requests at once, from clients that have no connection yet. The afternoon layer's connections are those of
/// HTTP/1.1, its default here.
fn crowds(runtime: &Runtime) -> [Bound; 5] {
    println!("\n{CROWD} requests at once, over loopback, connections included, best of {CROWD_ROUNDS}\n");
    println!("| load | calls | connections | provider tokens | microseconds of CPU a request |");
    println!("|---|---:|---:|---:|---:|");
    let one = |loopback: &Loopback| {
        // So that all of them are there before the answer is.
        loopback.apple().always(Reply::normal().delay(Duration::from_millis(50)));
        vec![loopback.fresh_token(); CROWD]
    };
    let many = |loopback: &Loopback| (0..CROWD).map(|_| loopback.fresh_token()).collect();

    let our_one = Crowd::best(runtime, one, Loopback::ours).print("one token, ours");
    Crowd::best(runtime, one, |apple| apple.afternoon(false)).print("one token, afternoon layer");
    let our_many = Crowd::best(runtime, many, Loopback::ours).print("500 tokens, ours");
    let hyper_util = Crowd::best(runtime, many, Loopback::ours_with_hyper_util)
        .print("500 tokens, ours, hyper-util's client");
    Crowd::best(runtime, many, |apple| apple.afternoon(false)).print("500 tokens, afternoon layer");
    let their_many = Crowd::best(runtime, many, |apple| apple.afternoon(true))
        .print("500 tokens, afternoon layer over HTTP/2");
    [
        Bound::new("calls for 500 concurrent requests with one token", our_one.calls as f64, 1.0),
        Bound::new(
            "connections for 500 concurrent requests with 500 tokens",
            our_many.connections as f64,
            2.0,
        ),
        Bound::new("provider tokens signed for them", our_many.provider_tokens as f64, 1.0),
        Bound::new(
            "CPU a miss over loopback, ours / the afternoon layer's: 500 new tokens at once",
            our_many.cpu / their_many.cpu,
            1.0,
        ),
        Bound::new(WITH_HYPER_UTIL, hyper_util.cpu / their_many.cpu, 0.8),
    ]
}

/// The cost of a crowd.
struct Crowd {
    calls: usize,
    connections: usize,
    provider_tokens: usize,
    /// Microseconds a request.
    cpu: f64,
}

impl Crowd {
    /// The round with the least CPU time, each with an Apple and a client of its own.
    fn best<S, B>(
        runtime: &Runtime,
        tokens: impl Fn(&Loopback) -> Vec<HeaderValue>,
        service: impl Fn(&Loopback) -> S,
    ) -> Self
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
    {
        let round = |_| {
            let loopback = Loopback::start();
            let cpu = runtime.block_on(send(service(&loopback), tokens(&loopback)));
            let apple = loopback.apple();
            Self {
                calls: apple.calls(),
                connections: loopback.server().connections(),
                provider_tokens: apple.provider_tokens(),
                cpu: cpu.as_secs_f64() * 1e6 / CROWD as f64,
            }
        };
        (0..CROWD_ROUNDS).map(round).min_by(|one, other| one.cpu.total_cmp(&other.cpu)).unwrap()
    }

    fn print(self, name: &str) -> Self {
        let Self { calls, connections, provider_tokens, cpu } = self;
        println!("| {name} | {calls} | {connections} | {provider_tokens} | {cpu:.0} |");
        self
    }
}

/// Sends a request with each of these tokens at once, all of which must be admitted.
async fn send<S, B>(service: S, tokens: Vec<HeaderValue>) -> Duration
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
    cpu
}

/// The growth of the process. A test has the exact count of what is allocated.
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
