//! Attacks on the breaker, the admission to Apple, stale verdicts and the limiter.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, Availability, DeviceCheckLayer, Environment, Route, TransportError,
    Verdict,
    cache::{CacheError, CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    testing::{FakeApple, Reply, realistic_token},
};

use crate::support::{App, Apple, Counter, StandingClock, rejection};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

type Reaction = Result<Response<Bytes>, TransportError>;

/// A client whose transport is a closure: it gets the number of the request and its body.
fn client<F>(react: impl Fn(usize, String) -> F + Send + Sync + 'static) -> (AppleClientBuilder, Counter)
where
    F: Future<Output = Reaction> + Send + 'static,
{
    let calls = Counter::default();
    let count = calls.clone();
    let react = Arc::new(react);
    let transport = service_fn(move |request: Request<Bytes>| {
        let number = count.get();
        count.add();
        react(number, String::from_utf8_lossy(request.body()).into_owned())
    });
    (AppleClient::builder(FakeApple::new().credentials()).transport(transport), calls)
}

fn status(status: u16) -> Response<Bytes> {
    Response::builder().status(status).body(Bytes::new()).unwrap()
}

fn hold(seconds: u64) -> Response<Bytes> {
    Response::builder().status(429).header("retry-after", seconds).body(Bytes::new()).unwrap()
}

fn app(client: AppleClientBuilder) -> (App, AppleClient) {
    let client = client.build().unwrap();
    (App::new(&DeviceCheckLayer::new(client.clone())), client)
}

/// Apple throttles a part of the traffic: a call that was under way is answered after another one was told to come back
/// in a minute.
#[tokio::test(start_paused = true)]
async fn an_answer_to_a_call_under_way_does_not_end_the_time_that_apple_named() {
    let (builder, calls) = client(|number, _| async move {
        sleep(if number == 0 { 100 * MS } else { 200 * MS }).await;
        Ok(if number == 0 { hold(60) } else { status(200) })
    });
    let (app, apple) = app(builder);
    let tokens: Vec<_> = (0..2).map(|_| realistic_token()).collect();
    join_all(tokens.iter().map(|token| app.status(token))).await;
    assert_eq!(calls.get(), 2);
    assert_eq!(apple.availability(Environment::Production), Availability::HeldOff);
    for _ in 0..20 {
        app.status(&realistic_token()).await;
        sleep(100 * MS).await;
    }
    assert_eq!(calls.get(), 2, "Apple is left alone for as long as it said");
    sleep(60_000 * MS).await;
    let (none, state) = (calls.get(), apple.availability(Environment::Production));
    assert_eq!((none, state), (2, Availability::Down), "its time is over, and nobody has asked yet");
}

/// A server that sheds load: one 503 with `Retry-After`, then it turns all other streams away unread.
#[tokio::test(start_paused = true)]
async fn no_call_is_repeated_while_apple_wants_to_be_left_alone() {
    let (builder, calls) = client(|number, _| async move {
        match number {
            0 => {
                sleep(100 * MS).await;
                Ok(hold(60))
            }
            1..40 => {
                sleep(200 * MS).await;
                Err(TransportError::turned_away("GOAWAY"))
            }
            _ => Ok(status(200)),
        }
    });
    let (app, _) = app(builder);
    let tokens: Vec<_> = (0..40).map(|_| realistic_token()).collect();
    join_all(tokens.iter().map(|token| app.status(token))).await;
    assert!(calls.get() <= 41, "{} calls, 40 of which were made before Apple named a time", calls.get());
}

/// All calls share one connection. It ends with 40 calls under way, all of which succeed over a new one.
#[tokio::test(start_paused = true)]
async fn the_end_of_one_reused_connection_is_no_outage() {
    let (builder, _) = client(|number, _| async move {
        sleep(100 * MS).await;
        match number {
            0..40 => Err(TransportError::stale("reset")),
            _ => Ok(status(200)),
        }
    });
    let heard = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&heard);
    let (app, _) = app(builder.on_availability(move |_, state| note.lock().unwrap().push(state)));
    let tokens: Vec<_> = (0..40).map(|_| realistic_token()).collect();
    let crowd = join_all(tokens.iter().map(|token| app.status(token)));
    let late = async {
        sleep(150 * MS).await;
        app.status(&realistic_token()).await
    };
    let (crowd, late) = futures::join!(crowd, late);
    assert!(crowd.iter().all(|status| *status == StatusCode::OK), "{crowd:?}");
    assert_eq!(late, StatusCode::OK, "{:?}", heard.lock().unwrap());
    assert!(heard.lock().unwrap().is_empty());
}

/// A burst is on the one connection when its packets begin to vanish (A1: at most one failed check a connection).
#[tokio::test(start_paused = true)]
async fn a_burst_on_a_connection_that_hangs_succeeds_over_a_new_one() {
    let (builder, _) = client(|number, _| async move {
        match number {
            0..40 => std::future::pending().await,
            _ => Ok(status(200)),
        }
    });
    let (app, _) = app(builder);
    let tokens: Vec<_> = (0..40).map(|_| realistic_token()).collect();
    let crowd = join_all(tokens.iter().map(|token| app.status(token))).await;
    let admitted = crowd.iter().filter(|status| **status == StatusCode::OK).count();
    assert!(admitted >= 36, "{admitted} of 40");
}

/// After an outage, one client sends tokens for which Apple has an odd answer, a hundred a second.
#[tokio::test(start_paused = true)]
async fn odd_answers_to_one_client_do_not_keep_the_breaker_open() {
    for odd in [400, 413] {
        let is_down = Arc::new(AtomicUsize::new(1));
        let down = Arc::clone(&is_down);
        let odd_tokens = Arc::new(Mutex::new(std::collections::HashSet::new()));
        let known = Arc::clone(&odd_tokens);
        let (builder, _) = client(move |_, body| {
            let down = down.load(Ordering::SeqCst) == 1;
            let token = body.split('"').nth(3).unwrap().trim_end_matches('=').to_owned();
            let is_odd = known.lock().unwrap().contains(&token);
            async move {
                Ok(status(if down {
                    503
                } else if is_odd {
                    odd
                } else {
                    200
                }))
            }
        });
        let (app, apple) = app(builder);
        while apple.availability(Environment::Production) == Availability::Available {
            app.status(&realistic_token()).await;
        }
        is_down.store(0, Ordering::SeqCst);
        let admitted = devices_among_odd_tokens(&app, &odd_tokens).await;
        let count = admitted.iter().filter(|admitted| **admitted).count();
        assert!(count * 10 >= admitted.len() * 9, "{odd}: {count} of {} devices", admitted.len());
    }
}

/// Sends odd tokens for half a minute, and each hundredth time a device. Returns whether each device was admitted.
async fn devices_among_odd_tokens(
    app: &App,
    odd_tokens: &Mutex<std::collections::HashSet<String>>,
) -> Vec<bool> {
    let mut admitted = Vec::new();
    for tick in 0..3_000 {
        let token = realistic_token();
        if tick % 100 != 50 {
            odd_tokens.lock().unwrap().insert(token.trim_end_matches('=').to_owned());
            app.status(&token).await;
        } else {
            admitted.push(app.status(&token).await == StatusCode::OK);
        }
        sleep(10 * MS).await;
    }
    admitted
}

/// The same with a token that makes Apple stumble (500), and no outage at all.
#[tokio::test(start_paused = true)]
async fn tokens_that_make_apple_stumble_do_not_open_the_breaker_for_everybody() {
    let odd_tokens = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let known = Arc::clone(&odd_tokens);
    let (builder, _) = client(move |_, body| {
        let token = body.split('"').nth(3).unwrap().trim_end_matches('=').to_owned();
        let is_odd = known.lock().unwrap().contains(&token);
        async move { Ok(status(if is_odd { 500 } else { 200 })) }
    });
    let (app, _) = app(builder);
    let admitted = devices_among_odd_tokens(&app, &odd_tokens).await;
    let count = admitted.iter().filter(|admitted| **admitted).count();
    assert!(count * 10 >= admitted.len() * 9, "{count} of {} devices", admitted.len());
}

/// A 429 with a page of a server in front of Apple, as throttling at the edge often has.
#[tokio::test(start_paused = true)]
async fn a_long_page_with_429_is_kept_too() {
    let apple = Apple::new();
    let page = "x".repeat(5_000);
    apple.fake.always(Reply::status(429).header("retry-after", "60").body(page));
    let app = App::new(&apple.layer());
    let first = app.get(&apple.genuine()).await;
    for _ in 0..20 {
        app.status(&apple.genuine()).await;
    }
    assert_eq!(rejection(&first).code(), "throttled");
    assert_eq!(apple.calls(), 1);
}

/// A service with less than a request a second: each request is the probe.
#[tokio::test(start_paused = true)]
async fn a_stale_verdict_helps_a_service_with_one_request_a_second() {
    let apple = Apple::new();
    let layer = apple.layer().with_stale_verdicts(60 * 60 * SECOND);
    let cache = Arc::new(MemoryCache::new());
    let genuine = apple.genuine();
    let token = genuine.parse().unwrap();
    let credentials = apple.fake.credentials();
    let key = VerdictKey::new(credentials.team_id(), Environment::Production, &token);
    let checked_at = SystemTime::now() - 600 * SECOND;
    let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), checked_at, 3600 * SECOND);
    cache.put(&key, verdict).await.unwrap();
    let app = App::new(&layer.with_cache(cache));
    apple.fake.always(Reply::status(503));
    while apple.client.availability(Environment::Production) == Availability::Available {
        app.status(&apple.genuine()).await;
    }
    let mut admitted = 0;
    for _ in 0..20 {
        sleep(1_100 * MS).await;
        admitted += usize::from(app.status(&genuine).await == StatusCode::OK);
    }
    assert_eq!(admitted, 20, "of 20");
}

/// A layer that does not remember refusals.
#[tokio::test(start_paused = true)]
async fn a_token_that_apple_has_refused_since_has_no_stale_verdict() {
    let apple = Apple::new();
    let cache = Arc::new(MemoryCache::new());
    let refused = apple.fake.forged_token();
    let token = refused.parse().unwrap();
    let credentials = apple.fake.credentials();
    let key = VerdictKey::new(credentials.team_id(), Environment::Production, &token);
    let checked_at = SystemTime::now() - 600 * SECOND;
    let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), checked_at, 3600 * SECOND);
    cache.put(&key, verdict).await.unwrap();
    let layer = apple.layer().with_cache(cache).with_stale_verdicts(60 * 60 * SECOND);
    let app = App::new(&layer.with_time_to_live(Verdict::Refused, Duration::ZERO));
    assert_eq!(app.status(&refused).await, StatusCode::UNAUTHORIZED);
    apple.fake.always(Reply::status(503));
    while apple.client.availability(Environment::Production) == Availability::Available {
        app.status(&apple.genuine()).await;
    }
    assert_eq!(app.status(&refused).await, StatusCode::SERVICE_UNAVAILABLE);
}

async fn burst(app: &App, number: usize) -> usize {
    let tokens: Vec<_> = (0..number).map(|_| realistic_token()).collect();
    let statuses = join_all(tokens.iter().map(|token| app.status(token))).await;
    statuses.iter().filter(|status| **status == StatusCode::OK).count()
}

#[tokio::test(start_paused = true)]
async fn bursts_with_a_fast_apple_are_admitted() {
    for number in [300, 900, 1_800] {
        let (builder, _) = client(|_, _| async {
            sleep(100 * MS).await;
            Ok(status(200))
        });
        let (app, _) = app(builder);
        for _ in 0..3 {
            assert_eq!(burst(&app, number).await, number);
            sleep(7 * SECOND).await;
        }
    }
}

/// At night a few calls hang, which is no outage yet. In the morning a burst comes, and Apple is fast.
#[tokio::test(start_paused = true)]
async fn what_calls_took_an_hour_ago_turns_no_burst_away() {
    let (builder, _) = client(|number, _| async move {
        if number < 10 {
            std::future::pending::<()>().await;
        }
        sleep(50 * MS).await;
        Ok(status(200))
    });
    let (app, _) = app(builder);
    assert_eq!(burst(&app, 5).await, 0);
    sleep(3_600 * SECOND).await;
    assert_eq!(burst(&app, 900).await, 900);
}

/// Apple hung, is back, and the devices that were told to come back do so.
#[tokio::test(start_paused = true)]
async fn a_burst_after_an_outage_is_admitted() {
    let is_down = Arc::new(AtomicUsize::new(1));
    let down = Arc::clone(&is_down);
    let (builder, _) = client(move |_, _| {
        let down = down.load(Ordering::SeqCst) == 1;
        async move {
            if down {
                std::future::pending::<()>().await;
            }
            sleep(50 * MS).await;
            Ok(status(200))
        }
    });
    let (app, apple) = app(builder);
    burst(&app, 200).await;
    for _ in 0..30 {
        let _ = timeout(SECOND, app.status(&realistic_token())).await;
    }
    assert_eq!(apple.availability(Environment::Production), Availability::Down);
    is_down.store(0, Ordering::SeqCst);
    sleep(5 * SECOND).await;
    // The first one does not wait for the probe that it causes.
    app.status(&realistic_token()).await;
    sleep(SECOND).await;
    assert_eq!(app.status(&realistic_token()).await, StatusCode::OK);
    assert_eq!(apple.availability(Environment::Production), Availability::Available);
    assert_eq!(burst(&app, 900).await, 900);
}

/// The development server hangs. Production is fast, and quiet until a burst comes.
#[tokio::test(start_paused = true)]
async fn an_outage_of_the_development_server_turns_no_burst_of_production_away() {
    let fake = FakeApple::new();
    let transport = service_fn(|request: Request<Bytes>| async move {
        if request.uri().host().unwrap().contains("development") {
            std::future::pending::<()>().await;
        }
        sleep(50 * MS).await;
        Ok::<_, TransportError>(status(200))
    });
    let apple = AppleClient::builder(fake.credentials()).transport(transport).build().unwrap();
    let production = App::new(&DeviceCheckLayer::new(apple.clone()));
    let development = App::new(&DeviceCheckLayer::new(apple.clone()).with_routing(Route::Development));
    burst(&development, 100).await;
    assert_eq!(apple.availability(Environment::Development), Availability::Down);
    let tester = tokio::spawn(async move {
        loop {
            let development = development.clone();
            tokio::spawn(async move { development.status(&realistic_token()).await });
            sleep(100 * MS).await;
        }
    });
    for _ in 0..60 {
        assert_eq!(production.status(&realistic_token()).await, StatusCode::OK);
        sleep(SECOND).await;
    }
    assert_eq!(burst(&production, 1_800).await, 1_800);
    tester.abort();
}

/// A cache that has used up the time of the call.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_a_check_whose_time_is_up() {
    struct Slow;
    impl VerdictCache for Slow {
        async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
            sleep(900 * MS).await;
            Ok(None)
        }
        async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
            Ok(())
        }
    }
    let (builder, calls) = client(|_, _| async {
        sleep(50 * MS).await;
        Ok(status(200))
    });
    let apple = builder.total_timeout(800 * MS).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(apple).with_cache(Slow));
    assert_eq!(app.status(&realistic_token()).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(calls.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_costs_one_request() {
    let apple = Apple::new();
    let fake = &apple.fake;
    let client = AppleClient::builder(fake.credentials())
        .transport(fake.transport())
        .on_availability(|_, _| panic!("the listener"))
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client.clone()));
    fake.always(Reply::status(429).header("retry-after", "1"));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
    fake.clear();
    let mut statuses = Vec::new();
    for _ in 0..5 {
        sleep(1_100 * MS).await;
        statuses.push(app.status(&apple.genuine()).await);
    }
    assert_eq!(statuses[2..], [StatusCode::OK; 3], "{statuses:?}");
    assert_eq!(client.availability(Environment::Production), Availability::Available);
}

/// The extremes of the limits: no slot is lost, nobody hangs.
#[tokio::test(start_paused = true)]
async fn extreme_limits() {
    for waiting in [0, 1, usize::MAX] {
        for in_flight in [1, 2, usize::MAX] {
            let (builder, _) = client(|number, _| async move {
                sleep(u32::try_from(number % 7).unwrap() * 100 * MS).await;
                match number % 5 {
                    0 => Err(TransportError::other("x")),
                    1 => Ok(status(500)),
                    _ => Ok(status(200)),
                }
            });
            let (app, _) = app(builder.in_flight_limit(in_flight).waiting_limit(waiting));
            for wave in 0..20 {
                let started = Instant::now();
                let requests = (0..20).map(|number| {
                    let app = app.clone();
                    async move {
                        let patience = (100 + 977 * (number * 7 + wave) % 4_000) * MS;
                        let _ = timeout(patience, app.status(&realistic_token())).await;
                    }
                });
                join_all(requests).await;
                assert!(started.elapsed() <= 5_500 * MS);
            }
            sleep(20 * SECOND).await;
            let mut admitted = 0;
            for _ in 0..20 {
                admitted += burst(&app, 1).await;
                sleep(SECOND).await;
            }
            assert!(admitted >= 11, "{in_flight}, {waiting}: {admitted}");
        }
    }
}

/// HAProxy's `option forwarded` writes `proto`, `host`, `by`, `for`, in this order, and the host in quotes.
#[cfg(feature = "limit")]
#[test]
fn the_host_header_is_no_address() {
    use tower_devicecheck::limit::forwarded_for;

    let header = http::header::FORWARDED;
    for host in ["a;for=10.0.0.1;b", "a;for=10.0.0.1", ";for=10.0.0.1;"] {
        let line = format!("proto=https;host=\"{host}\";for=192.0.2.1");
        let (head, ()) = Request::builder().header(&header, line).body(()).unwrap().into_parts();
        assert_ne!(forwarded_for(&head, &header, 1), Some("10.0.0.1".parse().unwrap()), "{host}");
    }
}

/// Calls that come at random, limits of all sizes, and loads far beyond them.
#[tokio::test(start_paused = true)]
async fn goodput_at_any_load() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as f64 / (1_u64 << 53) as f64
    };
    for (limit, load, answer) in
        [(1, 1.5, 0.5), (4, 1.2, 1.0), (8, 3.0, 2.0), (256, 1.1, 2.5), (64, 3.0, 2.8), (16, 2.0, 0.2)]
    {
        let (builder, calls) = client(move |number, _| async move {
            let part = (number as f64 * 0.618_033_988_75).fract();
            sleep(Duration::from_secs_f64(answer * (0.8 + 0.4 * part).min(2.95 / answer))).await;
            Ok(status(200))
        });
        let (app, _) = app(builder.in_flight_limit(limit));
        let capacity = limit as f64 / answer;
        let (began, mut requests) = (Instant::now(), Vec::new());
        let length = 40.0;
        let mut next = 0.0;
        while began.elapsed().as_secs_f64() < length {
            let app = app.clone();
            requests.push(tokio::spawn(async move {
                let arrived = Instant::now();
                let status = app.status(&realistic_token()).await;
                assert!(arrived.elapsed() <= 5_500 * MS);
                (status, began.elapsed().as_secs_f64())
            }));
            next += -random().ln() / (load * capacity);
            tokio::time::sleep_until(began + Duration::from_secs_f64(next)).await;
        }
        let answers: Vec<_> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
        let ok =
            answers.iter().filter(|(status, at)| *status == StatusCode::OK && (15.0..length).contains(at));
        let share = ok.count() as f64 / (capacity * (length - 15.0));
        assert!(share >= 0.9, "limit {limit} load {load} answer {answer}: {share:.3}, {} calls", calls.get());
    }
}

/// A firewall in front of Apple answers some tokens with a page of its own, longer than the client reads.
#[tokio::test(start_paused = true)]
async fn long_pages_of_status_400_are_no_outage_over_a_socket() {
    let _clock = StandingClock::new();
    let fake = FakeApple::new();
    let server = fake.serve().await.unwrap();
    let client = AppleClient::builder(fake.credentials())
        .base_url(Environment::Production, server.url(Environment::Production))
        .base_url(Environment::Development, server.url(Environment::Development))
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client.clone()));
    fake.always(Reply::status(400).body("x".repeat(5_000)));
    for _ in 0..40 {
        assert_eq!(
            app.status(&fake.genuine_token(Environment::Production)).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
    assert_eq!(client.availability(Environment::Production), Availability::Available);
}
