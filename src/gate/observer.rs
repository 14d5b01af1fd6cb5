//! The `Observer` trait, its events, and the default observer.

use std::{fmt, time::Duration};

use tracing::{Level, event};

use crate::gate::decision::{Enforcement, Evidence, Rejected, VerifiedDevice};
use crate::gate::error::{VerifyError, impl_error};
use crate::gate::{credential::TokenDigest, proof::Facts, rejection::Rejection, routing::Environment};
use crate::{BoxError, runtime::Instant};

/// Is told about every decision, and about every failure of a cache.
///
/// The gate calls it on the request's task, so it must not block. A request that its client abandons before
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

    /// An outage begins or is over. Every rejection is also a [`decision`](Self::decision). Default: nothing.
    fn outage(&self, outage: &Outage<'_>) {
        let _ = outage;
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

    fn outage(&self, outage: &Outage<'_>) {
        self.0.outage(outage);
        self.1.outage(outage);
    }
}

impl<O: Observer> Observer for std::sync::Arc<O> {
    fn decision(&self, event: &Event<'_>) {
        O::decision(self, event);
    }

    fn cache_error(&self, error: &CacheError) {
        O::cache_error(self, error);
    }

    fn outage(&self, outage: &Outage<'_>) {
        O::outage(self, outage);
    }
}

/// One decision.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    outcome: Outcome<'a>,
    environment: Option<Environment>,
    digest: Option<TokenDigest>,
    rejected: Option<&'a Rejected>,
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
        match decision {
            Ok(device) => Self {
                outcome: Outcome::Verified(device),
                environment: Some(device.environment()),
                digest: Some(device.digest()),
                rejected: None,
                enforcement,
                started: Some(began.moment().monotonic),
            },
            Err(rejected) => Self::rejected(rejected, began, enforcement),
        }
    }

    pub(super) fn rejected(rejected: &'a Rejected, began: &Facts, enforcement: Enforcement) -> Self {
        Self {
            outcome: Outcome::Rejected(&rejected.rejection),
            environment: Some(rejected.environment.unwrap_or_else(|| began.environment())),
            digest: rejected.digest,
            rejected: Some(rejected),
            enforcement,
            started: Some(began.moment().monotonic),
        }
    }

    pub(super) const fn exempt(enforcement: Enforcement) -> Self {
        Self {
            outcome: Outcome::Exempt,
            environment: None,
            digest: None,
            rejected: None,
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

    /// The environment whose server answered last, or would have been asked first; `None` for exempt requests.
    #[must_use]
    pub const fn environment(&self) -> Option<Environment> {
        self.environment
    }

    /// The token's digest; `None` where there was no well-formed token.
    #[must_use]
    pub const fn digest(&self) -> Option<TokenDigest> {
        self.digest
    }

    /// The reason for a missing verdict, for the operator's eyes; `None` if a verdict is there or not needed.
    #[must_use]
    pub const fn error(&self) -> Option<&'a VerifyError> {
        match self.rejected {
            Some(rejected) => rejected.error.as_ref(),
            None => None,
        }
    }

    /// More about a rejection, for the operator's eyes: why the token is malformed, or that a debug token is unknown,
    /// of which the client learns nothing. `None` where the outcome says it all.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        match self.rejected {
            Some(rejected) => rejected.reason,
            None => None,
        }
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

/// An outage begins or is over. Observers hear of each once, however many requests are rejected in between.
///
/// It begins with a request that is rejected as [`Unavailable`](crate::Rejection::Unavailable),
/// [`Throttled`](crate::Rejection::Throttled) or [`Misconfigured`](crate::Rejection::Misconfigured), and is over with the
/// next answer about a credential that was not remembered. If such rejections and answers alternate, observers
/// hear of one beginning in 10 seconds.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outage<'a> {
    /// This request was rejected. If an outage becomes a fault of our own, `Misconfigured`, there is one more of these.
    Begins(Event<'a>),
    /// There is a verdict again.
    #[non_exhaustive]
    Over {
        /// How many requests were rejected.
        rejections: u64,
        /// The time from the first of them to now.
        lasted: Duration,
    },
}

/// The default observer: `tracing` events under the target `tower_devicecheck`.
///
/// | level | what |
/// |---|---|
/// | error | an outage begins: a request rejected because Apple does not accept our credentials, or the layer is put together wrongly |
/// | warn | an outage begins: a request rejected because there is no verdict; an admission by a debug token |
/// | info | an outage is over |
/// | debug | every other admission and rejection, the other ones of an outage too: not to fill our logs with; each failure of the cache, which logs its incidents itself, once each |
/// | trace | exempt requests |
///
/// Fields of decisions: `outcome`, `environment`, `evidence`, `digest`, `latency_us` (microseconds), `reason` where the
/// outcome does not say it all, `error` with its causes, and `enforced`, which is false where the layer only monitors and
/// lets rejected requests through. Fields of the end of an [`Outage`]: `rejections` and `seconds`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct TracingObserver;

/// The target of every `tracing` event of this crate.
pub(crate) const TARGET: &str = "tower_devicecheck";

// A level is fixed at its call site, hence a macro.
macro_rules! decision {
    ($event:expr, $level:expr, $message:literal) => {{
        let event: &Event<'_> = $event;
        event!(
            target: TARGET,
            $level,
            outcome = event.outcome.as_str(),
            environment = event.environment.map(Environment::as_str),
            evidence = event.evidence().map(tracing::field::display),
            digest = event.digest.map(tracing::field::display),
            reason = event.reason(),
            error = event.error().map(|error| tracing::field::display(Chain(error))),
            enforced = event.enforcement == Enforcement::Enforce,
            latency_us = u64::try_from(event.latency().as_micros()).unwrap_or(u64::MAX),
            $message
        )
    }};
}

impl Observer for TracingObserver {
    fn decision(&self, event: &Event<'_>) {
        match event.outcome {
            Outcome::Exempt => event!(target: TARGET, Level::TRACE, outcome = "exempt", "request is exempt"),
            Outcome::Verified(device) if device.evidence().is_stand_in() => {
                decision!(event, Level::WARN, "debug token admitted");
            }
            Outcome::Verified(_) => decision!(event, Level::DEBUG, "device verified"),
            Outcome::Rejected(_) => decision!(event, Level::DEBUG, "request rejected"),
        }
    }

    fn outage(&self, outage: &Outage<'_>) {
        match outage {
            Outage::Begins(event) if matches!(event.outcome, Outcome::Rejected(Rejection::Misconfigured)) => {
                decision!(
                    event,
                    Level::ERROR,
                    "request rejected: Apple does not accept our credentials, or the layer is put together wrongly (more of \
                     these at level debug)"
                )
            }
            Outage::Begins(event) => {
                decision!(event, Level::WARN, "request rejected: no verdict (more of these at level debug)")
            }
            Outage::Over { rejections, lasted } => {
                event!(target: TARGET, Level::INFO, rejections, seconds = lasted.as_secs(), "there are verdicts again");
            }
        }
    }

    fn cache_error(&self, error: &CacheError) {
        event!(target: TARGET, Level::DEBUG, error = %Chain(error), "verdict cache failed");
    }
}

/// The error of a cache that could not look up or could not keep a verdict.
///
/// Observers get one for each failure, [`TracingObserver`] logs it at level debug: a cache
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
