//! The `Limiter` trait: decides whether Apple may be asked.

use std::time::Duration;

use http::request;

/// Decides whether a request may have Apple asked. Implemented by `RateLimiter` (feature `limit`) and by closures:
///
/// ```
/// use std::{sync::atomic::{AtomicU32, Ordering}, time::Duration};
/// use http::request;
/// # fn layer(layer: tower_devicecheck::DeviceCheckLayer) -> tower_devicecheck::DeviceCheckLayer {
///
/// // A million questions, and then none for as long as the process runs.
/// let left = AtomicU32::new(1_000_000);
/// layer.with_limiter(move |_: &request::Parts| {
///     let took = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
///     took.map(drop).map_err(|_none| Duration::from_secs(3_600))
/// })
/// # }
/// ```
///
/// Several limits are one closure that asks one limiter after the other. A permit of the first is then spent even if
/// the second one refuses.
#[diagnostic::on_unimplemented(
    note = "use `RateLimiter` or a closure `Fn(&request::Parts) -> Result<(), Duration>`"
)]
pub trait Limiter: Send + Sync + 'static {
    /// Takes a permit for one request. `head` is its head without the device token.
    ///
    /// Called once for each request that would have somebody asked, and for no other. Must not block, and must not
    /// panic: the layer catches the panics of what is asked, not of this.
    ///
    /// # Errors
    ///
    /// The time until the next permit, if there is none now.
    fn check(&self, head: &request::Parts) -> Result<(), Duration>;
}

impl<F> Limiter for F
where
    F: Fn(&request::Parts) -> Result<(), Duration> + Send + Sync + 'static,
{
    fn check(&self, head: &request::Parts) -> Result<(), Duration> {
        self(head)
    }
}
