//! Apple's client where connections, clients, clocks and keys go wrong.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::future::{join, join_all, poll_immediate};
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tower::service_fn;
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, Credentials, DeviceCheckLayer, DeviceToken, Environment,
    ReqwestTransport, VerifyError,
    testing::{FakeApple, PrivateKey, Reply, realistic_token},
};

use crate::captured::Fails as _;
use crate::support::{App, Counter, Log, StandingClock, behind_a_private_authority};

const PRODUCTION: Environment = Environment::Production;
/// Ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn token() -> DeviceToken {
    realistic_token().parse().unwrap()
}

fn http2(fake: &FakeApple, url: &str) -> AppleClientBuilder {
    AppleClient::builder(fake.credentials())
        .transport(ReqwestTransport::http2_prior_knowledge().unwrap())
        .base_url(PRODUCTION, url)
}

/// The error and its causes, as an operator reads them.
fn causes(error: &VerifyError) -> String {
    std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .map(|error| format!("{error}; "))
        .collect()
}

/// Forwards connections. The sender's number says how many of the first connections forward nothing any more, though
/// they stay open, as where a firewall has forgotten them.
async fn forgetful_firewall(to: String) -> (String, watch::Sender<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (forget, forgotten) = watch::channel(0);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let (to, mut forgotten) = (to.clone(), forgotten.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to.trim_start_matches("http://")).await.unwrap();
                for socket in [&client, &server] {
                    socket.set_nodelay(true).unwrap();
                }
                let forgotten = async { drop(forgotten.wait_for(|forgotten| *forgotten > number).await) };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => return,
                    () = forgotten => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (url, forget)
}

#[tokio::test(start_paused = true)]
async fn a01_packets_vanish_on_the_one_connection_and_new_devices_come_in() {
    const PACE: Duration = Duration::from_millis(250);

    let clock = StandingClock::new();
    let fake = FakeApple::new();
    let server = fake.serve().await.unwrap();
    let (url, forget) = forgetful_firewall(server.url(PRODUCTION)).await;
    let app = App::new(&DeviceCheckLayer::new(http2(&fake, &url).build().unwrap()));
    assert_eq!(app.status(&fake.genuine_token(PRODUCTION)).await, StatusCode::OK);

    forget.send(1).unwrap();
    let mut devices = Vec::new();
    for _ in 0..136 {
        let (app, token) = (app.clone(), fake.genuine_token(PRODUCTION));
        devices.push(tokio::spawn(async move { app.status(&token).await }));
        clock.advance(PACE).await;
    }
    let statuses = clock.until(PACE, join_all(devices)).await;
    let refused = statuses.iter().filter(|status| *status.as_ref().unwrap() != StatusCode::OK).count();
    assert!(refused <= 2, "{refused} of 136");
    assert!(server.connections() <= 4, "{}", server.connections());
}

/// Answers the first request of each connection, and ends the connection as soon as another one comes.
async fn ends_reused_connections(how: Option<Duration>) -> (String, Counter) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Counter::default();
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            count.add();
            tokio::spawn(async move {
                read_request(&mut socket).await;
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = socket.readable().await;
                #[allow(deprecated, reason = "no time to linger, so it does not block")]
                socket.set_linger(how).unwrap();
            });
        }
    });
    (url, connections)
}

async fn read_request(socket: &mut TcpStream) {
    let mut text = Vec::new();
    while !text.ends_with(b"}") && socket.read_buf(&mut text).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test(start_paused = true)]
async fn a02_a_reused_connection_that_ends_is_replaced_unseen() {
    let _clock = StandingClock::new();
    for (name, how) in [("closed", None), ("reset", Some(Duration::ZERO))] {
        let (url, connections) = ends_reused_connections(how).await;
        let fake = FakeApple::new();
        let client = AppleClient::builder(fake.credentials()).base_url(PRODUCTION, url).build().unwrap();
        for number in 0..100 {
            let answer = client.validate(&token(), PRODUCTION).await;
            assert!(answer.is_ok(), "{name}, request {number}: {answer:?}");
        }
        assert!(connections.get() <= 101, "{name}: {}", connections.get());
    }
}

#[tokio::test(start_paused = true)]
async fn a02_a_crowd_on_a_connection_that_is_reset_is_served_over_another_one() {
    let clock = StandingClock::new();
    let fake = FakeApple::new();
    let server = fake.serve().await.unwrap();
    let client = http2(&fake, &server.url(PRODUCTION)).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    for _ in 0..10 {
        assert_eq!(app.status(&fake.genuine_token(PRODUCTION)).await, StatusCode::OK);
        fake.always(Reply::normal().delay(Duration::from_millis(20)));
        fake.script(Reply::reset());
        let tokens: Vec<_> = (0..20).map(|_| fake.genuine_token(PRODUCTION)).collect();
        let requests = join_all(tokens.iter().map(|token| app.status(token)));
        let statuses = clock.until(Duration::from_millis(20), requests).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
        fake.clear();
    }
    assert!(server.connections() <= 11, "{}", server.connections());
}

/// An Apple whose clock differs from ours by so many seconds, and that refuses what was issued in its future. It
/// counts the calls.
fn apple_with_clock(offset: i64, calls: &Counter) -> AppleClientBuilder {
    let calls = calls.clone();
    let service = move |request: Request<Bytes>| {
        calls.add();
        let text = request.headers()[AUTHORIZATION].to_str().unwrap();
        let claims = BASE64_URL_SAFE_NO_PAD.decode(text.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = now.as_secs().saturating_add_signed(offset);
        let good = (now - 3600..=now).contains(&claims["iat"].as_u64().unwrap());
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(now));
        let answer = Response::builder().status(if good { 200 } else { 401 }).header("date", date);
        std::future::ready(Ok::<_, Infallible>(answer.body(Bytes::new()).unwrap()))
    };
    AppleClient::builder(FakeApple::new().credentials()).transport(service_fn(service))
}

#[tokio::test]
async fn a03_a_clock_that_is_half_a_minute_fast_is_no_outage() {
    for ahead in [0, 6, 30, 55] {
        let calls = Counter::default();
        let client = apple_with_clock(-ahead, &calls).build().unwrap();
        assert!(client.validate(&token(), PRODUCTION).await.is_ok(), "{ahead} s ahead");
        assert_eq!(calls.get(), 1, "{ahead} s ahead");
    }
}

#[tokio::test]
async fn a03_error_and_log_say_how_far_the_clocks_are_apart() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::WARN);
    for (offset, expected) in
        [(-300_i64, ["300 s ahead", "301 s ahead"]), (7200, ["7200 s behind", "7199 s behind"])]
    {
        let client = apple_with_clock(offset, &Counter::default()).build().unwrap();
        let error = client.validate(&token(), PRODUCTION).await.failure();
        for text in [causes(&error), log.take()] {
            assert!(expected.iter().any(|expected| text.contains(expected)), "{expected:?}: {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a04_clients_that_leave_do_not_set_the_rate_at_apple() {
    let calls = Counter::default();
    let count = calls.clone();
    let slow = service_fn(move |_: Request<Bytes>| {
        count.add();
        async {
            sleep(Duration::from_millis(150)).await;
            Ok::<_, Infallible>(Response::new(Bytes::new()))
        }
    });
    let client = AppleClient::builder(FakeApple::new().credentials())
        .transport(slow)
        .in_flight_limit(1)
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1_100) {
        let _ = timeout(Duration::from_millis(2), app.status(&realistic_token())).await;
    }
    assert!((2..=8).contains(&calls.get()), "{}", calls.get());
}

/// An Apple over HTTP/2 that takes 50 ms for an answer, and ends a connection on which more than 20 requests are
/// taken back within a second.
async fn strict_about_resets() -> (String, Counter) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let ended = Counter::default();
    let count = ended.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let resets = Arc::new(Mutex::new(VecDeque::<Instant>::new()));
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let recent = {
                        let mut resets = resets.lock().unwrap();
                        resets.retain(|at| at.elapsed() < Duration::from_secs(1));
                        resets.len()
                    };
                    if recent > 20 {
                        count.add();
                        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                        continue;
                    }
                    let resets = Arc::clone(&resets);
                    tokio::spawn(async move {
                        let reset = std::future::poll_fn(|cx| respond.poll_reset(cx));
                        if timeout(Duration::from_millis(50), reset).await.is_ok() {
                            resets.lock().unwrap().push_back(Instant::now());
                        } else {
                            let _ = respond.send_response(Response::new(()), true);
                        }
                    });
                }
            });
        }
    });
    (url, ended)
}

#[tokio::test(start_paused = true)]
async fn a04_clients_that_leave_cost_no_genuine_device_its_connection() {
    let clock = StandingClock::new();
    let (url, ended) = strict_about_resets().await;
    let client = http2(&FakeApple::new(), &url).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let patience = Duration::from_millis(2);
    let mut devices = Vec::new();
    for tick in 0..500 {
        let leaves = app.clone();
        tokio::spawn(async move { timeout(patience, leaves.status(&realistic_token())).await });
        if tick % 6 == 0 {
            let stays = app.clone();
            devices.push(tokio::spawn(async move { stays.status(&realistic_token()).await }));
        }
        for _ in 0..2 {
            clock.advance(patience).await;
        }
    }
    let statuses = clock.until(patience, join_all(devices)).await;
    let refused = statuses.iter().filter(|status| *status.as_ref().unwrap() != StatusCode::OK).count();
    assert_eq!((refused, ended.get()), (0, 0), "refused devices, ended connections");
}

#[tokio::test(start_paused = true)]
async fn a05_a_caller_whom_nobody_polls_holds_up_no_other() {
    let slow = service_fn(|_: Request<Bytes>| async {
        sleep(Duration::from_millis(50)).await;
        Ok::<_, Infallible>(Response::new(Bytes::new()))
    });
    let client = AppleClient::builder(FakeApple::new().credentials())
        .transport(slow)
        .in_flight_limit(1)
        .build()
        .unwrap();
    let tokens: Vec<_> = (0..12).map(|_| token()).collect();
    let mut asking = pin!(client.validate(&tokens[0], PRODUCTION));
    assert!(poll_immediate(&mut asking).await.is_none());
    let mut stuck: Vec<_> =
        tokens[1..4].iter().map(|token| Box::pin(client.validate(token, PRODUCTION))).collect();
    for stuck in &mut stuck {
        assert!(poll_immediate(stuck).await.is_none());
    }
    assert!(asking.await.is_ok());
    for token in &tokens[4..] {
        let answer = client.validate(token, PRODUCTION).await;
        assert!(answer.is_ok(), "{answer:?}");
    }
}

#[tokio::test]
async fn a12_one_provider_token_per_key_whoever_made_the_credentials() {
    let fake = FakeApple::new();
    let client = || AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    let clients = [client(), client(), client()];
    for client in &clients {
        assert!(client.validate(&token(), PRODUCTION).await.is_ok());
    }
    assert_eq!((fake.calls(), fake.provider_tokens()), (3, 1));
    for _ in 0..3 {
        clients[0].rotate_credentials(fake.credentials()).unwrap();
        assert!(clients[0].validate(&token(), PRODUCTION).await.is_ok());
    }
    assert_eq!((fake.calls(), fake.provider_tokens()), (6, 1));

    let other_id = Credentials::from_pem(fake.team_id(), "OTHERKEY12", &fake.private_key().to_pem()).unwrap();
    let other_key = PrivateKey::generate();
    fake.accept_key("OTHERKEY12", fake.private_key());
    clients[0].rotate_credentials(other_id).unwrap();
    assert!(clients[0].validate(&token(), PRODUCTION).await.is_ok());
    fake.accept_key(fake.key_id(), &other_key);
    let other_key = Credentials::from_pem(fake.team_id(), fake.key_id(), &other_key.to_pem()).unwrap();
    clients[0].rotate_credentials(other_key).unwrap();
    assert!(clients[0].validate(&token(), PRODUCTION).await.is_ok());
    assert_eq!((fake.calls(), fake.provider_tokens()), (8, 3), "another id or another key is another token");
}

#[test]
fn a15_one_client_serves_two_runtimes() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fake = FakeApple::new();
    let server = servers.block_on(fake.serve()).unwrap();
    for client in [
        http2(&fake, &server.url(PRODUCTION)),
        AppleClient::builder(fake.credentials()).base_url(PRODUCTION, server.url(PRODUCTION)),
    ] {
        // A caller that waits for the connection of another runtime gets no answer.
        let client = client.retry(false).attempt_timeout(PATIENCE).total_timeout(PATIENCE).build().unwrap();
        let first = runtime();
        for round in 0..3 {
            let next = runtime();
            for runtime in [&first, &next] {
                for _ in 0..2 {
                    let answer = runtime.block_on(client.validate(&token(), PRODUCTION));
                    assert!(answer.is_ok(), "round {round}: {answer:?}");
                }
            }
        }
    }
}

#[test]
fn a16_root_certificates_that_cannot_be_read_stop_the_server() {
    const SELF: &str = "apple_client::a16_root_certificates_that_cannot_be_read_stop_the_server";
    if std::env::var_os("SSL_CERT_FILE").is_some_and(|file| file.to_string_lossy().contains("a16-")) {
        let error = AppleClient::new(FakeApple::new().credentials()).failure().to_string();
        assert!(error.contains("SSL_CERT_FILE"), "{error}");
        return;
    }
    let folder = std::env::temp_dir().join(format!("tower-devicecheck-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a16-rubbish"), "rubbish").unwrap();
    std::fs::write(folder.join("a16-empty"), "").unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(folder.join("a16-broken"), broken).unwrap();
    for name in ["a16-missing", "a16-rubbish", "a16-empty", "a16-broken"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", SELF, "--nocapture"])
            .env("SSL_CERT_FILE", folder.join(name))
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a18_tokens_of_the_fake_expire() {
    let fake = FakeApple::new();
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    let token: DeviceToken = fake.genuine_token(PRODUCTION).parse().unwrap();
    let verdict = async || client.validate(&token, PRODUCTION).await.unwrap();
    assert_eq!(verdict().await, tower_devicecheck::Verdict::Genuine);
    tokio::time::advance(Duration::from_secs(60 * 60)).await;
    assert_eq!(verdict().await, tower_devicecheck::Verdict::Refused);
}

#[tokio::test]
async fn a21_refused_credentials_are_not_shown_to_apple_again_and_again() {
    let calls = Counter::default();
    let client = apple_with_clock(-300, &calls).build().unwrap();
    for _ in 0..20 {
        let error = client.validate(&token(), PRODUCTION).await.failure();
        assert_eq!(error.kind(), tower_devicecheck::VerifyErrorKind::Misconfigured);
        assert!(causes(&error).contains("ahead"), "{error:?}");
    }
    assert!((2..=3).contains(&calls.get()), "{}", calls.get());
}

#[tokio::test(start_paused = true)]
async fn a21_refused_credentials_recover_by_themselves() {
    let fake = FakeApple::new();
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    fake.always(Reply::status(401).for_environment(Environment::Development));
    for environment in [Environment::Development, PRODUCTION] {
        let answer = client.validate(&token(), environment).await;
        assert_eq!(answer.is_ok(), environment == PRODUCTION, "one environment says nothing about the other");
    }
    fake.reset_counts();
    for _ in 0..6_000 {
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(client.validate(&token(), Environment::Development).await.is_err());
    }
    assert!((10..=40).contains(&fake.calls()), "{} calls in ten minutes", fake.calls());
    fake.clear();
    tokio::time::advance(Duration::from_secs(60)).await;
    for _ in 0..5 {
        assert!(client.validate(&token(), Environment::Development).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a21_a_call_that_is_turned_away_is_not_the_one_that_tries_the_credentials() {
    const DEVELOPMENT: Environment = Environment::Development;
    let fake = FakeApple::new();
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
    let client = client.in_flight_limit(1).waiting_limit(0).build().unwrap();
    fake.always(Reply::status(401));
    for _ in 0..2 {
        assert!(client.validate(&token(), PRODUCTION).await.is_err());
    }
    fake.clear();
    fake.always(Reply::hang().for_environment(DEVELOPMENT));
    let calls = fake.calls_in(PRODUCTION);
    // It takes five seconds.
    let (development, other) = (client.clone(), token());
    let slow = tokio::spawn(async move { development.validate(&other, DEVELOPMENT).await.is_err() });
    sleep(Duration::from_secs(4)).await;
    let error = client.validate(&token(), PRODUCTION).await.failure();
    assert_eq!(error.kind(), tower_devicecheck::VerifyErrorKind::Unavailable);
    assert!(slow.await.unwrap());
    assert_eq!(fake.calls_in(PRODUCTION), calls);
    assert!(client.validate(&token(), PRODUCTION).await.is_ok());
    assert_eq!(fake.calls_in(PRODUCTION), calls + 1);
}

#[test]
fn a14_ids_that_cannot_be_right_are_warned_about() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::WARN);
    let pem = FakeApple::new().private_key().to_pem();
    for (team_id, key_id, expected) in [
        ("TEAM123456", "KEY1234567", ""),
        ("TEAM123456", "TEAM123456", "the same"),
        ("team123456", "KEY1234567", "small letters"),
        ("TEAM123456", "key1234567", "small letters"),
        ("TEAM123456", "KEY", "10 characters"),
    ] {
        Credentials::from_pem(team_id, key_id, &pem).unwrap();
        let text = log.take();
        assert!(text.contains(expected) && text.is_empty() == expected.is_empty(), "{expected}: {text}");
    }
    let file = std::env::temp_dir().join("AuthKey_KEY1234567.p8");
    std::fs::write(&file, &*pem).unwrap();
    Credentials::from_pem_file("KEY1234567", "TEAM123456", &file).unwrap();
    assert!(log.take().contains("swapped"));
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a16_a_root_certificate_can_be_added() {
    let (url, pem, _) = behind_a_private_authority().await;
    let own_client = {
        let pem = pem.clone();
        move || {
            let root = reqwest::Certificate::from_pem(pem.as_bytes())?;
            let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
            builder.tls_certs_merge([root]).https_only(true).build()
        }
    };
    let cases = [
        ("without it", ReqwestTransport::new().unwrap(), false),
        ("added", ReqwestTransport::builder().add_root_certificate(&pem).unwrap().build().unwrap(), true),
        ("a client of one's own", ReqwestTransport::from_clients(own_client).unwrap(), true),
    ];
    for (name, transport, trusted) in cases {
        let client = AppleClient::builder(FakeApple::new().credentials())
            .transport(transport)
            .base_url(PRODUCTION, &url)
            .build()
            .unwrap();
        let answer = client.validate(&token(), PRODUCTION).await;
        assert_eq!(answer.is_ok(), trusted, "{name}: {answer:?}");
    }
    for rubbish in ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let added = ReqwestTransport::builder().add_root_certificate(rubbish);
        assert!(added.and_then(|builder| builder.build()).is_err(), "{rubbish:?}");
    }
}

#[tokio::test]
async fn a16_a_client_that_follows_redirects_is_found_out() {
    let fake = FakeApple::new();
    let server = fake.serve().await.unwrap();
    fake.script(Reply::status(307).header("location", "/elsewhere"));
    fake.script(Reply::status(200));
    let transport = ReqwestTransport::from_clients(|| reqwest::Client::builder().no_proxy().build()).unwrap();
    let client = AppleClient::builder(fake.credentials())
        .transport(transport)
        .base_url(PRODUCTION, server.url(PRODUCTION))
        .build()
        .unwrap();
    let error = client.validate(&token(), PRODUCTION).await.failure();
    assert!(causes(&error).contains("redirect") || format!("{error:?}").contains("redirect"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a18_bits_of_a_remembered_device_say_that_its_token_has_expired() {
    let apple = crate::support::Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    for (advance, expired) in [(0, false), (200, true)] {
        tokio::time::advance(Duration::from_secs(advance)).await;
        assert_eq!(app.status(&token).await, StatusCode::OK);
        let device = app.device();
        match apple.client.query_bits(&device).await {
            Ok(_) => assert!(!expired),
            Err(error) => {
                assert!(expired && error.is_likely_expired(), "{error:?}");
                assert_eq!(error.kind(), tower_devicecheck::BitsErrorKind::RefusedToken);
                assert!(error.to_string().contains("expired"));
            }
        }
    }
}

#[tokio::test]
async fn a19_two_handlers_that_set_one_bit_each_lose_no_update() {
    let apple = crate::support::Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    let device = app.device();
    let (first, second) =
        join(apple.client.update_bits(&device, true, None), apple.client.update_bits(&device, None, true))
            .await;
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(apple.fake.bits(&token), Some((true, true)));
    apple.client.update_bits(&device, false, None).await.unwrap();
    assert_eq!(apple.fake.bits(&token), Some((false, true)));
    let calls = apple.calls();
    apple.client.update_bits(&device, None, None).await.unwrap();
    assert_eq!((apple.fake.bits(&token), apple.calls()), (Some((false, true)), calls), "nothing to set");
    apple.client.update_bits(&device, true, false).await.unwrap();
    assert_eq!(apple.fake.bits(&token), Some((true, false)));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a20_a_key_that_the_platform_replaces_is_noticed() {
    use std::{fs, os::unix::fs::symlink};

    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let folder = std::env::temp_dir().join(format!("tower-devicecheck-a20-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    // As Kubernetes does it: a folder for each version, and one symbolic link that is swapped.
    let publish = |version: &str, key_id: &str, pem: &str| {
        let data = folder.join(version);
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("key-id"), format!("{key_id}\n")).unwrap();
        fs::write(data.join("key.p8"), pem).unwrap();
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    let fake = FakeApple::new();
    let load = {
        let data = folder.join("..data");
        move || -> Result<Credentials, tower_devicecheck::BoxError> {
            let key_id = fs::read_to_string(data.join("key-id"))?;
            Ok(Credentials::from_pem_file(FakeApple::new().team_id(), &key_id, data.join("key.p8"))?)
        }
    };
    publish("..1", fake.key_id(), &fake.private_key().to_pem());
    let client = AppleClient::builder(load().unwrap()).transport(fake.transport()).build().unwrap();
    let watch = client.watch_credentials(Duration::from_millis(10), load).unwrap();
    assert!(client.validate(&token(), PRODUCTION).await.is_ok());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(log.take(), "", "nothing has changed");

    publish("..2", "NEWKEY4567", "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG");
    sleep(Duration::from_millis(200)).await;
    let text = log.take();
    assert_eq!(text.matches("cannot be loaded").count(), 1, "{text}");
    assert!(!text.contains("MIGHAgEAMBMG"), "{text}");
    assert!(client.validate(&token(), PRODUCTION).await.is_ok(), "the old key is kept");

    let key = PrivateKey::generate();
    fake.accept_key("NEWKEY4567", &key);
    publish("..3", "NEWKEY4567", &key.to_pem());
    sleep(Duration::from_millis(200)).await;
    fake.revoke_key(fake.key_id());
    assert!(client.validate(&token(), PRODUCTION).await.is_ok(), "the new key is used");
    let text = log.take();
    assert!(text.contains("NEWKEY4567") && text.contains("loaded again"), "{text}");

    drop(watch);
    sleep(Duration::from_millis(50)).await;
    publish("..4", "OTHERKEY12", &PrivateKey::generate().to_pem());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(log.take(), "", "nobody watches");
    fs::remove_dir_all(folder).unwrap();
}
