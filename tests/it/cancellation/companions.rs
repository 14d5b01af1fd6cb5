//! Requests that wait for each other: for one check, for a slot, or for a provider token.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use tokio::{task::JoinHandle, task::yield_now, time::advance};
use tower::{ServiceExt, service_fn};
use tower_devicecheck::{AppleClient, DeviceCheckLayer, Environment, testing::FakeApple, testing::Reply};

use super::{
    drop_after, explore, explore_for, rest, slow_transport,
    world::{SLOTS, World, slow},
};
use crate::support::{App, Counter, keep_events_enabled};

const PRODUCTION: Environment = Environment::Production;
const OK: StatusCode = StatusCode::OK;

/// A request of a client that stays.
fn stays(world: &World, token: &str) -> JoinHandle<StatusCode> {
    let (app, token) = (world.app.clone(), token.to_owned());
    tokio::spawn(async move { app.status(&token).await })
}

/// Of two requests with one token, the one that stays gets its answer, and Apple is asked once.
#[tokio::test(start_paused = true)]
async fn one_of_two_with_one_token() {
    for (path, leaves_first) in
        [("the first of two with one token", true), ("the second of two with one token", false)]
    {
        explore(path, 19, async |at| {
            let world = World::new(|layer| layer);
            let token = world.genuine();
            let other = stays(&world, &token);
            if !leaves_first {
                yield_now().await;
            }
            let done = at.of(world.status(&token)).await;
            assert!(done.is_none_or(|status| status == OK), "{at:?}");
            assert_eq!(other.await.unwrap(), OK, "{at:?}");
            assert_eq!((world.status(&token).await, world.calls()), (OK, 1), "{at:?}");
            world.is_whole(&at).await;
            done.is_some()
        })
        .await;
    }
}

/// Two clients with one token leave at the same moment. What was sent goes on.
#[tokio::test(start_paused = true)]
async fn both_with_one_token() {
    explore("both of two with one token", 21, async |at| {
        let world = World::new(|layer| layer);
        let token = world.genuine();
        let done = at.of(join(world.status(&token), world.status(&token))).await;
        assert!(done.is_none_or(|statuses| statuses == (OK, OK)), "{at:?}");
        assert_eq!((world.status(&token).await, world.calls()), (OK, 1), "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// All slots are taken, and the request waits in the one place of the queue. When its client leaves, another request
/// takes the place.
#[tokio::test(start_paused = true)]
async fn the_queue() {
    explore_for(Duration::from_secs(1), "a place in the queue", 38, async |at| {
        let world = World::new(|layer| layer);
        let mut holders = Vec::new();
        for _ in 0..SLOTS {
            world.fake.script(Reply::normal().delay(Duration::from_secs(1)));
            holders.push(stays(&world, &world.genuine()));
        }
        rest().await;
        assert_eq!(world.calls(), SLOTS, "{at:?}");
        tokio::spawn(async {
            for _ in 0..12 {
                yield_now().await;
            }
            advance(Duration::from_secs(1)).await;
        });
        let token = world.genuine();
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        assert_eq!(world.status(&world.genuine()).await, OK, "{at:?}");
        for holder in holders {
            assert_eq!(holder.await.unwrap(), OK, "{at:?}");
        }
        assert_eq!(world.status(&token).await, OK, "{at:?}");
        assert_eq!(world.calls(), SLOTS + 2, "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// A request has one of the slots, and another one waits for it.
#[tokio::test(start_paused = true)]
async fn a_slot_that_another_waits_for() {
    explore_for(Duration::from_secs(6), "a slot that another request waits for", 29, async |at| {
        let world = World::new(|layer| layer);
        for _ in 1..SLOTS {
            // This one has the other slot for as long as its deadline allows.
            world.fake.script(Reply::hang());
            drop(stays(&world, &world.genuine()));
        }
        rest().await;
        let (token, app) = (world.genuine(), world.app.clone());
        let waits = world.genuine();
        let waits = tokio::spawn(async move {
            // The other request has its slot by then.
            for _ in 0..8 {
                yield_now().await;
            }
            app.status(&waits).await
        });
        let done = at.of(world.status(&token)).await;
        assert!(done.is_none_or(|status| status == OK), "{at:?}");
        assert_eq!(waits.await.unwrap(), OK, "{at:?}");
        assert_eq!(world.status(&token).await, OK, "{at:?}");
        assert_eq!(world.calls(), SLOTS - 1 + 2, "{at:?}");
        advance(Duration::from_secs(6)).await;
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// A caller of the client itself leaves. The call that was sent goes on, and keeps its slot until its deadline.
#[tokio::test(start_paused = true)]
async fn a_call_without_a_layer() {
    for step in 0..30 {
        let world = World::new(|layer| layer);
        world.fake.always(Reply::hang());
        let token = world.genuine().parse().unwrap();
        assert!(drop_after(world.client.validate(&token, PRODUCTION), step).await.is_none());
        for _ in 0..SLOTS {
            drop(stays(&world, &world.genuine()));
        }
        rest().await;
        assert_eq!(world.calls(), SLOTS, "{step}");
        world.fake.clear();
        advance(Duration::from_secs(6)).await;
        world.is_whole(&step).await;
    }
}

/// Two clients leave while Apple refuses the provider token that both were sent with. Nobody else gets a 500: the renewed
/// token is good, and no renewal is due to those who have left.
#[tokio::test(start_paused = true)]
async fn a23_clients_that_leave_with_a_stale_provider_token_cost_nobody_else_a_500() {
    keep_events_enabled();
    explore("two with a stale provider token", 15, async |at| {
        let fake = FakeApple::new();
        let calls = Counter::default();
        let client = AppleClient::builder(fake.credentials())
            .transport(slow_transport(service_fn(refuse_the_first_provider_token(&fake, &calls))))
            .build()
            .unwrap();
        let app = App::new(&slow(DeviceCheckLayer::new(client)));
        let genuine = || fake.genuine_token(PRODUCTION);
        let tokens = [genuine(), genuine()];
        let done = at.of(join(app.status(&tokens[0]), app.status(&tokens[1]))).await;
        assert!(done.is_none_or(|statuses| statuses == (OK, OK)), "{at:?}");
        for token in [&genuine(), &tokens[0], &tokens[1]] {
            assert_eq!(app.status(token).await, OK, "{at:?}");
        }
        // Three verdicts, and each of the three may have been asked for with the stale token first.
        assert!((4..=6).contains(&calls.get()), "{at:?}: {} calls", calls.get());
        done.is_some()
    })
    .await;
}

/// An Apple that takes any provider token but the first one that it sees.
fn refuse_the_first_provider_token(
    fake: &FakeApple,
    calls: &Counter,
) -> impl Fn(
    Request<Bytes>,
) -> futures::future::BoxFuture<'static, Result<Response<Bytes>, tower_devicecheck::BoxError>>
+ Clone
+ Send
+ Sync
+ 'static {
    let (transport, calls) = (fake.transport(), calls.clone());
    let first = Arc::new(Mutex::new(None));
    move |request| {
        calls.add();
        let shown = request.headers()[AUTHORIZATION].clone();
        let is_first = *first.lock().unwrap().get_or_insert_with(|| shown.clone()) == shown;
        let transport = transport.clone();
        Box::pin(async move {
            if is_first {
                let mut response = Response::new(Bytes::from_static(b"Unable to verify authorization token"));
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                return Ok(response);
            }
            transport.oneshot(request).await
        })
    }
}
