//! A limit on the calls to Apple that are under way, and on those that wait.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_lock::{Mutex, Semaphore, SemaphoreGuard};

use crate::runtime::REQUESTS_MAY_AWAIT_EACH_OTHER;

/// Slots for calls to Apple, and a bounded number of waiters for them.
pub(super) struct CallLimit {
    slots: Semaphore,
    /// Held by the first waiter. The semaphore alone would let a newcomer overtake all waiters.
    queue: Mutex<()>,
    waiting: AtomicUsize,
    waiting_limit: usize,
}

/// All slots are taken, and too many calls wait for one already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl CallLimit {
    pub(super) const fn new(in_flight: usize, waiting_limit: usize) -> Self {
        Self {
            slots: Semaphore::new(in_flight),
            queue: Mutex::new(()),
            waiting: AtomicUsize::new(0),
            waiting_limit,
        }
    }

    pub(super) async fn acquire(&self) -> Result<SemaphoreGuard<'_>, QueueFull> {
        // A newcomer must not take the slot that the first waiter is about to get.
        if self.waiting.load(Ordering::Relaxed) == 0
            && let Some(slot) = self.slots.try_acquire()
        {
            return Ok(slot);
        }
        if !REQUESTS_MAY_AWAIT_EACH_OTHER {
            return Err(QueueFull);
        }
        let _place = QueuePlace::new(self).ok_or(QueueFull)?;
        let _first = self.queue.lock().await;
        Ok(self.slots.acquire().await)
    }
}

/// A counted place in the queue, given up on drop.
struct QueuePlace<'a>(&'a AtomicUsize);

impl<'a> QueuePlace<'a> {
    fn new(limit: &'a CallLimit) -> Option<Self> {
        let more = |waiting| (waiting < limit.waiting_limit).then_some(waiting + 1);
        limit.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(&limit.waiting))
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn waiters_are_counted_and_forgotten() {
        let limit = CallLimit::new(1, 1);
        let slot = limit.acquire().now_or_never().unwrap().unwrap();
        let mut first = Box::pin(limit.acquire());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(matches!(limit.acquire().now_or_never(), Some(Err(QueueFull))));
        drop(first);

        let mut second = Box::pin(limit.acquire());
        assert!(second.as_mut().now_or_never().is_none(), "the place is free again");
        drop(slot);
        let slot = second.as_mut().now_or_never().unwrap().unwrap();
        drop(second);
        assert_eq!(limit.waiting.load(Ordering::Relaxed), 0);
        drop(slot);
        assert!(limit.acquire().now_or_never().unwrap().is_ok());
    }

    #[test]
    fn nobody_overtakes_the_first_of_those_who_wait() {
        let limit = CallLimit::new(1, 2);
        let slot = limit.acquire().now_or_never().unwrap().unwrap();
        let mut first = Box::pin(limit.acquire());
        assert!(first.as_mut().now_or_never().is_none());
        drop(slot);
        let mut second = Box::pin(limit.acquire());
        assert!(second.as_mut().now_or_never().is_none(), "the slot is free, and the first one's");
        let slot = first.as_mut().now_or_never().unwrap().unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        drop((first, slot));
        assert!(second.as_mut().now_or_never().unwrap().is_ok());
    }
}
