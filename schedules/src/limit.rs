//! Slots: no more than the limit, and none is lost, whoever leaves.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::sync::Arc;
use shuttle::thread;

use super::limit::CallLimit;
use crate::apple::task::Driven;
use crate::explore::leave_after;
use crate::runtime::Instant;

struct World {
    limit: CallLimit,
    slots: usize,
    taken: AtomicUsize,
}

fn world(slots: usize) -> Arc<World> {
    let limit = CallLimit::new(slots, 9, Duration::from_secs(5), false);
    Arc::new(World { limit, slots, taken: AtomicUsize::new(0) })
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}

impl World {
    async fn call(&self, driven: bool) {
        let slot = self.limit.acquire(Driven(driven), far()).await.expect("a slot");
        assert!(self.taken.fetch_add(1, Relaxed) < self.slots, "more calls than slots");
        thread::yield_now();
        self.taken.fetch_sub(1, Relaxed);
        drop(slot);
    }

    fn all_slots_are_back(&self) {
        let mut held = Vec::new();
        for _ in 0..self.slots {
            let mut acquire = Box::pin(self.limit.acquire(Driven(true), far()));
            let Poll::Ready(Ok(slot)) = acquire.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("a slot is lost");
            };
            held.push(slot);
        }
        let mut more = Box::pin(self.limit.acquire(Driven(true), far()));
        assert!(more.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "a slot too many");
    }
}

fn run<const N: usize>(slots: usize, driven: [bool; N], leaver: Option<usize>) {
    let world = world(slots);
    let mut number = 0;
    let calls = driven.map(|driven| {
        let (world, leaves) = (Arc::clone(&world), leaver == Some(number));
        number += 1;
        thread::spawn(move || {
            let call = world.call(driven);
            if leaves {
                leave_after(1, call);
            } else {
                block_on(call);
            }
        })
    });
    for call in calls {
        call.join().expect("a slot for each");
    }
    world.all_slots_are_back();
}

pub(crate) fn one_slot_for_two() {
    run(1, [true; 2], None);
}

pub(crate) fn one_of_two_leaves() {
    run(1, [true; 2], Some(0));
}

pub(crate) fn one_slot_for_three() {
    run(1, [true; 3], None);
}

pub(crate) fn two_slots_for_three() {
    run(2, [true; 3], None);
}

pub(crate) fn one_of_the_line_leaves() {
    run(1, [true; 3], Some(1));
}

pub(crate) fn nobody_drives_the_waiters() {
    run(1, [false, true, false], None);
}

pub(crate) fn one_that_nobody_drives_leaves() {
    run(1, [false; 3], Some(1));
}
