//! Sessions and tenants.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt};
use tower_devicecheck::{
    DeviceCheckLayer, Environment, Rejection,
    replay::MemoryReplayGuard,
    session::{Exchange, KeyRing, MasterKey, Session, SessionProof, Sessions},
    tenant::{HostTenants, Tenants},
};

use super::{
    Slow, SlowService, explore, rest,
    world::{Admitted, World, slow, slow_apple},
};
use crate::support::{App, TOKEN_HEADER};

const OK: StatusCode = StatusCode::OK;
const REFUSED: StatusCode = StatusCode::UNAUTHORIZED;

fn sessions() -> Sessions {
    Sessions::new("acme", "TEAM123456.com.example.app", &KeyRing::new(MasterKey::new(1, [1; 32]))).unwrap()
}

/// Buys a session with this token. Returns none if the token is spent.
async fn buy(gate: &DeviceCheckLayer, exchange: Exchange, token: &str) -> Option<String> {
    let service = gate.layer(SlowService::new(exchange));
    let request =
        Request::post("/session").header(TOKEN_HEADER, token).body(Full::<Bytes>::default()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    if response.status() != OK {
        assert_eq!(response.extensions().get::<Rejection>(), Some(&Rejection::ReusedToken));
        return None;
    }
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    Some(answer["session"].as_str().unwrap().to_owned())
}

fn shown(session: &str) -> Request<Full<Bytes>> {
    Request::builder().header("x-device-session", session).body(Full::default()).unwrap()
}

/// A remembered verdict buys nothing, so a token whose check has ended in the background is spent for purchases. A new
/// token of the device always buys.
#[tokio::test(start_paused = true)]
async fn a_purchase() {
    explore("the purchase of a session", 29, async |at| {
        let (world, sessions) = (World::new(|layer| layer), sessions());
        let tokens = [world.genuine(), world.genuine()];
        let buy = async |token: &str| buy(&world.layer, Exchange::new(sessions.clone()), token).await;
        let done = at.of(buy(&tokens[0])).await;
        let asked_before = world.calls();
        let again = buy(&tokens[0]).await;
        assert!(again.is_some() || asked_before == 1, "{at:?}");
        assert!(again.is_none() || done.is_none(), "{at:?}: sold twice");
        assert_eq!(buy(&tokens[0]).await, None, "{at:?}");
        assert_eq!(world.calls(), 1, "{at:?}");
        let session = buy(&tokens[1]).await.unwrap();
        let app = App::new(&slow(world.layer.clone().with_sessions(SessionProof::new(sessions.clone()))));
        assert_eq!(app.send(shown(&session)).await.status(), OK, "{at:?}");
        assert_eq!(world.calls(), 2, "{at:?}");
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// A token that is good for one request buys one session at most.
#[tokio::test(start_paused = true)]
async fn a_purchase_with_a_token_of_single_use() {
    explore("the purchase of a session by single use", 21, async |at| {
        let guard = Arc::new(MemoryReplayGuard::new());
        let world = World::new(|layer| layer.with_single_use(Slow(Arc::clone(&guard))));
        let (sessions, token) = (sessions(), world.genuine());
        let buy = async || buy(&world.layer, Exchange::new(sessions.clone()), &token).await;
        let done = at.of(buy()).await;
        let was_admitted = world.admitted.get() == 1;
        assert_eq!(buy().await.is_none(), was_admitted, "{at:?}");
        rest().await;
        assert_eq!((world.admitted.get(), guard.len()), (1, 1), "{at:?}");
        assert!((1..=2).contains(&world.calls()), "{at:?}: {} calls", world.calls());
        world.is_whole(&at).await;
        done.is_some()
    })
    .await;
}

/// A session for one request admits one, and is not lost with a client that leaves before.
#[tokio::test(start_paused = true)]
async fn limited_use() {
    explore("a session with limited use", 17, async |at| {
        let guard = Arc::new(MemoryReplayGuard::new());
        let (world, sessions) = (World::new(|layer| layer), sessions());
        let exchange = Exchange::new(sessions.clone()).with_limited_use(true);
        let session = buy(&world.layer, exchange, &world.genuine()).await.unwrap();
        let admitted = Admitted::default();
        let proof = SessionProof::new(sessions).with_limited_use(Slow(Arc::clone(&guard)));
        let app = App::new(&slow(world.layer.clone().with_sessions(proof).with_observer(admitted.clone())));
        let status = async || app.send(shown(&session)).await.status();
        let done = at.of(status()).await;
        let was_admitted = admitted.0.get() == 1;
        assert_eq!(status().await, if was_admitted { REFUSED } else { OK }, "{at:?}");
        assert_eq!(status().await, REFUSED, "{at:?}");
        rest().await;
        assert_eq!((admitted.0.get(), guard.len(), world.calls()), (1, 1, 1), "{at:?}");
        done.is_some()
    })
    .await;
}

/// A revocation counts in this process from its first poll. What was dropped before has revoked nothing.
#[tokio::test(start_paused = true)]
async fn a_revocation() {
    explore("a revocation", 1, async |at| {
        let (world, sessions) = (World::new(|layer| layer), sessions());
        let session = buy(&world.layer, Exchange::new(sessions.clone()), &world.genuine()).await.unwrap();
        let app = App::new(&slow(world.layer.clone().with_sessions(SessionProof::new(sessions.clone()))));
        assert_eq!(app.send(shown(&session)).await.status(), OK, "{at:?}");
        let known = Session::of(&app.device()).unwrap();
        let until = known.expires_at() + Duration::from_secs(60);
        let done = at.of(sessions.revocations().revoke_session(known.id(), until)).await;
        let is_revoked = at.step > 0;
        assert_eq!(sessions.revocations().len(), usize::from(is_revoked), "{at:?}");
        let status = app.send(shown(&session)).await.status();
        assert_eq!(status, if is_revoked { REFUSED } else { OK }, "{at:?}");
        assert_eq!(world.calls(), 1, "{at:?}");
        done.is_some()
    })
    .await;
}

/// A client of one tenant that leaves does not touch the other tenant.
#[tokio::test(start_paused = true)]
async fn tenants() {
    explore("a tenant", 29, async |at| {
        let (fake, client) = slow_apple();
        let hosts = HostTenants::new();
        let tenants = Tenants::new(hosts.clone());
        for name in ["shop", "club"] {
            hosts.insert(&format!("{name}.example"), name).unwrap();
            let layer = DeviceCheckLayer::new(client.clone())
                .with_cache(Slow(Arc::new(tower_devicecheck::cache::MemoryCache::new())));
            tenants.insert(name, layer).unwrap();
        }
        let app = App::new(&slow(tenants));
        let status = async |tenant: &str, token: &str| {
            let request = Request::builder().header(HOST, format!("{tenant}.example"));
            app.send(request.header(TOKEN_HEADER, token).body(Full::default()).unwrap()).await.status()
        };
        let token = fake.genuine_token(Environment::Production);
        let done = at.of(status("shop", &token)).await;
        for tenant in ["club", "shop", "club", "shop"] {
            assert_eq!(status(tenant, &token).await, OK, "{at:?}");
        }
        // Each tenant asks for itself.
        assert_eq!(fake.calls(), 2, "{at:?}");
        rest().await;
        let others: Vec<_> = (0..3).map(|_| fake.genuine_token(Environment::Production)).collect();
        let others = futures::future::join_all(others.iter().map(|token| status("club", token))).await;
        assert_eq!(others, [OK; 3], "{at:?}");
        done.is_some()
    })
    .await;
}
