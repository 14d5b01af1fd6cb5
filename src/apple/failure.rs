//! Requests to Apple that failed, and calls that got no answer.

use crate::BoxError;
use crate::apple::wire::{Answer, Operation};
use crate::gate::{error::impl_error, routing::Environment};

/// A failed attempt.
pub(super) enum Failure {
    Answer(Answer),
    NoAnswer {
        reason: &'static str,
        source: Option<BoxError>,
        is_worth_repeating: bool,
        /// The end of the attempt says nothing about Apple: it had too little time, or was not sent.
        says_nothing: bool,
    },
}

impl Failure {
    /// Whether another attempt may help: the transport says so, this attempt timed out, or a server in front of Apple
    /// reports a momentary outage.
    pub(super) fn is_worth_another_attempt(&self) -> bool {
        match self {
            Self::Answer(answer) => matches!(answer.status.as_u16(), 502..=504) && !answer.has_retry_after,
            Self::NoAnswer { is_worth_repeating, .. } => *is_worth_repeating,
        }
    }
}

/// A call that got no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    pub(super) reason: &'static str,
    pub(super) environment: Environment,
    pub(super) operation: Operation,
    pub(super) source: Option<BoxError>,
}

impl_error!(
    NoAnswer,
    |error| Some(error.source.as_deref()?),
    "{}: {}{}",
    error.reason,
    error.environment,
    error.operation.path()
);
