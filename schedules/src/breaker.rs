//! While Apple is down, one call a second finds out whether it is back.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use shuttle::sync::Arc;
use shuttle::thread;

use super::breaker::{Availability, Breaker, Pass};
use crate::gate::error::VerifyError;
use crate::gate::routing::Environment::Production;
use crate::runtime::Instant;

const THRESHOLD: usize = 5;
const SECOND: Duration = Duration::from_secs(1);

fn down(now: Instant, listener: Option<super::breaker::Listener>) -> Arc<Breaker> {
    let breaker = Breaker::new(THRESHOLD, listener);
    (0..THRESHOLD).for_each(|_| breaker.failed(Production, &VerifyError::unavailable("down"), None, now));
    Arc::new(breaker)
}

/// Of all calls at one time, one passes.
pub(crate) fn one_probe_a_second<const N: usize>() {
    let start = Instant::now();
    let breaker = down(start, None);
    let probes = Arc::new(AtomicUsize::new(0));
    let calls = [(); N].map(|()| {
        let (breaker, probes) = (Arc::clone(&breaker), Arc::clone(&probes));
        thread::spawn(move || match breaker.admit(Production, start + SECOND) {
            Ok(Pass::Probe) => drop(probes.fetch_add(1, Relaxed)),
            Ok(Pass::Regular) => panic!("Apple is down"),
            Err(_) => {}
        })
    });
    // A call that was sent before fails meanwhile.
    breaker.failed(Production, &VerifyError::unavailable("down"), None, start + SECOND);
    calls.into_iter().for_each(|call| call.join().expect("no panic"));
    assert_eq!(probes.load(Relaxed), 1);
    assert!(breaker.admit(Production, start + SECOND).is_err());
    assert!(breaker.admit(Production, start + 2 * SECOND).is_ok());
}

/// Nobody asks before the time that Apple has named, whatever else is going on.
pub(crate) fn the_named_time_holds() {
    let start = Instant::now();
    let breaker = down(start, None);
    let told = VerifyError::throttled(Some(60 * SECOND), "leave me alone");
    breaker.failed(Production, &told, Some(60 * SECOND), start + SECOND);
    let others: Vec<_> = (0..3)
        .map(|number| {
            let breaker = Arc::clone(&breaker);
            thread::spawn(move || match number {
                0 => breaker.answered(Production, start),
                1 => breaker.failed(Production, &VerifyError::unavailable("down"), None, start + 2 * SECOND),
                _ => assert!(breaker.admit(Production, start + 30 * SECOND).is_err()),
            })
        })
        .collect();
    others.into_iter().for_each(|other| other.join().expect("the time holds"));
    assert!(breaker.admit(Production, start + 60 * SECOND).is_err());
    assert_eq!(breaker.admit(Production, start + 61 * SECOND).expect("the time is over"), Pass::Probe);
}

/// The last state that the listener hears is the state, and it hears no state twice in a row.
pub(crate) fn the_listener_hears_the_last_state() {
    let heard: Arc<StdMutex<Vec<Availability>>> = Arc::default();
    let hears = Arc::clone(&heard);
    let start = Instant::now();
    let breaker = down(start, Some(Arc::new(move |_, state| hears.lock().expect("a lock").push(state))));
    let answered = {
        let breaker = Arc::clone(&breaker);
        thread::spawn(move || breaker.answered(Production, start + SECOND))
    };
    let held = {
        let breaker = Arc::clone(&breaker);
        thread::spawn(move || {
            breaker.failed(
                Production,
                &VerifyError::throttled(None, "later"),
                Some(9 * SECOND),
                start + SECOND,
            );
        })
    };
    answered.join().expect("no panic");
    held.join().expect("no panic");
    let heard = heard.lock().expect("a lock").clone();
    assert_eq!(heard.last(), Some(&breaker.availability(Production, start + SECOND)), "{heard:?}");
    assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "{heard:?}");
}
