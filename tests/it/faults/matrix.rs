//! The matrix: each fault, the real client, real TLS.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Response, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{net::TcpListener, runtime::Handle};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, Environment, ReqwestTransport, testing::FakeApple,
};

use crate::faults::{
    certificates::Certificates,
    fault::{Expected, Fault, Identity, Protocol, Stage, expected},
    injector::Injector,
    rows::{Row, rows},
};
use crate::support::App;

const PRODUCTION: Environment = Environment::Production;
/// Ends a test that hangs. No assertion depends on it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that a request may hold at once, with the sockets and TLS of its client.
const MOST_MEMORY: u64 = 8 * 1024 * 1024;
/// The most of a body of 100 MiB that is taken: what fits into the buffers of both ends.
const MOST_SENT: usize = 24 * 1024 * 1024;

/// The figures of a row, and its deviations from the table of decisions.
#[derive(Default)]
struct Seen {
    outcome: String,
    calls: usize,
    connections: usize,
    kibibytes: u64,
    time: Duration,
    /// Until a genuine device was admitted again.
    recovery: String,
    deviations: Vec<String>,
}

/// A resolver with the fault of a row.
#[derive(Clone)]
struct Names(Arc<Mutex<Fault>>);

impl Resolve for Names {
    fn resolve(&self, _: Name) -> Resolving {
        let fault = self.0.lock().unwrap().clone();
        Box::pin(async move {
            match fault {
                Fault::NoSuchName => Err("no such name".into()),
                Fault::SilentName => std::future::pending().await,
                _ => Ok(Box::new(std::iter::once(SocketAddr::from(([127, 0, 0, 1], 0)))) as Addrs),
            }
        })
    }
}

/// The default transport, or one whose names the row resolves.
fn transport(names: Option<&Names>) -> ReqwestTransport {
    let root = &Certificates::get().root;
    let Some(names) = names else {
        return ReqwestTransport::builder().add_root_certificate(root).unwrap().build().unwrap();
    };
    let names = names.clone();
    ReqwestTransport::from_clients(move || {
        reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(1))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(names.clone()))
            .tls_certs_only([reqwest::Certificate::from_pem(root.as_bytes())?])
            .build()
    })
    .unwrap()
}

/// Plays the faults of a row. Each strikes `once`, or each time.
fn play(row: &Row, once: bool, servers: &Handle) -> Seen {
    let Row { protocol, stage, faults, .. } = row;
    let mut seen = Seen::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fake = FakeApple::new();
    let is_of_names = matches!(faults[0], Fault::NoSuchName | Fault::SilentName);
    let (host, identity) =
        if is_of_names { ("apple.example", Identity::OtherName) } else { ("127.0.0.1", Identity::Good) };
    let injector = Injector::start(servers, fake.clone(), *protocol, identity);
    if !matches!(faults[0], Fault::Refused) {
        injector.open();
    }
    let names = is_of_names.then(|| Names(Arc::new(Mutex::new(Fault::None))));
    let takes_time = faults[0].takes_time();
    // The deadlines of other rows are so long that no busy machine meets them.
    let (attempt, total) = if takes_time { (1_500, 3_400) } else { (20_000, 45_000) };
    let client = AppleClient::builder(fake.credentials())
        .transport(transport(names.as_ref()))
        .base_url(PRODUCTION, format!("https://{host}:{}", injector.address.port()))
        .attempt_timeout(Duration::from_millis(attempt))
        .total_timeout(Duration::from_millis(total))
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let ask = |token: String| runtime.block_on(app.status(&token));
    if *stage == Stage::Kept {
        let status = ask(fake.genuine_token(PRODUCTION));
        seen.check(status == StatusCode::OK, || format!("{status} before the fault"));
    }
    for fault in faults {
        let expected = expected(fault, *stage, once);
        let (calls, connections) = (injector.calls(), injector.connections());
        match (fault, &names) {
            (Fault::EndsIdle(end), _) => runtime.block_on(injector.end_idle(Some(*end))),
            (Fault::GoAwayIdle, _) => runtime.block_on(injector.end_idle(None)),
            (_, Some(names)) => *names.0.lock().unwrap() = fault.clone(),
            _ => injector.inject(fault.clone(), once),
        }
        let (token, began) = (fake.genuine_token(PRODUCTION), Instant::now());
        let mut response = None;
        let memory = measure(|| {
            response = Some(runtime.block_on(async {
                let response = app.get(&token).await;
                if expected.hold.is_some() {
                    tokio::time::pause();
                }
                response
            }));
        });
        seen.time = seen.time.max(began.elapsed());
        seen.kibibytes = seen.kibibytes.max(memory.bytes_max / 1024);
        seen.calls = injector.calls() - calls;
        seen.connections = injector.connections() - connections;
        seen.judge(fault, &expected, &response.unwrap());
        let most = expected.connections - usize::from(*stage == Stage::Kept);
        let opened = seen.connections;
        seen.check(opened <= most, || format!("{opened} connections"));
        seen.check(memory.bytes_max < MOST_MEMORY, || format!("{} bytes", memory.bytes_max));
        let sent = injector.shared.sent.swap(0, SeqCst);
        seen.check(sent < MOST_SENT, || format!("{sent} bytes of the body were taken"));

        injector.inject(Fault::None, false);
        injector.open();
        if let Some(names) = &names {
            *names.0.lock().unwrap() = Fault::None;
        }
        if matches!(fault, Fault::Twice(..)) {
            let status = ask(fake.forged_token());
            seen.check(status == StatusCode::UNAUTHORIZED, || format!("{status} to a forged token afterwards"));
        }
        runtime.block_on(recover(&app, &fake, &injector, expected.hold, &mut seen));
    }
    seen
}

/// The fault is over. How long does it take until a genuine device is admitted?
async fn recover(app: &App, fake: &FakeApple, injector: &Injector, hold: Option<u64>, seen: &mut Seen) {
    if let Some(hold) = hold {
        let calls = injector.calls();
        let status = app.status(&fake.genuine_token(PRODUCTION)).await;
        let calls = injector.calls() - calls;
        let is_left_alone = (status.as_u16(), calls) == (503, 0);
        seen.check(is_left_alone, || format!("{status} and {calls} calls before {hold} s are over"));
        tokio::time::advance(Duration::from_secs(hold)).await;
        tokio::time::resume();
    }
    let (began, mut requests) = (Instant::now(), 1);
    while app.status(&fake.genuine_token(PRODUCTION)).await != StatusCode::OK && began.elapsed() < PATIENCE {
        requests += 1;
        // The caller of a probe waits 40 ms for it, and the next probe is a second later.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    seen.check(began.elapsed() < PATIENCE, || "no recovery".to_owned());
    // The first request after the fault is served, but for a probe of which its caller did not hear in time.
    seen.check(requests == 1 || hold.is_some(), || format!("{requests} requests until the recovery"));
    seen.recovery = hold.map_or("at once".to_owned(), |hold| format!("{hold} s"));
}

impl Seen {
    fn check(&mut self, is_right: bool, deviation: impl FnOnce() -> String) {
        if !is_right {
            self.deviations.push(deviation());
        }
    }

    fn judge(&mut self, fault: &Fault, expected: &Expected, response: &Response<Bytes>) {
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let (status, code, calls) = (response.status().as_u16(), header("x-devicecheck-code"), self.calls);
        let retry_after = header("retry-after");
        self.outcome = format!("{status} {code}").trim_end().to_owned();
        let is_in_time = match &expected.retry_after {
            Some(range) => retry_after.parse().is_ok_and(|seconds| range.contains(&seconds)),
            None => retry_after.is_empty(),
        };
        // On a busy machine a deadline may be over before the request has reached Apple.
        let is_asked =
            if fault.takes_time() { calls <= expected.calls } else { calls == expected.calls };
        let is_right = (status, code) == (expected.status, expected.code) && is_asked && is_in_time;
        self.check(is_right, || {
            format!("{fault:?}: {status} {code}, {calls} calls, again after {retry_after:?}; not {expected:?}")
        });
    }
}

/// A row of the table.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, protocol, stage, always, once } = self;
        let once = once.as_ref().map_or("–".to_owned(), |once| format!("{}, {}", once.outcome, once.calls));
        let Seen { outcome, calls, connections, kibibytes, time, recovery, .. } = always;
        let time = time.as_millis();
        write!(
            f,
            "| {name} | {protocol} | {stage} | {outcome} | {calls} | {connections} | {kibibytes} | {time} \
             | {once} | {recovery} |"
        )
    }
}

struct Line {
    name: String,
    protocol: &'static str,
    stage: &'static str,
    always: Seen,
    once: Option<Seen>,
}

fn line(row: &Row, servers: &Handle) -> Line {
    let always = play(row, false, servers);
    let once = row.faults[0].strikes_once().then(|| play(row, true, servers));
    let stage = if row.stage == Stage::New { "new" } else { "kept" };
    let protocol = if row.protocol == Protocol::Http1 { "1.1" } else { "2" };
    Line { name: row.name.clone(), protocol, stage, always, once }
}

#[test]
#[allow(clippy::print_stdout, reason = "the table for docs/reliability.md")]
fn every_fault_of_the_matrix_has_the_outcome_of_the_table() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let servers = runtime.handle();
    let elsewhere = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("https://{}/v1/validate_device_token", elsewhere.local_addr().unwrap());
    let rows = rows(&url);
    let began = Instant::now();
    let rest = Mutex::new(Vec::new());
    let mut lines: Vec<Line> = thread::scope(|scope| {
        let mut players = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            if row.faults[0].takes_time() {
                players.push(scope.spawn(move || vec![(number, line(row, servers))]));
            } else {
                rest.lock().unwrap().push((number, row));
            }
        }
        for _ in 0..4 {
            players.push(scope.spawn(|| {
                let next = || rest.lock().unwrap().pop();
                std::iter::from_fn(|| next().map(|(number, row)| (number, line(row, servers)))).collect()
            }));
        }
        let mut lines: Vec<_> = players.into_iter().flat_map(|player| player.join().unwrap()).collect();
        lines.sort_by_key(|(number, _)| *number);
        lines.into_iter().map(|(_, line)| line).collect()
    });
    println!("| fault | HTTP | connection | answer | calls | connections | KiB | ms | if it strikes once | well again |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut deviations = Vec::new();
    for line in &mut lines {
        println!("{line}");
        for seen in [Some(&mut line.always), line.once.as_mut()].into_iter().flatten() {
            let own = std::mem::take(&mut seen.deviations);
            deviations.extend(own.into_iter().map(|own| format!("{}, {}, {}: {own}", line.name, line.protocol, line.stage)));
        }
    }
    println!("{} rows in {} s", lines.len(), began.elapsed().as_secs());
    runtime.block_on(async {
        let asked = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
        assert!(asked.is_err(), "a redirect was followed");
    });
    assert!(deviations.is_empty(), "{}", deviations.join("\n"));
}
