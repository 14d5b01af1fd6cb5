//! Revocations within one process. `tests/it/sessions.rs` has those through Redis.

use super::*;

const REFUSED: Option<Rejection> = Some(Rejection::RefusedToken);

#[tokio::test]
async fn a_session_can_be_revoked() {
    let (world, sessions) = (World::new(), sessions());
    let (exchange, proof) = (Exchange::new(sessions.clone()), SessionProof::new(sessions.clone()));
    let (mine, other) = (world.buy(&exchange).await, world.buy(&exchange).await);
    assert!(sessions.revocations().is_empty());
    let session = Session::of(world.ask(&proof, shown(&mine)).await.device()).unwrap();
    sessions.revocations().revoke_session(session.id(), session.expires_at()).await.unwrap();
    assert_eq!(sessions.revocations().len(), 1);
    assert_eq!(world.ask(&proof, shown(&mine)).await.rejection(), REFUSED);
    assert_eq!(world.ask(&proof, shown(&other)).await.rejection(), None);
    assert_eq!(world.fake.calls(), 2);
}

#[tokio::test]
async fn all_sessions_of_before_can_be_revoked_and_new_ones_count_at_once() {
    let (world, sessions) = (World::new(), sessions());
    let (exchange, proof) = (Exchange::new(sessions.clone()), SessionProof::new(sessions.clone()));
    let old = world.buy(&exchange).await;
    set_wall_clock(at(NOON) + Duration::from_millis(500));
    sessions.revocations().revoke_issued_before(at(NOON + 1_000_000)).await.unwrap();
    assert_eq!(world.ask(&proof, shown(&old)).await.rejection(), REFUSED);
    // Within the same second.
    let new = world.buy(&exchange).await;
    assert_eq!(world.ask(&proof, shown(&new)).await.rejection(), None);
    assert_eq!(world.fake.calls(), 2);
}

#[tokio::test]
async fn a_revoked_subject_buys_nothing_until_its_time() {
    let sessions = sessions();
    let device = |subject: &str| {
        let evidence = crate::Evidence::fresh("AppAttest", "app-attest");
        crate::Facts::new(
            crate::Route::Production,
            crate::Enforcement::Enforce,
            crate::runtime::Timestamp::now(),
        )
        .verified(evidence, crate::TokenDigest::of(b"assertion"))
        .with_subject(subject.into())
    };
    let digits = "00112233445566778899aabbccddeeff";
    let headers = http::HeaderMap::new();
    let world = World::new();
    let proof = SessionProof::new(sessions.clone());
    for (subject, seen) in [(digits, Some(digits)), ("key 7", None)] {
        let issued = sessions.issue(&device(subject), &headers, false, at(NOON)).unwrap();
        let text = sessions.mint(&issued.claims).unwrap();
        let answer = world.ask(&proof, shown(&text)).await;
        assert_eq!(answer.device().evidence().to_string(), "session-app-attest");
        assert_eq!(answer.device().subject().map(str::len), Some(32));
        assert!(
            seen.is_none_or(|seen| answer.device().subject() == Some(seen)),
            "the same under both proofs"
        );

        sessions.revocations().revoke_subject(subject, at(NOON + 60)).await.unwrap();
        assert_eq!(world.ask(&proof, shown(&text)).await.rejection(), Some(Rejection::Denied));
        let purchase = sessions.issue(&device(subject), &headers, false, at(NOON + 60));
        assert_eq!(purchase.map(|_| ()).map_err(|rejected| rejected.rejection()), Err(Rejection::Denied));
        assert!(sessions.issue(&device("another"), &headers, false, at(NOON)).is_ok());
        assert!(sessions.issue(&device(subject), &headers, false, at(NOON + 61)).is_ok());
    }
    assert_eq!(world.fake.calls(), 0);
}

#[tokio::test]
async fn the_set_is_bounded_and_makes_room_for_what_is_over() {
    let sessions = sessions();
    let revocations = sessions.revocations();
    let id = |number: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        SessionId::from(id)
    };
    for number in 0..Revocations::CAPACITY {
        revocations.revoke_session(id(number), at(NOON + 60)).await.unwrap();
    }
    let error = revocations.revoke_session(id(usize::MAX), at(NOON + 60)).await.unwrap_err();
    assert!(error.is_full());
    revocations.revoke_session(id(0), at(NOON + 90)).await.unwrap();
    assert_eq!(revocations.len(), Revocations::CAPACITY);
    after_noon(61);
    revocations.revoke_session(id(usize::MAX), at(NOON + 90)).await.unwrap();
    assert_eq!(revocations.len(), 2);
}
