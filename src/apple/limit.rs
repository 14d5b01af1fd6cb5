//! A limit on the calls to Apple that are under way, and on those that wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::Mutex,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::apple::task::Driven;
use crate::runtime::{Instant, REQUESTS_MAY_AWAIT_EACH_OTHER, later, lock};

/// Slots for calls to Apple, and a bounded number of waiters for them.
///
/// Waiters that a runtime drives are served in the order of their arrival. Others may never be polled again, so they
/// have no turn that anybody waits for: each free slot that the first ones leave wakes them all.
pub(super) struct CallLimit {
    state: Mutex<State>,
    waiting_limit: usize,
    /// The longest time of a call, where a call may vanish without a word.
    lapse: Option<Duration>,
}

struct State {
    free: usize,
    arrivals: u64,
    /// The slots that lapse, by the ends of their times.
    lapsing: BTreeSet<Lapse>,
    driven: BTreeMap<u64, Waker>,
    others: BTreeMap<u64, Waker>,
}

/// The end of a slot's time, and the slot's number.
type Lapse = (Instant, u64);

/// All slots are taken, and too many calls wait for one already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl CallLimit {
    /// With `lapse`, a slot is free again after this time, even if its call has not given it back.
    pub(super) fn new(in_flight: usize, waiting_limit: usize, lapse: Option<Duration>) -> Self {
        let state = State {
            free: in_flight,
            arrivals: 0,
            lapsing: BTreeSet::new(),
            driven: BTreeMap::new(),
            others: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), waiting_limit, lapse }
    }

    pub(super) async fn acquire(&self, driven: Driven) -> Result<Slot<'_>, QueueFull> {
        let mut place = Place { limit: self, number: None };
        poll_fn(|cx| place.poll(driven, cx)).await
    }

    /// Changes the state, then wakes those who may have a slot now.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let State { free, driven, others, .. } = &*state;
        let others = others.values().filter(|_| *free > driven.len());
        let woken: Vec<_> = driven.values().take(*free).chain(others).cloned().collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A caller's place among those who wait, given up on drop.
struct Place<'a> {
    limit: &'a CallLimit,
    number: Option<u64>,
}

impl<'a> Place<'a> {
    fn poll(&mut self, Driven(is_driven): Driven, cx: &Context<'_>) -> Poll<Result<Slot<'a>, QueueFull>> {
        let mut state = lock(&self.limit.state);
        let State { free, arrivals, lapsing, driven, others } = &mut *state;
        let lapse = self.limit.lapse.map(|lapse| (Instant::now(), lapse));
        while let (Some((now, _)), Some((end, _))) = (lapse, lapsing.first())
            && *end <= now
        {
            lapsing.pop_first();
            *free += 1;
        }
        let ahead = match self.number {
            Some(number) if is_driven => driven.range(..number).take(*free).count(),
            _ => driven.len(),
        };
        if ahead < *free {
            *free -= 1;
            if let Some(number) = self.number.take() {
                driven.remove(&number);
                others.remove(&number);
            }
            let lapse = lapse.map(|(now, lapse)| {
                *arrivals += 1;
                (later(now, lapse), *arrivals)
            });
            lapsing.extend(lapse);
            return Poll::Ready(Ok(Slot { limit: self.limit, lapse }));
        }
        let is_full = driven.len() + others.len() >= self.limit.waiting_limit;
        if self.number.is_none() && (is_full || !REQUESTS_MAY_AWAIT_EACH_OTHER) {
            return Poll::Ready(Err(QueueFull));
        }
        let number = *self.number.get_or_insert_with(|| {
            *arrivals += 1;
            *arrivals
        });
        let line = if is_driven { driven } else { others };
        line.insert(number, cx.waker().clone());
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
    lapse: Option<Lapse>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.limit.change(|state| {
            // A slot that has lapsed may be another call's by now.
            if self.lapse.is_none_or(|lapse| state.lapsing.remove(&lapse)) {
                state.free += 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn waiters_are_counted_and_forgotten() {
        for driven in [Driven(true), Driven(false)] {
            let limit = CallLimit::new(1, 1, None);
            let slot = limit.acquire(driven).now_or_never().unwrap().unwrap();
            let mut first = Box::pin(limit.acquire(driven));
            assert!(first.as_mut().now_or_never().is_none());
            assert!(matches!(limit.acquire(driven).now_or_never(), Some(Err(QueueFull))));
            drop(first);

            let mut second = Box::pin(limit.acquire(driven));
            assert!(second.as_mut().now_or_never().is_none(), "the place is free again");
            drop(slot);
            let slot = second.as_mut().now_or_never().unwrap().unwrap();
            drop(second);
            let state = limit.state.lock().unwrap();
            assert!(state.driven.is_empty() && state.others.is_empty());
            drop(state);
            drop(slot);
            assert!(limit.acquire(driven).now_or_never().unwrap().is_ok());
        }
    }

    #[test]
    fn nobody_overtakes_the_first_of_those_who_wait() {
        let limit = CallLimit::new(1, 2, None);
        let acquire = || limit.acquire(Driven(true));
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
        let limit = CallLimit::new(1, 9, None);
        let slot = limit.acquire(Driven(false)).now_or_never().unwrap().unwrap();
        let mut stuck = Box::pin(limit.acquire(Driven(false)));
        assert!(stuck.as_mut().now_or_never().is_none());
        let waits = async {
            let waits = limit.acquire(Driven(false));
            let (slot, ()) = futures_util::future::join(waits, async { drop(slot) }).await;
            slot.is_ok()
        };
        assert!(futures::executor::block_on(waits), "it is woken");
        assert!(limit.acquire(Driven(true)).now_or_never().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn h01_a_call_that_vanished_gives_its_slot_back_once() {
        let limit = CallLimit::new(1, 0, Some(Duration::from_secs(5)));
        let acquire = || limit.acquire(Driven(false)).now_or_never().unwrap();
        let vanished = acquire().unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(matches!(acquire(), Err(QueueFull)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let slot = acquire().unwrap();
        drop(vanished);
        assert!(matches!(acquire(), Err(QueueFull)), "the slot is another call's");
        drop(slot);
        assert!(acquire().is_ok());
        assert!(limit.state.lock().unwrap().lapsing.is_empty());
    }
}
