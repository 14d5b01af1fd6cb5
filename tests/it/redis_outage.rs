//! A Redis that dies, freezes, declines and returns, and what becomes of requests meanwhile.

use std::time::{Duration, Instant};

use futures::future::join_all;
use http::StatusCode;
use redis::aio::MultiplexedConnection;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tower_devicecheck::{
    DeviceCheckLayer, Environment, Owner, Redis, Verdict,
    cache::{CachedVerdict, RedisCache, VerdictCache, VerdictKey},
    replay::{Claim, RedisReplayGuard, ReplayGuard, ReplayKey},
    testing::{FakeApple, Reply},
};

use crate::{
    redis_server::{PATIENT, RedisServer, cache, client, guard, replicas_with_deadline},
    support::{App, Apple, Log},
};

/// How many lines of the log are warnings and how many say that all is well, and the lines.
fn incidents(log: &Log) -> (usize, usize, String) {
    let text = log.take();
    let count = |level| text.lines().filter(|line| line.contains(level)).count();
    (count("WARN"), count("INFO"), text)
}

/// Load while Redis is well, fails, and is well again.
struct Load {
    apple: Apple,
    apps: Vec<App>,
    known: String,
    deadline: Duration,
    started: Instant,
}

#[allow(clippy::print_stdout, reason = "the timeline is for people")]
impl Load {
    const APPLE: Duration = Duration::from_millis(20);
    /// For a machine that does something else, too.
    const SLACK: Duration = Duration::from_secs(1);

    async fn new(server: &RedisServer, deadline: Duration) -> Self {
        let apple = Apple::new();
        apple.fake.always(Reply::normal().delay(Self::APPLE));
        let apps = replicas_with_deadline(&apple, server, deadline, DeviceCheckLayer::with_cache).await;
        let known = apple.genuine();
        let load = Self { apple, apps, known, deadline, started: Instant::now() };
        load.until_shared().await;
        load
    }

    /// Requests with known and new tokens to all replicas at once. All are admitted, in time.
    async fn phase(&self, name: &str) {
        let asked = self.apple.calls();
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let requests = self.apps.iter().cycle().take(30).enumerate().map(async |(number, app)| {
                let token = if number < 15 { self.known.clone() } else { self.apple.genuine() };
                let started = Instant::now();
                assert_eq!(app.status(&token).await, StatusCode::OK, "{name}");
                started.elapsed()
            });
            slowest = slowest.max(join_all(requests).await.into_iter().max().unwrap());
        }
        assert!(slowest < self.deadline + Self::APPLE + Self::SLACK, "{name}: {slowest:?}");
        println!(
            "{:>5} ms  {name}: 300 requests admitted, slowest {} ms, {} calls to Apple",
            self.started.elapsed().as_millis(),
            slowest.as_millis(),
            self.apple.calls() - asked,
        );
    }

    /// Until what one replica learns is a hit in all others; for no longer than a second.
    async fn until_shared(&self) {
        let started = Instant::now();
        loop {
            let token = self.apple.genuine();
            assert_eq!(self.apps[0].status(&token).await, StatusCode::OK);
            let asked = self.apple.calls();
            for app in &self.apps[1..] {
                assert_eq!(app.status(&token).await, StatusCode::OK);
            }
            if self.apple.calls() == asked {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(1), "no hits again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!(
            "{:>5} ms  hits again in all replicas after {} ms",
            self.started.elapsed().as_millis(),
            started.elapsed().as_millis(),
        );
        // The known token is known.
        assert_eq!(self.apps[0].status(&self.known).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn redis_dies_freezes_and_returns_under_load() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let mut server = RedisServer::start();
    // Five times the default, so that a slow machine does not look like a slow Redis.
    let load = Load::new(&server, Duration::from_millis(250)).await;
    load.phase("Redis is well").await;

    for name in ["killed", "frozen"] {
        log.take();
        if name == "killed" {
            server.kill()
        } else {
            server.freeze()
        }
        load.phase(name).await;
        let (warnings, _, text) = incidents(&log);
        assert_eq!(warnings, 3, "one for each replica: {text}");
        if name == "killed" {
            server.restart()
        } else {
            server.thaw()
        }
        load.until_shared().await;
        load.phase("well again").await;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        load.phase("still well").await;
        let (warnings, infos, text) = incidents(&log);
        assert_eq!((warnings, infos), (0, 3), "{text}");
    }
}

#[tokio::test]
async fn redis_that_declines_or_talks_nonsense() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let server = RedisServer::start();
    let mut client = client(&server).await;
    for (name, setting, bad, good) in
        [("read-only", "min-replicas-to-write", "1", "0"), ("out of memory", "maxmemory", "1", "0")]
    {
        let load = Load::new(&server, PATIENT).await;
        let set = async |client: &mut MultiplexedConnection, value: &str| {
            let () =
                redis::cmd("CONFIG").arg("SET").arg(setting).arg(value).query_async(client).await.unwrap();
        };
        log.take();
        set(&mut client, bad).await;
        load.phase(name).await;
        assert_eq!(incidents(&log).0, 3, "{name}: one warning for each replica");
        set(&mut client, good).await;
        load.until_shared().await;
    }

    // Not Redis at all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let nonsense = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n\0\xff").await;
        }
    });
    let apple = Apple::new();
    let shared = Redis::connect(format!("redis://127.0.0.1:{port}/")).await.unwrap();
    let app = App::new(&apple.layer().with_cache(RedisCache::new(shared)));
    for _ in 0..3 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    }
    nonsense.abort();
}

#[tokio::test]
async fn c11_an_incident_is_one_warning_whatever_fails_in_turn() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let server = RedisServer::start();
    let mut operator = client(&server).await;
    let acl = async |operator: &mut MultiplexedConnection, rule: &str| {
        let () =
            redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule).query_async(operator).await.unwrap();
    };
    let redis = Redis::connect(server.url()).await.unwrap().with_deadline(PATIENT);
    let (cache, guard) = (RedisCache::new(redis.clone()), RedisReplayGuard::new(redis));
    let token = "AAAA".parse().unwrap();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
    let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), std::time::SystemTime::now(), PATIENT);
    let reserve = async || {
        let key = ReplayKey::new("TEAM123456", key.digest());
        guard.reserve(&key, &Claim::new(Owner::random())).await
    };
    assert!(reserve().await.is_ok());
    acl(&mut operator, "-eval").await;
    for _ in 0..3 {
        assert!(reserve().await.is_err());
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        cache.put(&key, verdict).await.unwrap();
        cache.get(&key).await.unwrap();
    }
    let (warnings, infos, text) = incidents(&log);
    assert_eq!((warnings, infos), (1, 0), "{text}");
    // A script that does not end makes commands late first, and then declines them.
    acl(&mut operator, "+eval").await;
    let endless = client(&server).await;
    let endless = tokio::spawn(async move {
        let mut endless = endless;
        let _: Result<(), _> =
            redis::cmd("EVAL").arg("while true do end").arg(0).query_async(&mut endless).await;
    });
    let () = redis::cmd("CONFIG")
        .arg("SET")
        .arg("busy-reply-threshold")
        .arg(300)
        .query_async(&mut operator)
        .await
        .unwrap_or(());
    for _ in 0..10 {
        let _ = reserve().await;
        let _ = cache.get(&key).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut rescue = client(&server).await;
    let () = redis::cmd("SCRIPT").arg("KILL").query_async(&mut rescue).await.unwrap();
    endless.await.unwrap();
    let (warnings, _, text) = incidents(&log);
    assert_eq!(warnings, 0, "{text}");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert!(reserve().await.is_ok());
    cache.put(&key, verdict).await.unwrap();
    cache.get(&key).await.unwrap();
    let (warnings, infos, text) = incidents(&log);
    assert_eq!((warnings, infos), (0, 1), "{text}");
}

#[tokio::test]
async fn a_guard_without_redis_admits_nobody_unless_the_operator_says_so() {
    let mut server = RedisServer::start();
    let apple = Apple::new();
    let strict = App::new(&apple.layer().with_single_use(guard(&server).await));
    let lenient = guard(&server).await.dangerously_admit_without_redis(true);
    let lenient = App::new(&apple.layer().with_single_use(lenient));
    let token = apple.genuine();
    assert_eq!(strict.status(&token).await, StatusCode::OK);
    assert_eq!(lenient.status(&token).await, StatusCode::UNAUTHORIZED);

    server.kill();
    let asked = apple.calls();
    let response = strict.get(&apple.genuine()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(apple.calls(), asked, "Apple is not asked");
    assert_eq!(lenient.status(&token).await, StatusCode::OK, "the risk that was chosen");
    assert_eq!(lenient.status(&apple.fake.forged_token()).await, StatusCode::UNAUTHORIZED);

    server.restart();
    let token = apple.genuine();
    let deadline = Instant::now() + Duration::from_secs(60);
    while strict.status(&token).await != StatusCode::OK {
        assert!(Instant::now() < deadline, "no service again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(strict.status(&token).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_found_later() {
    let mut server = RedisServer::start();
    server.kill();
    let cache = cache(&server).await;
    let token = FakeApple::new().forged_token().parse().unwrap();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
    server.restart();
    let deadline = Instant::now() + Duration::from_secs(60);
    while cache.get(&key).await.is_err() {
        assert!(Instant::now() < deadline, "not found");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(Redis::connect("not an address").await.is_err());
}
