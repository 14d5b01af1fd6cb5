//! The connections of the default transport.
//!
//! reqwest does not expose single connections. A suspect connection is therefore replaced together with its client. The
//! old client and its connections are dropped once its last request has ended.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Id;

use crate::runtime::{Instant, lock, within};

/// The pools in use, the most recently used one last.
#[derive(Default)]
pub(super) struct Pools(Mutex<Vec<(Id, String, Arc<Pool>)>>);

impl Pools {
    /// The most pools that are kept. Usual programs have fewer pairs of server and runtime. Beyond the limit, the least
    /// recently used pool is dropped.
    const KEPT: usize = 16;

    /// The pool of this runtime and this server. A connection only works while the runtime that opened it runs.
    pub(super) fn at(
        &self,
        runtime: Id,
        origin: String,
        client: impl FnOnce() -> reqwest::Client,
    ) -> Arc<Pool> {
        let mut kept = lock(&self.0);
        let found = kept.iter().position(|(id, server, _)| *id == runtime && *server == origin);
        let entry = match found {
            Some(place) => kept.remove(place),
            None => (runtime, origin, Arc::new(Pool::new(client()))),
        };
        let pool = Arc::clone(&entry.2);
        if kept.len() >= Self::KEPT {
            kept.remove(0);
        }
        kept.push(entry);
        pool
    }

    fn retire(&self, pool: &Arc<Pool>) {
        lock(&self.0).retain(|(_, _, kept)| !Arc::ptr_eq(kept, pool));
    }
}

/// A client with its connections to one server.
///
/// The first request to a cold server goes alone. If the server speaks HTTP/2, all requests share one connection, but
/// the client knows this only once the first connection is up. A burst before that would open one connection for each
/// request.
pub(super) struct Pool {
    pub(super) client: reqwest::Client,
    answers: AtomicUsize,
    /// The first request holds this lock.
    first: async_lock::Mutex<()>,
}

impl Pool {
    /// The longest wait for the first request to a cold server: longer than most answers take, well under the timeout
    /// of an attempt.
    const PATIENCE: Duration = Duration::from_millis(500);

    fn new(client: reqwest::Client) -> Self {
        Self { client, answers: AtomicUsize::new(0), first: async_lock::Mutex::new(()) }
    }

    /// Waits until the caller may send its request. The first caller gets a guard, and holds it until the answer
    /// arrives.
    pub(super) async fn turn(&self) -> Option<async_lock::MutexGuard<'_, ()>> {
        if self.is_warm() {
            return None;
        }
        let turn = within(Self::PATIENCE, self.first.lock()).await.ok()?;
        (!self.is_warm()).then_some(turn)
    }

    /// Whether the server has ever answered over this pool's connections.
    pub(super) fn is_warm(&self) -> bool {
        self.answers() > 0
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }
}

/// A request that was sent over one of a pool's connections. A drop without an outcome means that it ran out of time.
pub(super) struct Sent<'a> {
    pools: &'a Pools,
    pool: &'a Arc<Pool>,
    at: Instant,
    answers: usize,
    has_ended: bool,
}

impl<'a> Sent<'a> {
    /// The time after which an unanswered request makes its connection suspect, even if other requests on it were
    /// answered. A request that is dropped earlier may only have had little time left.
    const SUSPECT_AFTER: Duration = Duration::from_secs(1);

    pub(super) fn new(pools: &'a Pools, pool: &'a Arc<Pool>) -> Self {
        Self { pools, pool, at: Instant::now(), answers: pool.answers(), has_ended: false }
    }

    pub(super) fn answered(mut self) {
        self.has_ended = true;
        self.pool.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the connection failed, or that there was none. A cold pool is kept, because it has no connection
    /// yet.
    pub(super) fn failed(mut self, connection_is_over: bool) {
        self.has_ended = true;
        if connection_is_over && self.pool.is_warm() {
            self.pools.retire(self.pool);
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let was_silent = self.pool.answers() == self.answers;
        if !self.has_ended && (was_silent || self.at.elapsed() >= Self::SUSPECT_AFTER) {
            self.pools.retire(self.pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    fn at(pools: &Pools, origin: &str) -> Arc<Pool> {
        pools.at(tokio::runtime::Handle::current().id(), origin.to_owned(), reqwest::Client::new)
    }

    #[tokio::test]
    async fn a_link_is_kept_for_each_of_a_few_servers() {
        let pools = Pools::default();
        let first = at(&pools, "https://host");
        assert!(Arc::ptr_eq(&first, &at(&pools, "https://host")));
        for n in 1..2 * Pools::KEPT {
            assert!(!Arc::ptr_eq(&first, &at(&pools, &format!("https://host{n}"))));
            assert!(Arc::ptr_eq(&first, &at(&pools, "https://host")), "in use");
        }
        assert_eq!(pools.0.lock().unwrap().len(), Pools::KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn when_a_link_is_replaced() {
        type Case = (&'static str, bool, fn(Sent<'_>), bool);
        let cases: &[Case] = &[
            // name, whether another request was answered meanwhile, end, whether the pool is replaced
            ("answered", false, |sent| sent.answered(), false),
            ("out of time", false, |sent| drop(sent), true),
            ("out of time, but others were answered", true, |sent| drop(sent), false),
            ("a connection that is over", true, |sent| sent.failed(true), true),
            ("no connection yet", false, |sent| sent.failed(true), false),
            ("another failure", true, |sent| sent.failed(false), false),
        ];
        for (name, answered, end, replaced) in cases {
            let pools = Pools::default();
            let pool = at(&pools, "https://host");
            let sent = Sent::new(&pools, &pool);
            if *answered {
                Sent::new(&pools, &pool).answered();
            }
            end(sent);
            assert_eq!(!Arc::ptr_eq(&pool, &at(&pools, "https://host")), *replaced, "{name}");
        }
        let pools = Pools::default();
        let pool = at(&pools, "https://host");
        let sent = Sent::new(&pools, &pool);
        Sent::new(&pools, &pool).answered();
        tokio::time::advance(Sent::SUSPECT_AFTER).await;
        drop(sent);
        assert!(!Arc::ptr_eq(&pool, &at(&pools, "https://host")), "out of time for a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_waits_for_one_answer_and_not_for_long() {
        let pools = Pools::default();
        let apple = at(&pools, "https://apple");
        let first = apple.turn().now_or_never().unwrap();
        assert!(first.is_some());
        let other = at(&pools, "https://other");
        assert!(other.turn().now_or_never().unwrap().is_some(), "another server");

        let started = tokio::time::Instant::now();
        let crowd = join_all((0..100).map(|_| apple.turn())).await;
        assert_eq!(started.elapsed(), Pool::PATIENCE);
        assert!(crowd.iter().all(Option::is_none));

        let mut waits = Box::pin(apple.turn());
        assert!(waits.as_mut().now_or_never().is_none());
        Sent::new(&pools, &apple).answered();
        drop(first);
        assert!(waits.now_or_never().unwrap().is_none(), "the server is warm");
    }
}
