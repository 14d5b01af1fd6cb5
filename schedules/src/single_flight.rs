//! Callers that share a computation: each gets its result, whoever leaves, and no two computations of a key are wanted at
//! once.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use shuttle::future::block_on;
use shuttle::sync::Arc;
use shuttle::thread;

use super::single_flight::SingleFlight;
use crate::explore::{Signal, leave_after};
use crate::runtime::Attendance;

struct World {
    flights: SingleFlight<u8, u32>,
    first: Signal,
    second: Signal,
    ended: Signal,
    begun: AtomicUsize,
    committed: AtomicBool,
    /// The attendance of the computation that was begun last, while it is alive.
    under_way: StdMutex<Option<Attendance>>,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            flights: SingleFlight::new(),
            first: Signal::default(),
            second: Signal::default(),
            ended: Signal::default(),
            begun: AtomicUsize::new(0),
            committed: AtomicBool::new(false),
            under_way: StdMutex::default(),
        })
    }

    /// Asks as a request does. With `commits`, the computation must finish once it is half done.
    fn ask(self: &Arc<Self>, commits: bool) -> impl Future<Output = u32> + use<> {
        let (world, attendance) = (Arc::clone(self), Attendance::default());
        let own = attendance.clone();
        let caller = self.flights.run(1, attendance, async move {
            world.begun.fetch_add(1, Relaxed);
            let before = world.under_way.lock().expect("a lock").replace(own.clone());
            assert!(before.is_none_or(|before| before.is_deserted()), "two computations of one key");
            world.first.wait().await;
            if commits {
                own.must_finish();
                world.committed.store(true, Relaxed);
            }
            world.second.wait().await;
            *world.under_way.lock().expect("a lock") = None;
            world.ended.set();
            7
        });
        async { caller.await.expect("no panic") }
    }

    fn answer(&self) {
        self.first.set();
        self.second.set();
    }
}

fn caller(world: &Arc<World>) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || assert_eq!(block_on(world.ask(false)), 7))
}

pub(crate) fn all_get_the_result() {
    let world = World::new();
    let callers = [caller(&world), caller(&world)];
    world.answer();
    callers.into_iter().for_each(|caller| caller.join().expect("a result"));
    assert!(world.begun.load(Relaxed) <= 2);
}

pub(crate) fn one_leaves() {
    let world = World::new();
    let leaver = {
        let world = Arc::clone(&world);
        thread::spawn(move || leave_after(1, world.ask(false)))
    };
    let stayer = caller(&world);
    world.answer();
    leaver.join().expect("no panic");
    stayer.join().expect("a result");
}

pub(crate) fn all_but_the_last_leave() {
    let world = World::new();
    let leavers = [1, 2].map(|polls| {
        let world = Arc::clone(&world);
        thread::spawn(move || leave_after(polls, world.ask(false)))
    });
    let stayer = caller(&world);
    world.answer();
    for leaver in leavers {
        leaver.join().expect("no panic");
    }
    stayer.join().expect("a result");
}

pub(crate) fn committed_work_ends() {
    let world = World::new();
    let leavers = [2, 3].map(|polls| {
        let world = Arc::clone(&world);
        thread::spawn(move || leave_after(polls, world.ask(true)))
    });
    world.first.set();
    for leaver in leavers {
        leaver.join().expect("no panic");
    }
    world.second.set();
    if world.committed.load(Relaxed) {
        block_on(world.ended.wait());
    }
}
