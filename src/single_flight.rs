//! One run of a computation for all who want its result at the same time.

use std::{
    collections::HashMap,
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

/// Computations under way, by key.
///
/// Each is a [`Shared`] future that every caller polls: whoever is woken drives it on. A caller that goes
/// away takes nothing with it. When the last one goes, the future is dropped, and with it the [`Slot`] that
/// holds the key's place in the map.
pub(crate) struct SingleFlight<K: Eq + Hash, T: Clone> {
    flights: Arc<Flights<K, T>>,
}

type Flight<T> = BoxFuture<'static, Result<T, Panicked>>;
type Flights<K, T> = Mutex<Map<K, T>>;

struct Map<K, T: Clone> {
    by_key: HashMap<K, (u64, WeakShared<Flight<T>>)>,
    next_id: u64,
}

/// The computation panicked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panicked;

impl<K, T> SingleFlight<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self { flights: Arc::new(Mutex::new(Map { by_key: HashMap::new(), next_id: 0 })) }
    }

    /// Waits for the computation of `key` that is under way, or starts `compute`.
    pub(crate) async fn run<F>(&self, key: K, compute: F) -> Result<T, Panicked>
    where
        F: Future<Output = T> + Send + 'static,
    {
        // On wasm a request must not await what another request drives, so each runs its own.
        if cfg!(target_arch = "wasm32") {
            return Ok(compute.await);
        }
        self.join(key, compute).await
    }

    fn join<F>(&self, key: K, compute: F) -> Shared<Flight<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut map = lock(&self.flights);
        if let Some(flight) = map.by_key.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return flight;
        }
        let id = map.next_id;
        map.next_id += 1;
        let slot = Slot { flights: Arc::clone(&self.flights), key: key.clone(), id };
        let flight = async move {
            let result = AssertUnwindSafe(compute).catch_unwind().await.map_err(|_| Panicked);
            drop(slot);
            result
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            map.by_key.insert(key, (id, weak));
        }
        flight
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.flights).by_key.len()
    }
}

/// A key's place in the map, given up on drop, unless a later computation of the same key has taken it.
struct Slot<K: Eq + Hash, T: Clone> {
    flights: Arc<Flights<K, T>>,
    key: K,
    id: u64,
}

impl<K: Eq + Hash, T: Clone> Drop for Slot<K, T> {
    fn drop(&mut self) {
        let mut map = lock(&self.flights);
        if map.by_key.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            map.by_key.remove(&self.key);
        }
    }
}

/// Nothing that runs under the lock can leave the map half changed.
fn lock<K, T: Clone>(flights: &Flights<K, T>) -> MutexGuard<'_, Map<K, T>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}
