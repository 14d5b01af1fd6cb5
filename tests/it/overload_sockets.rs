//! The same over sockets, with the real client.

use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, Environment, ReqwestTransport,
    testing::{FakeApple, FakeAppleServer, Reply, realistic_token},
};

use crate::support::App;

const SECOND: Duration = Duration::from_secs(1);

async fn start(slots: usize) -> (FakeAppleServer, App) {
    let server = FakeApple::new().serve().await.unwrap();
    let client = AppleClient::builder(server.apple().credentials())
        .base_url(Environment::Production, server.url(Environment::Production))
        .transport(ReqwestTransport::http2_prior_knowledge().unwrap())
        .in_flight_limit(slots)
        .build()
        .unwrap();
    (server, App::new(&DeviceCheckLayer::new(client)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a06_over_sockets_apple_is_used_to_the_full() {
    // Apple bears 64 calls a second, and is offered 192.
    let (server, app) = start(64).await;
    let apple = server.apple();
    apple.always(Reply::normal().delay(SECOND));
    let started = Instant::now();
    let mut requests = Vec::new();
    while started.elapsed() < 14 * SECOND {
        let (app, token) = (app.clone(), apple.genuine_token(Environment::Production));
        requests.push(tokio::spawn(async move {
            let arrived = Instant::now();
            let status = app.status(&token).await;
            (status, arrived.elapsed(), started.elapsed())
        }));
        sleep(SECOND / 192).await;
    }
    let answers: Vec<_> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
    let admitted = |(status, _, _): &&(StatusCode, Duration, Duration)| *status == StatusCode::OK;
    for window in 3..7 {
        let (from, to) = (2 * window * SECOND, 2 * (window + 1) * SECOND);
        let count = answers.iter().filter(admitted).filter(|(_, _, at)| (from..to).contains(at)).count();
        assert!(count * 10 >= 9 * 128, "window {window}: {count} of 128");
    }
    let mut waits: Vec<_> =
        answers.iter().filter(|answer| !admitted(answer)).map(|(_, wait, _)| *wait).collect();
    waits.sort_unstable();
    assert!(waits[waits.len() / 2] < Duration::from_millis(100), "{:?}", waits[waits.len() / 2]);
    assert!(apple.calls() <= answers.iter().filter(admitted).count() + 64);
}

#[cfg(target_os = "linux")]
fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test below, in a process of its own"]
async fn waves() {
    let (server, app) = start(256).await;
    let apple = server.apple();
    assert_eq!(app.status(&apple.genuine_token(Environment::Production)).await, StatusCode::OK);
    apple.always(Reply::hang());
    let wave = async || {
        let started = Instant::now();
        let requests = (0..5_000).map(|_| {
            let app = app.clone();
            tokio::spawn(async move { app.status(&realistic_token()).await })
        });
        let statuses = join_all(requests.collect::<Vec<_>>()).await;
        assert!(statuses.iter().all(|status| *status.as_ref().unwrap() == StatusCode::SERVICE_UNAVAILABLE));
        let took = started.elapsed();
        // The breaker would answer the next wave at once.
        apple.clear();
        while app.status(&apple.genuine_token(Environment::Production)).await != StatusCode::OK {
            sleep(SECOND / 4).await;
        }
        apple.always(Reply::hang());
        took
    };
    let before = resident_megabytes();
    let mut more = Vec::new();
    for number in 1..=3 {
        let took = wave().await;
        more.push(resident_megabytes() - before);
        println!("wave {number}: {took:?}, {} MB more than before", more[number - 1]);
    }
    // The allocator keeps what one wave needs, the tokens of the test itself among it, and uses it again.
    assert!(more[0] <= 80 && more[2] <= more[0] + 10, "{more:?} MB");
}

#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stdout, reason = "figures for people")]
fn a10_three_waves_of_5000_take_the_memory_of_one() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "overload_sockets::waves"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{}", text.lines().filter(|line| line.starts_with("wave")).collect::<Vec<_>>().join("\n"));
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
