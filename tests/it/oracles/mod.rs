//! Oracles: each takes any bytes, and asserts what holds for all of them.
//!
//! The fuzz targets of `fuzz/` and the property tests of `properties.rs` share them. They use the public names only.

pub(crate) mod apple;
pub(crate) mod credentials;
pub(crate) mod keys;
#[cfg(all(feature = "app-attest", feature = "redis"))]
pub(crate) mod redis_values;
pub(crate) mod session;
pub(crate) mod tokens;

use std::{cell::RefCell, error::Error};

use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime"),
    );
}

/// Waits for the future under a clock that stands still, and jumps to the next timer when nothing else is left to do.
fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.with_borrow(|runtime| runtime.block_on(future))
}

/// The texts of an error and of its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    let mut texts = String::new();
    while let Some(error) = next {
        texts.push_str(&format!("{error} {error:?} "));
        next = error.source();
    }
    texts
}
