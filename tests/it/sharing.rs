//! Requests that come at once with one token share one call.

use std::time::Duration;

use futures::future::{join_all, poll_immediate};
use http::StatusCode;
use tower_devicecheck::{
    DeviceCheckLayer, DeviceVerifier, Rejection, TokenQuestion, Verdict, VerifyError,
    testing::{Reply, realistic_token},
};

use crate::support::{App, Apple, Counter, rejection};

#[tokio::test(start_paused = true)]
async fn r13_concurrent_requests_with_one_token_make_one_call() {
    for layer in [Apple::layer, |apple: &Apple| apple.layer().without_cache()] {
        let apple = Apple::new();
        let app = App::new(&layer(&apple));
        let token = apple.genuine();
        apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
        let statuses = join_all((0..500).map(|_| app.status(&token))).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::OK));
        assert_eq!((apple.calls(), app.inner.calls()), (1, 500));
    }
}

#[tokio::test(start_paused = true)]
async fn r13_the_first_caller_leaves_and_the_others_are_served() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
    let mut first = Box::pin(app.status(&token));
    let mut second = Box::pin(app.status(&token));
    assert!(poll_immediate(&mut first).await.is_none());
    assert!(poll_immediate(&mut second).await.is_none());
    drop(first);
    assert_eq!(second.await, StatusCode::OK);
    assert_eq!((apple.calls(), app.inner.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn r13_all_callers_leave_and_the_next_one_asks_anew() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    apple.fake.script(Reply::hang());
    let mut callers: Vec<_> = (0..3).map(|_| Box::pin(app.status(&token))).collect();
    for caller in &mut callers {
        assert!(poll_immediate(caller).await.is_none());
    }
    assert_eq!(apple.calls(), 1);
    drop(callers);
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((apple.calls(), app.inner.calls()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_layer_shows_how_many_checks_are_in_flight() {
    let apple = Apple::new();
    let layer = apple.layer();
    let shown = |count: usize| format!("{layer:?}").contains(&format!("checks_in_flight: {count}"));
    let app = App::new(&layer);
    apple.fake.always(Reply::hang());
    let tokens: Vec<_> = (0..3).map(|_| apple.genuine()).collect();
    let mut callers: Vec<_> = tokens.iter().chain(&tokens).map(|token| Box::pin(app.status(token))).collect();
    assert!(shown(0), "{layer:?}");
    for caller in &mut callers {
        assert!(poll_immediate(caller).await.is_none());
    }
    assert!(shown(3), "{layer:?}");
    // A call that was sent goes on without its callers, until its deadline.
    drop(callers);
    assert!(shown(3), "{layer:?}");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(shown(0), "{layer:?}");
    assert_eq!(apple.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn r13_a_failure_is_shared_with_those_who_wait_and_not_stored() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    apple.fake.script(Reply::status(500).delay(Duration::from_millis(100)));
    let statuses = join_all((0..10).map(|_| app.status(&token))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(apple.calls(), 1);
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((apple.calls(), app.inner.calls()), (2, 1));
}

/// Panics at the first call, then believes everything. Counts.
#[derive(Clone, Default)]
struct PanicsOnce(Counter);

impl DeviceVerifier for PanicsOnce {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.0.add();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(self.0.get() > 1, "a panic, as this test wants");
        Ok(Verdict::Genuine)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

#[tokio::test(start_paused = true)]
async fn r14_a_panic_in_the_verifier_fails_those_waiting_and_frees_the_slot() {
    let verifier = PanicsOnce::default();
    let app = App::new(&DeviceCheckLayer::new(verifier.clone()));
    let token = realistic_token();
    for response in join_all((0..3).map(|_| app.get(&token))).await {
        assert!(matches!(rejection(&response), Rejection::Unavailable { .. }));
    }
    assert_eq!((verifier.0.get(), app.inner.calls()), (1, 0));
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((verifier.0.get(), app.inner.calls()), (2, 1));
}
