//! A connection with a deadline, and a memory for incidents.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, FromRedisValue, RedisResult, aio::ConnectionLike};

use crate::{
    redis::{
        failure::LinkError,
        health::{Health, Kind},
    },
    runtime::{Instant, Waited},
};

/// What keys begin with.
pub(crate) const DEFAULT_PREFIX: &str = "tower-devicecheck";

/// For how long one request waits for Redis in all.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// A connection with a deadline, and a memory for incidents.
#[derive(Clone)]
pub(crate) struct Link<C> {
    connection: C,
    /// For all commands of one request.
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
}
