//! The checks of a session, in their order.

use super::*;
use crate::replay::MemoryReplayGuard;
use crate::runtime::set_wall_clock;
use crate::session::claims::Claims;
use crate::session::key::SessionKey;
use crate::session::token::mint;

fn claims() -> Claims {
    let now = NOON as u32;
    Claims {
        is_limited_use: false,
        environment: Environment::Production,
        bought_with: BoughtWith::AppAttest,
        issued: now,
        expires: now + 3_600,
        id: [7; 16].into(),
        subject: [0xab; 16],
        binding: None,
    }
}

fn minted(claims: &Claims) -> String {
    mint(claims, &SessionKey::derive(&master(1), "acme", APP_ID).unwrap())
}

#[tokio::test]
async fn the_table() {
    let (world, proof) = (World::new(), SessionProof::new(sessions()));
    let now = NOON as u32;
    let refused = Some(Rejection::RefusedToken);
    let other =
        |tenant, app_id, key| mint(&claims(), &SessionKey::derive(&master(key), tenant, app_id).unwrap());
    let times = |issued, expires| minted(&Claims { issued, expires, ..claims() });
    let cases = [
        ("as issued", minted(&claims()), None),
        ("no session", "Bearer".to_owned(), refused),
        ("an empty header", String::new(), refused),
        ("of another tenant", other("other", APP_ID, 1), refused),
        ("of another app", other("acme", "TEAM123456.com.example.other", 1), refused),
        ("of an unknown key", other("acme", APP_ID, 2), refused),
        ("from a clock a minute ahead", times(now + 60, now + 3_660), None),
        ("from the future", times(now + 61, now + 3_661), refused),
        ("in its last second", times(now - 3_599, now + 1), None),
        ("over", times(now - 3_600, now), Some(Rejection::ExpiredSession)),
        ("over before it begins", times(now, now - 1), Some(Rejection::ExpiredSession)),
        ("over before it begins, later", times(now + 50, now + 40), refused),
        ("of the longest life", times(now - 1, now + 3_599), None),
        ("too long", times(now - 1, now + 3_600), refused),
        (
            "of the other environment",
            minted(&Claims { environment: Environment::Development, ..claims() }),
            refused,
        ),
        ("bound, where none is", minted(&Claims { binding: Some([1; 16]), ..claims() }), refused),
        ("with limited use, and no guard", minted(&Claims { is_limited_use: true, ..claims() }), refused),
    ];
    for (name, text, rejection) in cases {
        set_wall_clock(at(NOON));
        assert_eq!(world.ask(&proof, shown(&text)).await.rejection(), rejection, "{name}");
    }
    let twice = and(shown(&minted(&claims())), "x-device-session", &minted(&claims()));
    assert_eq!(
        world.ask(&proof, twice).await.rejection(),
        Some(crate::MalformedToken::Repeated.into()),
        "twice"
    );
    // A session that is present decides, and a token does not help.
    let both = and(world.token(), "x-device-session", "Bearer");
    assert_eq!(world.ask(&proof, both).await.rejection(), refused, "beside a genuine token");
    let answer = world.ask(&proof, shown(&minted(&claims()))).await;
    assert_eq!(answer.device().subject(), Some("abababababababababababababababab"));
    assert_eq!(answer.device().evidence().to_string(), "session-app-attest");
    assert_eq!(world.fake.calls(), 0);
}

#[tokio::test]
async fn a_session_of_development_needs_a_route_that_admits_it() {
    let (world, sessions) = (World::new(), sessions());
    let proof = SessionProof::new(sessions.clone());
    let world =
        World { by_token: world.by_token.with_routing(crate::Route::ProductionThenDevelopment), ..world };
    let token = world.token_in(Environment::Development);
    let (session, _) = world.buy_with(&Exchange::new(sessions), token).await;
    assert_eq!(world.ask(&proof, shown(&session)).await.device().environment(), Environment::Development);
    for (route, admits) in [(crate::Route::Development, true), (crate::Route::Production, false)] {
        let layer = world.by_token.clone().with_routing(route).with_sessions(proof.clone());
        assert_eq!(send(&layer, shown(&session)).await.rejection().is_none(), admits, "{route:?}");
    }
    assert_eq!(world.fake.calls(), 2);
}

#[tokio::test]
async fn a_bound_session_counts_beside_its_header_only() {
    let (world, sessions) = (World::new(), sessions());
    let unbound = world.buy(&Exchange::new(sessions.clone())).await;
    let sessions = sessions.with_binding(http::header::AUTHORIZATION);
    let (exchange, proof) =
        (Exchange::new(sessions.clone()), SessionProof::new(sessions).with_hand_out(true));
    let alice = "Bearer alice";
    let (session, _) = world.buy_with(&exchange, and(world.token(), "authorization", alice)).await;
    let refused = Some(Rejection::RefusedToken);
    let twice = and(and(shown(&session), "authorization", alice), "authorization", alice);
    let cases = [
        ("the same", and(shown(&session), "authorization", alice), None),
        ("another", and(shown(&session), "authorization", "Bearer mallory"), refused),
        ("a longer one", and(shown(&session), "authorization", "Bearer alice "), refused),
        ("none", shown(&session), refused),
        ("twice", twice, refused),
        ("a session that is not bound", and(shown(&unbound), "authorization", alice), refused),
    ];
    for (name, request, rejection) in cases {
        assert_eq!(world.ask(&proof, request).await.rejection(), rejection, "{name}");
    }
    assert_eq!(world.fake.calls(), 2);
    let incomplete = world.exchange(&exchange, world.token()).await;
    assert_eq!(incomplete.extensions().get(), Some(&Rejection::from(crate::MalformedToken::Incomplete)));
    let answer = world.ask(&proof, and(world.token(), "authorization", alice)).await;
    assert_eq!(answer.handed_out(), None, "it would not be bound");
    assert_eq!(world.fake.calls(), 4);
}

#[tokio::test]
async fn a_session_with_limited_use_admits_one_request() {
    let (world, sessions) = (World::new(), sessions());
    let exchange = Exchange::new(sessions.clone()).with_limited_use(true);
    let proof = SessionProof::new(sessions.clone()).with_limited_use(MemoryReplayGuard::new());
    let (session, expires_in) = world.buy_with(&exchange, world.token()).await;
    assert_eq!(expires_in, 300);
    let requests = (0..20).map(|_| world.ask(&proof, shown(&session)));
    let answers = futures::future::join_all(requests).await;
    let (admitted, rejected): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.device.is_some());
    assert_eq!(admitted.len(), 1);
    assert!(Session::of(admitted[0].device()).unwrap().is_limited_use());
    assert!(rejected.iter().all(|answer| answer.rejection() == Some(Rejection::ReusedToken)));

    let other = world.buy(&exchange).await;
    after_noon(300);
    assert_eq!(world.ask(&proof, shown(&other)).await.rejection(), Some(Rejection::ExpiredSession));

    let strict = proof.requiring_limited_use(true);
    let long = world.buy(&Exchange::new(sessions)).await;
    assert_eq!(world.ask(&strict, shown(&long)).await.rejection(), Some(Rejection::RefusedToken));
    assert_eq!(world.fake.calls(), 3);
}

#[tokio::test]
async fn a_guard_that_fails_spends_nothing() {
    #[derive(Clone, Default)]
    struct Hiccup(std::sync::Arc<(MemoryReplayGuard, std::sync::atomic::AtomicBool)>);

    impl crate::replay::ReplayGuard for Hiccup {
        async fn reserve(
            &self,
            key: &crate::replay::ReplayKey<'_>,
            claim: &crate::replay::Claim,
        ) -> Result<crate::replay::Claimed, crate::replay::GuardError> {
            self.0.0.reserve(key, claim).await
        }

        async fn confirm(
            &self,
            key: &crate::replay::ReplayKey<'_>,
            claim: &crate::replay::Claim,
        ) -> Result<crate::replay::Claimed, crate::replay::GuardError> {
            if !self.0.1.swap(true, std::sync::atomic::Ordering::SeqCst) {
                self.0.0.confirm(key, claim).await.unwrap();
                return Err(crate::replay::GuardError::new("the answer was lost"));
            }
            self.0.0.confirm(key, claim).await
        }

        async fn release(
            &self,
            key: &crate::replay::ReplayKey<'_>,
            claim: &crate::replay::Claim,
        ) -> Result<(), crate::replay::GuardError> {
            self.0.0.withdraw(key, claim).await
        }
    }

    let (world, sessions) = (World::new(), sessions());
    let proof = SessionProof::new(sessions.clone()).with_limited_use(Hiccup::default());
    let session = world.buy(&Exchange::new(sessions).with_limited_use(true)).await;
    assert_eq!(world.ask(&proof, shown(&session)).await.response.status(), 503);
    // The claim is withdrawn by a task.
    tokio::task::yield_now().await;
    assert_eq!(world.ask(&proof, shown(&session)).await.response.status(), 200);
    assert_eq!(world.ask(&proof, shown(&session)).await.rejection(), Some(Rejection::ReusedToken));
    assert_eq!(world.fake.calls(), 1);
}
