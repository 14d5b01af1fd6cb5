//! The matrix: each fault, the real client, real TLS.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Response, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle, Runtime},
};
use tower_devicecheck::{AppleClient, DeviceCheckLayer, Environment, ReqwestTransport, testing::FakeApple};

use crate::faults::{
    certificates::Certificates,
    fault::{Expected, Fault, Identity, Protocol, Stage, expected},
    injector::Injector,
    rows::{Row, rows},
};
use crate::support::{App, StandingClock};

const PRODUCTION: Environment = Environment::Production;
/// The rows that are played at once.
const PLAYERS: usize = 4;
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
    /// The seconds on the client's clock.
    waited: u64,
    time: Duration,
    /// Until a genuine device was admitted again.
    recovery: String,
    deviations: Vec<String>,
}

/// A resolver with the fault of a row.
#[derive(Clone)]
struct Names(Arc<Injector>);

impl Resolve for Names {
    fn resolve(&self, _: Name) -> Resolving {
        let fault = self.0.shared.strike(Fault::is_of_names);
        Box::pin(async move {
            match fault {
                Fault::NoSuchName => Err("no such name".into()),
                Fault::SilentName => std::future::pending().await,
                _ => Ok(Box::new(std::iter::once(SocketAddr::from(([127, 0, 0, 1], 0)))) as Addrs),
            }
        })
    }
}

/// The default transport. It takes a while to make, as it reads the certificates of the system.
fn default_transport() -> ReqwestTransport {
    let builder = ReqwestTransport::builder().add_root_certificate(&Certificates::get().root).unwrap();
    builder.build().unwrap()
}

/// A transport with a resolver that has the fault of a row.
fn transport_with(names: Names) -> ReqwestTransport {
    let root = &Certificates::get().root;
    ReqwestTransport::from_clients(move || {
        reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(2))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(names.clone()))
            .tls_certs_only([reqwest::Certificate::from_pem(root.as_bytes())?])
            .build()
    })
    .unwrap()
}

/// A client's runtime, and the server that it reaches.
///
/// The client's clock stands still, whatever the sockets do, and moves only where `until_answered` and `recover` say so.
struct Place {
    _clock: StandingClock,
    runtime: Runtime,
    injector: Arc<Injector>,
}

impl Place {
    fn new(row: &Row, servers: &Handle) -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let clock = runtime.block_on(async { StandingClock::new() });
        let identity = if row.faults[0].is_of_names() { Identity::OtherName } else { Identity::Good };
        let injector = Arc::new(Injector::start(servers, row.protocol, identity));
        if !matches!(row.faults[0], Fault::Refused) {
            injector.open();
        }
        Self { _clock: clock, runtime, injector }
    }
}

/// Plays the faults of a row. Each strikes `once`, or each time.
fn play(row: &Row, once: bool, place: &Place, transport: &ReqwestTransport) -> Seen {
    let Row { stage, faults, .. } = row;
    let Place { runtime, injector, .. } = place;
    let mut seen = Seen::default();
    let fake = FakeApple::new();
    injector.guard(&fake);
    let is_of_names = faults[0].is_of_names();
    let host = if is_of_names { "apple.example" } else { "127.0.0.1" };
    let transport = if is_of_names { transport_with(Names(Arc::clone(injector))) } else { transport.clone() };
    let client = AppleClient::builder(fake.credentials())
        .transport(transport)
        .base_url(PRODUCTION, format!("https://{host}:{}", injector.address.port()))
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let ask = |token: String| runtime.block_on(app.status(&token));
    if *stage == Stage::Kept {
        let status = ask(fake.genuine_token(PRODUCTION));
        seen.check(status == StatusCode::OK, || format!("{status} before the fault"));
    }
    let mut hold = None;
    for fault in faults {
        let expected = expected(fault, *stage, once);
        let (calls, connections) = (injector.calls(), injector.connections());
        match fault {
            Fault::EndsIdle(end) => runtime.block_on(injector.end_idle(Some(*end))),
            Fault::GoAwayIdle => runtime.block_on(injector.end_idle(None)),
            _ => injector.inject(fault.clone(), once),
        }
        let (token, began) = (fake.genuine_token(PRODUCTION), Instant::now());
        let mut answered = None;
        let memory = measure(|| {
            answered = Some(runtime.block_on(until_answered(fault, &app, &token, injector)));
        });
        let (response, waited) = answered.unwrap();
        seen.time = seen.time.max(began.elapsed());
        seen.kibibytes = seen.kibibytes.max(memory.bytes_max / 1024);
        seen.calls = injector.calls() - calls;
        seen.connections = injector.connections() - connections;
        seen.waited = waited.as_secs();
        seen.judge(fault, &expected, &response);
        let most = expected.connections - usize::from(*stage == Stage::Kept);
        let opened = seen.connections;
        seen.check(opened <= most, || format!("{opened} connections"));
        seen.check(memory.bytes_max < MOST_MEMORY, || format!("{} bytes", memory.bytes_max));
        let sent = injector.shared.sent.swap(0, SeqCst);
        seen.check(sent < MOST_SENT, || format!("{sent} bytes of the body were taken"));

        hold = expected.hold;
    }
    injector.inject(Fault::None, false);
    injector.open();
    if matches!(faults[0], Fault::Twice(..)) {
        let status = ask(fake.forged_token());
        seen.check(status == StatusCode::UNAUTHORIZED, || format!("{status} to a forged token afterwards"));
    }
    runtime.block_on(recover(&app, &fake, injector, hold, &mut seen));
    seen
}

/// Sends a request, and lets the deadlines of its attempts pass once the fault has struck each. Returns the time on the
/// client's clock, too.
async fn until_answered(
    fault: &Fault,
    app: &App,
    token: &str,
    injector: &Injector,
) -> (Response<Bytes>, Duration) {
    let began = tokio::time::Instant::now();
    let mut strikes = injector.shared.strikes.subscribe();
    let before = *strikes.borrow();
    let deadlines = async {
        for (deadline, number) in fault.deadlines().iter().zip(before + 1..) {
            strikes.wait_for(|strikes| *strikes >= number).await.unwrap();
            // Timers count whole milliseconds.
            tokio::time::advance(Duration::from_secs(*deadline) + Duration::from_millis(1)).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        response = app.get(token) => (response, began.elapsed()),
        () = deadlines => unreachable!("it has no end"),
    }
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
    }
    let calls = injector.calls();
    let status = app.status(&fake.genuine_token(PRODUCTION)).await;
    let calls = injector.calls() - calls;
    seen.check((status.as_u16(), calls) == (200, 1), || format!("{status} and {calls} calls afterwards"));
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
        let waited = self.waited;
        let is_right = (status, code) == (expected.status, expected.code)
            && (calls, waited) == (expected.calls, expected.waits)
            && is_in_time;
        self.check(is_right, || {
            format!(
                "{fault:?}: {status} {code}, {calls} calls, {waited} s, again after {retry_after:?}; not {expected:?}"
            )
        });
    }
}

/// A row of the table.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, protocol, stage, always, once } = self;
        let once = once.as_ref().map_or("–".to_owned(), |once| format!("{}, {}", once.outcome, once.calls));
        let Seen { outcome, calls, connections, kibibytes, waited, time, recovery, .. } = always;
        let time = time.as_millis();
        write!(
            f,
            "| {name} | {protocol} | {stage} | {outcome} | {calls} | {connections} | {kibibytes} | {waited} | {time} \
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

/// Plays rows. A transport takes a while to make, and so does a connection.
struct Player<'a> {
    servers: &'a Handle,
    transport: ReqwestTransport,
    /// Where connections are kept, for each protocol.
    kept: [Option<Place>; 2],
}

impl Player<'_> {
    fn line(&mut self, row: &Row) -> Line {
        let Self { servers, transport, kept } = self;
        let mut play = |once| match row.stage {
            Stage::New => play(row, once, &Place::new(row, servers), transport),
            Stage::Kept => {
                let place = kept[row.protocol as usize].get_or_insert_with(|| Place::new(row, servers));
                play(row, once, place, transport)
            }
        };
        let always = play(false);
        let once = row.faults[0].strikes_once().then(|| play(true));
        let stage = if row.stage == Stage::New { "new" } else { "kept" };
        let protocol = if row.protocol == Protocol::Http1 { "1.1" } else { "2" };
        Line { name: row.name.clone(), protocol, stage, always, once }
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "the table for docs/reliability.md")]
fn every_fault_of_the_matrix_has_the_outcome_of_the_table() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let servers = runtime.handle();
    let elsewhere = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("https://{}/v1/validate_device_token", elsewhere.local_addr().unwrap());
    let rows = rows(&url);
    let began = Instant::now();
    let lines: Vec<_> = rows.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..PLAYERS {
            scope.spawn(|| {
                let mut player = Player { servers, transport: default_transport(), kept: [None, None] };
                let numbers = std::iter::repeat_with(|| next.fetch_add(1, SeqCst));
                for number in numbers.take_while(|number| *number < rows.len()) {
                    *lines[number].lock().unwrap() = Some(player.line(&rows[number]));
                }
            });
        }
    });
    let lines = lines.into_iter().filter_map(|line| line.into_inner().unwrap());
    println!(
        "| fault | HTTP | connection | answer | calls | connections | KiB | s | ms | if it strikes once | well again |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut deviations = Vec::new();
    for line in lines {
        println!("{line}");
        for deviation in line.once.iter().chain([&line.always]).flat_map(|seen| &seen.deviations) {
            deviations.push(format!("{}, {}, {}: {deviation}", line.name, line.protocol, line.stage));
        }
    }
    println!("{} rows in {} s", rows.len(), began.elapsed().as_secs());
    runtime.block_on(async {
        let asked = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
        assert!(asked.is_err(), "a redirect was followed");
    });
    assert!(deviations.is_empty(), "{}", deviations.join("\n"));
}
