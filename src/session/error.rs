//! The error of keys and settings.

use crate::BoxError;
use crate::gate::error::impl_error;

/// Keys or settings of sessions that cannot be used. The text holds no secret.
#[derive(Debug)]
pub struct SessionError {
    text: &'static str,
    source: Option<BoxError>,
}

impl SessionError {
    pub(super) const fn new(text: &'static str) -> Self {
        Self { text, source: None }
    }

    pub(super) fn with_source(self, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}

impl_error!(
    SessionError,
    |error| error.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static)),
    "{}",
    error.text
);
