//! The wall clock is set, while Apple's goes on as before.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

use crate::apple::client::AppleClient;
use crate::gate::routing::Environment;
use crate::layer::DeviceCheckLayer;
use crate::runtime::{SystemTime, set_wall_clock};
use crate::testing::{FakeApple, Reply};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
/// The seconds by which the clock is set.
const STEPS: [i64; 8] = [-12 * HOUR, -HOUR, -10 * MINUTE, -61, 50, 10 * MINUTE, HOUR, 12 * HOUR];

struct Clocks {
    fake: FakeApple,
    layer: DeviceCheckLayer,
    started: (tokio::time::Instant, SystemTime),
}

impl Clocks {
    fn new() -> Self {
        let fake = FakeApple::new();
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
        let started = (tokio::time::Instant::now(), SystemTime::now());
        set_wall_clock(started.1);
        Self { fake, layer: DeviceCheckLayer::new(client), started }
    }

    /// Lets so many seconds pass, and sets our clock so many seconds ahead of Apple's.
    async fn pass(&self, seconds: i64, ahead: i64) {
        advance(Duration::from_secs(seconds.unsigned_abs())).await;
        let time = self.started.1 + self.started.0.elapsed();
        let step = Duration::from_secs(ahead.unsigned_abs());
        set_wall_clock(if ahead < 0 { time - step } else { time + step });
        if ahead < 0 {
            self.fake.set_clock_ahead(step);
        } else {
            self.fake.set_clock_behind(step);
        }
    }

    /// The status for a token, and the calls to Apple.
    async fn ask(&self, token: &str) -> (u16, usize) {
        let calls = self.fake.calls();
        let request = Request::builder().header("x-apple-device-token", token).body(()).unwrap();
        let inner = service_fn(async |_| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
        let response = self.layer.layer(inner).oneshot(request).await.unwrap();
        (response.status().as_u16(), self.fake.calls() - calls)
    }

    async fn ask_anew(&self) -> (u16, usize) {
        self.ask(&self.fake.genuine_token(Environment::Production)).await
    }
}

/// The outcome for a new device, by the promises: `iat` lies a minute in the past, and Apple takes it for an hour. A
/// token is renewed at 40 minutes, and not before 20 minutes whatever the clock says. A token that Apple refuses is
/// replaced once.
fn expected(age: i64, step: i64) -> (u16, usize) {
    let age_by_wall = age + step;
    let seems_old = !(-MINUTE..40 * MINUTE).contains(&age_by_wall);
    let is_renewed = age >= 40 * MINUTE || age >= 20 * MINUTE && seems_old;
    let is_good = step <= MINUTE && step > MINUTE - HOUR;
    if is_renewed && !is_good { (500, 2) } else { (200, 1) }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_spoils_no_provider_token_in_use_and_heals_once_it_is_set_right() {
    for age in [MINUTE, 21 * MINUTE, 41 * MINUTE] {
        for step in STEPS {
            let clocks = Clocks::new();
            assert_eq!(clocks.ask_anew().await, (200, 1));
            clocks.pass(age, step).await;
            let expected = expected(age, step);
            assert_eq!(clocks.ask_anew().await, expected, "{age} s old, {step} s ahead");
            clocks.pass(1, 0).await;
            let (status, calls) = clocks.ask_anew().await;
            assert_eq!((status, calls <= 2), (200, true), "{age} s old, {step} s ahead, and back");
            assert_eq!(clocks.ask_anew().await, (200, 1));
        }
    }
}

/// The wall clock may end it early: the other one may have stood still while the machine slept.
#[tokio::test(start_paused = true)]
async fn a_verdict_is_remembered_until_the_first_of_both_clocks_has_moved_by_five_minutes() {
    for step in STEPS {
        let clocks = Clocks::new();
        // Apple takes no token for that long.
        clocks.fake.set_token_lifetime(Duration::from_secs(3_600));
        let token = clocks.fake.genuine_token(Environment::Production);
        assert_eq!(clocks.ask(&token).await, (200, 1));
        let age = 5 * MINUTE - 1;
        let is_over = age + step >= 5 * MINUTE;
        clocks.pass(age, step).await;
        assert_eq!(clocks.ask(&token).await, (200, usize::from(is_over)), "{step} s ahead");
        clocks.pass(1, step).await;
        assert_eq!(clocks.ask(&token).await, (200, usize::from(!is_over)), "{step} s ahead");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_that_apple_named_is_kept_whatever_the_clock_says() {
    for step in STEPS {
        let clocks = Clocks::new();
        clocks.fake.script(Reply::status(429).header("retry-after", "60"));
        assert_eq!(clocks.ask_anew().await, (503, 1));
        clocks.pass(59, step).await;
        assert_eq!(clocks.ask_anew().await, (503, 0), "{step} s ahead");
        clocks.pass(1, step).await;
        assert_eq!(clocks.ask_anew().await, (200, 1), "{step} s ahead");
    }
}
