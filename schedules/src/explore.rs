//! Runs a scenario under many schedules.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
    time::Instant,
};

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Mutex;
use shuttle::{Config, FailurePersistence, Runner};

/// The most schedules of a scenario that are tried one after the other.
const IN_ORDER: usize = 200_000;
/// The schedules that are tried of a larger one: as many switch threads at random, and as many a few times only.
const BY_CHANCE: usize = 500;
/// Fixed, so that each run tries the same schedules.
const SEED: u64 = 18;

static TOTAL: AtomicUsize = AtomicUsize::new(0);

/// How a scenario is explored.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Size {
    /// It has few schedules: all are tried.
    Small,
    /// It has many: some are tried.
    Large,
}

/// Explores a scenario, and prints the number of its schedules. Panics at the first that breaks it, and prints that one.
pub(crate) fn explore(name: &str, scenario: fn(), size: Size) {
    let started = Instant::now();
    let run = |scheduler: Box<dyn Scheduler + Send>| run(scheduler, FailurePersistence::Print, scenario);
    let (tried, which) = match size {
        Size::Small => match run(Box::new(DfsScheduler::new(Some(IN_ORDER), false))) {
            IN_ORDER => (IN_ORDER, "the first ones in order"),
            tried => (tried, "all there are"),
        },
        Size::Large => {
            let switches = run(Box::new(RandomScheduler::new_from_seed(SEED, BY_CHANCE)));
            (switches + run(Box::new(PctScheduler::new_from_seed(SEED, 4, BY_CHANCE))), "by chance")
        }
    };
    TOTAL.fetch_add(tried, Ordering::Relaxed);
    println!("{name}: {tried} schedules, {which} ({} ms)", started.elapsed().as_millis());
}

/// Explores a scenario with a planted fault, which must be found.
pub(crate) fn finds(name: &str, scenario: fn()) {
    static TRIED: AtomicUsize = AtomicUsize::new(0);
    TRIED.store(0, Ordering::Relaxed);
    let counted = move || {
        TRIED.fetch_add(1, Ordering::Relaxed);
        scenario();
    };
    // The panic is meant, so it is not printed.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let found = catch_unwind(AssertUnwindSafe(|| {
        run(Box::new(PctScheduler::new_from_seed(SEED, 4, BY_CHANCE)), FailurePersistence::None, counted);
        run(Box::new(RandomScheduler::new_from_seed(SEED, BY_CHANCE)), FailurePersistence::None, counted);
    }));
    set_hook(hook);
    let tried = TRIED.load(Ordering::Relaxed);
    TOTAL.fetch_add(tried, Ordering::Relaxed);
    assert!(found.is_err(), "the planted fault was not found: {name}");
    println!("planted fault found: {name} (schedule {tried})");
}

pub(crate) fn total() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

fn run(
    scheduler: Box<dyn Scheduler + Send>,
    persistence: FailurePersistence,
    scenario: impl Fn() + Send + Sync + 'static,
) -> usize {
    let mut config = Config::new();
    config.failure_persistence = persistence;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(scenario)
}

/// An event that others wait for, such as Apple's answer.
#[derive(Default)]
pub(crate) struct Signal(Mutex<(bool, Vec<Waker>)>);

impl Signal {
    pub(crate) fn set(&self) {
        let mut state = self.0.lock().expect("a lock");
        state.0 = true;
        let waiting = std::mem::take(&mut state.1);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) async fn wait(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock().expect("a lock");
            if state.0 {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Polls a future a few times, then drops it: a client that leaves.
pub(crate) fn leave_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        if let Poll::Ready(output) = Pin::as_mut(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
            return Some(output);
        }
        shuttle::thread::yield_now();
    }
    None
}
