//! A proof: a device token, judged by Apple, or a debug token that replaces it.
//!
//! [`proof`] takes the credential out of a request and judges it from this process's memory; [`ask`] asks the
//! shared cache and Apple about a token that the process does not remember.

mod ask;
pub mod cache;
pub(crate) mod debug_token;
mod evidence;
pub mod limit;
pub(crate) mod mark_policy;
#[cfg(feature = "_apple")]
pub(crate) mod mark_writer;
pub(crate) mod proof;
pub(crate) mod settings;
mod single_flight;
pub(crate) mod team;
pub(crate) mod token_source;
pub(crate) mod verifier;
