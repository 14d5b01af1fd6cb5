//! Failures of Redis.

use std::{error::Error, fmt, time::Duration};

use redis::{ErrorKind, RedisError};

/// The reason for a missing answer from Redis.
#[derive(Debug)]
pub(crate) enum RedisFailure {
    /// The command was not sent, because Redis has not answered lately.
    Down,
    /// Redis did not answer in time.
    Late(Duration),
    /// The process is shutting down.
    Interrupted,
    /// An error from the server or the client.
    Redis(RedisError),
    /// A value that this crate has not written.
    Rubbish,
    /// The access rules of Redis forbid these commands.
    Forbidden { user: &'static str, commands: String },
}

impl RedisFailure {
    /// Whether the server cannot be reached, as opposed to one that answers with an error.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Down | Self::Late(_) => true,
            Self::Redis(error) => {
                error.is_io_error() || error.is_unrecoverable_error() || error.kind() == ErrorKind::Parse
            }
            Self::Interrupted | Self::Rubbish | Self::Forbidden { .. } => false,
        }
    }
}

impl fmt::Display for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("Redis has not answered lately"),
            Self::Late(limit) => write!(f, "Redis has not answered within {} ms", limit.as_millis()),
            Self::Interrupted => f.write_str("the process shuts down"),
            Self::Redis(error) => error.fmt(f),
            Self::Rubbish => f.write_str("a value in Redis is not one that this version wrote"),
            Self::Forbidden { user, commands } => {
                write!(f, "access rules forbid what the {user} needs: {commands}")
            }
        }
    }
}

impl Error for RedisFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Redis(error) => error.source(),
            _ => None,
        }
    }
}
