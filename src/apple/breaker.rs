//! The breaker: while Apple is down, or wants to be left alone, no request waits for it.

use std::{fmt, time::Duration};

use tracing::{Level, event};

use crate::apple::per_environment::PerEnvironment;
use crate::gate::error::{VerifyError, VerifyErrorKind, impl_error};
use crate::gate::{observer::TARGET, routing::Environment};
use crate::meter::{APPLE_AVAILABILITY, label};
use crate::runtime::{Instant, later, lock};
use crate::sync::{Arc, Mutex};

/// The state of the way to one of Apple's two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Availability {
    /// Calls are made.
    Available,
    /// Apple gave no answer, or a fault, many times in a row, or the time that it named is over and no call has been
    /// answered since: one call a second finds out whether it is back, and all others fail at once.
    Down,
    /// Apple named a time to come back (`Retry-After`): until then, calls fail at once.
    HeldOff,
}

impl Availability {
    /// The state in one word: `available`, `down` or `held_off`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Down => "down",
            Self::HeldOff => "held_off",
        }
    }
}

/// Is told when the way to Apple closes or opens. It is called on the task of a call, and must not block.
pub(super) type Listener = Arc<dyn Fn(Environment, Availability) + Send + Sync>;

/// One state for each environment.
pub(super) struct Breaker {
    sides: PerEnvironment<Side>,
    /// So many calls fail in a row before calls fail at once.
    threshold: u32,
    listener: Option<Listener>,
    /// Whether changes are told to nobody.
    is_silent: bool,
}

#[derive(Default)]
struct Side {
    state: Mutex<State>,
    /// The state of which the listener was told last. Held while it is told, so that it hears the changes in their order.
    told: Mutex<Option<Availability>>,
}

#[derive(Default)]
struct State {
    /// Failed calls since the last answer.
    failures: u32,
    open: Option<Open>,
}

struct Open {
    availability: Availability,
    /// The last failure.
    error: VerifyError,
    /// The time of the first failure or of the last `Retry-After`.
    since: Instant,
    /// The time from which one more call may ask.
    next: Instant,
}

/// A call that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Like any other.
    Regular,
    /// The one call that finds out whether Apple is back.
    Probe,
}

impl Breaker {
    /// The largest threshold.
    const THRESHOLD: u32 = 30;
    /// The threshold of a client that makes one call at a time. Each failure may take as long as an attempt.
    const SMALLEST_THRESHOLD: u32 = 5;
    /// The caller of a probe waits for this time. If Apple is still down, a caller each second or so would otherwise wait
    /// for all of an attempt, and where there are few callers, each of them would.
    pub(super) const PROBE_PATIENCE: Duration = Duration::from_millis(40);
    /// The time between two calls that find out whether Apple is back.
    const PROBE_INTERVAL: Duration = Duration::from_secs(1);
    /// The longest time for which one answer of Apple's closes the way. A mistake in front of Apple must not last.
    pub(super) const LONGEST_HOLD: Duration = Duration::from_secs(300);

    /// Makes the breaker of a client that makes this number of calls at once.
    pub(super) fn new(in_flight: usize, listener: Option<Listener>) -> Self {
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        let threshold = in_flight.clamp(Self::SMALLEST_THRESHOLD, Self::THRESHOLD);
        Self { sides: PerEnvironment::default(), threshold, listener, is_silent: false }
    }

    /// The same for calls for which no request waits: neither metrics nor log tell of its state.
    #[cfg(feature = "app-attest")]
    pub(super) fn silent(in_flight: usize) -> Self {
        let mut breaker = Self::new(in_flight, None);
        breaker.is_silent = true;
        breaker
    }

    /// Lets a call go on. Fails with the last failure while Apple is known to be down.
    pub(super) fn admit(&self, environment: Environment, now: Instant) -> Result<Pass, VerifyError> {
        let mut state = lock(&self.sides.of(environment).state);
        let Some(open) = &mut state.open else { return Ok(Pass::Regular) };
        if now < open.next {
            return Err(open.error_at(now));
        }
        open.next = now + Self::PROBE_INTERVAL;
        let was_held_off =
            std::mem::replace(&mut open.availability, Availability::Down) == Availability::HeldOff;
        drop(state);
        if was_held_off {
            self.tell(environment);
        }
        Ok(Pass::Probe)
    }

    /// The error of a call that does not wait for the probe.
    pub(super) fn error(&self, environment: Environment, now: Instant) -> Option<VerifyError> {
        lock(&self.sides.of(environment).state).open.as_ref().map(|open| open.error_at(now))
    }

    pub(super) fn availability(&self, environment: Environment, now: Instant) -> Availability {
        match &lock(&self.sides.of(environment).state).open {
            None => Availability::Available,
            // The next call finds out whether Apple is back.
            Some(open) if now >= open.next => Availability::Down,
            Some(open) => open.availability,
        }
    }

    /// Apple gave an answer, whatever it is about, to a request of this time. An answer to an older request does not end
    /// the time that Apple has named since.
    pub(super) fn answered(&self, environment: Environment, sent: Instant) {
        let mut state = lock(&self.sides.of(environment).state);
        state.failures = 0;
        let holds = |open: &Open| open.availability == Availability::HeldOff && sent < open.since;
        if state.open.as_ref().is_some_and(holds) {
            return;
        }
        let was_open = state.open.take().is_some();
        drop(state);
        if was_open {
            self.tell(environment);
        }
    }

    /// A call got no answer, or one that says that Apple is down or asked too often. `hold` is the time after which
    /// Apple wants to be asked again.
    pub(super) fn failed(
        &self,
        environment: Environment,
        error: &VerifyError,
        hold: Option<Duration>,
        now: Instant,
    ) {
        let mut state = lock(&self.sides.of(environment).state);
        state.failures = state.failures.saturating_add(1);
        let before = state.open.as_ref().map(|open| (open.availability, open.next));
        let (availability, next) = match (hold, before) {
            (Some(hold), _) => {
                let next = later(now, hold.clamp(Duration::from_secs(1), Self::LONGEST_HOLD));
                (Availability::HeldOff, before.map_or(next, |(_, before)| before.max(next)))
            }
            // The time that Apple named holds, even if calls that were in flight fail later.
            (None, Some((Availability::HeldOff, next))) if now < next => (Availability::HeldOff, next),
            (None, Some((_, next))) => (Availability::Down, next),
            (None, None) if state.failures >= self.threshold => {
                (Availability::Down, now + Self::PROBE_INTERVAL)
            }
            (None, None) => return,
        };
        let since = if hold.is_some() { now } else { state.open.as_ref().map_or(now, |open| open.since) };
        state.open = Some(Open { availability, error: error.clone(), since, next });
        drop(state);
        if before.is_none_or(|(before, _)| before != availability) {
            self.tell(environment);
        }
    }

    /// Another process was told to leave Apple alone for this time.
    #[cfg(feature = "redis")]
    pub(super) fn hold(&self, environment: Environment, rest: Duration, now: Instant) {
        let error = VerifyError::throttled(Some(rest), "Apple has told another process when to come back");
        let mut state = lock(&self.sides.of(environment).state);
        let next = later(now, rest.min(Self::LONGEST_HOLD));
        let is_new = match &mut state.open {
            Some(open) => {
                open.next = open.next.max(next);
                std::mem::replace(&mut open.availability, Availability::HeldOff) != Availability::HeldOff
            }
            none => {
                *none = Some(Open { availability: Availability::HeldOff, error, since: now, next });
                true
            }
        };
        drop(state);
        if is_new {
            self.tell(environment);
        }
    }

    /// Tells of the state, unless another thread has done so.
    fn tell(&self, environment: Environment) {
        if self.is_silent {
            return;
        }
        let mut told = lock(&self.sides.of(environment).told);
        let noted = lock(&self.sides.of(environment).state).open.as_ref().map(|open| open.availability);
        let availability = noted.unwrap_or(Availability::Available);
        let before = told.replace(availability);
        if before == Some(availability) {
            return;
        }
        report(environment, before, Some(availability));
        let availability_name = availability.as_str();
        event!(target: TARGET, Level::DEBUG, %environment, availability = availability_name, "the way to Apple");
        if let Some(listener) = &self.listener {
            listener(environment, availability);
        }
    }
}

/// A client that is gone is in no state.
impl Drop for Breaker {
    fn drop(&mut self) {
        for environment in [Environment::Production, Environment::Development] {
            let told = lock(&self.sides.of(environment).told).take();
            if told.is_some() {
                report(environment, told, None);
            }
        }
    }
}

/// Moves a client from one state to another in the metric, which counts the clients in each state.
fn report(environment: Environment, before: Option<Availability>, after: Option<Availability>) {
    for state in [Availability::Available, Availability::Down, Availability::HeldOff] {
        let labels = [label("environment", environment.as_str()), label("state", state.as_str())];
        APPLE_AVAILABILITY.change(before == Some(state), after == Some(state), labels);
    }
}

impl Open {
    fn error_at(&self, now: Instant) -> VerifyError {
        let rest = self.next.saturating_duration_since(now);
        let source = KnownOutage { source: self.error.clone() };
        let error = match self.error.kind() {
            VerifyErrorKind::Throttled => VerifyError::throttled(None, source),
            _ => VerifyError::unavailable(source),
        };
        let is_named = self.availability == Availability::HeldOff;
        error.with_retry_after(is_named.then_some(rest)).with_known_outage()
    }
}

/// Apple was not asked.
#[derive(Debug)]
struct KnownOutage {
    source: VerifyError,
}

impl_error!(KnownOutage, |error| Some(&error.source), "Apple is known to be down, and was not asked");

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The retries that may be made: a share of all calls, so that an outage does not double their number.
pub(super) struct RetryBudget {
    /// In hundredths of a retry.
    balance: Mutex<u32>,
}

impl RetryBudget {
    const RETRY: u32 = 100;
    /// Each call pays for a part of a retry.
    const SHARE: u32 = 15;
    /// Ten retries, for a client that asks seldom.
    const MOST: u32 = 10 * Self::RETRY;

    pub(super) fn call(&self) {
        let mut balance = lock(&self.balance);
        *balance = (*balance + Self::SHARE).min(Self::MOST);
    }

    /// Takes a retry, if there is one.
    pub(super) fn retry(&self) -> bool {
        let mut balance = lock(&self.balance);
        let left = balance.checked_sub(Self::RETRY);
        *balance = left.unwrap_or(*balance);
        left.is_some()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { balance: Mutex::new(Self::MOST) }
    }
}

#[cfg(test)]
mod tests;
