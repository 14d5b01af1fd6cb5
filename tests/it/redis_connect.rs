//! Ways to a Redis, and what is noticed on the way.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_devicecheck::{Redis, cache::RedisCache, replay::RedisReplayGuard};

use crate::{
    redis_server::{RedisServer, client},
    support::Log,
};

async fn run(operator: &mut MultiplexedConnection, command: &str) {
    let mut words = command.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    let () = command.query_async(operator).await.unwrap();
}

/// The log, once it has this many lines or a second has passed.
async fn lines(log: &Log, count: usize) -> String {
    let mut text = String::new();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        text += &log.take();
        if text.lines().count() >= count && count > 0 {
            break;
        }
    }
    text
}

#[tokio::test]
async fn c07_what_redis_forbids_is_named_before_the_first_request() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let server = RedisServer::start();
    let mut operator = client(&server).await;
    run(&mut operator, "ACL SETUSER app on >secret ~mine:* +@all -eval -pttl").await;
    let url = format!("redis://app:secret@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&*url).await.unwrap().with_prefix("mine");
    let _guard = RedisReplayGuard::new(redis);
    let text = lines(&log, 1).await;
    assert!(text.contains("WARN") && text.contains("the replay guard needs: EVAL"), "{text}");
    let redis = Redis::connect(&*url).await.unwrap().with_prefix("mine");
    let cache = RedisCache::new(redis);
    let text = lines(&log, 1).await;
    assert!(text.contains("the verdict cache needs: PTTL"), "{text}");
    let _cache = cache.with_fleet_single_flight(Duration::from_secs(1));

    run(&mut operator, "ACL SETUSER app +eval +pttl -info").await;
    log.take();
    let redis = Redis::connect(&*url).await.unwrap().with_prefix("mine");
    let _all = (RedisReplayGuard::new(redis.clone()), RedisCache::new(redis));
    let text = lines(&log, 0).await;
    assert_eq!(text, "", "nothing is missing");
    // Another prefix than the one that is permitted.
    let _guard = RedisReplayGuard::new(Redis::connect(&*url).await.unwrap());
    let text = lines(&log, 1).await;
    assert!(text.contains("EVAL, GET, SET, DEL"), "{text}");
}

#[tokio::test]
async fn c07_a_redis_that_may_evict_is_noticed() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let server = RedisServer::start();
    let mut operator = client(&server).await;
    let redis = Redis::connect(server.url()).await.unwrap();
    let _guard = RedisReplayGuard::new(redis.clone());
    assert_eq!(lines(&log, 0).await, "", "noeviction is the default");
    run(&mut operator, "CONFIG SET maxmemory-policy allkeys-lru").await;
    let _cache = RedisCache::new(redis.clone());
    assert_eq!(lines(&log, 0).await, "", "a cache may forget");
    let _guard = RedisReplayGuard::new(redis);
    let text = lines(&log, 1).await;
    for part in ["WARN", "may evict", "allkeys-lru", "noeviction", "replay guard"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[cfg(not(feature = "redis-tls"))]
#[tokio::test]
async fn c07_the_error_names_the_feature_for_tls() {
    let error = Redis::connect("rediss://127.0.0.1:1/").await.unwrap_err().to_string();
    assert!(error.contains("`redis-tls`"), "{error}");
}

#[cfg(feature = "redis-tls")]
#[tokio::test]
async fn c07_tls() {
    use crate::support::{App, Apple};
    use http::StatusCode;
    use std::process::Command;

    let folder = std::env::temp_dir().join(format!("tower-devicecheck-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            &file("key"),
            "-out",
            &file("certificate"),
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .output()
        .unwrap();
    assert!(openssl.status.success(), "{openssl:?}");
    let server = RedisServer::start_with(|port| {
        let tls = ["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no", "--save", ""];
        let tls = tls.map(str::to_owned).into_iter();
        tls.chain(["--tls-cert-file".into(), file("certificate"), "--tls-key-file".into(), file("key")])
            .collect()
    });
    let url = format!("rediss://localhost:{}/", server.port());
    // The platform does not know who signed.
    let log = Log::default();
    let listening = log.listen(tracing::Level::INFO);
    Redis::connect(&*url).await.unwrap();
    let text = log.take();
    assert!(text.contains("certificate"), "{text}");
    drop(listening);
    let root_cert = Some(std::fs::read(file("certificate")).unwrap());
    let certificates = redis::TlsCertificates { client_tls: None, root_cert };
    let known = redis::Client::build_with_tls(&*url, certificates).unwrap();
    let redis = Redis::connect(known.get_connection_info().clone()).await.unwrap();
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(RedisReplayGuard::new(redis)));
    let token = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED);
    std::fs::remove_dir_all(folder).unwrap();
}

#[cfg(feature = "redis-sentinel")]
#[tokio::test]
async fn c07_sentinels_name_the_next_primary() {
    use crate::support::{App, Apple};
    use http::StatusCode;
    use redis::sentinel::{SentinelClient, SentinelServerType};
    use std::time::Instant;

    let (mut primary, replica) = (RedisServer::start(), RedisServer::start());
    let port = primary.port();
    let mut operator = client(&replica).await;
    run(&mut operator, &format!("REPLICAOF 127.0.0.1 {port}")).await;
    let settings = std::env::temp_dir().join(format!("tower-devicecheck-sentinel-{}", std::process::id()));
    let sentinel = RedisServer::start_with(|sentinel_port| {
        let text = format!(
            "port {sentinel_port}\nsentinel monitor mymaster 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
        );
        std::fs::write(&settings, text).unwrap();
        vec![settings.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
    });
    // Until the sentinel has heard of the replica.
    let mut asked = client(&sentinel).await;
    let started = Instant::now();
    loop {
        let replicas: Vec<redis::Value> =
            redis::cmd("SENTINEL").arg("REPLICAS").arg("mymaster").query_async(&mut asked).await.unwrap();
        if !replicas.is_empty() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no replica");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let sentinels = vec![sentinel.url()];
    let named = SentinelClient::build(sentinels, "mymaster", None, SentinelServerType::Master).unwrap();
    let redis = Redis::connect_sentinel(named).await.unwrap();
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(RedisReplayGuard::new(redis)));
    let token = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED);
    primary.kill();
    let started = Instant::now();
    while app.status(&apple.genuine()).await != StatusCode::OK {
        assert!(started.elapsed() < Duration::from_secs(60), "no service");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::remove_file(settings).unwrap();
}
