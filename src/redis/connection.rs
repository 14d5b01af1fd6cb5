//! Connections to Redis, of any type.

use futures_util::future::BoxFuture;
use redis::{Cmd, Pipeline, RedisResult, Value, aio::ConnectionLike};

/// A shareable connection to Redis, as a trait object.
pub(super) trait SharedConnection: Send + Sync {
    fn send(&self, commands: Commands) -> BoxFuture<'static, RedisResult<Value>>;
}

/// One command, or several that are sent together.
#[derive(Clone)]
pub(crate) struct Commands {
    packed: Packed,
    /// Whether the commands may be sent again after their answer was lost.
    pub(super) may_repeat: bool,
}

#[derive(Clone)]
enum Packed {
    One(Cmd),
    Several(Pipeline),
}

impl Commands {
    /// Marks commands that must not take effect twice.
    #[cfg(any(feature = "split-key", all(feature = "app-attest", feature = "_apple")))]
    pub(crate) const fn once(mut self) -> Self {
        self.may_repeat = false;
        self
    }

    pub(super) async fn on(&self, mut connection: impl ConnectionLike) -> RedisResult<Value> {
        match &self.packed {
            Packed::One(command) => command.query_async(&mut connection).await,
            Packed::Several(commands) => commands.query_async(&mut connection).await,
        }
    }
}

impl From<Cmd> for Commands {
    fn from(command: Cmd) -> Self {
        Self { packed: Packed::One(command), may_repeat: true }
    }
}

impl From<Pipeline> for Commands {
    fn from(commands: Pipeline) -> Self {
        Self { packed: Packed::Several(commands), may_repeat: true }
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> SharedConnection for C {
    fn send(&self, commands: Commands) -> BoxFuture<'static, RedisResult<Value>> {
        let connection = self.clone();
        Box::pin(async move { commands.on(connection).await })
    }
}
