//! The books of the run: verdicts that requests were admitted by, and the most calls that they may have cost.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tower_devicecheck::{
    Event, Observer, Outcome, Rejection, TokenDigest, VerifiedDevice, app_attest::AttestedDevice,
    session::Session,
};

use super::tally::Tally;

/// The time for which the layers of the soak remember that a token is genuine.
pub(super) const TIME_TO_LIVE: Duration = Duration::from_secs(10);
/// Longer than any request looks back.
const KEPT: Duration = Duration::from_secs(90);
/// Wall clocks are read at slightly different moments, and Redis keeps milliseconds.
const SLACK: Duration = Duration::from_millis(20);

/// The header of requests with a token whose first clients may leave. Once all of them have gone, the next one asks anew.
pub(super) const HAS_LEAVERS: &str = "x-soak-has-leavers";

/// The purpose of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Device tokens, whose verdicts are remembered.
    Remembering,
    /// Device tokens that count once.
    Once,
    /// Sessions, or assertions in the first place.
    Other,
}

/// Things that were seen, for as long as they may be seen again.
#[derive(Debug)]
struct Seen<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Seen<K, V> {
    fn default() -> Self {
        // More than there are, so that its size does not follow the traffic.
        Self(Mutex::new(HashMap::with_capacity(28_000)))
    }
}

impl<K: Hash + Eq, V> Seen<K, V> {
    fn replace(&self, key: K, value: V) -> Option<V> {
        self.0.lock().unwrap().insert(key, (value, Instant::now())).map(|(value, _)| value)
    }

    fn prune(&self) {
        self.0.lock().unwrap().retain(|_, (_, at)| at.elapsed() < KEPT);
    }
}

/// Counts of what may have cost a call.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paid {
    /// Verdicts that Apple gave, each counted once however many requests it served.
    pub(super) verdicts: usize,
    /// Tokens that were refused.
    pub(super) refusals: usize,
    /// Requests that failed, but not because Apple was known to be down.
    pub(super) failed: usize,
    /// Requests with a token of their own whose client left.
    pub(super) left: usize,
}

impl std::ops::Sub for Paid {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            verdicts: self.verdicts - before.verdicts,
            refusals: self.refusals - before.refusals,
            failed: self.failed - before.failed,
            left: self.left - before.left,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Books {
    verdicts: Seen<TokenDigest, SystemTime>,
    refused: Seen<TokenDigest, ()>,
    /// Tokens, sessions and assertions that count once.
    spent: Seen<String, ()>,
    paid: Mutex<Paid>,
    pub(super) left: AtomicUsize,
    tally: Arc<Tally>,
}

impl Books {
    pub(super) fn new(tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self { tally, ..Self::default() })
    }

    pub(super) fn at(self: &Arc<Self>, door: Door) -> Bookkeeper {
        Bookkeeper { books: Arc::clone(self), door }
    }

    pub(super) fn paid(&self) -> Paid {
        Paid { left: self.left.load(Ordering::SeqCst), ..*self.paid.lock().unwrap() }
    }

    pub(super) fn prune(&self) {
        self.verdicts.prune();
        self.refused.prune();
        self.spent.prune();
    }

    fn verified(&self, door: Door, device: &VerifiedDevice, has_leavers: bool) {
        if let Some(attested) = AttestedDevice::of(device) {
            return self.spend(&format!("assertion {:?} {}", attested.key_id(), attested.counter()));
        }
        if let Some(session) = Session::of(device) {
            if session.is_limited_use() {
                self.spend(&format!("session {}", session.id()));
            }
            return;
        }
        if door == Door::Once {
            self.spend(&format!("token {}", device.digest()));
        }
        let asked_at = device.verified_at();
        let before = self.verdicts.replace(device.digest(), asked_at);
        let since =
            before.map(|before| asked_at.duration_since(before).unwrap_or_else(|early| early.duration()));
        // Another request has told of this verdict.
        if since.is_some_and(|since| since < SLACK) {
            return;
        }
        if door == Door::Remembering
            && !has_leavers
            && since.is_some_and(|since| since + SLACK < TIME_TO_LIVE)
        {
            self.tally.alarm.ring(format!("Apple was asked twice about one token within {since:?}"));
        }
        self.paid.lock().unwrap().verdicts += 1;
    }

    fn spend(&self, thing: &str) {
        if self.spent.replace(thing.to_owned(), ()).is_some() {
            self.tally.alarm.ring(format!("admitted twice: {thing}"));
        }
    }
}

/// The observer of one layer.
#[derive(Debug)]
pub(super) struct Bookkeeper {
    books: Arc<Books>,
    door: Door,
}

impl Observer for Bookkeeper {
    fn decision(&self, event: &Event<'_>) {
        match event.outcome() {
            Outcome::Verified(device) => {
                let has_leavers = event.head().headers.contains_key(HAS_LEAVERS);
                self.books.verified(self.door, device, has_leavers);
            }
            Outcome::Rejected(Rejection::RefusedToken) if self.door != Door::Other => {
                let is_new =
                    event.digest().is_none_or(|digest| self.books.refused.replace(digest, ()).is_none());
                self.books.paid.lock().unwrap().refusals += usize::from(is_new);
            }
            Outcome::Rejected(rejection)
                if rejection.status().is_server_error() && self.door != Door::Other =>
            {
                let was_asked = event.error().is_none_or(|error| !error.is_known_outage());
                self.books.paid.lock().unwrap().failed += usize::from(was_asked);
            }
            _ => {}
        }
    }
}

/// A part of the run in which Apple behaved in one way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) paid: Paid,
    pub(super) time: Duration,
    /// Each call fails in a way that opens the breaker, or the back-off of refused credentials.
    pub(super) is_outage: bool,
    /// Calls may end without an answer.
    pub(super) is_silent: bool,
    /// There are answers after which a call is made once more.
    pub(super) is_retried: bool,
}

/// The calls that the client may have in flight.
pub(super) const SLOTS: usize = 16;
/// The failures in a row that open the breaker of a client with so few slots.
const THRESHOLD: usize = SLOTS;
/// Requests whose call counts for one span, and whose decision for the next one. A cache and a guard may take half a second
/// after the answer.
const AT_THE_EDGE: usize = 4 * SLOTS;
/// Retries after an answer: 10 that were saved up, and 15 for each 100 calls.
const BUDGET: (usize, usize) = (10, 15);

impl Span {
    /// The most calls that Apple may have got in this span.
    ///
    /// * A verdict and a refusal cost one call each, however many requests wait for it, and none for as long as it is
    ///   remembered. A request whose client left costs one at most: once sent, it is finished.
    /// * A request that failed costs one at most. In an outage, the breaker opens after its threshold of failures, when as
    ///   many calls as there are slots may be in flight; from then on, one call a second probes. An outage may begin twice: a
    ///   late answer from before closes the breaker again.
    /// * Where there was no answer, each call is made a second time at most. After an answer of 502 to 504, the budget of
    ///   retries decides. An outage takes the calls of all slots along, each of which may be made again: after a connection
    ///   that broke, or with a renewed provider token.
    pub(super) fn most_calls(&self) -> usize {
        let probes = usize::try_from(self.time.as_secs()).unwrap() + 1;
        let failed = match self.is_outage {
            true => self.paid.failed.min(2 * (THRESHOLD + SLOTS)) + probes,
            false => self.paid.failed,
        };
        let asked = self.paid.verdicts + self.paid.refusals + self.paid.left + failed;
        let mut repeats = if self.is_silent { asked } else { 0 };
        repeats += if self.is_outage { SLOTS } else { 0 };
        repeats += if self.is_retried { BUDGET.0 + asked * BUDGET.1 / 100 } else { 0 };
        asked + repeats + AT_THE_EDGE
    }
}

#[test]
fn the_model_of_calls_is_tight_where_nothing_is_at_fault_and_bounded_in_an_outage() {
    let calm = Span {
        paid: Paid { verdicts: 1_000, refusals: 100, failed: 0, left: 10 },
        time: Duration::from_secs(10),
        is_outage: false,
        is_silent: false,
        is_retried: false,
    };
    assert_eq!(calm.most_calls(), 1_110 + 64);
    let paid = Paid { failed: 100_000, ..Paid::default() };
    let outage = Span { paid, is_outage: true, is_silent: true, ..calm };
    assert_eq!(outage.most_calls(), 2 * (64 + 11) + 16 + 64, "however many requests there are");
}
