//! A soak: mixed traffic over real sockets for a minute or half an hour, while Apple and Redis fail in all ways.
//!
//! `.ci/soak` runs it. `SOAK_SECONDS` is the length of the run, 60 by default, and `SOAK_SEED` repeats the order of its
//! faults and requests. `docs/reliability.md` has the report of a long run.
#![allow(clippy::print_stdout, reason = "the report is for people")]

mod books;
mod clients;
mod grpc;
mod members;
mod process;
mod random;
mod report;
mod servers;
mod storms;
mod streams;
mod tally;
mod tokens;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::StatusCode;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tower_devicecheck::{Availability, Environment};

use self::{
    books::{Books, Paid, Span},
    clients::{Clients, IDLE},
    process::{Usage, growth_at_rest},
    random::Random,
    servers::Servers,
    storms::{Deck, Storm},
    tally::Tally,
};

/// Turns begin so often, a few at once. A busy machine takes fewer. One turn may send several requests.
const TICKS_A_SECOND: u32 = 100;
const TURNS_A_TICK: usize = 2;
/// The most turns under way. A turn that finds no room is not taken.
const MOST_TURNS: usize = 256;
/// The longest time from the end of a fault to good service: `Retry-After` may have been 4 seconds, the back-off of
/// refused credentials doubles up to 8 in a storm of 5, and a machine may be busy.
const RECOVERY: Duration = Duration::from_secs(20);

/// The settings of a run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    length: Duration,
    seed: u64,
}

impl Plan {
    fn from_env() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
        };
        let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(60));
        assert!(length >= Duration::from_secs(20), "SOAK_SECONDS: a run needs 20 seconds at least");
        let seed = number("SOAK_SEED").unwrap_or_else(|| {
            u64::from_le_bytes(uuid::Uuid::new_v4().into_bytes()[..8].try_into().unwrap()) >> 32
        });
        Self { length, seed }
    }

    /// In a shorter run, a tenth is over before servers close the connections that a late crowd left idle.
    fn is_long(&self) -> bool {
        self.length >= Duration::from_secs(600)
    }

    /// The end of the run, in which nothing is at fault.
    fn quiet(&self) -> Duration {
        (self.length / 10).max(Duration::from_secs(12))
    }
}

/// A run, and all that it has found out so far.
struct Soak {
    plan: Plan,
    started: Instant,
    clients: Arc<Clients>,
    gauges: PrometheusHandle,
    turns: Arc<Semaphore>,
    samples: Vec<Usage>,
    /// Live memory in KiB while no request is under way and the clients have forgotten their tokens. It does not depend on
    /// the traffic.
    rests: Vec<u64>,
    /// The most calls to Apple of all spans that are over.
    most_calls: usize,
    /// Of the span that is not: what was paid at its start, when that was, and the calls until then.
    open: (Paid, Instant, usize),
    /// The times from the end of a fault to good service, and whether Redis had a fault beside it.
    recoveries: BTreeMap<String, Vec<(Duration, bool)>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, or as long as SOAK_SECONDS says"]
async fn soak() {
    let plan = Plan::from_env();
    println!("soak of {:?}: SOAK_SEED={}", plan.length, plan.seed);
    // Before the client is made, so that gauges begin at zero.
    let gauges = PrometheusBuilder::new().install_recorder().expect("the only soak of its process");
    let tally = Arc::new(Tally::default());
    let books = Books::new(Arc::clone(&tally));
    let servers = Arc::new(Servers::start(&books).await);
    let clients = Clients::new(servers, books, Arc::clone(&tally));
    let mut soak = Soak::new(plan, clients, gauges);
    let alarm = Arc::clone(&tally);
    let violation = tokio::select! {
        violation = alarm.alarm.rung() => Some(violation),
        ended = soak.run() => ended.err(),
    };
    println!("{}", soak.report());
    if let Some(violation) = violation {
        panic!("after {:?}, with SOAK_SEED={}: {violation}", soak.started.elapsed(), plan.seed);
    }
}

impl Soak {
    fn new(plan: Plan, clients: Arc<Clients>, gauges: PrometheusHandle) -> Self {
        let started = Instant::now();
        Self {
            plan,
            started,
            clients,
            gauges,
            turns: Arc::new(Semaphore::new(MOST_TURNS)),
            samples: Vec::new(),
            rests: Vec::new(),
            most_calls: 0,
            open: (Paid::default(), started, 0),
            recoveries: BTreeMap::new(),
        }
    }

    async fn run(&mut self) -> Result<(), String> {
        let turns = Arc::clone(&self.turns);
        let (clients, plan) = (Arc::clone(&self.clients), self.plan);
        let traffic = tokio::spawn(take_turns(clients, Random::new(plan.seed), turns));
        self.weather().await?;
        traffic.abort();
        self.rest().await?;
        self.close_span(None)?;
        self.is_empty().await?;
        self.is_flat()
    }

    /// Storms and calm in turn, and calm at the end.
    async fn weather(&mut self) -> Result<(), String> {
        let mut random = Random::new(!self.plan.seed);
        let mut deck = Deck::new(random.clone());
        let quiet = self.plan.length - self.plan.quiet();
        let seconds =
            |random: &mut Random, from, to| random.time(Duration::from_secs(from), Duration::from_secs(to));
        self.watch(seconds(&mut random, 3, 4)).await;
        while self.started.elapsed() + Duration::from_secs(5) < quiet {
            let next_rest = self.plan.length * (self.rests.len() as u32 + 1) / 10;
            if self.plan.is_long() && self.started.elapsed() > next_rest {
                self.rest().await?;
                self.watch(seconds(&mut random, 2, 4)).await;
            }
            self.close_span(None)?;
            let storm = deck.next();
            let time = seconds(&mut random, 2, 5);
            self.clients.sky.change();
            self.clients.servers.weather.lock().await.begin(storm).await;
            self.watch(time).await;
            self.clients.servers.weather.lock().await.end(storm).await;
            self.recover(storm).await?;
            self.close_span(Some(storm))?;
            self.clients.sky.change();
            self.watch(seconds(&mut random, 2, 4)).await;
        }
        let rest = self.plan.length.saturating_sub(self.started.elapsed());
        self.watch(rest).await;
        Ok(())
    }

    /// Waits until every request has its answer, or has been given up by its client; forgets all tokens; and looks at what
    /// is left. Turns go on afterwards.
    async fn rest(&mut self) -> Result<(), String> {
        let held_back = self.clients.held_back.load(Ordering::SeqCst);
        let all = self.turns.acquire_many(u32::try_from(MOST_TURNS).unwrap());
        let Ok(all) = timeout(Duration::from_secs(30), all).await else {
            return Err("requests are under way half a minute after the last one began".to_owned());
        };
        // Calls whose client has left end, and idle connections are closed.
        sleep(2 * IDLE).await;
        self.clients.forget();
        self.clients.tidy_up();
        self.gauges.run_upkeep();
        sleep(IDLE).await;
        let live = Usage::measure().live;
        println!("{:>6.1} s  at rest: {live} KiB in use", self.started.elapsed().as_secs_f64());
        self.rests.push(live);
        // Turns that wait for a rest are not those of a busy machine.
        self.clients.held_back.store(held_back, Ordering::SeqCst);
        drop(all);
        Ok(())
    }

    /// Samples the process for this time.
    async fn watch(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let pause = (self.plan.length / 600).clamp(Duration::from_millis(100), Duration::from_secs(1));
        while Instant::now() < until {
            self.samples.push(Usage::measure());
            self.clients.tidy_up();
            self.gauges.run_upkeep();
            sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Waits until new tokens are admitted again, at the door of Apple and at that of Redis.
    async fn recover(&mut self, storm: Storm) -> Result<(), String> {
        let began = Instant::now();
        for path in ["/", "/once"] {
            loop {
                let token = self.clients.genuine();
                let status = self.clients.get(path, &token).send().await.map(|response| response.status());
                self.clients.retire(token);
                match status {
                    Ok(StatusCode::OK) => break,
                    Ok(status) if status.is_client_error() => {
                        return Err(format!("after {}: a new token got {status}", storm.name()));
                    }
                    _ => {}
                }
                if began.elapsed() > RECOVERY {
                    return Err(format!(
                        "no service {RECOVERY:?} after the end of {}: {status:?}",
                        storm.name()
                    ));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        let (fault, is_double) = storm.main_fault();
        self.recoveries.entry(fault).or_default().push((began.elapsed(), is_double));
        Ok(())
    }

    /// Ends a span, and compares the calls to Apple in it with the most that there may have been.
    fn close_span(&mut self, storm: Option<Storm>) -> Result<(), String> {
        let (before, since, calls_before) = self.open;
        let (paid, calls) = (self.clients.books.paid(), self.clients.servers.fake.calls());
        self.open = (paid, Instant::now(), calls);
        let span = Span {
            paid: paid - before,
            time: since.elapsed(),
            is_outage: storm.is_some_and(|storm| storm.is_outage()),
            is_silent: storm.is_some_and(|storm| storm.is_silent()),
            is_retried: storm.is_some_and(|storm| storm.is_retried()),
        };
        let (calls, most) = (calls - calls_before, span.most_calls());
        self.most_calls += most;
        let storm = storm.map_or_else(|| "calm".to_owned(), |storm| storm.name());
        println!(
            "{:>6.1} s  {storm}: {} requests so far; {calls} calls to Apple, {most} at most",
            self.started.elapsed().as_secs_f64(),
            self.clients.tally.total(),
        );
        if calls > most {
            return Err(format!("{storm}: {calls} calls to Apple, more than {most}: {span:?}"));
        }
        Ok(())
    }

    /// Nothing waits, nothing is in flight, and nothing is known to be down.
    async fn is_empty(&self) -> Result<(), String> {
        let began = Instant::now();
        let mut left = self.left_over();
        // A call whose client has left may take its whole time.
        while !left.is_empty() && began.elapsed() < Duration::from_secs(10) {
            sleep(Duration::from_millis(100)).await;
            left = self.left_over();
        }
        if left.is_empty() { Ok(()) } else { Err(format!("left at the end: {left:?}")) }
    }

    fn left_over(&self) -> Vec<String> {
        let text = self.gauges.render();
        let names =
            ["devicecheck_apple_in_flight", "devicecheck_apple_waiting", "devicecheck_redis_incidents"];
        let is_left = |line: &&str| {
            names.iter().any(|name| line.starts_with(name))
                && line.rsplit_once(' ').is_some_and(|(_, n)| n != "0")
        };
        let mut left: Vec<_> = text.lines().filter(is_left).map(str::to_owned).collect();
        let availability = self.clients.servers.client.availability(Environment::Production);
        let open = self.clients.servers.gateway.open.count();
        if open > 0 {
            left.push(format!("{open} streams of the provider"));
        }
        let checks = self.clients.servers.checks_in_flight();
        if checks > 0 {
            left.push(format!("{checks} checks"));
        }
        if availability != Availability::Available {
            left.push(format!("Apple is {availability}"));
        }
        left
    }

    fn is_flat(&self) -> Result<(), String> {
        let (early, late) = (Usage::tenth(&self.samples, 1), Usage::tenth(&self.samples, 9));
        let growth =
            Usage::growth(early, late).or_else(|| growth_at_rest(*self.rests.get(1)?, *self.rests.last()?));
        let growth = growth.filter(|_| self.plan.is_long());
        growth.map_or(Ok(()), |growth| Err(format!("the process grows: {growth}")))?;
        let (calm, failures) = (
            self.clients.tally.calm.load(Ordering::SeqCst),
            self.clients.tally.calm_failures.load(Ordering::SeqCst),
        );
        // A machine may be too busy for a deadline now and then.
        if failures > 10 + calm / 500 {
            return Err(format!("{failures} of {calm} genuine requests failed while nothing was at fault"));
        }
        Ok(())
    }
}

/// Begins a turn at a steady rate, until it is aborted. The seed decides the kinds in their order.
async fn take_turns(clients: Arc<Clients>, mut random: Random, turns: Arc<Semaphore>) {
    let mut clock = interval(Duration::from_secs(1) / TICKS_A_SECOND);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        for _ in 0..TURNS_A_TICK {
            let (number, own) = (random.below(100), Random::new(random.number()));
            let Ok(turn) = Arc::clone(&turns).try_acquire_owned() else {
                clients.held_back.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            let clients = Arc::clone(&clients);
            tokio::spawn(async move {
                take_turn(&clients, number, own).await;
                drop(turn);
            });
        }
    }
}

async fn take_turn(clients: &Clients, number: usize, mut random: Random) {
    let random = &mut random;
    match number {
        0..24 => tokens::hit(clients, random).await,
        24..40 => tokens::new(clients).await,
        40..44 => tokens::crowd(clients, random).await,
        44..52 => tokens::refused(clients, random).await,
        52..58 => tokens::cancelled(clients, random).await,
        58..64 => tokens::rubbish(clients, random).await,
        64..71 => tokens::once(clients, random).await,
        71..77 => members::session(clients, random).await,
        77 => members::old_session(clients).await,
        78..82 => members::limited_session(clients, random).await,
        82..87 => members::assertion(clients, random).await,
        87..93 => streams::any(clients, random).await,
        _ => grpc::any(clients, random).await,
    }
}
