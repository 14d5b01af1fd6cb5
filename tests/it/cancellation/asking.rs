//! One request with a device token, on each path through a layer with a cache.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tower_devicecheck::{
    Availability, DeviceCheckLayer, Enforcement, Environment, Evidence, MarkDecision, Route, Verdict,
    cache::{CachedVerdict, VerdictCache, VerdictKey},
    testing::{FakeApple, PrivateKey, Reply},
};

use super::{
    Leave, explore, explore_for, rest,
    world::{World, slow_client},
};

const OK: StatusCode = StatusCode::OK;
const REFUSED: StatusCode = StatusCode::UNAUTHORIZED;

/// A path, and what the rules say about it.
struct Path<C, P> {
    name: &'static str,
    least: usize,
    change: C,
    /// Prepares the world, and returns the token of the request.
    prepare: P,
    /// The verdict about the token.
    verdict: StatusCode,
    /// The requests that Apple's outage may fail, before the verdict.
    failures: usize,
    /// The calls to Apple, up to the verdict.
    calls: RangeInclusive<usize>,
}

impl<C, P> Path<C, P>
where
    C: Fn(DeviceCheckLayer) -> DeviceCheckLayer,
    P: AsyncFn(&World) -> String,
{
    async fn explore(self) {
        explore(self.name, self.least, async |at: Leave| {
            let world = World::new(&self.change);
            let token = (self.prepare)(&world).await;
            let done = at.of(world.status(&token)).await;
            let mut failures = 0;
            let mut count = |status: StatusCode| {
                if status != self.verdict {
                    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{at:?}");
                    failures += 1;
                    assert!(failures <= self.failures, "{at:?}: no verdict");
                }
                status == self.verdict
            };
            if let Some(status) = done {
                count(status);
            }
            while !count(world.status(&token).await) {}
            rest().await;
            assert!(self.calls.contains(&world.calls()), "{at:?}: {} calls", world.calls());
            assert_eq!(world.status(&token).await, self.verdict, "{at:?}");
            world.is_whole(&at).await;
            done.is_some()
        })
        .await;
    }
}

/// Apple is asked once: what was sent before the drop goes on, and its verdict is stored.
#[tokio::test(start_paused = true)]
async fn one_environment() {
    let hit = async |world: &World| {
        let token = world.genuine();
        assert_eq!(world.status(&token).await, OK);
        token
    };
    let new = async |world: &World| world.genuine();
    let forged = async |world: &World| world.fake.forged_token();
    let same = |layer| layer;
    Path {
        name: "a remembered token",
        least: 7,
        change: same,
        prepare: hit,
        verdict: OK,
        failures: 0,
        calls: 1..=1,
    }
    .explore()
    .await;
    Path {
        name: "a new token",
        least: 29,
        change: same,
        prepare: new,
        verdict: OK,
        failures: 0,
        calls: 1..=1,
    }
    .explore()
    .await;
    let (verdict, calls) = (REFUSED, 1..=1);
    Path { name: "a refused token", least: 23, change: same, prepare: forged, verdict, failures: 0, calls }
        .explore()
        .await;
}

#[tokio::test(start_paused = true)]
async fn two_environments() {
    let change = |layer: DeviceCheckLayer| layer.with_routing(Route::ProductionThenDevelopment);
    let development = async |world: &World| world.fake.genuine_token(Environment::Development);
    let (name, calls) = ("a token of the second environment", 2..=2);
    Path { name, least: 49, change, prepare: development, verdict: OK, failures: 0, calls }.explore().await;
    let forged = async |world: &World| world.fake.forged_token();
    let (name, calls) = ("a token that both environments refuse", 2..=2);
    Path { name, least: 43, change, prepare: forged, verdict: REFUSED, failures: 0, calls }.explore().await;
}

#[tokio::test(start_paused = true)]
async fn bits() {
    let change = |layer: DeviceCheckLayer| layer.with_marks(|_, _| MarkDecision::Admit);
    let new = async |world: &World| world.genuine();
    let (name, calls) = ("a layer with marks", 1..=1);
    Path { name, least: 29, change, prepare: new, verdict: OK, failures: 0, calls }.explore().await;
}

/// The request passes unchecked, and its check goes on beside it.
#[tokio::test(start_paused = true)]
async fn shadow_mode() {
    let change = |layer: DeviceCheckLayer| layer.with_enforcement(Enforcement::Shadow);
    let forged = async |world: &World| world.fake.forged_token();
    let (name, calls) = ("shadow mode", 1..=1);
    Path { name, least: 7, change, prepare: forged, verdict: OK, failures: 0, calls }.explore().await;
}

/// Each 503 of Apple's fails one attempt, whoever makes it. The third attempt has a verdict.
#[tokio::test(start_paused = true)]
async fn an_outage() {
    let prepare = async |world: &World| {
        world.fake.script(Reply::status(503));
        world.fake.script(Reply::status(503));
        world.genuine()
    };
    let (name, calls) = ("an outage, and a retry", 3..=3);
    Path { name, least: 21, change: |layer| layer, prepare, verdict: OK, failures: 1, calls }.explore().await;
}

/// Apple refuses the provider token once. One forced renewal is enough, whoever has left.
#[tokio::test(start_paused = true)]
async fn a_stale_provider_token() {
    let prepare = async |world: &World| {
        world.fake.script(Reply::status(401));
        world.genuine()
    };
    let (name, calls) = ("a stale provider token", 2..=2);
    Path { name, least: 31, change: |layer| layer, prepare, verdict: OK, failures: 0, calls }.explore().await;
}

/// Expired verdicts count while Apple is known to be down.
#[tokio::test(start_paused = true)]
async fn stale_verdicts() {
    const HOUR: Duration = Duration::from_secs(60 * 60);

    explore_for(Duration::from_secs(3), "a stale verdict", 25, async |at| {
        let world = World::new(|layer| layer.with_stale_verdicts(HOUR));
        let token = world.genuine();
        let device_token = token.parse().unwrap();
        let scope = world.fake.credentials();
        let key = VerdictKey::new(scope.team_id(), Environment::Production, &device_token);
        let expired = CachedVerdict::new(Verdict::Genuine, key.digest(), SystemTime::now() - HOUR / 6, HOUR);
        world.cache.put(&key, expired).await.unwrap();
        bring_down(&world).await;
        world.fake.reset_counts();
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        assert_eq!((world.status(&token).await, world.calls()), (OK, 0), "{at:?}");
        assert_eq!(world.app.evidence(), Evidence::STALE, "{at:?}");
        comes_back(&world, &at).await;
        done.is_some()
    })
    .await;
}

/// The second team is asked about a token that the first one refuses.
#[tokio::test(start_paused = true)]
async fn two_teams() {
    explore("a token of the second team", 49, async |at| {
        let second = FakeApple::with_key(&PrivateKey::generate(), "TEAM654321", "KEY7654321");
        let world = World::new(|layer| layer.add_verifier(slow_client(&second)));
        let token = second.genuine_token(Environment::Production);
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        assert_eq!(world.status(&token).await, OK, "{at:?}");
        rest().await;
        assert_eq!((world.calls(), second.calls()), (1, 1), "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// The one call that finds out whether Apple is back belongs to a client that leaves.
#[tokio::test(start_paused = true)]
async fn a_probe() {
    explore_for(Duration::from_secs(5), "a probe", 29, async |at| {
        let world = World::new(|layer| layer);
        bring_down(&world).await;
        world.fake.clear();
        world.fake.reset_counts();
        tokio::time::advance(Duration::from_secs(2)).await;
        let token = world.genuine();
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        comes_back(&world, &at).await;
        assert_eq!(world.status(&token).await, OK, "{at:?}");
        // The follow-up may be a probe of its own.
        assert!(world.calls() <= 1 + 1 + 3 + 1, "{at:?}: {} calls", world.calls());
        done.is_some()
    })
    .await;
}

/// Apple fails until it is known to be down.
async fn bring_down(world: &World) {
    world.fake.always(Reply::status(503));
    for _ in 0..50 {
        if world.client.availability(Environment::Production) == Availability::Down {
            return;
        }
        assert_eq!(world.status(&world.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    panic!("Apple is not known to be down");
}

/// Apple is well again, and so is the service, within two seconds.
async fn comes_back(world: &World, at: &Leave) {
    world.fake.clear();
    for _ in 0..3 {
        if world.status(&world.genuine()).await == OK {
            return world.is_whole(at).await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    panic!("{at:?}: Apple is back, and is not asked");
}
