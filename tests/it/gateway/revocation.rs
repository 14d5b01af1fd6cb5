//! Keys that are revoked while they are in use, and a store that cannot say so.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{body::Body, extract::Request, http::StatusCode, response::IntoResponse};
use futures::{StreamExt, stream};
use http::Response;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower_devicecheck::split_key::{FileSplitKeyStore, Limits as KeyLimits, SplitKeyStore, revoke};

use super::{
    CHAT, Gateway, KEY,
    ai_gateway::Limits,
    clocks::{Clocked, Outgoing, pieces},
    code, ok, provider, providers_at,
};

#[tokio::test(start_paused = true)]
async fn a_stream_ends_within_a_second_of_its_keys_revocation() {
    let (revoked, other) = (Clocked::new("openai").await, Clocked::new("anthropic").await);
    let client = async |_: Outgoing| {
        let body = Body::from_stream(pieces(vec![(7, "data: 1\n\n"); 100]));
        Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
    };
    let mut streams = Vec::new();
    for gateway in [&revoked, &revoked, &other] {
        let mut body = gateway.send(Body::empty(), client).await.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
        streams.push(body);
    }
    revoke(&revoked.keys, "app", revoked.split.record().split()).await.unwrap();
    let started = Instant::now();
    for body in &mut streams[..2] {
        let error = loop {
            match body.frame().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(format!("{error:?}").contains("KeyRevoked"), "{error:?}");
        assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
    }
    for _ in 0..50 {
        streams[2].frame().await.unwrap().unwrap();
    }
}

/// The record gets an end in the past: the wall clock of this test does not move.
#[tokio::test(start_paused = true)]
async fn a_stream_and_an_answer_that_has_not_begun_end_when_their_key_expires() {
    let gateway = Clocked::new("openai").await;
    let client = async |_: Outgoing| {
        let body = Body::from_stream(pieces(vec![(7, "data: 1\n\n"); 100]));
        Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
    };
    let expire = async |at: SystemTime| {
        let record = gateway.keys.get("app", gateway.split.record().split()).await.unwrap().unwrap();
        let record = record.changed_to(record.state()).with_limits(KeyLimits::none().with_expiry(at));
        gateway.keys.put(vec![record]).await.unwrap();
    };
    expire(SystemTime::now() + Duration::from_secs(3_600)).await;
    let mut body = gateway.send(Body::empty(), client).await.into_body();
    for _ in 0..3 {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    }
    let waiting = gateway.send(Body::empty(), async |_| std::future::pending().await);
    let expiring = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        expire(SystemTime::UNIX_EPOCH).await;
    };
    let started = Instant::now();
    let (response, ()) = tokio::join!(waiting, expiring);
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&answer).contains("invalid_key"));
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(format!("{error:?}").contains("KeyRevoked"), "{error:?}");
    assert!(started.elapsed() <= Duration::from_secs(7), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_not_begun_is_refused() {
    let gateway = Clocked::new("openai").await;
    let send = gateway.send(Body::empty(), async |_| std::future::pending().await);
    let started = Instant::now();
    let revoke = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        revoke(&gateway.keys, "app", gateway.split.record().split()).await.unwrap();
    };
    let (response, ()) = tokio::join!(send, revoke);
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(started.elapsed() <= Duration::from_secs(6), "{:?}", started.elapsed());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("invalid_key"));
}

/// A key file of a test's own.
struct KeyFile(std::path::PathBuf);

impl KeyFile {
    fn new() -> Self {
        let name = format!("gateway-{}.json", uuid::Uuid::new_v4().simple());
        Self(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    fn store(&self) -> FileSplitKeyStore {
        FileSplitKeyStore::open_or_create(&self.0).unwrap()
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_file(self.0.with_extension("json.lock"));
    }
}

/// Over sockets: the tool changes the file, and the stream breaks off, so that it does not look complete.
#[tokio::test]
async fn a_stream_ends_when_the_key_file_says_that_its_key_is_revoked() {
    let (url, _) = provider(async |_: Request| {
        let endless = stream::once(async { Ok::<_, std::io::Error>("data: 1\n\n") }).chain(stream::pending());
        ([("content-type", "text/event-stream")], Body::from_stream(endless)).into_response()
    })
    .await;
    let file = KeyFile::new();
    let gateway = Gateway::put_together(
        ("openai", KEY),
        providers_at(&url),
        file.store(),
        KeyLimits::none(),
        |_, gate| gate,
    )
    .await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    let tool = FileSplitKeyStore::open(&file.0).unwrap();
    revoke(&tool, "app", gateway.split.record().split()).await.unwrap();
    response.chunk().await.unwrap_err();
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(code(response).await, "invalid_key");
    assert_eq!(gateway.apple.calls(), 2);
}

#[tokio::test]
async fn w15_health_says_that_the_key_file_is_damaged_while_the_old_records_serve() {
    let (url, _) = provider(ok).await;
    let file = KeyFile::new();
    let keys = Arc::new(file.store().with_check_interval(Duration::ZERO));
    let gateway = Gateway::put_together(
        ("openai", KEY),
        providers_at(&url),
        keys,
        KeyLimits::none(),
        |settings, gate| {
            settings.limits = Limits::default();
            gate
        },
    )
    .await;
    let status = async |path: &str| {
        gateway.client.get(format!("{}{path}", gateway.url)).send().await.unwrap().status().as_u16()
    };
    let good = fs::read_to_string(&file.0).unwrap();
    assert_eq!((status("/health").await, status("/live").await), (200, 200));
    for damage in ["", "{", &good[..good.len() / 2]] {
        fs::write(&file.0, damage).unwrap();
        assert_eq!((status("/health").await, status("/live").await), (503, 200), "{damage}");
        assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), StatusCode::OK, "{damage}");
        fs::write(&file.0, &good).unwrap();
        assert_eq!(status("/health").await, 200, "{damage}");
    }
    assert_eq!(gateway.apple.calls(), 3);
    assert_eq!(file.store().list().await.unwrap().len(), 1);
}
