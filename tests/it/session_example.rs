//! The example `session`: its routes in this process, and three processes of it with one Redis.

use axum::{Router, body::Body};
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_devicecheck::{
    TokenDigest,
    replay::MemoryReplayGuard,
    session::{KeyRing, MasterKey, SessionProof, Sessions},
};

use crate::support::{Apple, TOKEN_HEADER};

#[path = "../../examples/session.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
mod program;

const ADMIN: &str = "an-administrator's-token";
const SESSION_HEADER: &str = "x-device-session";

fn app(apple: &Apple, has_admin: bool) -> Router {
    let ring = KeyRing::new(MasterKey::new(1, [1; 32]));
    let sessions = Sessions::new("", "TEAM123456.com.example.app", &ring).unwrap();
    let proof = SessionProof::new(sessions.clone()).with_limited_use(MemoryReplayGuard::new());
    let admin = has_admin.then(|| TokenDigest::of(ADMIN.as_bytes()));
    program::app(apple.layer(), program::Settings { sessions, proof, admin, jwts: None })
}

async fn send(app: &Router, method: &str, path: &str, header: (&str, &str), body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header(header.0, header.1);
    let request =
        request.header("content-type", "application/json").body(Body::from(body.to_owned())).unwrap();
    let response: Response<Body> = app.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn a_session_is_bought_shown_and_revoked() {
    let apple = Apple::new();
    let app = app(&apple, true);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let token = apple.genuine();
        let (status, bought) = send(&app, "POST", "/session", (TOKEN_HEADER, &token), "").await;
        assert_eq!((status, &bought["expires_in"], &bought["refresh_in"]), (200, &json!(3600), &json!(1800)));
        sessions.push(bought["session"].as_str().unwrap().to_owned());
    }
    let token = apple.genuine();
    let (_, once) = send(&app, "POST", "/session/once", (TOKEN_HEADER, &token), "").await;
    let once = once["session"].as_str().unwrap();
    assert_eq!(apple.calls(), 4);

    let show = async |session: &str| send(&app, "GET", "/", (SESSION_HEADER, session), "").await;
    for (session, statuses) in [(&*sessions[0], [200, 200]), (once, [200, 401])] {
        for status in statuses {
            assert_eq!(show(session).await.0, status);
        }
    }
    let (_, device) = show(&sessions[0]).await;
    assert_eq!(
        (&device["environment"], &device["evidence"]),
        (&json!("production"), &json!("session-device-check"))
    );
    for path in ["/session", "/session/once"] {
        let answer = send(&app, "POST", path, (SESSION_HEADER, &sessions[0]), "").await;
        assert_eq!((answer.0, &answer.1["code"]), (401, &json!("missing_token")), "{path}");
    }

    assert_eq!(send(&app, "POST", "/sign-out", (SESSION_HEADER, &sessions[0]), "").await.0, 204);
    assert_eq!(show(&sessions[0]).await.0, 401);
    let id = show(&sessions[1]).await.1["session"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {ADMIN}");
    let admin = (AUTHORIZATION.as_str(), &*bearer);
    let revocation = json!({ "session": id }).to_string();
    for (credential, body, status) in [
        ((AUTHORIZATION.as_str(), "Bearer a-guess-of-some-length"), &*revocation, 401),
        ((SESSION_HEADER, &*sessions[1]), &*revocation, 401),
        (admin, r#"{"session": "what"}"#, 400),
        (admin, r#"{"sesion": ""}"#, 422),
    ] {
        assert_eq!(send(&app, "POST", "/revoke", credential, body).await.0, status, "{body}");
    }
    assert_eq!(show(&sessions[1]).await.0, 200);
    assert_eq!(send(&app, "POST", "/revoke", admin, &revocation).await.0, 204);
    assert_eq!(show(&sessions[1]).await.0, 401);
    assert_eq!(show(&sessions[2]).await.0, 200);
    assert_eq!(send(&app, "POST", "/revoke", admin, r#"{"issued_before": 99999999999}"#).await.0, 204);
    assert_eq!(show(&sessions[2]).await.0, 401);
    assert_eq!(apple.calls(), 4);
}

#[tokio::test]
async fn without_an_administrator_nobody_revokes() {
    let apple = Apple::new();
    let answer =
        send(&app(&apple, false), "POST", "/revoke", (AUTHORIZATION.as_str(), "Bearer "), "{}").await;
    assert_eq!((answer.0, apple.calls()), (404, 0));
}

#[cfg(all(feature = "redis", unix))]
mod processes {
    use std::{
        fs,
        path::PathBuf,
        process::Stdio,
        sync::Arc,
        time::{Duration, Instant},
    };

    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        process::{Child, Command},
        time::sleep,
    };
    use tower_devicecheck::{
        Environment,
        testing::{FakeApple, FakeAppleServer},
    };

    use super::*;
    use crate::{redis_server::RedisServer, support::example};

    /// Three processes that share a Redis, a file of keys and an Apple.
    struct Fleet {
        urls: Vec<String>,
        keys: PathBuf,
        fake: FakeApple,
        client: reqwest::Client,
        _apple: FakeAppleServer,
        _processes: Vec<Child>,
    }

    fn key(number: u8) -> String {
        format!("{number:08x}:{}", format!("{number:02x}").repeat(32))
    }

    impl Fleet {
        async fn start(redis: &RedisServer, without_redis: &str) -> Arc<Self> {
            let program = tokio::task::spawn_blocking(|| example("session")).await.unwrap();
            let keys = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("session-keys-{}", uuid::Uuid::new_v4().simple()));
            fs::write(&keys, key(1)).unwrap();
            let fake = FakeApple::new();
            let apple = fake.serve().await.unwrap();
            let (mut urls, mut processes) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                let mut process = Command::new(&program)
                    .env_clear()
                    .env("LISTEN", "127.0.0.1:0")
                    .env("APPLE_JWT_ISS", fake.team_id())
                    .env("APPLE_JWT_KID", fake.key_id())
                    .env("APPLE_JWT_PRIVATE_KEY", fake.private_key().to_pem())
                    .env("DEVICECHECK_PRODUCTION_URL", apple.url(Environment::Production))
                    .env("DEVICECHECK_DEVELOPMENT_URL", apple.url(Environment::Development))
                    .env("REDIS_URL", redis.url())
                    .env("WITHOUT_REDIS", without_redis)
                    .env("SESSION_KEYS_FILE", &keys)
                    .env("ADMIN_TOKEN", ADMIN)
                    .stdout(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
                    .unwrap();
                let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
                let line = lines.next_line().await.unwrap().expect("it listens");
                urls.push(line.strip_prefix("listening on ").unwrap().to_owned());
                processes.push(process);
            }
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            Arc::new(Self { urls, keys, fake, client, _apple: apple, _processes: processes })
        }

        async fn buy(&self, process: usize, path: &str) -> String {
            let token = self.fake.genuine_token(Environment::Production);
            let purchase =
                self.client.post(format!("{}{path}", self.urls[process])).header(TOKEN_HEADER, token);
            let response = purchase.send().await.unwrap().error_for_status().unwrap();
            response.json::<Value>().await.unwrap()["session"].as_str().unwrap().to_owned()
        }

        async fn show(&self, process: usize, session: &str) -> (u16, Value) {
            let request = self.client.get(format!("{}/", self.urls[process])).header(SESSION_HEADER, session);
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.json().await.unwrap())
        }

        /// Waits until all processes answer so.
        async fn until(&self, session: &str, status: u16) -> Duration {
            let began = Instant::now();
            for process in 0..self.urls.len() {
                while self.show(process, session).await.0 != status {
                    sleep(Duration::from_millis(50)).await;
                    assert!(began.elapsed() < Duration::from_secs(60), "not within a minute");
                }
            }
            began.elapsed()
        }

        async fn revoke(&self, process: usize, id: &Value) -> u16 {
            let revocation = self.client.post(format!("{}/revoke", self.urls[process])).bearer_auth(ADMIN);
            revocation.json(&json!({ "session": id })).send().await.unwrap().status().as_u16()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn three_processes_rotate_keys_and_revoke_under_load() {
        let mut redis = RedisServer::start();
        let fleet = Fleet::start(&redis, "refuse").await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let clients: Vec<_> = (0..3)
            .map(|client| {
                let (fleet, stopped) = (Arc::clone(&fleet), stopped.clone());
                tokio::spawn(async move {
                    let mut sent = 0_usize;
                    while !*stopped.borrow() {
                        let session = fleet.buy(client, "/session").await;
                        for _ in 0..10 {
                            for process in 0..3 {
                                assert_eq!(fleet.show(process, &session).await.0, 200);
                                sent += 1;
                            }
                            sleep(Duration::from_millis(5)).await;
                        }
                    }
                    sent
                })
            })
            .collect();

        let stolen = fleet.buy(0, "/session").await;
        // Each step reaches all processes within 2 seconds, one after the other.
        for ring in [format!("{} {}", key(1), key(2)), format!("{} {}", key(2), key(1))] {
            fs::write(&fleet.keys, ring).unwrap();
            sleep(Duration::from_secs(5)).await;
        }
        let (status, device) = fleet.show(1, &stolen).await;
        assert_eq!(status, 200, "the old key still verifies");
        assert_eq!(fleet.revoke(2, &device["session"]).await, 204);
        let took = fleet.until(&stolen, 401).await;
        println!("three processes: refused everywhere after {} ms", took.as_millis());
        assert!(took <= Duration::from_secs(10), "{took:?}");

        let once = fleet.buy(1, "/session/once").await;
        let statuses = futures::future::join_all((0..12).map(|number| fleet.show(number % 3, &once))).await;
        assert_eq!(statuses.iter().filter(|(status, _)| *status == 200).count(), 1, "{statuses:?}");

        stop.send(true).unwrap();
        let mut sent = 0;
        for client in clients {
            sent += client.await.unwrap();
        }
        println!("three processes: {sent} requests with genuine sessions, all admitted");

        // The new key signs, so that the old one can go.
        let new = fleet.buy(0, "/session").await;
        fs::write(&fleet.keys, key(2)).unwrap();
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fleet.until(&new, 200).await.as_secs(), 0);

        redis.kill();
        let took = fleet.until(&new, 503).await;
        println!("three processes: refused {} ms after Redis was killed", took.as_millis());
        assert_eq!(fleet.show(0, &stolen).await.0, 401);
        redis.restart();
        fleet.until(&new, 200).await;
        fs::remove_file(&fleet.keys).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn three_processes_accept_without_redis_if_told_so() {
        let mut redis = RedisServer::start();
        let fleet = Fleet::start(&redis, "accept").await;
        let (session, stolen) = (fleet.buy(0, "/session").await, fleet.buy(1, "/session").await);
        let id = fleet.show(2, &stolen).await.1["session"].clone();
        assert_eq!(fleet.revoke(0, &id).await, 204);
        fleet.until(&stolen, 401).await;
        redis.kill();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(12) {
            for process in 0..3 {
                assert_eq!(fleet.show(process, &session).await.0, 200);
                assert_eq!(fleet.show(process, &stolen).await.0, 401);
            }
            sleep(Duration::from_millis(200)).await;
        }
        let other = fleet.show(0, &session).await.1["session"].clone();
        assert_eq!(fleet.revoke(0, &other).await, 503, "it counts in this process only");
        assert_eq!((fleet.show(0, &session).await.0, fleet.show(1, &session).await.0), (401, 200));
        redis.restart();
        fleet.until(&session, 401).await;
        fs::remove_file(&fleet.keys).unwrap();
    }
}
