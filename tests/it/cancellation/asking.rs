//! One request with a device token, on each path through a layer with a cache.

use std::{ops::RangeInclusive, time::Duration};

use http::StatusCode;
use tower_devicecheck::{
    Availability, DeviceCheckLayer, Enforcement, Environment, MarkDecision, Route, Verdict, testing::Reply,
};

use super::{Drop, explore, rest, world::World};

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
        explore(self.name, self.least, async |at: Drop| {
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
    Path { name: "a remembered token", least: 4, change: same, prepare: hit, verdict: OK, failures: 0, calls: 1..=1 }
        .explore()
        .await;
    Path { name: "a new token", least: 20, change: same, prepare: new, verdict: OK, failures: 0, calls: 1..=1 }
        .explore()
        .await;
    let (verdict, calls) = (REFUSED, 1..=1);
    Path { name: "a refused token", least: 15, change: same, prepare: forged, verdict, failures: 0, calls }
        .explore()
        .await;
}

#[tokio::test(start_paused = true)]
async fn two_environments() {
    let change = |layer: DeviceCheckLayer| layer.with_routing(Route::ProductionThenDevelopment);
    let development = async |world: &World| world.fake.genuine_token(Environment::Development);
    let (name, calls) = ("a token of the second environment", 2..=2);
    Path { name, least: 30, change, prepare: development, verdict: OK, failures: 0, calls }.explore().await;
    let forged = async |world: &World| world.fake.forged_token();
    let (name, calls) = ("a token that both environments refuse", 2..=2);
    Path { name, least: 30, change, prepare: forged, verdict: REFUSED, failures: 0, calls }.explore().await;
}

#[tokio::test(start_paused = true)]
async fn bits() {
    let change = |layer: DeviceCheckLayer| layer.with_marks(|_, _| MarkDecision::Admit);
    let new = async |world: &World| world.genuine();
    let (name, calls) = ("a layer with marks", 1..=1);
    Path { name, least: 20, change, prepare: new, verdict: OK, failures: 0, calls }.explore().await;
}

/// The request passes unchecked, and its check goes on beside it.
#[tokio::test(start_paused = true)]
async fn shadow_mode() {
    let change = |layer: DeviceCheckLayer| layer.with_enforcement(Enforcement::Shadow);
    let forged = async |world: &World| world.fake.forged_token();
    let (name, calls) = ("shadow mode", 1..=1);
    Path { name, least: 5, change, prepare: forged, verdict: OK, failures: 0, calls }.explore().await;
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
    Path { name, least: 20, change: |layer| layer, prepare, verdict: OK, failures: 1, calls }.explore().await;
}

/// Apple refuses the provider token once. One forced renewal is enough, whoever has left.
#[tokio::test(start_paused = true)]
async fn a_stale_provider_token() {
    let prepare = async |world: &World| {
        world.fake.script(Reply::status(401));
        world.genuine()
    };
    let (name, calls) = ("a stale provider token", 2..=2);
    Path { name, least: 25, change: |layer| layer, prepare, verdict: OK, failures: 0, calls }.explore().await;
}

/// Expired verdicts count while Apple is known to be down.
#[tokio::test(start_paused = true)]
async fn stale_verdicts() {
    let change = |layer: DeviceCheckLayer| {
        let time = Duration::from_secs(60);
        layer.with_time_to_live(Verdict::Genuine, time).with_stale_verdicts(60 * time)
    };
    let prepare = async |world: &World| {
        let token = world.genuine();
        assert_eq!(world.status(&token).await, OK);
        tokio::time::advance(Duration::from_secs(90)).await;
        bring_down(world).await;
        world.fake.reset_counts();
        token
    };
    explore("a stale verdict", 8, async |at| {
        let world = World::new(change);
        let token = prepare(&world).await;
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        assert_eq!((world.status(&token).await, world.calls()), (OK, 0), "{at:?}");
        comes_back(&world, &at).await;
        done.is_some()
    })
    .await;
}

/// The one call that finds out whether Apple is back belongs to a client that leaves.
#[tokio::test(start_paused = true)]
async fn a_probe() {
    explore("a probe", 20, async |at| {
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
async fn comes_back(world: &World, at: &Drop) {
    world.fake.clear();
    for _ in 0..3 {
        if world.status(&world.genuine()).await == OK {
            return world.is_whole(at).await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    panic!("{at:?}: Apple is back, and is not asked");
}
