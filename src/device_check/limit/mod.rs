//! A limit on how often each client may have Apple asked.
//!
//! Each different token costs a call to Apple, and made-up tokens cost a client nothing. A [`Limiter`] decides before
//! anybody is asked; a request over the limit is a [`LimitExceeded`](crate::Rejection::LimitExceeded): 429 with
//! `Retry-After`.
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

mod limiter;

pub use self::limiter::Limiter;
