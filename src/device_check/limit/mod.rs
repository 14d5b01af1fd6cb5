//! A limit on how often each client may have Apple asked.
//!
//! Each different token costs a call to Apple, and made-up tokens cost a client nothing. A [`Limiter`] decides before
//! anybody is asked; a request over the limit is a [`LimitExceeded`](crate::Rejection::LimitExceeded): 429 with
//! `Retry-After`. `RateLimiter`, of the feature `limit`, is one: so many requests at once for each client, and so many
//! in a time after that.
#![cfg_attr(
    all(feature = "limit", feature = "axum"),
    doc = r#"
```
use std::{net::SocketAddr, time::Duration};

use axum::extract::ConnectInfo;
use http::request;
use tower_devicecheck::{DeviceCheckLayer, limit::{LimitKey, RateLimiter}};
# fn layer(layer: DeviceCheckLayer) -> DeviceCheckLayer {

// For `axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())`, without a proxy in front.
layer.with_limiter(RateLimiter::new(30, Duration::from_secs(60), |head: &request::Parts| {
    head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| LimitKey::from(peer.0.ip()))
}))
# }
```
"#
)]
//!
//! # The requests that it counts
//!
//! | request | takes a permit |
//! |---|---|
//! | its token is well-formed, and this process does not remember it | one, also if the shared cache or the question of another request answers it, and if both of Apple's servers are asked |
//! | its token is remembered as genuine or refused | none, and is never limited |
//! | it has a debug token, no token, or a malformed one; it is exempt; another proof decides | none, and is never limited |
//!
//! With [single use](crate::replay) or without a cache this process remembers no token: each request with one takes a
//! permit. A request over the limit reserves no token.
//!
//! A limit of this kind bounds the calls to Apple, not the requests. For those, put a limit outside of the layer: see
//! [`guide::ordering`](crate::guide::ordering).

#[cfg(feature = "limit")]
mod address;
#[cfg(feature = "limit")]
mod buckets;
#[cfg(feature = "limit")]
mod key;
mod limiter;
#[cfg(feature = "limit")]
mod rate_limiter;

pub use self::limiter::Limiter;
#[cfg(feature = "limit")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "limit")))]
pub use self::{
    address::{forwarded_for, peer_address},
    key::LimitKey,
    rate_limiter::RateLimiter,
};
