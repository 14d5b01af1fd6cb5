use super::*;
use Environment::{Development, Production};

const SECOND: Duration = Duration::from_secs(1);

fn breaker() -> Breaker {
    Breaker::new(256, None)
}

fn down() -> VerifyError {
    VerifyError::unavailable("down")
}

#[test]
fn only_failures_in_a_row_open_it_and_any_answer_closes_it() {
    let (breaker, now) = (breaker(), Instant::now());
    for _ in 0..3 {
        for _ in 1..Breaker::THRESHOLD {
            breaker.failed(Production, &down(), None, now);
            assert_eq!(breaker.admit(Production, now).unwrap(), Pass::Regular);
        }
        breaker.answered(Production, now);
    }
    for _ in 0..Breaker::THRESHOLD {
        breaker.failed(Production, &down(), None, now);
    }
    let error = breaker.admit(Production, now).unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (VerifyErrorKind::Unavailable, None));
    assert!(error.is_known_outage() && !down().is_known_outage());
    assert_eq!(breaker.admit(Development, now).unwrap(), Pass::Regular, "the other server");
    breaker.answered(Production, now);
    assert_eq!(breaker.admit(Production, now).unwrap(), Pass::Regular);
}

#[test]
fn one_probe_a_second_while_it_is_down() {
    let (breaker, start) = (breaker(), Instant::now());
    for _ in 0..Breaker::THRESHOLD {
        breaker.failed(Production, &down(), None, start);
    }
    let mut probes = 0;
    for tenth in 0..100 {
        let now = start + Duration::from_millis(100 * tenth);
        if let Ok(pass) = breaker.admit(Production, now) {
            assert_eq!(pass, Pass::Probe);
            probes += 1;
            breaker.failed(Production, &down(), None, now + Duration::from_millis(50));
        }
    }
    assert_eq!(probes, 9, "in ten seconds, the first after one");
}

#[test]
fn the_time_that_apple_named_is_kept() {
    // name, what Apple named, how long no call is made
    let cases = [
        ("nothing", Duration::ZERO, SECOND),
        ("a minute", Duration::from_secs(60), Duration::from_secs(60)),
        ("more than five minutes", Duration::from_secs(3600), Breaker::LONGEST_HOLD),
        ("for ever", Duration::MAX, Breaker::LONGEST_HOLD),
    ];
    for (name, named, kept) in cases {
        for error in [down(), VerifyError::throttled(Some(named), "too often")] {
            let (breaker, now) = (breaker(), Instant::now());
            breaker.failed(Production, &error, Some(named), now);
            // Calls that were under way fail, too.
            breaker.failed(Production, &down(), None, now);
            let last = now + kept - Duration::from_millis(1);
            assert_eq!(breaker.availability(Production, last), Availability::HeldOff, "{name}");
            assert_eq!(breaker.availability(Production, now + kept), Availability::Down, "{name}");
            let rest = breaker.admit(Production, last).unwrap_err().retry_after();
            assert_eq!(rest, Some(Duration::from_millis(1)), "{name}");
            assert_eq!(breaker.admit(Production, now + kept).unwrap(), Pass::Probe, "{name}");
            assert!(breaker.admit(Production, now + kept).is_err(), "{name}: one probe");
        }
    }
}

#[test]
fn a_client_of_few_calls_at_once_needs_fewer_failures() {
    // calls at once, failures
    for (in_flight, threshold) in [(1, 5), (5, 5), (12, 12), (30, 30), (256, 30), (usize::MAX, 30)] {
        let (breaker, now) = (Breaker::new(in_flight, None), Instant::now());
        for _ in 1..threshold {
            breaker.failed(Production, &down(), None, now);
        }
        assert_eq!(breaker.availability(Production, now), Availability::Available, "{in_flight}");
        breaker.failed(Production, &down(), None, now);
        assert_eq!(breaker.availability(Production, now), Availability::Down, "{in_flight}");
    }
}

#[test]
fn the_listener_hears_of_each_change_once() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&heard);
    let listener: Listener = Arc::new(move |_, availability| lock(&note).push(availability));
    let (breaker, now) = (Breaker::new(256, Some(listener)), Instant::now());
    for _ in 0..2 * Breaker::THRESHOLD {
        breaker.failed(Production, &down(), None, now);
    }
    breaker.failed(Production, &down(), Some(SECOND), now);
    breaker.failed(Production, &down(), Some(SECOND), now);
    breaker.answered(Production, now);
    breaker.answered(Production, now);
    use Availability::{Available, Down, HeldOff};
    assert_eq!(*lock(&heard), [Down, HeldOff, Available]);
}

#[test]
fn the_listener_hears_last_how_it_is() {
    let last = Arc::new(Mutex::new(Availability::Available));
    let note = Arc::clone(&last);
    let listener: Listener = Arc::new(move |_, availability| *lock(&note) = availability);
    let (breaker, now) = (Breaker::new(256, Some(listener)), Instant::now());
    for round in 0..20_000 {
        std::thread::scope(|scope| {
            for failing in [true, false] {
                let breaker = &breaker;
                scope.spawn(move || {
                    for _ in 0..4 {
                        if failing {
                            breaker.failed(Production, &down(), Some(Duration::ZERO), now);
                            let _ = breaker.admit(Production, now + SECOND);
                        } else {
                            breaker.answered(Production, now);
                        }
                    }
                });
            }
        });
        assert_eq!(*lock(&last), breaker.availability(Production, now), "round {round}");
    }
}

#[test]
fn retries_are_a_share_of_all_calls() {
    let budget = RetryBudget::default();
    let retries = (0..400).filter(|_| {
        budget.call();
        budget.retry()
    });
    assert!((60..=70).contains(&retries.count()));
}
