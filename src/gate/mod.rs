//! Takes one request through.

pub(crate) mod body;
pub(crate) mod credential;
pub(crate) mod decision;
#[cfg(feature = "axum")]
pub(crate) mod extract;
pub(crate) mod future;
pub(crate) mod observer;
pub(crate) mod problem;
pub(crate) mod rejection;
pub(crate) mod routing;
pub(crate) mod service;
