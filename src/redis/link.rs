//! A connection with a deadline, and a memory for incidents.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, FromRedisValue, RedisResult, aio::ConnectionLike};

use crate::{
    redis::{
        failure::LinkError,
        health::{Health, Kind},
    },
    runtime::Instant,
};

/// What keys begin with.
pub(crate) const DEFAULT_PREFIX: &str = "tower-devicecheck";

/// How long one command waits for Redis.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// A connection with a deadline, and a memory for incidents.
#[derive(Clone)]
pub(crate) struct Link<C> {
    connection: C,
    /// For each command.
    deadline: Duration,
    health: Arc<Health>,
}

impl<C: Clone> Link<C> {
    /// `what` it is that uses Redis, for the log.
    pub(crate) fn new(connection: C, what: &'static str) -> Self {
        Self { connection, deadline: DEFAULT_DEADLINE, health: Arc::new(Health::new(what)) }
    }

    pub(crate) const fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    pub(crate) const fn deadline(&self) -> Duration {
        self.deadline
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

    /// Runs a command within the deadline, unless Redis is known not to answer.
    pub(crate) async fn run<T>(
        &self,
        kind: Kind,
        command: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, LinkError> {
        if !self.health.may_try() {
            return Err(LinkError::Down);
        }
        let started = Instant::now();
        let result = match tokio::time::timeout(self.deadline, command).await {
            Ok(result) => result.map_err(LinkError::Redis),
            Err(_) => Err(LinkError::Late(self.deadline)),
        };
        match &result {
            Ok(_) => self.health.succeeded(kind),
            Err(error) => self.health.failed(kind, error, started),
        }
        result
    }

    /// Runs a command on a task of its own, so that it is sent and its result counts even if the caller's future
    /// is dropped.
    pub(crate) async fn run_on<T: Send + 'static>(
        &self,
        kind: Kind,
        command: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> Result<T, LinkError>
    where
        C: Send + Sync + 'static,
    {
        let link = self.clone();
        let task = tokio::spawn(async move { link.run(kind, command).await });
        task.await.unwrap_or(Err(LinkError::Late(self.deadline)))
    }

    /// Redis answered, but not what this crate wrote.
    pub(crate) fn rubbish(&self) -> LinkError {
        self.health.failed(Kind::Read, &LinkError::Rubbish, Instant::now());
        LinkError::Rubbish
    }
}

#[cfg(test)]
mod tests {
    use redis::{ErrorKind, RedisError};

    use super::*;
    use crate::redis::health::PROBE_INTERVAL;

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
    async fn one_late_command_of_many_is_not_an_outage() {
        let link = Link::new((), "test");
        let late = link.run(Kind::Read, std::future::pending::<RedisResult<()>>());
        let others = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            link.run(Kind::Read, async { Ok(()) }).await
        };
        let (late, others) = tokio::join!(late, others);
        assert!(late.is_err() && others.is_ok());
        assert!(link.run(Kind::Read, async { Ok(()) }).await.is_ok());
    }
}
