//! The outages of a layer with two proofs: a proof that was not asked what failed says nothing about it.

use std::time::Duration;

use tower_devicecheck::{Outage, testing::Reply};

use super::*;
use crate::support::TOKEN_HEADER;

/// The outages that the operator was told of.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Told {
    fn decision(&self, _: &Event<'_>) {}

    fn outage(&self, outage: &Outage<'_>) {
        self.0.lock().unwrap().push(match outage {
            Outage::Begins(event) => format!("begins: {}", event.outcome().as_str()),
            Outage::Over { rejections, .. } => format!("over: {rejections}"),
            _ => panic!("{outage:?}"),
        });
    }
}

fn with_token(apple: &Apple) -> Request<Full<Bytes>> {
    Request::post("/").header(TOKEN_HEADER, apple.genuine()).body(Full::default()).unwrap()
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_assertion_does_not_end_an_outage_of_apple() {
    let (world, told) = (World::new(), Told::default());
    let device = world.known_device().await;
    let server = Server::new(&world.layer(world.proof(Freshness::time())).with_observer(told.clone()));
    world.apple.fake.always(Reply::status(500));
    for _ in 0..5 {
        assert_eq!(server.code(with_token(&world.apple)).await, "unavailable");
        assert_eq!(server.code(post_now(&device)).await, "ok");
        let mut changed = post_now(&device);
        *changed.body_mut() = Full::from("amount=2");
        assert_eq!(server.code(changed).await, "refused_token");
        pass(20).await;
    }
    assert_eq!(told.take(), ["begins: unavailable"]);
    let calls = world.apple.calls();
    assert!(calls > 0);
    world.apple.fake.clear();
    pass(600).await;
    assert_eq!(server.code(with_token(&world.apple)).await, "ok");
    assert_eq!((told.take(), world.apple.calls()), (vec!["over: 5".to_owned()], calls + 1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_ends_by_an_assertion_or_when_nobody_has_met_it_for_a_minute() {
    let (world, told) = (World::new(), Told::default());
    let device = world.known_device().await;
    let server = Server::new(&world.layer(world.proof(Freshness::time())).with_observer(told.clone()));
    world.store.fail(true);
    for _ in 0..3 {
        assert_eq!(server.code(post_now(&device)).await, "unavailable");
        assert_eq!(server.code(with_token(&world.apple)).await, "ok");
        pass(20).await;
    }
    assert_eq!(told.take(), ["begins: unavailable"]);
    world.store.fail(false);
    assert_eq!(server.code(post_now(&device)).await, "ok");
    assert_eq!(told.take(), ["over: 3"]);

    // Apps with keys may come no more.
    world.store.fail(true);
    assert_eq!(server.code(post_now(&device)).await, "unavailable");
    pass(59).await;
    assert_eq!(server.code(with_token(&world.apple)).await, "ok");
    assert_eq!(told.take(), ["begins: unavailable"]);
    pass(1).await;
    assert_eq!(server.code(with_token(&world.apple)).await, "ok");
    assert_eq!((told.take(), world.apple.calls()), (vec!["over: 1".to_owned()], 5));
}
