//! The error of the builder and of the default transport.

use std::{error::Error, fmt};

use crate::{BoxError, apple::credentials::CredentialsError};

/// An error from building a client or its transport. The text names the cause and the cure.
#[derive(Debug)]
pub struct ClientError {
    message: String,
    source: Option<BoxError>,
}

impl ClientError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// The same words, and the same cause.
    pub(super) fn credentials(error: CredentialsError) -> Self {
        Self { message: error.to_string(), source: error.into_source() }
    }

    pub(super) fn with_source<E: Into<BoxError>>(mut self, source: E) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_deref()?)
    }
}
