//! The life of a session: bought, shown, renewed, over.

use super::*;
use crate::testing::Reply;

#[tokio::test]
async fn a_session_is_bought_and_admits_until_its_end() {
    let (world, sessions) = (World::new(), sessions());
    let (exchange, proof) = (Exchange::new(sessions.clone()), SessionProof::new(sessions));
    let (session, expires_in) = world.buy_with(&exchange, world.token_in(Environment::Production)).await;
    assert_eq!((session.len(), expires_in), (126, HOUR));

    after_noon(HOUR - 1);
    let answer = world.ask(&proof, shown(&session)).await;
    let device = answer.device();
    assert_eq!(device.environment(), Environment::Production);
    assert_eq!(device.evidence().proof(), "DeviceSession");
    assert_eq!(device.evidence().to_string(), "session-device-check");
    assert!(!device.evidence().is_fresh());
    assert_eq!(device.verified_at(), at(NOON));
    assert_eq!(device.subject(), None);
    let session_of_device = Session::of(device).unwrap();
    assert_eq!(session_of_device.expires_at(), at(NOON + HOUR));
    assert_eq!(session_of_device.bought_with(), BoughtWith::DeviceCheck);
    assert!(!session_of_device.is_limited_use() && !session_of_device.is_degraded());
    assert_eq!(session_of_device.id().to_string().parse::<SessionId>().unwrap(), session_of_device.id());

    after_noon(HOUR);
    assert_eq!(world.ask(&proof, shown(&session)).await.rejection(), Some(Rejection::ExpiredSession));
    assert_eq!(world.fake.calls(), 1);
}

#[tokio::test]
async fn a_session_buys_no_session_and_neither_does_a_remembered_verdict() {
    let (world, sessions) = (World::new(), sessions());
    let exchange = Exchange::new(sessions.clone());
    let session = world.buy(&exchange).await;
    let by_session = world.by_token.clone().with_sessions(SessionProof::new(sessions));
    let purchase =
        Request::post("/").header("x-device-session", &session).body(Full::<Bytes>::default()).unwrap();
    let response = by_session.layer(exchange.clone()).oneshot(purchase).await.unwrap();
    assert_eq!(response.extensions().get(), Some(&Rejection::ReusedToken));
    assert_eq!(world.fake.calls(), 1);

    let token = world.fake.genuine_token(Environment::Production);
    world.buy_with(&exchange, with("x-apple-device-token", &token)).await;
    let again = world.exchange(&exchange, with("x-apple-device-token", &token)).await;
    assert_eq!(again.extensions().get(), Some(&Rejection::ReusedToken));
    assert_eq!(again.headers()["x-devicecheck-code"], "reused_token");
    assert_eq!(world.fake.calls(), 2);
}

#[tokio::test]
async fn the_exchange_needs_a_device_and_a_post() {
    let (world, sessions) = (World::new(), sessions());
    let exchange = Exchange::new(sessions);
    let post = || Request::post("/").body(Full::<Bytes>::default()).unwrap();
    let response = exchange.clone().oneshot(post()).await.unwrap();
    assert_eq!(response.extensions().get(), Some(&Rejection::Misconfigured), "no layer is in front");
    let monitored = world.by_token.clone().with_enforcement(crate::Enforcement::Monitor);
    let response = monitored.layer(exchange.clone()).oneshot(post()).await.unwrap();
    assert_eq!(response.extensions().get(), Some(&Rejection::MissingToken));
    let response = world.by_token.layer(exchange).oneshot(world.token()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["allow"]), (405, &"POST".parse().unwrap()));
    assert_eq!(world.fake.calls(), 1);
}

/// The guide names both numbers.
#[tokio::test(start_paused = true)]
async fn an_hour_of_a_hundred_devices() {
    let (world, sessions) = (World::new(), sessions());
    let (exchange, proof) = (Exchange::new(sessions.clone()), SessionProof::new(sessions));
    const DEVICES: u64 = 100;
    const REQUESTS: u64 = 1_000;
    // The session of each device, and when to renew it.
    let mut held: Vec<Option<(String, u64)>> = vec![None; DEVICES as usize];
    for request in 0..REQUESTS {
        let now = request * HOUR / REQUESTS;
        pass(now).await;
        let mine = &mut held[(request % DEVICES) as usize];
        let session = match mine {
            Some((session, renew_at)) if now < *renew_at => session.clone(),
            _ => {
                let (session, expires_in) = world.buy_with(&exchange, world.token()).await;
                *mine = Some((session.clone(), now + expires_in / 2));
                session
            }
        };
        assert_eq!(world.ask(&proof, shown(&session)).await.response.status(), 200, "request {request}");
    }
    assert_eq!(world.fake.calls(), 200);

    for request in 0..REQUESTS {
        pass(HOUR + request * HOUR / REQUESTS).await;
        assert_eq!(send(&world.by_token, world.token()).await.response.status(), 200);
    }
    assert_eq!(world.fake.calls(), 200 + 1_000, "without sessions");
}

#[tokio::test]
async fn debug_tokens_buy_sessions_that_say_so() {
    let (world, sessions) = (World::new(), sessions());
    let secret = "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a";
    let tokens = crate::DebugTokens::new().add("simulator", secret).unwrap();
    let world = World { by_token: world.by_token.with_debug_tokens(tokens), ..world };
    let (session, _) = world.buy_with(&Exchange::new(sessions.clone()), with("x-debug-token", secret)).await;
    let answer = world.ask(&SessionProof::new(sessions), shown(&session)).await;
    assert!(answer.device().evidence().is_stand_in());
    assert_eq!(answer.device().evidence().to_string(), "session-debug-token");
    assert_eq!(world.fake.calls(), 0);
}

/// A server that is started again without the debug token refuses the token at once, and its sessions at their end.
#[tokio::test(start_paused = true)]
async fn a_session_outlives_its_debug_token_by_one_life_at_most() {
    const SECRET: &str = "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a";
    let by_debug_token = || with("x-debug-token", SECRET);
    let (world, before) = (World::new(), sessions());
    let tokens = |secret| crate::DebugTokens::new().add("simulator", secret).unwrap();
    let with_it = World {
        by_token: world.by_token.clone().with_debug_tokens(tokens(SECRET)),
        fake: world.fake.clone(),
    };
    let (bought, life) = with_it.buy_with(&Exchange::new(before.clone()), by_debug_token()).await;
    let handing_out = |sessions| SessionProof::new(sessions).with_hand_out(true);
    let answer = with_it.ask(&handing_out(before), by_debug_token()).await;
    assert_eq!((life, answer.handed_out()), (HOUR, None), "only the exchange sells it");
    answer.device();

    // The master key is the same, as in every deployment that must not end all sessions.
    let after = sessions();
    let (exchange, proof) = (Exchange::new(after.clone()), handing_out(after));
    let without_it = [
        world.by_token.clone(),
        world.by_token.clone().with_debug_tokens(tokens("1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed")),
    ];
    for seconds in [0, HOUR / 2, HOUR - 1, HOUR, 2 * HOUR] {
        pass(seconds).await;
        for by_token in without_it.clone() {
            let world = World { by_token, fake: world.fake.clone() };
            // The removed token beside the session changes nothing.
            for request in [shown(&bought), and(shown(&bought), "x-debug-token", SECRET)] {
                let answer = world.ask(&proof, request).await;
                assert_eq!(answer.handed_out(), None, "a session is not prolonged: {seconds}");
                if seconds < HOUR {
                    assert_eq!(answer.device().evidence().to_string(), "session-debug-token");
                    let session = Session::of(answer.device()).unwrap();
                    assert_eq!(session.expires_at(), at(NOON + HOUR));
                } else {
                    assert_eq!(answer.rejection(), Some(Rejection::ExpiredSession), "{seconds}");
                }
            }
            assert_eq!(world.exchange(&exchange, shown(&bought)).await.status(), 401, "{seconds}");
            assert_eq!(world.exchange(&exchange, by_debug_token()).await.status(), 401, "{seconds}");
            let answer = world.ask(&proof, by_debug_token()).await;
            assert_eq!((answer.response.status().as_u16(), answer.handed_out()), (401, None), "{seconds}");
        }
    }
    assert_eq!(world.fake.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn grace_lasts_while_apple_is_down_and_nothing_new_is_issued() {
    let (world, sessions) = (World::new(), sessions());
    let exchange = Exchange::new(sessions.clone());
    let fake = world.fake.clone();
    let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    let world = World { by_token: DeviceCheckLayer::new(apple.clone()), ..world };
    let without = SessionProof::new(sessions.clone());
    let is_down = move |environment| apple.availability(environment) != crate::Availability::Available;
    let with_grace =
        SessionProof::new(sessions).with_grace(Duration::from_secs(600), is_down).with_hand_out(true);
    let session = world.buy(&exchange).await;

    pass(HOUR + 599).await;
    assert_eq!(
        world.ask(&with_grace, shown(&session)).await.rejection(),
        Some(Rejection::ExpiredSession),
        "Apple is up"
    );
    world.fake.always(Reply::status(503));
    for _ in 0..40 {
        let answer = send(&world.by_token, world.token()).await;
        assert_eq!(answer.response.status(), 503);
    }
    let calls = world.fake.calls();
    let answer = world.ask(&with_grace, shown(&session)).await;
    assert_eq!(answer.device().evidence().to_string(), "degraded-session-device-check");
    assert!(Session::of(answer.device()).unwrap().is_degraded());
    assert_eq!(answer.handed_out(), None);
    assert_eq!(world.ask(&without, shown(&session)).await.rejection(), Some(Rejection::ExpiredSession));
    let purchase = world.exchange(&exchange, world.token()).await;
    assert_eq!(purchase.status(), 503);
    pass(HOUR + 600).await;
    assert_eq!(
        world.ask(&with_grace, shown(&session)).await.rejection(),
        Some(Rejection::ExpiredSession),
        "too late"
    );
    assert_eq!(world.fake.calls(), calls);
}
