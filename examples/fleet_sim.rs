//! How many calls to Apple a fleet makes, how many hits it has and how much memory that takes: `cargo run
//! --release --example fleet_sim`. The tables in `docs/scaling.md` are its output. No network, no clock, the
//! same numbers every time.
//!
//! It models what the layer does with a token, not how fast: devices make a token, use it for a number of
//! requests spread over a while, and make the next one. Requests go to a random replica. A verdict is good for
//! five minutes, counted from the start of the check; requests for a token that a replica asks about wait for
//! that answer.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates"
)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

/// Microseconds.
type Time = u64;

const MILLISECOND: Time = 1_000;
const SECOND: Time = 1_000_000;
const TIME_TO_LIVE: Time = 300 * SECOND;
/// How long Apple takes.
const APPLE: Time = 150 * MILLISECOND;
/// Bytes for a verdict in a `MemoryCache`; measured by a test of this crate.
const IN_PROCESS: f64 = 100.0;
/// Bytes for a verdict or a spent token in Redis 7, key and overhead included; measured with `INFO memory`.
const IN_REDIS: f64 = 277.0;

#[derive(Clone, Copy)]
struct Fleet {
    /// Requests a second, over all replicas.
    rate: u64,
    replicas: usize,
    /// Requests per token.
    reuse: u64,
    /// Over which these are spread.
    spread: Time,
    sharing: Sharing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// A cache in each process.
    Nothing,
    /// `Tiered::new(MemoryCache, RedisCache)`.
    Redis,
    /// The same with fleet-wide single flight.
    FleetSingleFlight,
    /// Single-use mode: a token admits one request.
    SingleUse,
}

#[derive(Default)]
struct Outcome {
    requests: u64,
    calls: u64,
    local_hits: u64,
    shared_hits: u64,
    waits: u64,
    reused: u64,
    /// Round trips to Redis.
    round_trips: u64,
    tokens: u64,
}

/// A pseudo-random sequence (xorshift64*), so that every run is the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % limit.max(1)
    }
}

/// The knowledge of one process, or of Redis, about one token: the time of the question and of the answer.
#[derive(Clone, Copy)]
struct Check {
    began: Time,
}

impl Check {
    const fn is_under_way(self, now: Time) -> bool {
        now < self.began + APPLE
    }

    const fn is_good(self, now: Time) -> bool {
        !self.is_under_way(now) && now < self.began + TIME_TO_LIVE
    }
}

fn simulate(fleet: Fleet) -> Outcome {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut outcome = Outcome::default();
    // A sample of the tokens is as good as all of them: they do not influence each other.
    let tokens = 20_000;
    for _ in 0..tokens {
        outcome.tokens += 1;
        let mut arrivals: BinaryHeap<Reverse<Time>> =
            (0..fleet.reuse).map(|_| Reverse(random.below(fleet.spread))).collect();
        let mut replicas: HashMap<usize, Check> = HashMap::new();
        let mut shared: Option<Check> = None;
        while let Some(Reverse(now)) = arrivals.pop() {
            outcome.requests += 1;
            let replica = random.below(fleet.replicas as u64) as usize;
            if fleet.sharing == Sharing::SingleUse {
                // Reserve; the first one also confirms.
                if shared.is_some() {
                    outcome.reused += 1;
                    outcome.round_trips += 1;
                } else {
                    shared = Some(Check { began: now });
                    outcome.calls += 1;
                    outcome.round_trips += 2;
                }
                continue;
            }
            match replicas.get(&replica) {
                Some(check) if check.is_good(now) => {
                    outcome.local_hits += 1;
                    continue;
                }
                Some(check) if check.is_under_way(now) => {
                    outcome.waits += 1;
                    continue;
                }
                _ => {}
            }
            let sees = match fleet.sharing {
                Sharing::Nothing => None,
                _ => shared,
            };
            if fleet.sharing != Sharing::Nothing {
                outcome.round_trips += 1;
            }
            match sees {
                Some(check) if check.is_good(now) => {
                    outcome.shared_hits += 1;
                    replicas.insert(replica, check);
                }
                Some(check) if check.is_under_way(now) && fleet.sharing == Sharing::FleetSingleFlight => {
                    outcome.waits += 1;
                    // Looks every 10 to 50 ms.
                    outcome.round_trips += 1 + (check.began + APPLE - now) / (40 * MILLISECOND);
                    replicas.insert(replica, check);
                }
                _ => {
                    outcome.calls += 1;
                    let check = Check { began: now };
                    replicas.insert(replica, check);
                    match fleet.sharing {
                        Sharing::Redis => {
                            outcome.round_trips += 1;
                            shared = Some(shared.filter(|other| other.is_under_way(now)).unwrap_or(check));
                        }
                        Sharing::FleetSingleFlight => {
                            outcome.round_trips += 3;
                            shared = Some(check);
                        }
                        Sharing::Nothing | Sharing::SingleUse => {}
                    }
                }
            }
        }
    }
    outcome
}

fn main() {
    let fleets = [(1_000, 1), (1_000, 3), (100_000, 40)];
    let sharings = [
        ("in the process", Sharing::Nothing),
        ("Redis", Sharing::Redis),
        ("Redis, fleet-wide single flight", Sharing::FleetSingleFlight),
        ("single use, Redis", Sharing::SingleUse),
    ];
    let uses = [
        (1, MILLISECOND, "1 request"),
        (5, 2 * SECOND, "5 within 2 s"),
        (20, 60 * SECOND, "20 within 1 min"),
        (60, 300 * SECOND, "60 within 5 min"),
    ];
    println!(
        "| requests/s | replicas | uses of a token | cache | calls to Apple/s | calls in flight | admitted \
         without a call | Redis commands/s | MB per process | MB in Redis |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (rate, replicas) in fleets {
        for (reuse, spread, uses) in uses {
            for (name, sharing) in sharings {
                let alone = replicas == 1 && sharing != Sharing::Nothing;
                // With single use, all requests but one of a token are refused: the app makes one for each.
                if alone || (reuse > 1 && sharing == Sharing::SingleUse) {
                    continue;
                }
                row(&Fleet { rate, replicas, reuse, spread, sharing }, name, uses);
            }
        }
    }
}

fn row(fleet: &Fleet, name: &str, uses: &str) {
    let outcome = simulate(*fleet);
    let requests = outcome.requests as f64;
    let rate = fleet.rate as f64;
    let per_second = |count: u64| count as f64 / requests * rate;
    let calls = per_second(outcome.calls);
    let tokens = per_second(outcome.tokens);
    let seconds = (TIME_TO_LIVE / SECOND) as f64;
    let megabytes = |entries: f64, bytes: f64| entries * bytes / 1e6;
    // A process keeps the answers to its own calls, and those that it found in Redis.
    let entries = per_second(outcome.calls + outcome.shared_hits) / fleet.replicas as f64 * seconds;
    let (process, redis) = match fleet.sharing {
        Sharing::Nothing => (megabytes(entries, IN_PROCESS), 0.0),
        Sharing::Redis | Sharing::FleetSingleFlight => {
            (megabytes(entries, IN_PROCESS), megabytes(tokens * seconds, IN_REDIS))
        }
        // Spent tokens are remembered for an hour.
        Sharing::SingleUse => (0.0, megabytes(tokens * 3_600.0, IN_REDIS)),
    };
    let hits = (outcome.local_hits + outcome.shared_hits + outcome.waits) as f64 / requests * 100.0;
    println!(
        "| {} | {} | {uses} | {name} | {calls:.0} | {:.0} | {hits:.1} % | {:.0} | {process:.1} | {redis:.0} |",
        fleet.rate,
        fleet.replicas,
        calls * APPLE as f64 / SECOND as f64,
        per_second(outcome.round_trips),
    );
}
