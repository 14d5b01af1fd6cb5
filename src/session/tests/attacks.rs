//! Attempts to get more out of a token or a session than it is worth.

use super::*;
use crate::testing::Reply;

#[tokio::test(start_paused = true)]
async fn grace_is_not_for_limited_use() {
    let (world, sessions) = (World::new(), sessions());
    let proof = SessionProof::new(sessions.clone())
        .with_limited_use(crate::replay::MemoryReplayGuard::new())
        .with_grace(Duration::from_secs(3 * HOUR), |_| true);
    let once = world.buy(&Exchange::new(sessions).with_limited_use(true)).await;
    pass(299).await;
    assert_eq!(world.ask(&proof, shown(&once)).await.rejection(), None);
    // A guard forgets after an hour, by default.
    for seconds in [300, 2 * HOUR] {
        pass(seconds).await;
        assert_eq!(world.ask(&proof, shown(&once)).await.rejection(), Some(Rejection::ExpiredSession));
    }
    assert_eq!(world.fake.calls(), 1);
}

#[tokio::test]
async fn an_empty_header_binds_nothing() {
    let (world, sessions) = (World::new(), sessions());
    let sessions = sessions.with_binding(http::header::AUTHORIZATION);
    let empty = and(world.token(), "authorization", "");
    let answer = world.exchange(&Exchange::new(sessions), empty).await;
    assert_eq!(answer.headers()["x-devicecheck-code"], "malformed_token");
    assert_eq!(world.fake.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_apple_buys_one_session() {
    let (world, sessions) = (World::new(), sessions());
    world.fake.always(Reply::normal().delay(Duration::from_millis(50)));
    for is_limited_use in [false, true] {
        let exchange = Exchange::new(sessions.clone()).with_limited_use(is_limited_use);
        let token = world.fake.genuine_token(Environment::Production);
        let together = (0..20).map(|_| world.exchange(&exchange, with("x-apple-device-token", &token)));
        let answers = futures::future::join_all(together).await;
        let (sold, other): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status() == StatusCode::OK);
        assert_eq!((sold.len(), other.len()), (1, 19));
        let reused = |answer: &&Response<Bytes>| answer.headers()["x-devicecheck-code"] == "reused_token";
        assert!(other.iter().all(reused));
    }
    assert_eq!(world.fake.calls(), 2);
}

/// A server whose clock is ahead has revoked all sessions until then, which is in this server's future.
#[tokio::test]
async fn a_session_counts_that_is_bought_after_a_revocation_of_a_fast_clock() {
    let (world, sessions) = (World::new(), sessions());
    let (exchange, proof) = (Exchange::new(sessions.clone()), SessionProof::new(sessions.clone()));
    let old = world.buy(&exchange).await;
    after_noon(30);
    sessions.revocations().revoke_issued_before(at(NOON + 30)).await.unwrap();
    after_noon(0);
    let new = world.buy(&exchange).await;
    assert_eq!(world.ask(&proof, shown(&old)).await.rejection(), Some(Rejection::RefusedToken));
    assert_eq!(world.ask(&proof, shown(&new)).await.rejection(), None);
    assert_eq!(world.fake.calls(), 2);
}

#[tokio::test]
async fn a_response_with_a_session_has_one_answer_for_caches() {
    let (world, sessions) = (World::new(), sessions());
    let layer = world.by_token.clone().with_sessions(SessionProof::new(sessions).with_hand_out(true));
    let inner = service_fn(async |_: Request<Full<Bytes>>| {
        let response = Response::builder().header("cache-control", "public, max-age=600");
        Ok::<_, std::convert::Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
    });
    let response = layer.layer(inner).oneshot(world.token()).await.unwrap();
    assert!(response.headers().contains_key("x-device-session"));
    let control: Vec<_> = response.headers().get_all("cache-control").iter().collect();
    assert_eq!(control, ["no-store"]);
    assert_eq!(world.fake.calls(), 1);
}
