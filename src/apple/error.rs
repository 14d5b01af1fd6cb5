//! The error of the builder and of the default transport.

use crate::{BoxError, apple::credentials::CredentialsError, gate::error::impl_error};

/// An error from building a client or its transport. The text names the cause and the remedy.
#[derive(Debug)]
pub struct ClientError {
    message: String,
    source: Option<BoxError>,
}

impl ClientError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// Keeps the text and the cause.
    pub(super) fn credentials(error: CredentialsError) -> Self {
        Self { message: error.to_string(), source: error.into_source() }
    }

    pub(super) fn with_source<E: Into<BoxError>>(mut self, source: E) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl_error!(ClientError, |error| Some(error.source.as_deref()?), "{}", error.message);
