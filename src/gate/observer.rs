//! The `Observer` trait, and its events.

use std::{fmt, time::Duration};

use http::request;

use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::enforcement::Enforcement;
use crate::gate::error::{VerifyError, impl_error};
use crate::gate::evidence::Evidence;
use crate::gate::tenant::name::TenantName;
use crate::gate::{credential::TokenDigest, proof::Facts, rejection::Rejection, routing::Environment};
use crate::{BoxError, runtime::Instant};

/// An observer of every decision, every failure of a cache, and every outage.
///
/// The gate calls the observer on the request's task, so the observer must not block. In [shadow
/// mode](Enforcement::Shadow), it calls the observer on another task, possibly after the response. Requests that clients
/// abandon before the decision are not reported. [`TracingObserver`](crate::TracingObserver) is the default. To keep it beside another observer, give
/// the layer both: `with_observer((TracingObserver, mine))`.
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
    /// Reports the decision about a request.
    fn decision(&self, event: &Event<'_>);

    /// Reports a failure of the cache. The request continues as if nothing had been cached. Default: does nothing.
    fn cache_error(&self, error: &CacheError) {
        let _ = error;
    }

    /// Reports the beginning or the end of an outage. Each rejection is also reported as a
    /// [`decision`](Self::decision). Default: does nothing.
    fn outage(&self, outage: &Outage<'_>) {
        let _ = outage;
    }
}

/// Calls both observers, the left one first.
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

/// A decision about one request.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    outcome: Outcome<'a>,
    head: &'a request::Parts,
    environment: Option<Environment>,
    digest: Option<TokenDigest>,
    rejected: Option<&'a Rejected>,
    enforcement: Enforcement,
    started: Option<Instant>,
    tenant: Option<&'a TenantName>,
}

/// The decision.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Outcome<'a> {
    /// The request reaches the inner service with this device.
    Verified(&'a VerifiedDevice),
    /// The layer answers with this rejection. If it only monitors, the request reaches the inner service anyway.
    Rejected(&'a Rejection),
    /// The request reaches the inner service unchecked.
    Exempt,
    /// The request reached the inner service unchecked, because it could not be checked beside it in [shadow
    /// mode](Enforcement::Shadow): as many checks were under way as the layer allows, or the check needs more than
    /// shadow mode has.
    LeftOut,
}

impl Outcome<'_> {
    /// `verified`, `exempt`, `left_out`, or the rejection's [`code`](Rejection::code).
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Verified(_) => "verified",
            Self::Rejected(rejection) => rejection.code(),
            Self::Exempt => "exempt",
            Self::LeftOut => "left_out",
        }
    }
}

impl<'a> Event<'a> {
    pub(super) fn new(
        decision: &'a Result<VerifiedDevice, Rejected>,
        began: &'a Facts,
        enforcement: Enforcement,
        head: &'a request::Parts,
    ) -> Self {
        match decision {
            Ok(device) => Self {
                outcome: Outcome::Verified(device),
                head,
                environment: Some(device.environment()),
                digest: Some(device.digest()),
                rejected: None,
                enforcement,
                started: Some(began.moment().monotonic),
                tenant: began.tenant(),
            },
            Err(rejected) => Self::rejected(rejected, began, enforcement, head),
        }
    }

    pub(super) fn rejected(
        rejected: &'a Rejected,
        began: &'a Facts,
        enforcement: Enforcement,
        head: &'a request::Parts,
    ) -> Self {
        Self {
            outcome: Outcome::Rejected(&rejected.rejection),
            head,
            environment: Some(rejected.environment.unwrap_or_else(|| began.environment())),
            digest: rejected.digest,
            rejected: Some(rejected),
            enforcement,
            started: Some(began.moment().monotonic),
            tenant: began.tenant(),
        }
    }

    pub(super) const fn exempt(
        enforcement: Enforcement,
        tenant: Option<&'a TenantName>,
        head: &'a request::Parts,
    ) -> Self {
        Self::unchecked(Outcome::Exempt, enforcement, tenant, head)
    }

    pub(super) const fn left_out(tenant: Option<&'a TenantName>, head: &'a request::Parts) -> Self {
        Self::unchecked(Outcome::LeftOut, Enforcement::Shadow, tenant, head)
    }

    const fn unchecked(
        outcome: Outcome<'a>,
        enforcement: Enforcement,
        tenant: Option<&'a TenantName>,
        head: &'a request::Parts,
    ) -> Self {
        Self {
            outcome,
            head,
            environment: None,
            digest: None,
            rejected: None,
            enforcement,
            started: None,
            tenant,
        }
    }

    /// The tenant whose gate decided; `None` in a layer without [tenants](crate::tenant), or if the request belongs to
    /// none.
    #[must_use]
    pub const fn tenant(&self) -> Option<&'a TenantName> {
        self.tenant
    }

    /// The decision.
    #[must_use]
    pub const fn outcome(&self) -> Outcome<'a> {
        self.outcome
    }

    /// The head of the request, without the credentials that the layer took out. Other observers and logs get it only
    /// from you: `Debug` of an event does not show it.
    ///
    /// # Danger
    ///
    /// A head can hold secrets: cookies, and credentials for other layers. It also holds the credentials for this layer
    /// if the layer [forwards them](crate::DeviceCheckLayer::with_forwarded_credentials), or if the request is exempt or
    /// belongs to no [tenant](crate::tenant), because nobody searches such requests. Record only a part that holds no secret, such as a header
    /// with the app version. The client chose its text, so bound what you keep.
    #[must_use]
    pub const fn head(&self) -> &'a request::Parts {
        self.head
    }

    /// The evidence for the admission; `None` unless the device is verified.
    #[must_use]
    pub const fn evidence(&self) -> Option<&'a Evidence> {
        match self.outcome {
            Outcome::Verified(device) => Some(device.evidence()),
            _ => None,
        }
    }

    /// The environment whose server answered last. If no server answered, the environment that is asked first. `None`
    /// for requests that are exempt or left out.
    #[must_use]
    pub const fn environment(&self) -> Option<Environment> {
        self.environment
    }

    /// The token digest; `None` without a well-formed token.
    #[must_use]
    pub const fn digest(&self) -> Option<TokenDigest> {
        self.digest
    }

    /// The reason for a missing verdict, for operators only; `None` if there is a verdict or none is needed.
    #[must_use]
    pub const fn error(&self) -> Option<&'a VerifyError> {
        match self.rejected {
            Some(rejected) => rejected.error.as_ref(),
            None => None,
        }
    }

    /// Details of a rejection, for operators only: why the token is malformed, or that a debug token is unknown. The
    /// client does not learn of an unknown debug token. `None` if the outcome says everything.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        match self.rejected {
            Some(rejected) => rejected.reason,
            None => None,
        }
    }

    /// Whether a rejection keeps the request from the inner service. A [share](Enforcement::Share) is decided: the event
    /// has [`Enforce`](Enforcement::Enforce) or [`Monitor`](Enforcement::Monitor).
    #[must_use]
    pub const fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// The time that the decision took, up to now. Zero for requests that are exempt or left out, which are not timed.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }
}

impl fmt::Debug for Event<'_> {
    // Omits the head, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("tenant", &self.tenant)
            .field("outcome", &self.outcome)
            .field("environment", &self.environment)
            .field("digest", &self.digest)
            .field("rejected", &self.rejected)
            .field("enforcement", &self.enforcement)
            .field("started", &self.started)
            .finish_non_exhaustive()
    }
}

/// The beginning or the end of an outage. Observers receive each once, no matter how many requests are rejected in
/// between.
///
/// An outage begins when a request is rejected as [`Unavailable`](crate::Rejection::Unavailable),
/// [`Throttled`](crate::Rejection::Throttled) or [`Misconfigured`](crate::Rejection::Misconfigured). It ends with the
/// next fresh verdict, that is one not remembered, of the same [proof](crate::Proof), or of any proof if this one has
/// rejected no request so for a minute. If such rejections and verdicts alternate, observers receive at most one
/// beginning every 10 seconds.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outage<'a> {
    /// An outage begins with this rejected request. If the outage later turns into `Misconfigured`, a fault of this
    /// server, observers receive this once more.
    Begins(Event<'a>),
    /// The outage is over: there is a verdict again.
    #[non_exhaustive]
    Over {
        /// The number of rejected requests.
        rejections: u64,
        /// The time from the first rejection to now.
        lasted: Duration,
        /// The tenant whose gate it was; `None` in a layer without [tenants](crate::tenant).
        tenant: Option<&'a TenantName>,
    },
}

/// The error of a cache that could not look up or store a verdict.
///
/// Observers receive one error for each failure. [`TracingObserver`](crate::TracingObserver) logs it at level debug, because a cache that is
/// down would otherwise fill the log with one line for each request. A cache should log the beginning and the end of an
/// incident itself, as `RedisCache` does.
#[derive(Debug)]
pub struct CacheError {
    source: BoxError,
}

impl CacheError {
    /// Makes an error with this cause. The cause is logged, so it must hold no secret.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into() }
    }
}

impl_error!(CacheError, |error| Some(&*error.source), "the verdict cache failed");

/// The target of every `tracing` event of this crate.
pub(crate) const TARGET: &str = "tower_devicecheck";

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
