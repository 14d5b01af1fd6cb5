//! Sessions in the responses to requests with a token.

use super::*;
use crate::testing::Reply;

#[tokio::test(start_paused = true)]
async fn a_device_gets_one_session_and_a_remembered_verdict_none() {
    let (world, sessions) = (World::new(), sessions());
    let proof = SessionProof::new(sessions).with_hand_out(true);
    let layer = world.by_token.clone().with_sessions(proof.clone());
    world.fake.always(Reply::normal().delay(Duration::from_millis(50)));
    let token = world.fake.genuine_token(Environment::Production);
    let together = (0..20).map(|_| send(&layer, with("x-apple-device-token", &token)));
    let answers = futures::future::join_all(together).await;
    assert!(answers.iter().all(|answer| answer.device().evidence().is_fresh()), "one call for all");
    let handed_out: Vec<_> = answers.iter().filter(|answer| answer.handed_out().is_some()).collect();
    assert_eq!((handed_out.len(), world.fake.calls()), (1, 1));
    let headers = handed_out[0].response.headers();
    assert_eq!(headers["x-device-session-expires-in"], "3600");
    assert_eq!(headers["cache-control"], "no-store");
    assert!(headers["x-device-session"].is_sensitive());

    let again = send(&layer, with("x-apple-device-token", &token)).await;
    assert!(!again.device().evidence().is_fresh());
    assert_eq!(again.handed_out(), None);

    let answer = world.ask(&proof, shown(handed_out[0].handed_out().unwrap())).await;
    assert_eq!(answer.device().evidence().to_string(), "session-device-check");
    assert_eq!(answer.handed_out(), None, "a session buys no session");
    assert_eq!(world.fake.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_asked_about_again_gets_no_second_session() {
    let (world, sessions) = (World::new(), sessions());
    let world = World { by_token: world.by_token.without_cache(), ..world };
    let layer = world.by_token.clone().with_sessions(SessionProof::new(sessions).with_hand_out(true));
    let token = world.fake.genuine_token(Environment::Production);
    let mut handed_out = 0;
    for _ in 0..6 {
        let answer = send(&layer, with("x-apple-device-token", &token)).await;
        handed_out += usize::from(answer.handed_out().is_some());
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    assert_eq!((handed_out, world.fake.calls()), (1, 6));
}

#[tokio::test]
async fn nothing_is_handed_out_by_default_or_to_a_debug_token() {
    let (world, sessions) = (World::new(), sessions());
    let proof = SessionProof::new(sessions);
    assert_eq!(world.ask(&proof, world.token()).await.handed_out(), None);
    let secret = "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a";
    let tokens = crate::DebugTokens::new().add("simulator", secret).unwrap();
    let layer = world.by_token.clone().with_debug_tokens(tokens).with_sessions(proof.with_hand_out(true));
    let answer = send(&layer, with("x-debug-token", secret)).await;
    assert!(answer.device().evidence().is_stand_in());
    assert_eq!(answer.handed_out(), None);
    assert_eq!(world.fake.calls(), 1);
}
