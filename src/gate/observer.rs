//! The `Observer` trait, its events, and the default observer.

use std::{fmt, time::Duration};

use tracing::{Level, event};

use crate::gate::decision::{Enforcement, Evidence, Rejected, VerifiedDevice};
use crate::gate::error::{VerifyError, impl_error};
use crate::gate::{credential::TokenDigest, proof::Facts, rejection::Rejection, routing::Environment};
use crate::{BoxError, runtime::Instant};

/// Is told about every decision, and about every failure of a cache.
///
/// Called on the task that serves the request: it must not block. A request that its client abandons before
/// the decision is not reported. [`TracingObserver`] is the default; to keep it beside another one, give the
/// layer both: `with_observer((TracingObserver, mine))`.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tower_devicecheck::{Event, Observer, Outcome};
///
/// #[derive(Default)]
/// struct Refused(AtomicU64);
///
/// impl Observer for Refused {
///     fn decision(&self, event: &Event<'_>) {
///         if let Outcome::Rejected(_) = event.outcome() {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(note = "implement `decision`")]
pub trait Observer: Send + Sync + 'static {
    /// A request was decided.
    fn decision(&self, event: &Event<'_>);

    /// The cache failed. The request goes on as if nothing had been cached. Default: nothing.
    fn cache_error(&self, error: &CacheError) {
        let _ = error;
    }
}

/// Both are told, the left one first.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn decision(&self, event: &Event<'_>) {
        self.0.decision(event);
        self.1.decision(event);
    }

    fn cache_error(&self, error: &CacheError) {
        self.0.cache_error(error);
        self.1.cache_error(error);
    }
}

impl<O: Observer> Observer for std::sync::Arc<O> {
    fn decision(&self, event: &Event<'_>) {
        O::decision(self, event);
    }

    fn cache_error(&self, error: &CacheError) {
        O::cache_error(self, error);
    }
}

/// One decision.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    outcome: Outcome<'a>,
    environment: Option<Environment>,
    digest: Option<TokenDigest>,
    error: Option<&'a VerifyError>,
    enforcement: Enforcement,
    started: Option<Instant>,
}

/// The decision.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Outcome<'a> {
    /// The request reaches the inner service with this device.
    Verified(&'a VerifiedDevice),
    /// The request is answered with this rejection, or reaches the inner service all the same where the
    /// layer only monitors.
    Rejected(&'a Rejection),
    /// The request reaches the inner service unchecked.
    Exempt,
}

impl Outcome<'_> {
    /// `verified`, `exempt`, or the rejection's [`code`](Rejection::code).
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Verified(_) => "verified",
            Self::Rejected(rejection) => rejection.code(),
            Self::Exempt => "exempt",
        }
    }
}

impl<'a> Event<'a> {
    pub(super) fn new(
        decision: &'a Result<VerifiedDevice, Rejected>,
        began: &Facts,
        enforcement: Enforcement,
    ) -> Self {
        let (outcome, environment, digest, error) = match decision {
            Ok(device) => {
                (Outcome::Verified(device), Some(device.environment()), Some(device.digest()), None)
            }
            Err(rejected) => {
                let Rejected { rejection, environment, digest, error } = rejected;
                (Outcome::Rejected(rejection), *environment, *digest, error.as_ref())
            }
        };
        Self {
            outcome,
            environment: Some(environment.unwrap_or_else(|| began.environment())),
            digest,
            error,
            enforcement,
            started: Some(began.moment().monotonic),
        }
    }

    pub(super) const fn exempt(enforcement: Enforcement) -> Self {
        Self {
            outcome: Outcome::Exempt,
            environment: None,
            digest: None,
            error: None,
            enforcement,
            started: None,
        }
    }

    /// The decision.
    #[must_use]
    pub const fn outcome(&self) -> Outcome<'a> {
        self.outcome
    }

    /// The grounds of the admission; `None` unless the device is verified.
    #[must_use]
    pub const fn evidence(&self) -> Option<&'a Evidence> {
        match self.outcome {
            Outcome::Verified(device) => Some(device.evidence()),
            _ => None,
        }
    }

    /// Which of Apple's servers answered last, or would have been asked first; `None` for exempt requests.
    #[must_use]
    pub const fn environment(&self) -> Option<Environment> {
        self.environment
    }

    /// The token's digest; `None` where there was no well-formed token.
    #[must_use]
    pub const fn digest(&self) -> Option<TokenDigest> {
        self.digest
    }

    /// Why there was no verdict, for the operator's eyes; `None` where there was one or none was needed.
    #[must_use]
    pub const fn error(&self) -> Option<&'a VerifyError> {
        self.error
    }

    /// Whether a rejection keeps the request from the inner service.
    #[must_use]
    pub const fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// How long the decision took, up to now. Zero for exempt requests, whose time is not taken.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }
}

/// The default observer: `tracing` events under the target `tower_devicecheck`.
///
/// | level | what |
/// |---|---|
/// | error | a request rejected because Apple does not accept our credentials, or the layer is put together wrongly |
/// | warn | a request rejected because there is no verdict; an admission by a debug token |
/// | debug | every other admission and rejection: the client's doing, and not to fill our logs with; each failure of the cache, which logs its incidents itself, once each |
/// | trace | exempt requests |
///
/// Fields: `outcome`, `environment`, `evidence`, `digest`, `latency_us` (microseconds), `error` with its causes,
/// and `enforced`, which is false where the layer only monitors and lets rejected requests through.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct TracingObserver;

/// The target of every `tracing` event of this crate.
pub(crate) const TARGET: &str = "tower_devicecheck";

impl Observer for TracingObserver {
    fn decision(&self, event: &Event<'_>) {
        // A level is fixed at its call site, hence a macro.
        macro_rules! decision {
            ($level:expr, $message:literal) => {
                event!(
                    target: TARGET,
                    $level,
                    outcome = event.outcome.as_str(),
                    environment = event.environment.map(Environment::as_str),
                    evidence = event.evidence().map(tracing::field::display),
                    digest = event.digest.map(tracing::field::display),
                    error = event.error.map(|error| tracing::field::display(Chain(error))),
                    enforced = event.enforcement == Enforcement::Enforce,
                    latency_us = u64::try_from(event.latency().as_micros()).unwrap_or(u64::MAX),
                    $message
                )
            };
        }
        match event.outcome {
            Outcome::Exempt => event!(target: TARGET, Level::TRACE, outcome = "exempt", "request is exempt"),
            Outcome::Verified(device) if device.evidence().is_stand_in() => {
                decision!(Level::WARN, "debug token admitted");
            }
            Outcome::Verified(_) => decision!(Level::DEBUG, "device verified"),
            Outcome::Rejected(Rejection::Misconfigured) => {
                decision!(
                    Level::ERROR,
                    "request rejected: Apple does not accept our credentials, or the layer is put together wrongly"
                );
            }
            Outcome::Rejected(Rejection::Throttled { .. } | Rejection::Unavailable { .. }) => {
                decision!(Level::WARN, "request rejected: no verdict");
            }
            Outcome::Rejected(_) => decision!(Level::DEBUG, "request rejected"),
        }
    }

    fn cache_error(&self, error: &CacheError) {
        event!(target: TARGET, Level::DEBUG, error = %Chain(error), "verdict cache failed");
    }
}

/// A cache could not say or could not keep.
///
/// Observers get one for each failure, [`TracingObserver`](crate::TracingObserver) logs it at level debug: a cache
/// that goes down would fill the log with one line for each request. A cache logs the beginning and the end of an
/// incident itself, as `RedisCache` does.
#[derive(Debug)]
pub struct CacheError {
    source: BoxError,
}

impl CacheError {
    /// An error with this cause, which must hold no secret: it is logged.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into() }
    }
}

impl_error!(CacheError, |error| Some(&*error.source), "the verdict cache failed");

/// An error and its causes on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
