//! Single use: of all requests with a token one is admitted, and none is lost with a client that leaves.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use tower_devicecheck::{DeviceCheckLayer, Environment, Route, replay::MemoryReplayGuard, testing::Reply};

use super::{Slow, explore, rest, world::World};
use crate::support::get;

const OK: StatusCode = StatusCode::OK;
const REFUSED: StatusCode = StatusCode::UNAUTHORIZED;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// A world with this guard, which is slow.
fn world(guard: &Arc<MemoryReplayGuard>, change: impl Fn(DeviceCheckLayer) -> DeviceCheckLayer) -> World {
    World::new(|layer| change(layer.with_single_use(Slow(Arc::clone(guard)))))
}

/// A request that is dropped before it is admitted leaves the token as it was. One that is admitted has spent it.
#[tokio::test(start_paused = true)]
async fn a_genuine_token() {
    let same = |layer| layer;
    spent_once("single use", 21, same, async |world| world.genuine(), 1).await;
    let both = |layer: DeviceCheckLayer| layer.with_routing(Route::ProductionThenDevelopment);
    let development = async |world: &World| world.fake.genuine_token(Environment::Development);
    spent_once("single use in two environments", 25, both, development, 2).await;
}

/// `calls` is the number of calls for one verdict.
async fn spent_once(
    path: &'static str,
    least: usize,
    change: impl Fn(DeviceCheckLayer) -> DeviceCheckLayer,
    token: impl AsyncFn(&World) -> String,
    calls: usize,
) {
    explore(path, least, async |at| {
        let guard = Arc::new(MemoryReplayGuard::new());
        let world = world(&guard, &change);
        let token = token(&world).await;
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        let was_admitted = world.admitted.get() == 1;
        assert!(done.is_none() || was_admitted, "{at:?}");
        assert_eq!(world.status(&token).await, if was_admitted { REFUSED } else { OK }, "{at:?}");
        rest().await;
        let most = if was_admitted { calls } else { 2 * calls };
        assert!((calls..=most).contains(&world.calls()), "{at:?}: {} calls", world.calls());
        assert_eq!((world.admitted.get(), guard.len()), (1, 1), "{at:?}");
        assert!(world.app.inner.calls() <= 1, "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_token() {
    explore("single use of a refused token", 11, async |at| {
        let guard = Arc::new(MemoryReplayGuard::new());
        let world = world(&guard, |layer| layer);
        let token = world.fake.forged_token();
        let done = at.of(world.status(&token)).await;
        for _ in 0..2 {
            assert_eq!(world.status(&token).await, REFUSED, "{at:?}");
        }
        rest().await;
        assert!((1..=2).contains(&world.calls()), "{at:?}: {} calls", world.calls());
        assert_eq!((world.admitted.get(), guard.len()), (0, 1), "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_outage() {
    explore("single use in an outage", 17, async |at| {
        let guard = Arc::new(MemoryReplayGuard::new());
        let world = world(&guard, |layer| layer);
        (0..2).for_each(|_| world.fake.script(Reply::status(503)));
        let token = world.genuine();
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == UNAVAILABLE), "{at:?}");
        let mut status = world.status(&token).await;
        if done.is_none() && status == UNAVAILABLE {
            status = world.status(&token).await;
        }
        assert_eq!(status, OK, "{at:?}");
        assert_eq!(world.status(&token).await, REFUSED, "{at:?}");
        assert_eq!((world.calls(), world.admitted.get(), guard.len()), (3, 1, 1), "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// The one retry of a spent token, by its idempotency key, is not used up by a client that leaves before its verdict.
#[tokio::test(start_paused = true)]
async fn a_retry() {
    let with_key = |token: &str| -> Request<Full<Bytes>> {
        let mut request = get(token);
        request.headers_mut().insert("idempotency-key", "a".parse().unwrap());
        request
    };
    explore("the retry of a spent token", 21, async |at| {
        let guard = Arc::new(MemoryReplayGuard::new());
        let world = world(&guard, |layer| layer.with_retry_window(Duration::from_secs(60)));
        let token = world.genuine();
        let send = async || world.app.send(with_key(&token)).await.status();
        assert_eq!(send().await, OK, "{at:?}");
        let done = at.of(send()).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        let was_admitted = world.admitted.get() == 2;
        assert_eq!(send().await, if was_admitted { REFUSED } else { OK }, "{at:?}");
        assert_eq!(send().await, REFUSED, "{at:?}");
        rest().await;
        assert!((2..=3).contains(&world.calls()), "{at:?}: {} calls", world.calls());
        assert_eq!((world.admitted.get(), guard.len()), (2, 1), "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// A guard over a socket cannot undo anything at once, so the follow-up may meet the reservation for a moment.
#[cfg(feature = "redis")]
mod in_redis {
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
    };

    use tokio::sync::Notify;

    use super::{OK, REFUSED, Slow, World};
    use crate::redis_server::{RedisServer, client, guard};

    struct Rings(Notify);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    /// Drops a future after so many polls. It is polled when it was woken, because a socket takes its own time.
    async fn drop_after_polls<F: Future>(future: F, polls: usize) -> Option<F::Output> {
        let mut future = pin!(future);
        let rings = Arc::new(Rings(Notify::new()));
        let waker = Waker::from(Arc::clone(&rings));
        for _ in 0..polls {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(output);
            }
            rings.0.notified().await;
        }
        None
    }

    #[tokio::test]
    async fn a_genuine_token() {
        let server = RedisServer::start();
        let guard = guard(&server).await;
        let mut redis = client(&server).await;
        for polls in 0.. {
            let world = World::new(|layer| layer.with_single_use(Slow(guard.clone())));
            let token = world.genuine();
            let done = drop_after_polls(world.status(&token), polls).await;
            assert!(done.is_none_or(|status| status == OK), "{polls}");
            let was_admitted = world.admitted.get() == 1;
            let mut status = world.status(&token).await;
            for _ in 0..1_000 {
                if was_admitted || status != REFUSED {
                    break;
                }
                status = world.status(&token).await;
            }
            assert_eq!(status, if was_admitted { REFUSED } else { OK }, "{polls}");
            assert_eq!(world.admitted.get(), 1, "{polls}");
            assert!((1..=2).contains(&world.calls()), "{polls}: {} calls", world.calls());
            world.is_whole(&polls).await;
            if done.is_some() {
                assert!(polls >= 14, "only {polls} drops");
                let kept: usize = redis::cmd("DBSIZE").query_async(&mut redis).await.unwrap();
                // Each token of each world is spent, and nothing else is left.
                assert_eq!(
                    kept,
                    (polls + 1) * (1 + super::super::world::SLOTS + super::super::world::WAITING)
                );
                return;
            }
        }
    }
}
