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
    Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, RedisResult,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tracing::{info, warn};

use crate::{
    gate::observer::TARGET,
    runtime::{Instant, Waited, millis},
};

/// What keys begin with.
pub(crate) const DEFAULT_PREFIX: &str = "tower-devicecheck";

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
    /// For all commands of one request.
    deadline: Duration,
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
        Self { connection, deadline: DEFAULT_DEADLINE, health: Arc::new(Health::new(what)) }
    }

    pub(crate) const fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    pub(crate) fn connection(&self) -> C {
        self.connection.clone()
    }

    /// One command, for [`run`](Self::run) and [`run_on`](Self::run_on).
    pub(crate) fn query<T: FromRedisValue>(
        &self,
        command: Cmd,
    ) -> impl Future<Output = RedisResult<T>> + use<C, T>
    where
        C: ConnectionLike,
    {
        let mut connection = self.connection();
        async move { command.query_async(&mut connection).await }
    }

    /// Runs a command within what its request has left of the deadline, unless Redis is known not to answer.
    pub(crate) async fn run<T>(
        &self,
        kind: Kind,
        waited: &Waited,
        command: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, LinkError> {
        if !self.health.may_try() {
            return Err(LinkError::Down);
        }
        let started = Instant::now();
        let left = self.deadline.saturating_sub(waited.get());
        let result = match tokio::time::timeout(left, command).await {
            Ok(result) => result.map_err(LinkError::Redis),
            Err(_) => Err(LinkError::Late(self.deadline)),
        };
        waited.add(started.elapsed());
        match &result {
            Ok(_) => self.health.succeeded(kind),
            Err(error) => self.health.failed(kind, error, started),
        }
        result
    }

    /// Runs a command to its end, within a whole deadline, and waits for that for what the request has left.
    /// What was learnt is shared even if the request has no more time, or nobody waits for it any more.
    pub(crate) async fn run_on<T: Send + 'static>(
        &self,
        kind: Kind,
        waited: &Waited,
        command: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> Result<T, LinkError>
    where
        C: Send + Sync + 'static,
    {
        let started = Instant::now();
        let left = self.deadline.saturating_sub(waited.get());
        let link = self.clone();
        let task = tokio::spawn(async move { link.run(kind, &Waited::none(), command).await });
        let result = tokio::time::timeout(left, task).await;
        waited.add(started.elapsed());
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(LinkError::Late(self.deadline)),
        }
    }

    /// Redis answered, but not what this crate wrote.
    pub(crate) fn rubbish(&self) -> LinkError {
        self.health.failed(Kind::Read, &LinkError::Rubbish, Instant::now());
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
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(usize::MAX)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(200));
    // The manager tries for ever and does not say why it fails: that is found out beside it.
    let reachable = client.get_multiplexed_async_connection().await.map(drop);
    let mut manager = client.get_connection_manager_lazy(config)?;
    let reachable = match reachable {
        // Now, and not when the first requests are waiting.
        Ok(()) => redis::cmd("PING").query_async::<String>(&mut manager).await.map(drop),
        unreachable => unreachable,
    };
    if let Err(error) = reachable {
        warn!(target: TARGET, error = %error, "no connection to Redis for the {what} yet");
    }
    Ok(manager)
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
    /// When Redis last answered, in milliseconds since the origin.
    answered: AtomicU64,
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
            answered: AtomicU64::new(0),
            unreachable: Incident::default(),
            reads: Incident::default(),
            writes: Incident::default(),
        }
    }

    /// Milliseconds since the origin.
    fn millis(&self, time: Instant) -> u64 {
        millis(time.saturating_duration_since(self.origin))
    }

    fn next_probe(&self) -> u64 {
        self.millis(Instant::now() + PROBE_INTERVAL)
    }

    fn may_try(&self) -> bool {
        let next = self.next_try.load(Ordering::Relaxed);
        if next == 0 {
            return true;
        }
        // Of all who are due, one goes.
        self.millis(Instant::now()) >= next
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

    fn failed(&self, kind: Kind, error: &LinkError, started: Instant) {
        let unreachable = error.is_unreachable();
        // One command of many may be late when this machine is busy. If none was answered meanwhile, it is
        // Redis.
        let only_late = matches!(error, LinkError::Late(_))
            && self.answered.load(Ordering::Relaxed) > self.millis(started);
        if unreachable && !only_late {
            self.next_try.store(self.next_probe(), Ordering::Relaxed);
        } else if !unreachable {
            self.answers();
        }
        let incident = if unreachable { &self.unreachable } else { self.incident(kind) };
        if incident.begins() {
            warn!(target: TARGET, error = %error, "Redis fails the {}; further failures are not logged", self.what);
        }
    }

    fn succeeded(&self, kind: Kind) {
        self.answers();
        for incident in [&self.unreachable, self.incident(kind)] {
            if incident.ends() {
                info!(target: TARGET, "Redis serves the {} again", self.what);
            }
        }
    }

    fn answers(&self) {
        self.answered.store(self.millis(Instant::now()), Ordering::Relaxed);
        self.next_try.store(0, Ordering::Relaxed);
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
        assert!(link.run(Kind::Read, &Waited::none(), async { Ok(()) }).await.is_ok());
        let failed = link.run::<()>(Kind::Read, &Waited::none(), async { Err(io_error()) }).await;
        assert!(matches!(failed, Err(LinkError::Redis(_))));
        assert!(matches!(
            link.run(Kind::Write, &Waited::none(), async { Ok(()) }).await,
            Err(LinkError::Down)
        ));

        tokio::time::advance(PROBE_INTERVAL).await;
        let probe = tokio::spawn({
            let link = link.clone();
            async move {
                link.run(Kind::Read, &Waited::none(), std::future::pending::<RedisResult<()>>())
                    .await
                    .is_err()
            }
        });
        tokio::task::yield_now().await;
        assert!(
            matches!(link.run(Kind::Read, &Waited::none(), async { Ok(()) }).await, Err(LinkError::Down)),
            "one goes"
        );
        let started = Instant::now();
        assert!(probe.await.unwrap());
        assert_eq!(started.elapsed(), DEFAULT_DEADLINE);

        tokio::time::advance(PROBE_INTERVAL).await;
        assert!(link.run(Kind::Read, &Waited::none(), async { Ok(()) }).await.is_ok());
        assert!(link.run(Kind::Write, &Waited::none(), async { Ok(()) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_declines_is_asked_again() {
        let link = Link::new((), "test");
        let declined = || RedisError::from((ErrorKind::UnexpectedReturnType, "x"));
        for _ in 0..3 {
            let failed = link.run::<()>(Kind::Write, &Waited::none(), async { Err(declined()) }).await;
            assert!(matches!(failed, Err(LinkError::Redis(_))));
        }
        assert!(link.run(Kind::Read, &Waited::none(), async { Ok(()) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_one_deadline_in_all() {
        let link = Link::new((), "test");
        let waited = Waited::none();
        let started = Instant::now();
        let slow = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok(())
        };
        assert!(link.run(Kind::Read, &waited, slow).await.is_ok());
        let hangs = std::future::pending::<RedisResult<()>>();
        assert!(matches!(link.run(Kind::Write, &waited, hangs).await, Err(LinkError::Late(_))));
        assert_eq!(started.elapsed(), DEFAULT_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_late_command_of_many_is_not_an_outage() {
        let link = Link::new((), "test");
        let waited = Waited::none();
        let late = link.run(Kind::Read, &waited, std::future::pending::<RedisResult<()>>());
        let others = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            link.run(Kind::Read, &Waited::none(), async { Ok(()) }).await
        };
        let (late, others) = tokio::join!(late, others);
        assert!(late.is_err() && others.is_ok());
        assert!(link.run(Kind::Read, &Waited::none(), async { Ok(()) }).await.is_ok());
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
