//! A limit on calls to Apple in flight, and on calls that wait.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use crate::apple::task::Driven;
use crate::runtime::{REQUESTS_MAY_AWAIT_EACH_OTHER, lock};

/// Slots for calls to Apple, and a bounded number of waiters for them.
///
/// Waiters that a runtime drives get slots in order of arrival. Other waiters may never be polled again, so none of
/// them may hold up the queue: a slot that the driven waiters leave free wakes all of them.
pub(super) struct CallLimit {
    state: Mutex<State>,
    waiting_limit: usize,
}

struct State {
    free: usize,
    arrivals: u64,
    driven: BTreeMap<u64, Waker>,
    others: BTreeMap<u64, Waker>,
}

/// All slots are taken, and too many calls already wait for one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl CallLimit {
    pub(super) fn new(in_flight: usize, waiting_limit: usize) -> Self {
        let (driven, others) = (BTreeMap::new(), BTreeMap::new());
        Self { state: Mutex::new(State { free: in_flight, arrivals: 0, driven, others }), waiting_limit }
    }

    pub(super) async fn acquire(&self, driven: Driven) -> Result<Slot<'_>, QueueFull> {
        let mut place = Place { limit: self, number: None };
        poll_fn(|cx| place.poll(driven, cx)).await
    }

    /// Changes the state, then wakes the waiters that may have a slot now.
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

/// A caller's place in the queue, given up on drop.
struct Place<'a> {
    limit: &'a CallLimit,
    number: Option<u64>,
}

impl<'a> Place<'a> {
    fn poll(&mut self, Driven(is_driven): Driven, cx: &Context<'_>) -> Poll<Result<Slot<'a>, QueueFull>> {
        let mut state = lock(&self.limit.state);
        let State { free, arrivals, driven, others } = &mut *state;
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
            return Poll::Ready(Ok(Slot(self.limit)));
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
pub(super) struct Slot<'a>(&'a CallLimit);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.free += 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn waiters_are_counted_and_forgotten() {
        for driven in [Driven(true), Driven(false)] {
            let limit = CallLimit::new(1, 1);
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
        let limit = CallLimit::new(1, 2);
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
        let limit = CallLimit::new(1, 9);
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
}
