//! Sessions: what a check allocates, and replicas that share a Redis. `src/session/tests` has the rest.

use std::convert::Infallible;

use allocation_counter::measure;
use bytes::Bytes;
use futures::FutureExt;
use http::{Extensions, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_devicecheck::{
    DeviceCheckLayer, VerifiedDevice,
    session::{Exchange, KeyRing, MasterKey, SessionProof, Sessions},
};

use crate::{
    captured,
    support::{Apple, Counter, Stub, TOKEN_HEADER},
};

const APP_ID: &str = "TEAM123456.com.example.app";
const HEADER: &str = "x-device-session";

fn master(number: u8) -> MasterKey {
    MasterKey::new(u32::from(number), [number; 32])
}

fn sessions() -> Sessions {
    let ring = KeyRing::new(master(1));
    captured::secret(&"01".repeat(32));
    let sessions = Sessions::new("acme", APP_ID, &ring).unwrap();
    captured::shown(&(&ring, &sessions));
    sessions
}

/// Buys a session with this token.
async fn buy(by_token: &DeviceCheckLayer, exchange: Exchange, token: &str) -> String {
    let purchase =
        Request::post("/session").header(TOKEN_HEADER, token).body(Full::<Bytes>::default()).unwrap();
    let response = by_token.layer(exchange).oneshot(purchase).await.unwrap();
    assert_eq!(response.status(), 200);
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let session = answer["session"].as_str().unwrap().to_owned();
    captured::secret(&session);
    session
}

#[tokio::test]
async fn a_check_allocates_what_the_extension_needs_and_nothing_else() {
    let apple = Apple::new();
    let sessions = sessions();
    let session = buy(&apple.layer(), Exchange::new(sessions.clone()), &apple.genuine()).await;
    let asked = Counter::default();
    let layer = DeviceCheckLayer::new(Stub::genuine(&asked)).with_sessions(SessionProof::new(sessions));
    captured::shown(&layer);
    let device = std::sync::Arc::new(std::sync::Mutex::new(None));
    let kept = std::sync::Arc::clone(&device);
    let mut service = layer.layer(service_fn(move |request: Request<()>| {
        // Not counted: the test keeps a device to count what an insertion allocates.
        kept.lock()
            .unwrap()
            .get_or_insert_with(|| request.extensions().get::<VerifiedDevice>().unwrap().clone());
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    }));
    let value = HeaderValue::from_maybe_shared(Bytes::from(session)).unwrap();
    let request = || Request::builder().header(HEADER, value.clone()).body(()).unwrap();
    assert!(service.ready().await.unwrap().call(request()).await.unwrap().status().is_success());

    let device = device.lock().unwrap().clone().unwrap();
    let mut extensions = Extensions::new();
    let insert = measure(|| {
        extensions.insert(device);
    });
    let shown = request();
    let mut response = None;
    let check = measure(|| response = service.call(shown).now_or_never());
    assert!(response.unwrap().unwrap().status().is_success());
    assert_eq!((check.count_total, check.bytes_total), (insert.count_total, insert.bytes_total));
    assert_eq!((asked.get(), apple.calls()), (0, 1));
}

#[cfg(feature = "redis")]
mod replicas {
    use std::time::{Duration, Instant};

    use http::StatusCode;
    use tower_devicecheck::session::WithoutRedis;

    use super::*;
    use crate::{
        redis_server::{RedisServer, guard, handle},
        support::App,
    };

    /// One of several processes: keys, revocations and a layer of its own.
    struct Replica {
        sessions: Sessions,
        app: App,
    }

    async fn replica(apple: &Apple, server: &RedisServer, without_redis: WithoutRedis) -> Replica {
        let redis = handle(server).await.with_deadline(Duration::from_secs(1));
        let sessions = sessions().share_revocations(redis, without_redis).await;
        let proof = SessionProof::new(sessions.clone()).with_limited_use(guard(server).await);
        Replica { app: App::new(&apple.layer().with_sessions(proof)), sessions }
    }

    impl Replica {
        async fn status(&self, session: &str) -> StatusCode {
            let request = Request::builder().header(HEADER, session).body(Full::default()).unwrap();
            self.app.send(request).await.status()
        }

        async fn buy(&self, apple: &Apple) -> String {
            buy(&apple.layer(), Exchange::new(self.sessions.clone()), &apple.genuine()).await
        }
    }

    /// Waits until all replicas answer so. Returns how long that took.
    async fn until(replicas: &[Replica], session: &str, status: StatusCode) -> Duration {
        let began = Instant::now();
        for replica in replicas {
            while replica.status(session).await != status {
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(began.elapsed() < Duration::from_secs(60), "not within a minute");
            }
        }
        began.elapsed()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keys_rotate_and_a_session_is_revoked_under_load() {
        let (apple, server) = (Apple::new(), RedisServer::start());
        let mut replicas = Vec::new();
        for _ in 0..3 {
            replicas.push(replica(&apple, &server, WithoutRedis::Refuse).await);
        }
        let replicas = std::sync::Arc::new(replicas);
        let stolen = replicas[0].buy(&apple).await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        // Each client buys a session at one replica and shows it to all, until the end.
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let (apple, replicas, stopped) =
                    (apple.clone(), std::sync::Arc::clone(&replicas), stopped.clone());
                tokio::spawn(async move {
                    let mut sent = 0_usize;
                    while !*stopped.borrow() {
                        let session = replicas[client % 3].buy(&apple).await;
                        for _ in 0..20 {
                            for replica in replicas.iter() {
                                assert_eq!(replica.status(&session).await, 200);
                                sent += 1;
                            }
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                    sent
                })
            })
            .collect();

        let both =
            |signing, verifying| KeyRing::new(master(signing)).add_verifying(master(verifying)).unwrap();
        for ring in [both(1, 2), both(2, 1)] {
            for replica in replicas.iter() {
                replica.sessions.replace_keys(&ring).unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        assert_eq!(replicas[0].status(&stolen).await, 200);
        let in_an_hour = std::time::SystemTime::now() + Duration::from_secs(60 * 60);
        replicas[0].sessions.revocations().revoke_session(id_of(&stolen), in_an_hour).await.unwrap();
        let took = until(&replicas, &stolen, StatusCode::UNAUTHORIZED).await;
        println!("refused everywhere after {} ms", took.as_millis());
        assert!(took <= Duration::from_secs(10), "{took:?}");
        stop.send(true).unwrap();
        let mut sent = 0;
        for client in clients {
            sent += client.await.unwrap();
        }
        println!("{sent} requests with genuine sessions, all admitted");
        assert!(sent > 100);
    }

    /// The id stands at offset 14 of the 94 bytes.
    fn id_of(session: &str) -> tower_devicecheck::session::SessionId {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(session).unwrap();
        <[u8; 16]>::try_from(&bytes[14..30]).unwrap().into()
    }

    #[tokio::test]
    async fn a_session_with_limited_use_is_admitted_once_by_three_replicas() {
        let (apple, server) = (Apple::new(), RedisServer::start());
        let mut replicas = Vec::new();
        for _ in 0..3 {
            replicas.push(replica(&apple, &server, WithoutRedis::Refuse).await);
        }
        let exchange = Exchange::new(replicas[0].sessions.clone()).with_limited_use(true);
        let session = buy(&apple.layer(), exchange, &apple.genuine()).await;
        let requests = (0..30).map(|number| replicas[number % 3].status(&session));
        let statuses = futures::future::join_all(requests).await;
        let count = |status: u16| statuses.iter().filter(|found| found.as_u16() == status).count();
        assert_eq!((count(200), count(401), apple.calls()), (1, 29, 1), "{statuses:?}");
    }

    #[tokio::test]
    async fn while_redis_is_gone_each_does_as_was_chosen() {
        let (apple, mut server) = (Apple::new(), RedisServer::start());
        let strict = replica(&apple, &server, WithoutRedis::Refuse).await;
        let lenient = replica(&apple, &server, WithoutRedis::Accept).await;
        let (session, revoked) = (strict.buy(&apple).await, strict.buy(&apple).await);
        let tomorrow = std::time::SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        strict.sessions.revocations().revoke_session(id_of(&revoked), tomorrow).await.unwrap();
        let both = [strict, lenient];
        until(&both, &revoked, StatusCode::UNAUTHORIZED).await;
        server.kill();
        let [strict, lenient] = &both;
        // A revocation that Redis does not take counts where it was made.
        let late = strict.buy(&apple).await;
        let error = lenient.sessions.revocations().revoke_session(id_of(&late), tomorrow).await.unwrap_err();
        assert!(!error.is_full());
        assert_eq!(lenient.status(&late).await, 401);
        until(&both[..1], &session, StatusCode::SERVICE_UNAVAILABLE).await;
        assert_eq!(strict.status(&revoked).await, 401, "known before");
        assert_eq!(
            (lenient.status(&session).await.as_u16(), lenient.status(&revoked).await.as_u16()),
            (200, 401)
        );

        // The server that comes back knows nothing, and is told.
        server.restart();
        until(&both, &session, StatusCode::OK).await;
        until(&both, &late, StatusCode::UNAUTHORIZED).await;
        assert_eq!(strict.status(&revoked).await, 401);
        let fresh = replica(&apple, &server, WithoutRedis::Refuse).await;
        let fresh = [fresh];
        until(&fresh, &revoked, StatusCode::UNAUTHORIZED).await;
        until(&fresh, &late, StatusCode::UNAUTHORIZED).await;
        assert_eq!(fresh[0].status(&session).await, 200);
        assert_eq!(apple.calls(), 3);
    }

    /// Each look after the first one brings only what has changed, and what is over leaves Redis.
    #[tokio::test]
    async fn a_look_brings_what_has_changed() {
        let (apple, server) = (Apple::new(), RedisServer::start());
        let writer = replica(&apple, &server, WithoutRedis::Refuse).await;
        let mut redis = crate::redis_server::client(&server).await;
        let now = std::time::SystemTime::now();
        let revoke = async |number: u8, until: std::time::SystemTime| {
            writer.sessions.revocations().revoke_session([number; 16].into(), until).await.unwrap();
        };
        let hour = Duration::from_secs(60 * 60);
        revoke(2, now + Duration::from_secs(1)).await;
        revoke(1, now + hour).await;
        let reader = replica(&apple, &server, WithoutRedis::Refuse).await;
        assert_eq!(reader.sessions.revocations().len(), 2);
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
        let key = |name: &str| keys.iter().find(|key| key.ends_with(name)).unwrap().clone();
        // Both have looked again, and know the version.
        tokio::time::sleep(Duration::from_secs(5)).await;
        // An entry of an older change is gone from Redis without a trace. Nobody asks for it again, or gives it back.
        redis::cmd("ZREM").arg(key(":denied")).arg("01".repeat(16)).exec_async(&mut redis).await.unwrap();
        revoke(3, now + hour).await;
        let began = Instant::now();
        while reader.sessions.revocations().len() != 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(began.elapsed() < Duration::from_secs(60), "not within a minute");
        }
        let cards = async |key: String, redis: &mut redis::aio::MultiplexedConnection| {
            redis::cmd("ZCARD").arg(key).query_async::<usize>(redis).await.unwrap()
        };
        assert_eq!(cards(key(":denied"), &mut redis).await, 1, "the second one is over");
        assert_eq!(apple.calls(), 0);
    }

    /// A failover loses the last changes, and their numbers are given again.
    #[tokio::test]
    async fn a_redis_that_comes_back_with_a_part_is_told_again() {
        let (apple, server) = (Apple::new(), RedisServer::start());
        let (one, two) = (
            replica(&apple, &server, WithoutRedis::Refuse).await,
            replica(&apple, &server, WithoutRedis::Refuse).await,
        );
        let mut redis = crate::redis_server::client(&server).await;
        let hour = std::time::SystemTime::now() + Duration::from_secs(60 * 60);
        one.sessions.revocations().revoke_session([1; 16].into(), hour).await.unwrap();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
        let mut kept = Vec::new();
        for key in &keys {
            kept.push(redis::cmd("DUMP").arg(key).query_async::<redis::Value>(&mut redis).await.unwrap());
        }
        one.sessions.revocations().revoke_session([2; 16].into(), hour).await.unwrap();
        while two.sessions.revocations().len() != 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (key, value) in keys.iter().zip(&kept) {
            let redis::Value::BulkString(value) = value else { panic!("{value:?}") };
            let mut restore = redis::cmd("RESTORE");
            restore.arg(key).arg(0).arg(value).arg("REPLACE").exec_async(&mut redis).await.unwrap();
        }
        // A server that started after the failover knows the first one only.
        let three = replica(&apple, &server, WithoutRedis::Refuse).await;
        three.sessions.revocations().revoke_session([3; 16].into(), hour).await.unwrap();
        let began = Instant::now();
        for replica in [&one, &two, &three] {
            while replica.sessions.revocations().len() != 3 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(began.elapsed() < Duration::from_secs(60), "not within a minute");
            }
        }
        assert_eq!(apple.calls(), 0);
    }

    #[tokio::test]
    async fn a_time_far_ahead_ends_only_what_was_sold() {
        let (apple, server) = (Apple::new(), RedisServer::start());
        let one = replica(&apple, &server, WithoutRedis::Refuse).await;
        let old = one.buy(&apple).await;
        one.sessions.revocations().revoke_issued_before(std::time::UNIX_EPOCH).await.unwrap();
        let mut redis = crate::redis_server::client(&server).await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
        let version = keys.iter().find(|key| key.ends_with(":version")).unwrap();
        let time = version.replace(":version", ":time");
        redis::cmd("SET").arg(time).arg(u32::MAX).exec_async(&mut redis).await.unwrap();
        let fresh = replica(&apple, &server, WithoutRedis::Refuse).await;
        assert_eq!(fresh.status(&old).await, 401);
        let new = fresh.buy(&apple).await;
        assert_eq!(fresh.status(&new).await, 200);
        assert_eq!(apple.calls(), 2);
    }

    #[tokio::test]
    async fn another_app_or_tenant_shares_nothing() {
        let (apple, server) = (Apple::new(), RedisServer::start());
        let ours = replica(&apple, &server, WithoutRedis::Refuse).await;
        let other = Sessions::new("other", APP_ID, &KeyRing::new(master(1))).unwrap();
        let other = other.share_revocations(handle(&server).await, WithoutRedis::Refuse).await;
        let session = ours.buy(&apple).await;
        let tomorrow = std::time::SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        other.revocations().revoke_session(id_of(&session), tomorrow).await.unwrap();
        other.revocations().revoke_issued_before(tomorrow).await.unwrap();
        let witness = Sessions::new("other", APP_ID, &KeyRing::new(master(1))).unwrap();
        let witness = witness.share_revocations(handle(&server).await, WithoutRedis::Refuse).await;
        assert_eq!(witness.revocations().len(), 1, "known from the first look");
        let fresh = replica(&apple, &server, WithoutRedis::Refuse).await;
        assert!(fresh.sessions.revocations().is_empty());
        assert_eq!((ours.status(&session).await.as_u16(), fresh.status(&session).await.as_u16()), (200, 200));
        assert_eq!(apple.calls(), 1);
    }
}
