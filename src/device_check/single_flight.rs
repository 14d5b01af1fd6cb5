//! One run of a computation for all who want its result at the same time.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared, poll_fn, ready},
};

use crate::runtime::{REQUESTS_MAY_AWAIT_EACH_OTHER, lock};

/// Computations under way, by key.
///
/// Each is a [`Shared`] future that every caller polls: whoever is woken drives it on. A caller that goes
/// away takes nothing with it. When the last one goes, the future is dropped, and with it the [`Slot`] that
/// holds the key's place in the map.
pub(crate) struct SingleFlight<K: Eq + Hash, T: Clone> {
    flights: Arc<Flights<K, T>>,
}

pub(crate) type Flight<T> = BoxFuture<'static, Result<T, Failed>>;
type Flights<K, T> = Mutex<Map<K, T>>;

struct Map<K, T: Clone> {
    by_key: HashMap<K, (u64, WeakShared<Flight<T>>)>,
    next_id: u64,
}

/// A computation without a result.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failed {
    Panicked,
    /// It waits for itself.
    Circular,
}

thread_local! {
    /// The computations that this thread polls now, one inside of the other, as map and number.
    static POLLED: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
}

/// A computation that is polled now, until the drop.
struct Polled;

impl Polled {
    fn new(flight: (usize, u64)) -> Self {
        POLLED.with_borrow_mut(|polled| polled.push(flight));
        Self
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        POLLED.with_borrow_mut(Vec::pop);
    }
}

impl<K, T> SingleFlight<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self { flights: Arc::new(Mutex::new(Map { by_key: HashMap::new(), next_id: 0 })) }
    }

    /// The computation of `key` that is under way, or a new one.
    ///
    /// Always a new one where requests must not await each other.
    pub(crate) fn run<F>(&self, key: K, compute: F) -> Shared<Flight<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let address = Arc::as_ptr(&self.flights).addr();
        let mut map = lock(&self.flights);
        let Map { by_key, next_id } = &mut *map;
        let place = by_key.entry(key.clone());
        if REQUESTS_MAY_AWAIT_EACH_OTHER
            && let Entry::Occupied(place) = &place
            && let Some(flight) = place.get().1.upgrade()
        {
            // A shared future that is polled by itself would wake itself, and that never returns.
            if POLLED.with_borrow(|polled| polled.contains(&(address, place.get().0))) {
                return ready(Err(Failed::Circular)).boxed().shared();
            }
            return flight;
        }
        let id = *next_id;
        *next_id += 1;
        let slot = Slot { flights: Arc::clone(&self.flights), key, id };
        let mut compute = Box::pin(compute);
        let compute = poll_fn(move |cx| {
            let _polled = Polled::new((address, id));
            compute.as_mut().poll(cx)
        });
        let flight = AssertUnwindSafe(compute).catch_unwind().map(move |result| {
            drop(slot);
            result.map_err(|_| Failed::Panicked)
        });
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            place.insert_entry((id, weak));
        }
        flight
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.flights).by_key.len()
    }
}

/// A key's place in the map, given up on drop, unless a later computation of the same key has taken it.
struct Slot<K: Clone + Eq + Hash, T: Clone> {
    flights: Arc<Flights<K, T>>,
    key: K,
    id: u64,
}

impl<K: Clone + Eq + Hash, T: Clone> Drop for Slot<K, T> {
    fn drop(&mut self) {
        let mut map = lock(&self.flights);
        if let Entry::Occupied(place) = map.by_key.entry(self.key.clone())
            && place.get().0 == self.id
        {
            place.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll, Wake, Waker},
    };

    use futures::{channel::oneshot, future::join_all, join, pin_mut, poll};

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flights() -> SingleFlight<&'static str, u32> {
        SingleFlight::new()
    }

    #[tokio::test]
    async fn r13_all_share_one_computation() {
        let flights = flights();
        let runs = Arc::new(AtomicUsize::new(0));
        let (answer, answered) = oneshot::channel();
        let answered = answered.shared();
        let mut callers: Vec<_> = (0..500)
            .map(|_| {
                let (runs, answered) = (Arc::clone(&runs), answered.clone());
                Box::pin(flights.run("token", async move {
                    runs.fetch_add(1, Ordering::Relaxed);
                    answered.await.unwrap()
                }))
            })
            .collect();
        for caller in &mut callers {
            assert!(poll!(caller).is_pending());
        }
        answer.send(7).unwrap();
        assert!(join_all(callers).await.into_iter().all(|result| result.unwrap() == 7));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn results_are_not_stored() {
        let flights = flights();
        assert_eq!(flights.run("token", async { 1 }).await.unwrap(), 1);
        assert_eq!(flights.run("token", async { 2 }).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn other_keys_do_not_wait() {
        let flights = flights();
        let stuck = flights.run("stuck", std::future::pending());
        pin_mut!(stuck);
        assert!(poll!(&mut stuck).is_pending());
        assert_eq!(flights.run("token", async { 1 }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn r13_the_first_caller_leaves_and_the_others_are_served_without_spinning() {
        let flights = flights();
        let (answer, answered) = oneshot::channel();
        let mut first = Box::pin(flights.run("token", async { answered.await.unwrap() }));
        let mut second = Box::pin(flights.run("token", async { panic!("the first one runs already") }));
        assert!(poll!(&mut first).is_pending());

        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "nothing to do until the answer is there");
        answer.send(7).unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(matches!(second.as_mut().poll(&mut cx), Poll::Ready(Ok(7))));
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn r13_all_callers_leave_and_the_slot_is_freed() {
        let flights = flights();
        let (mut answer, answered) = oneshot::channel::<u32>();
        let mut first = Box::pin(flights.run("token", async { answered.await.unwrap() }));
        let mut second = Box::pin(flights.run("token", async { panic!("the first one runs already") }));
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert_eq!(flights.len(), 1);
        drop(first);
        assert_eq!(flights.len(), 1);
        drop(second);
        assert_eq!(flights.len(), 0);
        assert!(poll!(answer.cancellation()).is_ready(), "the computation itself is dropped");
        assert_eq!(flights.run("token", async { 1 }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn r14_a_panic_reaches_all_who_wait_and_frees_the_slot() {
        let flights = flights();
        let run = || {
            flights.run("token", async {
                tokio::task::yield_now().await;
                panic!("computation panics, as this test wants")
            })
        };
        let (first, second) = join!(run(), run());
        assert!(first.is_err() && second.is_err());
        assert_eq!(flights.len(), 0);
        assert_eq!(flights.run("token", async { 1 }).await.unwrap(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_that_come_and_go_on_many_threads_leave_nothing_behind() {
        let flights = Arc::new(flights());
        let tasks = (0..64).map(|task| {
            let flights = Arc::clone(&flights);
            tokio::spawn(async move {
                for round in 0..200 {
                    let mut run = Box::pin(flights.run("token", async {
                        tokio::task::yield_now().await;
                        7
                    }));
                    let impatient = (task + round) % 3 == 0;
                    if !impatient {
                        assert_eq!(run.await.unwrap(), 7);
                    } else if let Poll::Ready(result) = poll!(&mut run) {
                        assert_eq!(result.unwrap(), 7);
                    }
                }
            })
        });
        for result in join_all(tasks).await {
            result.unwrap();
        }
        assert_eq!(flights.len(), 0);
    }
}
