use std::time::Duration;

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, Value, aio::ConnectionLike};

use super::failure::RedisFailure;
use super::handle::{DEFAULT_DEADLINE, Redis};
use super::health::{Access, PROBE_INTERVAL};
use crate::runtime::Instant;

/// Never answers.
#[derive(Clone)]
struct NoConnection;

impl ConnectionLike for NoConnection {
    fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(std::future::pending())
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(std::future::pending())
    }

    fn get_db(&self) -> i64 {
        0
    }
}

fn io_error() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_one_request_in_a_while() {
    let redis = Redis::new(NoConnection);
    assert!(redis.measured(Access::ReadVerdict, async { Ok(()) }).await.is_ok());
    let failed = redis.measured::<()>(Access::ReadVerdict, async { Err(io_error()) }).await;
    assert!(matches!(failed, Err(RedisFailure::Redis(_))));
    assert!(matches!(redis.measured(Access::WriteVerdict, async { Ok(()) }).await, Err(RedisFailure::Down)));

    tokio::time::advance(PROBE_INTERVAL).await;
    let probe = tokio::spawn({
        let redis = redis.clone();
        async move {
            redis.measured(Access::ReadVerdict, std::future::pending::<RedisResult<()>>()).await.is_err()
        }
    });
    tokio::task::yield_now().await;
    assert!(
        matches!(redis.measured(Access::ReadVerdict, async { Ok(()) }).await, Err(RedisFailure::Down)),
        "one goes"
    );
    let started = Instant::now();
    assert!(probe.await.unwrap());
    assert_eq!(started.elapsed(), DEFAULT_DEADLINE);

    tokio::time::advance(PROBE_INTERVAL).await;
    assert!(redis.measured(Access::ReadVerdict, async { Ok(()) }).await.is_ok());
    assert!(redis.measured(Access::WriteVerdict, async { Ok(()) }).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_declines_is_asked_again() {
    let redis = Redis::new(NoConnection);
    let declined = || RedisError::from((ErrorKind::UnexpectedReturnType, "x"));
    for _ in 0..3 {
        let failed = redis.measured::<()>(Access::WriteVerdict, async { Err(declined()) }).await;
        assert!(matches!(failed, Err(RedisFailure::Redis(_))));
    }
    assert!(redis.measured(Access::ReadVerdict, async { Ok(()) }).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn one_late_command_of_many_is_not_an_outage() {
    let redis = Redis::new(NoConnection);
    let late = redis.measured(Access::ReadVerdict, std::future::pending::<RedisResult<()>>());
    let others = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        redis.measured(Access::ReadVerdict, async { Ok(()) }).await
    };
    let (late, others) = tokio::join!(late, others);
    assert!(late.is_err() && others.is_ok());
    assert!(redis.measured(Access::ReadVerdict, async { Ok(()) }).await.is_ok());
}
