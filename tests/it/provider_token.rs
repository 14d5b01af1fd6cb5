//! The token with which we authenticate to Apple.

use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use tower_devicecheck::{
    Credentials,
    testing::{FakeApple, Reply},
};

use crate::support::{App, Apple};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn r19_a_thousand_tokens_at_once_make_one_provider_token() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    apple.fake.always(Reply::normal().delay(Duration::from_millis(1)));
    let tokens: Vec<_> = (0..1_000).map(|_| apple.genuine()).collect();
    let statuses = join_all(tokens.iter().map(|token| app.status(token))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK));
    assert_eq!((apple.calls(), apple.fake.provider_tokens()), (1_000, 1));
}

#[tokio::test(start_paused = true)]
async fn r19_renewed_at_forty_minutes_and_not_before() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    for (advance, provider_tokens) in [(0, 1), (39, 1), (1, 2), (39, 2), (1, 3)] {
        tokio::time::advance(advance * MINUTE).await;
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        assert_eq!(apple.fake.provider_tokens(), provider_tokens);
    }
    assert_eq!(apple.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn r19_one_forced_renewal_and_then_not_for_twenty_minutes() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    apple.fake.always(Reply::status(401));
    for (advance, calls, provider_tokens) in [(0, 2, 2), (1, 3, 2), (18, 4, 2), (1, 6, 3), (1, 7, 3)] {
        tokio::time::advance(advance * MINUTE).await;
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((apple.calls(), apple.fake.provider_tokens()), (calls, provider_tokens), "+{advance} min");
    }
}

#[tokio::test(start_paused = true)]
async fn r19_many_refusals_at_once_force_one_renewal() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    apple.fake.always(Reply::status(401).delay(Duration::from_millis(10)));
    let tokens: Vec<_> = (0..100).map(|_| apple.genuine()).collect();
    join_all(tokens.iter().map(|token| app.status(token))).await;
    assert_eq!((apple.calls(), apple.fake.provider_tokens()), (200, 2));
}

#[tokio::test]
async fn keys_are_rotated_while_running() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);

    let next = tower_devicecheck::testing::PrivateKey::generate();
    apple.fake.accept_key("NEWKEY4567", &next);
    let credentials = Credentials::from_pem(apple.fake.team_id(), "NEWKEY4567", &next.to_pem()).unwrap();
    apple.client.rotate_credentials(credentials).unwrap();
    apple.fake.revoke_key(apple.fake.key_id());
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!((apple.calls(), apple.fake.provider_tokens()), (2, 2));

    let stranger = FakeApple::new();
    let credentials =
        Credentials::from_pem("OTHERTEAM1", stranger.key_id(), &stranger.private_key().to_pem()).unwrap();
    assert!(apple.client.rotate_credentials(credentials).is_err(), "cached verdicts are the old team's");
}
