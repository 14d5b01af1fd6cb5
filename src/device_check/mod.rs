//! A device token, judged by Apple, or a debug token in its place.

pub mod cache;
pub(crate) mod debug_token;
pub(crate) mod erased;
pub(crate) mod pipeline;
pub(crate) mod single_flight;
pub(crate) mod token_source;
pub(crate) mod verifier;
