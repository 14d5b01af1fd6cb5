//! What everything that talks to Redis shares: the connection, the deadline, and what is known of Redis's
//! health.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, ErrorKind, IntoConnectionInfo, RedisError, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tracing::{info, warn};

use crate::{clock::Instant, observer::TARGET};

/// For how long one request waits for Redis in all.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// While Redis does not answer, one command in this time tries whether it does again; all others fail at
/// once, so that an outage costs requests nothing.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// An incident is over when something succeeds and nothing has failed for this long.
const QUIET: Duration = Duration::from_secs(1);

/// A connection with a deadline, and a memory for incidents.
#[derive(Clone)]
pub(crate) struct Link<C> {
    connection: C,
    /// For one command.
    limit: Duration,
    health: Arc<Health>,
}

/// What a command does to the data: a server that is read-only or out of memory fails one kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

impl<C: Clone> Link<C> {
    /// `what` it is that uses Redis, for the log.
    pub(crate) fn new(connection: C, what: &'static str) -> Self {
        Self { connection, limit: DEFAULT_DEADLINE, health: Arc::new(Health::new(what)) }
    }

    /// Sets the deadline of a request that sends at most `rounds` commands, one after the other.
    pub(crate) fn set_deadline(&mut self, deadline: Duration, rounds: u32) {
        self.limit = deadline / rounds;
    }

    pub(crate) fn connection(&self) -> C {
        self.connection.clone()
    }

    /// Runs a command within its share of the deadline, unless Redis is known not to answer.
    pub(crate) async fn run<T>(
        &self,
        kind: Kind,
        command: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, LinkError> {
        if !self.health.may_try() {
            return Err(LinkError::Down);
        }
        let result = match tokio::time::timeout(self.limit, command).await {
            Ok(result) => result.map_err(LinkError::Redis),
            Err(_) => Err(LinkError::Late(self.limit)),
        };
        match &result {
            Ok(_) => self.health.succeeded(kind),
            Err(error) => self.health.failed(kind, error),
        }
        result
    }

    /// Redis answered, but not what this crate wrote.
    pub(crate) fn rubbish(&self) -> LinkError {
        self.health.failed(Kind::Read, &LinkError::Rubbish);
        LinkError::Rubbish
    }
}

/// A connection that is made when it is first used, and made again for as long as it takes whenever it is
/// lost.
pub(crate) async fn connect(
    server: impl IntoConnectionInfo,
    what: &'static str,
) -> RedisResult<ConnectionManager> {
    let tcp = TcpSettings::default().set_nodelay(true);
    // A server that vanished without a word is given up after this, not after a quarter of an hour.
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let tcp = tcp.set_user_timeout(Duration::from_secs(2));
    let client = Client::open(server.into_connection_info()?.set_tcp_settings(tcp))?;
    if tokio::runtime::Handle::try_current().is_err() {
        return Err((ErrorKind::Client, "must be called in a tokio runtime").into());
    }
    // The connection below tries for ever and does not say why it fails. This tells the operator.
    if let Err(error) = client.get_multiplexed_async_connection().await {
        warn!(target: TARGET, error = %error, "no connection to Redis for the {what} yet");
    }
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(usize::MAX)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(200));
    client.get_connection_manager_lazy(config)
}

/// Why there is no answer from Redis.
#[derive(Debug)]
pub(crate) enum LinkError {
    /// It has not answered lately, and was not asked.
    Down,
    /// No answer in time.
    Late(Duration),
    /// An error from the server or the client.
    Redis(RedisError),
    /// A value that this crate has not written.
    Rubbish,
}

impl LinkError {
    /// Whether the server cannot be talked to, rather than declines.
    fn is_unreachable(&self) -> bool {
        match self {
            Self::Down | Self::Late(_) => true,
            Self::Redis(error) => {
                error.is_io_error() || error.is_unrecoverable_error() || error.kind() == ErrorKind::Parse
            }
            Self::Rubbish => false,
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("Redis has not answered lately"),
            Self::Late(limit) => write!(f, "Redis has not answered within {} ms", limit.as_millis()),
            Self::Redis(error) => error.fmt(f),
            Self::Rubbish => f.write_str("a value in Redis is not one that this version wrote"),
        }
    }
}

impl Error for LinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Redis(error) => error.source(),
            _ => None,
        }
    }
}

struct Health {
    what: &'static str,
    origin: Instant,
    /// When the next command may try, in milliseconds since the origin; zero while Redis answers.
    next_try: AtomicU64,
    unreachable: Incident,
    reads: Incident,
    writes: Incident,
}

impl Health {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            origin: Instant::now(),
            next_try: AtomicU64::new(0),
            unreachable: Incident::default(),
            reads: Incident::default(),
            writes: Incident::default(),
        }
    }

    fn next_probe(&self) -> u64 {
        let next = self.origin.elapsed() + PROBE_INTERVAL;
        u64::try_from(next.as_millis()).unwrap_or(u64::MAX)
    }

    fn may_try(&self) -> bool {
        let next = self.next_try.load(Ordering::Relaxed);
        if next == 0 {
            return true;
        }
        // Of all who are due, one goes.
        self.origin.elapsed().as_millis() >= u128::from(next)
            && self
                .next_try
                .compare_exchange(next, self.next_probe(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    const fn incident(&self, kind: Kind) -> &Incident {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
        }
    }

    fn failed(&self, kind: Kind, error: &LinkError) {
        let unreachable = error.is_unreachable();
        let incident = if unreachable { &self.unreachable } else { self.incident(kind) };
        self.next_try.store(if unreachable { self.next_probe() } else { 0 }, Ordering::Relaxed);
        if incident.begins() {
            warn!(target: TARGET, error = %error, "Redis fails the {}; further failures are not logged", self.what);
        }
    }

    fn succeeded(&self, kind: Kind) {
        self.next_try.store(0, Ordering::Relaxed);
        for incident in [&self.unreachable, self.incident(kind)] {
            if incident.ends() {
                info!(target: TARGET, "Redis serves the {} again", self.what);
            }
        }
    }
}

/// Something that goes wrong for a while, and is logged once.
#[derive(Default)]
struct Incident {
    under_way: AtomicBool,
    last_failure: Mutex<Option<Instant>>,
}

impl Incident {
    /// Whether this failure is the first one.
    fn begins(&self) -> bool {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        !self.under_way.swap(true, Ordering::Relaxed)
    }

    /// Whether this success ends it. One between two failures does not.
    fn ends(&self) -> bool {
        if !self.under_way.load(Ordering::Relaxed) {
            return false;
        }
        let last_failure = *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        last_failure.is_none_or(|failure| failure.elapsed() >= QUIET)
            && self.under_way.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error() -> RedisError {
        std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_costs_one_request_in_a_while() {
        let link = Link::new((), "test");
        assert!(link.run(Kind::Read, async { Ok(()) }).await.is_ok());
        let failed = link.run::<()>(Kind::Read, async { Err(io_error()) }).await;
        assert!(matches!(failed, Err(LinkError::Redis(_))));
        assert!(matches!(link.run(Kind::Write, async { Ok(()) }).await, Err(LinkError::Down)));

        tokio::time::advance(PROBE_INTERVAL).await;
        let probe = tokio::spawn({
            let link = link.clone();
            async move { link.run(Kind::Read, std::future::pending::<RedisResult<()>>()).await.is_err() }
        });
        tokio::task::yield_now().await;
        assert!(matches!(link.run(Kind::Read, async { Ok(()) }).await, Err(LinkError::Down)), "one goes");
        let started = Instant::now();
        assert!(probe.await.unwrap());
        assert_eq!(started.elapsed(), DEFAULT_DEADLINE);

        tokio::time::advance(PROBE_INTERVAL).await;
        assert!(link.run(Kind::Read, async { Ok(()) }).await.is_ok());
        assert!(link.run(Kind::Write, async { Ok(()) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_declines_is_asked_again() {
        let link = Link::new((), "test");
        let declined = || RedisError::from((ErrorKind::UnexpectedReturnType, "x"));
        for _ in 0..3 {
            let failed = link.run::<()>(Kind::Write, async { Err(declined()) }).await;
            assert!(matches!(failed, Err(LinkError::Redis(_))));
        }
        assert!(link.run(Kind::Read, async { Ok(()) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_incident_is_one_incident() {
        let incident = Incident::default();
        assert!(!incident.ends());
        assert!(incident.begins());
        for _ in 0..3 {
            assert!(!incident.begins());
            assert!(!incident.ends(), "a lucky moment");
            tokio::time::advance(QUIET / 2).await;
        }
        assert!(!incident.ends());
        tokio::time::advance(QUIET / 2).await;
        assert!(incident.ends());
        assert!(!incident.ends());
        assert!(incident.begins());
    }
}
