//! One computation for all concurrent callers that want its result.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    mem,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::meter::CHECKS_JOINED;
use crate::runtime::{Attendance, REQUESTS_MAY_AWAIT_EACH_OTHER, lock, spawn};
use crate::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Computations in flight, by key.
///
/// The callers poll a computation in turn: each wake-up reaches all of them, and the first to be polled drives the
/// computation. A caller that is dropped does not disturb the others. When the last caller is dropped, the computation
/// is dropped, and its key is removed from the map. One that must finish becomes a task, which later callers join.
///
/// `futures_util::future::Shared` would lose a wake-up during a poll for callers that join during that poll.
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

impl<K: Clone + Eq + Hash + Send + Sync + 'static, T: Clone + Send + 'static> SingleFlight<K, T> {
    pub(crate) fn new() -> Self {
        Self { flights: Arc::new(Mutex::new(Map { by_key: HashMap::new(), next_id: 0 })) }
    }

    /// Joins the computation of `key` in flight, or starts a new one.
    ///
    /// Always starts a new one on platforms where requests must not await each other.
    pub(crate) fn run(
        &self,
        key: K,
        attendance: Attendance,
        compute: impl Future<Output = T> + Send + 'static,
    ) -> Caller<K, T> {
        // `joined` is dropped after the lock is released, because dropping the last caller locks the map.
        let mut joined = None;
        let mut map = lock(&self.flights);
        let Map { by_key, next_id } = &mut *map;
        let entry = by_key.entry(key.clone());
        if REQUESTS_MAY_AWAIT_EACH_OTHER && let Entry::Occupied(entry) = &entry {
            joined = entry.get().1.upgrade();
        }
        if let Some(place) = joined.take_if(|place| !place.flight.is_done()) {
            place.requests.fetch_add(1, Ordering::Relaxed);
            place.attendance.join();
            CHECKS_JOINED.add([]);
            return Caller { id: place.flight.add_caller(), place: Some(place), is_request: true };
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
        let finish = |place: Arc<Place<K, T>>| {
            let id = place.flight.add_caller();
            spawn(Caller { id, place: Some(place), is_request: false }.map(drop));
        };
        let flights = Arc::clone(&self.flights);
        let (requests, is_task) = (AtomicUsize::new(1), AtomicBool::new(false));
        let place = Arc::new(Place { flights, key, id, flight, attendance, requests, is_task, finish });
        entry.insert_entry((id, Arc::downgrade(&place)));
        Caller { id: 0, place: Some(place), is_request: true }
    }

    /// Lets later callers join no computation of `key` that is in flight. Its callers get its result.
    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) fn leave(&self, key: &K) {
        lock(&self.flights).by_key.remove(key);
    }

    /// The computations in flight.
    pub(super) fn len(&self) -> usize {
        lock(&self.flights).by_key.len()
    }
}

/// A key's entry in the map, shared by the callers. Dropping it removes the entry, unless a later computation of the
/// same key has replaced it.
struct Place<K: Eq + Hash, T> {
    flights: Arc<Mutex<Map<K, T>>>,
    key: K,
    id: u64,
    flight: Arc<Flight<T>>,
    attendance: Attendance,
    /// The requests that wait. Changed under the lock of the map only.
    requests: AtomicUsize,
    /// Whether the computation has become a task.
    is_task: AtomicBool,
    /// Makes a task of the computation.
    finish: fn(Arc<Self>),
}

impl<K: Eq + Hash, T> Drop for Place<K, T> {
    fn drop(&mut self) {
        let mut map = lock(&self.flights);
        if map.by_key.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            map.by_key.remove(&self.key);
        }
        drop(map);
        // The computation waits for something that holds its waker, and the waker holds the computation. Dropping it
        // here breaks this cycle.
        let stage = mem::replace(&mut lock(&self.flight.state).stage, Stage::Away);
        drop(stage);
    }
}

/// One computation, and the waker for polling it.
struct Flight<T> {
    state: Mutex<FlightState<T>>,
}

struct FlightState<T> {
    stage: Stage<T>,
    /// The wakers of callers, by caller number.
    waiting: HashMap<u64, Waker>,
    callers: u64,
    /// Whether the computation was woken since its last poll began.
    woken: bool,
}

enum Stage<T> {
    Idle(BoxFuture<'static, Outcome<T>>),
    /// A caller has taken the computation to poll it.
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
        // A caller that joined during the poll has missed any wake-up during that poll.
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

/// A caller that waits for a computation.
pub(crate) struct Caller<K: Eq + Hash, T> {
    id: u64,
    /// `None` once the caller has returned the result.
    place: Option<Arc<Place<K, T>>>,
    /// Whether a request waits. If not, this is the task of a computation that must finish.
    is_request: bool,
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
                // Dropping a waker may drop a caller, which takes the lock.
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
        let Some(place) = self.place.take() else { return };
        let waker = lock(&place.flight.state).waiting.remove(&self.id);
        drop(waker);
        if !self.is_request {
            return;
        }
        // Under the lock, nobody joins.
        let map = lock(&place.flights);
        let is_last = place.requests.fetch_sub(1, Ordering::Relaxed) == 1;
        let becomes_task =
            is_last && place.attendance.desert() && !place.is_task.swap(true, Ordering::Relaxed);
        drop(map);
        if becomes_task {
            (place.finish)(place);
        }
    }
}

#[cfg(test)]
mod tests;
