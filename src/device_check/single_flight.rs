//! One run of a computation for all who want its result at the same time.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    mem,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::runtime::{REQUESTS_MAY_AWAIT_EACH_OTHER, lock};

/// Computations under way, by key.
///
/// The callers poll a computation in turn: each wake-up reaches all of them, and the first to come drives it on.
/// A caller that goes away takes nothing with it. When the last one goes, the computation is dropped, and the
/// key's place in the map is free. A call that was sent to Apple keeps its slot there: that is the client's task.
///
/// `futures_util::future::Shared` would lose a wake-up that comes during a poll, for those who join during it.
pub(crate) struct SingleFlight<K: Eq + Hash, T> {
    flights: Arc<Mutex<Map<K, T>>>,
}

struct Map<K: Eq + Hash, T> {
    by_key: HashMap<K, (u64, Weak<Place<K, T>>)>,
    next_id: u64,
}

/// The computation panicked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panicked;

type Outcome<T> = Result<T, Panicked>;

impl<K: Clone + Eq + Hash, T: Clone + Send + 'static> SingleFlight<K, T> {
    pub(crate) fn new() -> Self {
        Self { flights: Arc::new(Mutex::new(Map { by_key: HashMap::new(), next_id: 0 })) }
    }

    /// The computation of `key` that is under way, or a new one.
    ///
    /// Always a new one where requests must not await each other.
    pub(crate) fn run(&self, key: K, compute: impl Future<Output = T> + Send + 'static) -> Caller<K, T> {
        // Dropped after the lock: with the last caller, it locks the map.
        let mut joined = None;
        let mut map = lock(&self.flights);
        let Map { by_key, next_id } = &mut *map;
        let entry = by_key.entry(key.clone());
        if REQUESTS_MAY_AWAIT_EACH_OTHER && let Entry::Occupied(entry) = &entry {
            joined = entry.get().1.upgrade();
        }
        if let Some(place) = joined.take_if(|place| !place.flight.is_done()) {
            return Caller { id: place.flight.add_caller(), place: Some(place) };
        }
        let compute = AssertUnwindSafe(compute).catch_unwind().map(|result| result.map_err(|_| Panicked));
        let state = FlightState {
            stage: Stage::Idle(compute.boxed()),
            waiting: HashMap::new(),
            callers: 1,
            woken: false,
        };
        let flight = Arc::new(Flight { state: Mutex::new(state) });
        let id = *next_id;
        *next_id += 1;
        let place = Arc::new(Place { flights: Arc::clone(&self.flights), key, id, flight });
        entry.insert_entry((id, Arc::downgrade(&place)));
        Caller { id: 0, place: Some(place) }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.flights).by_key.len()
    }
}

/// A key's place in the map, which the callers hold together. It is given up on drop, unless a later computation
/// of the same key has taken it.
struct Place<K: Eq + Hash, T> {
    flights: Arc<Mutex<Map<K, T>>>,
    key: K,
    id: u64,
    flight: Arc<Flight<T>>,
}

impl<K: Eq + Hash, T> Drop for Place<K, T> {
    fn drop(&mut self) {
        let mut map = lock(&self.flights);
        if map.by_key.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            map.by_key.remove(&self.key);
        }
        drop(map);
        // The computation waits for something that holds its waker, and with that the computation itself.
        let stage = mem::replace(&mut lock(&self.flight.state).stage, Stage::Away);
        drop(stage);
    }
}

/// One computation, and the waker with which it is polled.
struct Flight<T> {
    state: Mutex<FlightState<T>>,
}

struct FlightState<T> {
    stage: Stage<T>,
    /// The wakers of callers, by their numbers.
    waiting: HashMap<u64, Waker>,
    callers: u64,
    /// Whether the computation was woken since the last poll of it began.
    woken: bool,
}

enum Stage<T> {
    Idle(BoxFuture<'static, Outcome<T>>),
    /// A caller polls it.
    Away,
    Done(Outcome<T>),
}

impl<T> Flight<T> {
    fn is_done(&self) -> bool {
        matches!(lock(&self.state).stage, Stage::Done(_))
    }

    fn add_caller(&self) -> u64 {
        let callers = &mut lock(&self.state).callers;
        *callers += 1;
        *callers - 1
    }

    fn enter(&self, stage: Stage<T>) {
        let mut state = lock(&self.state);
        // A caller that joined while the computation was polled has heard of no wake-up during that poll.
        let wakes = state.woken || matches!(stage, Stage::Done(_));
        state.stage = stage;
        let waiting = if wakes { mem::take(&mut state.waiting) } else { HashMap::new() };
        drop(state);
        waiting.into_values().for_each(Waker::wake);
    }
}

impl<T: Send> Wake for Flight<T> {
    fn wake(self: Arc<Self>) {
        let mut state = lock(&self.state);
        state.woken = true;
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(Waker::wake);
    }
}

/// A caller who waits for a computation.
pub(crate) struct Caller<K: Eq + Hash, T> {
    id: u64,
    /// `None` once the result was handed out.
    place: Option<Arc<Place<K, T>>>,
}

impl<K: Eq + Hash + Send + Sync + 'static, T: Clone + Send + 'static> Future for Caller<K, T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let Some(place) = &self.place else { return Poll::Pending };
        let flight = Arc::clone(&place.flight);
        let mut state = lock(&flight.state);
        match mem::replace(&mut state.stage, Stage::Away) {
            Stage::Done(outcome) => {
                state.stage = Stage::Done(outcome.clone());
                drop(state);
                self.place = None;
                Poll::Ready(outcome)
            }
            Stage::Away => {
                // A waker that is dropped may drop a caller, which takes the lock.
                let before = state.waiting.insert(self.id, cx.waker().clone());
                drop(state);
                drop(before);
                Poll::Pending
            }
            Stage::Idle(mut computation) => {
                let before = state.waiting.insert(self.id, cx.waker().clone());
                state.woken = false;
                drop(state);
                drop(before);
                let waker = Waker::from(Arc::clone(&flight));
                if let Poll::Ready(outcome) = computation.poll_unpin(&mut Context::from_waker(&waker)) {
                    flight.enter(Stage::Done(outcome.clone()));
                    self.place = None;
                    return Poll::Ready(outcome);
                }
                flight.enter(Stage::Idle(computation));
                Poll::Pending
            }
        }
    }
}

impl<K: Eq + Hash, T> Drop for Caller<K, T> {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            let waker = lock(&place.flight.state).waiting.remove(&self.id);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests;
