//! Faults of Apple and of Redis, in an order that the seed decides.

use std::time::Duration;

use tower_devicecheck::testing::{FakeApple, FakeAppleServer, Reply};

use super::random::Random;
use crate::redis_server::RedisServer;

/// A fault of Apple's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppleFault {
    Hangs,
    HangsNowAndThen,
    /// Within the time that a call has.
    IsSlow,
    /// Beyond the time that an attempt has.
    IsLate,
    Status(u16),
    StatusNowAndThen(u16),
    /// Status 429, with so many seconds of `Retry-After`.
    Throttles(u64),
    ThrottlesNowAndThen(u64),
    Resets,
    ResetsNowAndThen,
    CutsShort,
    TalksRubbish,
    /// Status 200 and a web page, as a captive portal has it.
    ShowsAPage,
    SaysTooMuch,
    RevokesOurKey,
    Forbids,
    IsGone,
}

/// A fault of Redis's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RedisFault {
    /// SIGKILL, and a new start at the end.
    IsKilled,
    /// SIGKILL, and a new start at once.
    Restarts,
    /// SIGSTOP: connections stay, and nothing answers.
    Freezes,
    /// Each command waits for some 100 ms.
    IsSlow,
}

/// All that is at fault at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storm {
    pub(super) apple: Option<AppleFault>,
    pub(super) redis: Option<RedisFault>,
}

impl Storm {
    pub(super) fn name(&self) -> String {
        match (self.apple, self.redis) {
            (Some(apple), Some(redis)) => format!("Apple {apple:?}, Redis {redis:?}"),
            (Some(apple), None) => format!("Apple {apple:?}"),
            (None, Some(redis)) => format!("Redis {redis:?}"),
            (None, None) => "none".to_owned(),
        }
    }

    /// The name of the fault by itself, and whether Redis has one beside it.
    pub(super) fn main_fault(&self) -> (String, bool) {
        let alone = Self { redis: if self.apple.is_some() { None } else { self.redis }, ..*self };
        (alone.name(), alone != *self)
    }

    /// Whether each call fails in a way that the breaker or the back-off of credentials counts.
    pub(super) const fn is_outage(&self) -> bool {
        use AppleFault::*;
        matches!(
            self.apple,
            Some(
                Hangs
                    | IsLate
                    | Status(502..=504)
                    | Throttles(_)
                    | Resets
                    | CutsShort
                    | RevokesOurKey
                    | Forbids
                    | IsGone
            )
        )
    }

    /// Whether calls may end without an answer.
    pub(super) const fn is_silent(&self) -> bool {
        use AppleFault::*;
        matches!(
            self.apple,
            Some(
                Hangs
                    | HangsNowAndThen
                    | IsLate
                    | Resets
                    | ResetsNowAndThen
                    | CutsShort
                    | SaysTooMuch
                    | IsGone
            )
        )
    }

    /// Whether there are answers after which a call is made once more.
    pub(super) const fn is_retried(&self) -> bool {
        use AppleFault::{Status, StatusNowAndThen};
        matches!(self.apple, Some(Status(502..=504) | StatusNowAndThen(502..=504)))
    }
}

const APPLE: [AppleFault; 23] = {
    use AppleFault::*;
    [
        Hangs,
        HangsNowAndThen,
        IsSlow,
        IsLate,
        Status(500),
        Status(502),
        Status(503),
        Status(504),
        Status(404),
        StatusNowAndThen(500),
        StatusNowAndThen(503),
        Throttles(2),
        Throttles(4),
        ThrottlesNowAndThen(1),
        Resets,
        ResetsNowAndThen,
        CutsShort,
        TalksRubbish,
        ShowsAPage,
        SaysTooMuch,
        RevokesOurKey,
        Forbids,
        IsGone,
    ]
};

const REDIS: [RedisFault; 4] =
    [RedisFault::IsKilled, RedisFault::Restarts, RedisFault::Freezes, RedisFault::IsSlow];

/// All faults in a random order, and then all of them again.
#[derive(Debug)]
pub(super) struct Deck {
    random: Random,
    storms: Vec<Storm>,
}

impl Deck {
    pub(super) const fn new(random: Random) -> Self {
        Self { random, storms: Vec::new() }
    }

    pub(super) fn next(&mut self) -> Storm {
        if let Some(storm) = self.storms.pop() {
            return storm;
        }
        let random = &mut self.random;
        for apple in APPLE {
            // In a third of the cases, everything happens at once.
            let redis = random.one_in(3).then(|| REDIS[random.below(REDIS.len())]);
            self.storms.push(Storm { apple: Some(apple), redis });
        }
        // A short run sees faults of Redis, too.
        for redis in REDIS.into_iter().chain(REDIS) {
            self.storms.push(Storm { apple: None, redis: Some(redis) });
        }
        random.shuffle(&mut self.storms);
        self.next()
    }
}

/// Everything that can be at fault.
#[derive(Debug)]
pub(super) struct Weather {
    pub(super) apple: FakeAppleServer,
    pub(super) redis: RedisServer,
    slow: Option<tokio::task::JoinHandle<()>>,
}

impl Weather {
    pub(super) const fn new(apple: FakeAppleServer, redis: RedisServer) -> Self {
        Self { apple, redis, slow: None }
    }

    pub(super) async fn begin(&mut self, storm: Storm) {
        match storm.redis {
            Some(RedisFault::IsKilled) => self.redis.kill(),
            Some(RedisFault::Restarts) => tokio::task::block_in_place(|| self.redis.restart()),
            Some(RedisFault::Freezes) => self.redis.freeze(),
            Some(RedisFault::IsSlow) => self.slow = Some(tokio::spawn(slow_down(self.redis.url()))),
            None => {}
        }
        if let Some(fault) = storm.apple {
            self.begin_of_apple(fault).await;
        }
    }

    async fn begin_of_apple(&mut self, fault: AppleFault) {
        let fake = self.apple.apple().clone();
        let throttled = |seconds: u64| Reply::status(429).header("retry-after", &seconds.to_string());
        match fault {
            AppleFault::Hangs => fake.always(Reply::hang()),
            AppleFault::HangsNowAndThen => fake.share(0.1, Reply::hang()),
            AppleFault::IsSlow => fake.always(Reply::normal().delay(Duration::from_millis(700))),
            AppleFault::IsLate => fake.always(Reply::normal().delay(Duration::from_secs(4))),
            AppleFault::Status(status) => fake.always(Reply::status(status)),
            AppleFault::StatusNowAndThen(status) => fake.share(0.3, Reply::status(status)),
            AppleFault::Throttles(seconds) => fake.always(throttled(seconds)),
            AppleFault::ThrottlesNowAndThen(seconds) => fake.share(0.05, throttled(seconds)),
            AppleFault::Resets => fake.always(Reply::reset()),
            AppleFault::ResetsNowAndThen => fake.share(0.05, Reply::reset()),
            AppleFault::CutsShort => fake.always(Reply::normal().cut_short()),
            AppleFault::TalksRubbish => fake.always(Reply::status(400).body("\u{0}\u{1}rubbish")),
            AppleFault::ShowsAPage => fake.always(Reply::status(200).body("<html>Sign in</html>")),
            AppleFault::SaysTooMuch => fake.always(Reply::oversized(1 << 20)),
            AppleFault::RevokesOurKey => fake.revoke_key(fake.key_id()),
            AppleFault::Forbids => fake.always(Reply::status(403)),
            AppleFault::IsGone => self.apple.stop().await,
        }
    }

    /// Everything is well from here on.
    pub(super) async fn end(&mut self, storm: Storm) {
        let fake: FakeApple = self.apple.apple().clone();
        fake.clear();
        fake.accept_key(fake.key_id(), fake.private_key());
        self.apple.restart().await.unwrap();
        if let Some(slow) = self.slow.take() {
            slow.abort();
            let _ = slow.await;
        }
        match storm.redis {
            Some(RedisFault::IsKilled) => tokio::task::block_in_place(|| self.redis.restart()),
            Some(RedisFault::Freezes) => self.redis.thaw(),
            _ => {}
        }
    }
}

/// Makes all clients of this Redis wait again and again.
async fn slow_down(url: String) {
    let client = redis::Client::open(url).unwrap();
    let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return };
    loop {
        let pause = redis::cmd("CLIENT").arg("PAUSE").arg(100).query_async(&mut connection).await;
        let () = pause.unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(130)).await;
    }
}
