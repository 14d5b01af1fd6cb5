use std::sync::atomic::{AtomicUsize, Ordering};

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
            Box::pin(flights.run("token", Attendance::default(), async move {
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
    assert_eq!(flights.run("token", Attendance::default(), async { 1 }).await.unwrap(), 1);
    assert_eq!(flights.run("token", Attendance::default(), async { 2 }).await.unwrap(), 2);
}

#[tokio::test]
async fn other_keys_do_not_wait() {
    let flights = flights();
    let stuck = flights.run("stuck", Attendance::default(), std::future::pending());
    pin_mut!(stuck);
    assert!(poll!(&mut stuck).is_pending());
    assert_eq!(flights.run("token", Attendance::default(), async { 1 }).await.unwrap(), 1);
}

#[tokio::test]
async fn r13_the_first_caller_leaves_and_the_others_are_served_without_spinning() {
    let flights = flights();
    let (answer, answered) = oneshot::channel();
    let mut first = Box::pin(flights.run("token", Attendance::default(), async { answered.await.unwrap() }));
    let mut second =
        Box::pin(flights.run("token", Attendance::default(), async { panic!("the first one runs already") }));
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

/// A caller joins while the first one's poll is under way and has woken itself. Then the first one goes.
fn joined_during_a_poll() {
    let flights = flights();
    let second = Arc::new(Mutex::new(None::<BoxFuture<'static, Result<u32, Panicked>>>));
    let wakes = Arc::new(Wakes::default());
    let poll_second = {
        let (second, waker) = (Arc::clone(&second), Waker::from(Arc::clone(&wakes)));
        move || lock(&second).as_mut().unwrap().as_mut().poll(&mut Context::from_waker(&waker))
    };
    let mut polls = 0;
    let poll_it = poll_second.clone();
    let first = flights.run(
        "token",
        Attendance::default(),
        std::future::poll_fn(move |cx| {
            polls += 1;
            if polls > 1 {
                return Poll::Ready(7);
            }
            cx.waker().wake_by_ref();
            assert!(poll_it().is_pending());
            Poll::Pending
        }),
    );
    let mut first = first.boxed();
    *lock(&second) = Some(
        flights.run("token", Attendance::default(), async { panic!("the first one runs already") }).boxed(),
    );
    assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(first);
    assert!(wakes.0.load(Ordering::Relaxed) > 0, "it drives the computation on, or is told");
    assert!(matches!(poll_second(), Poll::Ready(Ok(7))));
    *lock(&second) = None;
    assert_eq!(flights.len(), 0);
}

#[test]
fn c02_no_wake_up_is_lost_when_the_one_who_polls_goes() {
    joined_during_a_poll();
}

#[test]
fn c02_none_is_lost_among_threads() {
    let flights = Arc::new(flights());
    let threads: Vec<_> = (0..4_usize)
        .map(|thread| {
            let flights = Arc::clone(&flights);
            std::thread::spawn(move || {
                for round in 0..5_000 {
                    let mut polls = 0;
                    let mut run = flights
                        .run(
                            "token",
                            Attendance::default(),
                            std::future::poll_fn(move |cx| {
                                polls += 1;
                                cx.waker().wake_by_ref();
                                if polls > 3 { Poll::Ready(7) } else { Poll::Pending }
                            }),
                        )
                        .boxed();
                    if (thread + round) % 2 == 0 {
                        let _ = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    } else {
                        assert_eq!(futures::executor::block_on(run).unwrap(), 7);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(flights.len(), 0);
}

#[tokio::test]
async fn r13_all_callers_leave_and_the_slot_is_freed() {
    let flights = flights();
    let (mut answer, answered) = oneshot::channel::<u32>();
    let mut first = Box::pin(flights.run("token", Attendance::default(), async { answered.await.unwrap() }));
    let mut second =
        Box::pin(flights.run("token", Attendance::default(), async { panic!("the first one runs already") }));
    assert!(poll!(&mut first).is_pending());
    assert!(poll!(&mut second).is_pending());
    assert_eq!(flights.len(), 1);
    drop(first);
    assert_eq!(flights.len(), 1);
    drop(second);
    assert_eq!(flights.len(), 0);
    assert!(poll!(answer.cancellation()).is_ready(), "the computation itself is dropped");
    assert_eq!(flights.run("token", Attendance::default(), async { 1 }).await.unwrap(), 1);
}

#[tokio::test]
async fn r14_a_panic_reaches_all_who_wait_and_frees_the_slot() {
    let flights = flights();
    let run = || {
        flights.run("token", Attendance::default(), async {
            tokio::task::yield_now().await;
            panic!("computation panics, as this test wants")
        })
    };
    let (first, second) = join!(run(), run());
    assert!(first.is_err() && second.is_err());
    assert_eq!(flights.len(), 0);
    assert_eq!(flights.run("token", Attendance::default(), async { 1 }).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_come_and_go_on_many_threads_leave_nothing_behind() {
    let flights = Arc::new(flights());
    let tasks = (0..64).map(|task| {
        let flights = Arc::clone(&flights);
        tokio::spawn(async move {
            for round in 0..200 {
                let mut run = Box::pin(flights.run("token", Attendance::default(), async {
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

/// Two callers leave at the same moment, on two threads, a computation that must finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_computation_that_must_finish_does_so_when_its_last_callers_leave_together() {
    let (rounds, handle) = (20_000, tokio::runtime::Handle::current());
    let finished = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&finished);
    let race = tokio::task::spawn_blocking(move || {
        let flights = flights();
        let turn = AtomicUsize::new(0);
        let second = Mutex::new(None);
        let is_at = |turn: &AtomicUsize, at| {
            for spins in 1_u32.. {
                if turn.load(Ordering::Acquire) >= at {
                    break;
                }
                // On a busy machine the other thread may not even run.
                if spins % 1_000 == 0 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _guard = handle.enter();
                for round in 0..rounds {
                    is_at(&turn, 2 * round + 1);
                    let caller = lock(&second).take();
                    turn.store(2 * round + 2, Ordering::Release);
                    drop::<Option<BoxFuture<'static, Result<u32, Panicked>>>>(caller);
                }
            });
            let _guard = handle.enter();
            for round in 0..rounds {
                let attendance = Attendance::default();
                attendance.must_finish();
                let count = Arc::clone(&count);
                let mut polls = 0;
                let compute = std::future::poll_fn(move |cx| {
                    polls += 1;
                    if polls == 1 {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    Poll::Ready(7)
                });
                let mut first = flights.run("token", attendance, compute).boxed();
                assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                *lock(&second) = Some(flights.run("token", Attendance::default(), async { 0 }).boxed());
                turn.store(2 * round + 1, Ordering::Release);
                is_at(&turn, 2 * round + 2);
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                drop(first);
                while flights.len() > 0 {
                    std::thread::yield_now();
                }
            }
        });
    });
    race.await.unwrap();
    assert_eq!(finished.load(Ordering::Relaxed), rounds, "of {rounds}");
}

#[tokio::test]
async fn one_who_joins_a_task_and_leaves_is_not_there_any_more() {
    let flights = flights();
    let attendance = Attendance::default();
    attendance.must_finish();
    let (answer, answered) = oneshot::channel();
    let mut first = Box::pin(flights.run("token", attendance.clone(), async { answered.await.unwrap_or(0) }));
    assert!(poll!(&mut first).is_pending());
    drop(first);
    assert!(attendance.is_deserted());
    let mut second = Box::pin(flights.run("token", Attendance::default(), async { 1 }));
    assert!(poll!(&mut second).is_pending());
    assert!(!attendance.is_deserted());
    drop(second);
    assert!(attendance.is_deserted(), "nobody waits");
    answer.send(7).unwrap();
    while flights.len() > 0 {
        tokio::task::yield_now().await;
    }
}
