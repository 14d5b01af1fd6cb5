//! A limit on calls to Apple in flight, and on calls that wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::apple::task::Driven;
use crate::meter::{APPLE_IN_FLIGHT, APPLE_WAITING};
use crate::runtime::{Instant, REQUESTS_MAY_AWAIT_EACH_OTHER, later, lock};
use crate::sync::Mutex;

/// Slots for calls to Apple, and a bounded number of waiters for them.
///
/// Waiters that a runtime drives get slots in order of arrival. Other waiters may never be polled again, so none of
/// them may hold up the queue: a slot that the driven waiters leave free wakes all of them.
///
/// The limit turns a caller away on arrival if the call could not end in time, judging by the length of the queue and by
/// the time that recent calls took. Without that, under more load than Apple can bear, each call would be made for a
/// caller that has given up. A waiter whose time has become too short meanwhile is turned away when its turn comes.
pub(super) struct CallLimit {
    state: Mutex<State>,
    in_flight: usize,
    waiting_limit: usize,
    /// The longest time of a call.
    longest: Duration,
    /// Whether a slot is free again after this time even if its call has not given it back: where a call may vanish.
    slots_lapse: bool,
}

struct State {
    slots: usize,
    free: usize,
    arrivals: u64,
    /// The slots that lapse, by the ends of their times.
    lapsing: BTreeSet<Lapse>,
    driven: BTreeMap<u64, Waker>,
    others: BTreeMap<u64, Waker>,
    /// The time that an answer takes, as a moving average.
    call_time: Duration,
    /// The time of the last answer.
    answered: Option<Instant>,
    /// The time since when there has been a waiter.
    queue_since: Option<Instant>,
    /// The calls in flight and those that wait, as the metrics have them.
    reported: (usize, usize),
}

/// The end of a slot's time, and the slot's number.
type Lapse = (Instant, u64);

/// The reason for having no slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TurnedAway {
    /// Too many calls wait for a slot already.
    QueueFull,
    /// The call could not be over in time.
    TooLate,
}

impl State {
    /// The share of a sample in the moving average.
    const SHARE: u32 = 8;

    fn learn(&mut self, call_time: Duration, now: Instant) {
        self.call_time = match self.call_time {
            Duration::ZERO => call_time,
            known => (known * (Self::SHARE - 1) + call_time) / Self::SHARE,
        };
        self.answered = Some(now);
    }

    /// Forgets how long answers took if the last one is older than any call can be.
    fn forget(&mut self, longest: Duration, now: Instant) {
        if self.answered.is_some_and(|at| now.saturating_duration_since(at) > longest) {
            (self.call_time, self.answered) = (Duration::ZERO, None);
        }
    }

    /// Whether a call behind so many waiters should wait.
    ///
    /// It must end in time, even if it takes a quarter longer than recent calls. That lets a burst wait. A queue that
    /// stands for longer is no burst: every caller would wait for nearly all of its time, for the same number of calls.
    /// Such a queue is kept as short as a quarter of a call.
    fn may_wait(&self, waiting: usize, limit: &CallLimit, until: Instant, now: Instant) -> bool {
        let rounds = (waiting + 1) as f64 / limit.in_flight as f64;
        let stands = |since: Instant| now.saturating_duration_since(since) > limit.longest;
        if self.queue_since.is_some_and(stands) && waiting > 0 && rounds > 0.25 {
            return false;
        }
        self.call_time.mul_f64(rounds + 1.25) <= until.saturating_duration_since(now)
    }

    /// Notes whether there is a queue, and reports its length. Called after each change.
    fn watch_queue(&mut self) {
        let (in_flight, waiting) =
            (self.slots - self.free.min(self.slots), self.driven.len() + self.others.len());
        APPLE_IN_FLIGHT.move_by(self.reported.0, in_flight);
        APPLE_WAITING.move_by(self.reported.1, waiting);
        self.reported = (in_flight, waiting);
        if self.driven.is_empty() && self.others.is_empty() {
            self.queue_since = None;
        } else {
            self.queue_since.get_or_insert_with(Instant::now);
        }
    }
}

impl CallLimit {
    pub(super) fn new(in_flight: usize, waiting_limit: usize, longest: Duration, slots_lapse: bool) -> Self {
        let state = State {
            free: in_flight,
            slots: in_flight,
            arrivals: 0,
            lapsing: BTreeSet::new(),
            driven: BTreeMap::new(),
            others: BTreeMap::new(),
            call_time: Duration::ZERO,
            answered: None,
            queue_since: None,
            reported: (0, 0),
        };
        Self { state: Mutex::new(state), in_flight, waiting_limit, longest, slots_lapse }
    }

    /// Waits for a slot, for a call that must be over at `until`.
    pub(super) async fn acquire(&self, driven: Driven, until: Instant) -> Result<Slot<'_>, TurnedAway> {
        let mut place = Place { limit: self, until, number: None };
        poll_fn(|cx| place.poll(driven, cx)).await
    }

    /// Changes the state, then wakes the waiters that may have a slot now.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        state.watch_queue();
        let State { free, driven, others, .. } = &*state;
        let others = others.values().filter(|_| *free > driven.len());
        let woken: Vec<_> = driven.values().take(*free).chain(others).cloned().collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A caller's place in the queue, given up on drop.
struct Place<'a> {
    limit: &'a CallLimit,
    until: Instant,
    number: Option<u64>,
}

impl<'a> Place<'a> {
    fn poll(&mut self, Driven(is_driven): Driven, cx: &Context<'_>) -> Poll<Result<Slot<'a>, TurnedAway>> {
        let mut state = lock(&self.limit.state);
        let now = Instant::now();
        while self.limit.slots_lapse && state.lapsing.first().is_some_and(|(end, _)| *end <= now) {
            state.lapsing.pop_first();
            state.free += 1;
        }
        state.forget(self.limit.longest, now);
        let State { free, driven, others, .. } = &mut *state;
        let ahead = match self.number {
            Some(number) if is_driven => driven.range(..number).take(*free).count(),
            _ => driven.len(),
        };
        if ahead < *free {
            if let Some(number) = self.number.take() {
                driven.remove(&number);
                others.remove(&number);
                // Nothing is sent for a caller whose time will be up.
                if state.call_time > self.until.saturating_duration_since(now) {
                    drop(state);
                    self.limit.change(|_| ());
                    return Poll::Ready(Err(TurnedAway::TooLate));
                }
            }
            state.free -= 1;
            state.watch_queue();
            let lapse = self.limit.slots_lapse.then(|| {
                state.arrivals += 1;
                (later(now, self.limit.longest), state.arrivals)
            });
            state.lapsing.extend(lapse);
            return Poll::Ready(Ok(Slot { limit: self.limit, call_time: None, lapse }));
        }
        if self.number.is_none() {
            let waiting = driven.len() + others.len();
            if waiting >= self.limit.waiting_limit || !REQUESTS_MAY_AWAIT_EACH_OTHER {
                return Poll::Ready(Err(TurnedAway::QueueFull));
            }
            if !state.may_wait(waiting, self.limit, self.until, now) {
                return Poll::Ready(Err(TurnedAway::TooLate));
            }
        }
        let State { arrivals, driven, others, .. } = &mut *state;
        let number = *self.number.get_or_insert_with(|| {
            *arrivals += 1;
            *arrivals
        });
        let line = if is_driven { driven } else { others };
        line.insert(number, cx.waker().clone());
        state.watch_queue();
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.limit.change(|state| {
                state.driven.remove(&number);
                state.others.remove(&number);
            });
        }
    }
}

/// A slot, given back on drop.
pub(super) struct Slot<'a> {
    limit: &'a CallLimit,
    call_time: Option<Duration>,
    lapse: Option<Lapse>,
}

impl Slot<'_> {
    /// The call that was made at `sent` has an answer. The time that it took counts for those who come later.
    pub(super) fn answered(&mut self, sent: Instant) {
        self.call_time = Some(sent.elapsed());
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.limit.change(|state| {
            // A slot that has lapsed may be another call's by now.
            if self.lapse.is_none_or(|lapse| state.lapsing.remove(&lapse)) {
                state.free += 1;
            }
            if let Some(call_time) = self.call_time {
                state.learn(call_time, Instant::now());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn waiters_are_counted_and_forgotten() {
        for driven in [Driven(true), Driven(false)] {
            let limit = CallLimit::new(1, 1, Duration::from_secs(5), false);
            let slot = limit.acquire(driven, far()).now_or_never().unwrap().unwrap();
            let mut first = Box::pin(limit.acquire(driven, far()));
            assert!(first.as_mut().now_or_never().is_none());
            assert!(matches!(limit.acquire(driven, far()).now_or_never(), Some(Err(TurnedAway::QueueFull))));
            drop(first);

            let mut second = Box::pin(limit.acquire(driven, far()));
            assert!(second.as_mut().now_or_never().is_none(), "the place is free again");
            drop(slot);
            let slot = second.as_mut().now_or_never().unwrap().unwrap();
            drop(second);
            let state = limit.state.lock().unwrap();
            assert!(state.driven.is_empty() && state.others.is_empty());
            drop(state);
            drop(slot);
            assert!(limit.acquire(driven, far()).now_or_never().unwrap().is_ok());
        }
    }

    #[test]
    fn nobody_overtakes_the_first_of_those_who_wait() {
        let limit = CallLimit::new(1, 2, Duration::from_secs(5), false);
        let acquire = || limit.acquire(Driven(true), far());
        let slot = acquire().now_or_never().unwrap().unwrap();
        let mut first = Box::pin(acquire());
        assert!(first.as_mut().now_or_never().is_none());
        drop(slot);
        let mut second = Box::pin(acquire());
        assert!(second.as_mut().now_or_never().is_none(), "the slot is free, and the first one's");
        let slot = first.as_mut().now_or_never().unwrap().unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        drop((first, slot));
        assert!(second.as_mut().now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a05_without_a_runtime_a_waiter_that_is_never_polled_holds_up_nobody() {
        let limit = CallLimit::new(1, 9, Duration::from_secs(5), false);
        let slot = limit.acquire(Driven(false), far()).now_or_never().unwrap().unwrap();
        let mut stuck = Box::pin(limit.acquire(Driven(false), far()));
        assert!(stuck.as_mut().now_or_never().is_none());
        let waits = async {
            let waits = limit.acquire(Driven(false), far());
            let (slot, ()) = futures_util::future::join(waits, async { drop(slot) }).await;
            slot.is_ok()
        };
        assert!(futures::executor::block_on(waits), "it is woken");
        assert!(limit.acquire(Driven(true), far()).now_or_never().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn h01_a_call_that_vanished_gives_its_slot_back_once() {
        let limit = CallLimit::new(1, 0, Duration::from_secs(5), true);
        let acquire = || limit.acquire(Driven(false), far()).now_or_never().unwrap();
        let vanished = acquire().unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(matches!(acquire(), Err(TurnedAway::QueueFull)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let slot = acquire().unwrap();
        drop(vanished);
        assert!(matches!(acquire(), Err(TurnedAway::QueueFull)), "the slot is another call's");
        drop(slot);
        assert!(acquire().is_ok());
        assert!(limit.state.lock().unwrap().lapsing.is_empty());
    }
}
