//! Errors of splitting, opening and managing keys.

use crate::{BoxError, gate::error::impl_error};

/// An error from splitting, opening or managing a key. It reveals nothing of the key.
#[derive(Debug)]
pub struct SplitKeyError {
    kind: SplitKeyErrorKind,
    source: Option<BoxError>,
}

/// The kind of a [`SplitKeyError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SplitKeyErrorKind {
    /// A text is not metadata, a split id, a client part or a server part.
    Malformed,
    /// A project id is empty, too long, or holds more than visible ASCII characters.
    InvalidProject,
    /// An API key is empty, too long, or holds more than visible ASCII characters.
    InvalidKey,
    /// An API key does not have the format of its provider.
    WrongFormat,
    /// No provider has that name.
    UnknownProvider,
    /// An API key is too short: no cut would keep enough of it from each side.
    TooShort,
    /// A path in the limits can match no request.
    ImpossiblePath,
    /// The parts do not belong together, or to this project.
    NotOpened,
    /// The store has no record of that project and split.
    NotFound,
    /// The key is revoked, which is final.
    Revoked,
    /// Other operations repeatedly changed the record at the same time.
    Conflict,
    /// The store failed.
    Store,
    /// The operating system gave no random bytes.
    Randomness,
}

impl SplitKeyError {
    pub(super) fn with_source(kind: SplitKeyErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: Some(source.into()) }
    }

    /// The kind of error.
    #[must_use]
    pub const fn kind(&self) -> SplitKeyErrorKind {
        self.kind
    }
}

impl From<SplitKeyErrorKind> for SplitKeyError {
    fn from(kind: SplitKeyErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl_error!(
    SplitKeyError,
    |error| Some(error.source.as_deref()?),
    "{}",
    match error.kind {
        SplitKeyErrorKind::Malformed => "not a part of a split key",
        SplitKeyErrorKind::InvalidProject => "a project id must have 1 to 128 visible ASCII characters",
        SplitKeyErrorKind::InvalidKey => "an API key must have 1 to 4096 visible ASCII characters",
        SplitKeyErrorKind::WrongFormat => "the API key does not have the format of its provider",
        SplitKeyErrorKind::UnknownProvider => "there is no provider of that name",
        SplitKeyErrorKind::TooShort => "the API key is too short to be cut",
        SplitKeyErrorKind::ImpossiblePath => {
            "a path in the limits can match no request: it begins with `/`, and may end in `/*`"
        }
        SplitKeyErrorKind::NotOpened => "the parts do not belong together",
        SplitKeyErrorKind::NotFound => "there is no such key",
        SplitKeyErrorKind::Revoked => "the key is revoked",
        SplitKeyErrorKind::Conflict => "others changed the key at the same time",
        SplitKeyErrorKind::Store => "the key store failed",
        SplitKeyErrorKind::Randomness => "the operating system gave no random bytes",
    }
);
