//! The gate handles one request. It knows no proof by name.
//!
//! [`Gate`] finds the route, looks at its proofs in order, and carries the decision out. [`service`] and [`future`]
//! are the tower glue around it, [`proof`] is the seam to the proofs, [`rejection`] the one decision table.

#[cfg(any(feature = "session", all(feature = "app-attest", feature = "_apple")))]
#[cfg_attr(not(all(feature = "app-attest", feature = "_apple")), allow(dead_code))]
pub(crate) mod answer;
pub(crate) mod bits;
pub(crate) mod body;
pub(crate) mod checked_body;
mod conclude;
pub(crate) mod credential;
pub(crate) mod decision;
pub(crate) mod enforcement;
pub(crate) mod error;
pub(crate) mod evidence;
#[cfg(feature = "axum")]
pub(crate) mod extract;
pub(crate) mod future;
pub(crate) mod gate_body;
pub(crate) mod headers;
pub(crate) mod marks;
pub(crate) mod observer;
mod outage;
pub(crate) mod path;
pub(crate) mod preflight;
pub(crate) mod problem;
pub(crate) mod proof;
pub(crate) mod rejection;
pub(crate) mod rollout;
pub(crate) mod routing;
mod series;
pub(crate) mod service;
pub(crate) mod shadow;
mod span;
pub(crate) mod tenant;
pub(crate) mod tracing_observer;

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Extensions, Request, Uri, request, uri};
use tracing::Instrument;

use self::{
    decision::{DeviceOutcome, VerifiedDevice},
    enforcement::{Enforcement, EnforcementPolicy},
    error::VerifyError,
    future::{Decide, Progress},
    gate_body::{BodyDigest, BodyMode, HeadOnly},
    headers::Forwarded,
    observer::{Event, Observer},
    outage::Outages,
    preflight::{ExemptPreflight, is_preflight},
    proof::{Facts, Next, Proof, Step},
    rejection::{ProblemDetails, Rejection, RejectionResponse},
    routing::{Route, RoutingPolicy},
    series::DecisionSeries,
    service::Gated,
    shadow::ShadowChecks,
    tenant::name::TenantName,
    tracing_observer::TracingObserver,
};
use crate::meter::HotCounter;
use crate::runtime::{Timestamp, within};

/// A service that lets only requests from genuine devices through to `S`. With [`ReadBodies`](crate::ReadBodies) as
/// `M`, `S` takes requests with a [`GateBody`](crate::GateBody).
///
/// See the [crate's docs](crate) for an example. Errors are those of `S`, unchanged.
pub type DeviceCheck<S, M = HeadOnly> = Gated<S, Gate<M>>;

/// The rules by which a [`DeviceCheck`] decides. A [`DeviceCheckLayer`](crate::DeviceCheckLayer) makes them.
#[derive(Clone)]
pub struct Gate<M = HeadOnly> {
    pub(crate) tenant: Option<TenantName>,
    pub(crate) routing: Arc<dyn RoutingPolicy>,
    pub(crate) exempt_preflights: bool,
    pub(crate) original_uri: Option<Arc<dyn FindUri>>,
    pub(crate) proofs: Vec<Arc<dyn Proof>>,
    pub(crate) enforcement: Arc<dyn EnforcementPolicy>,
    pub(crate) shadow_checks: Arc<ShadowChecks>,
    pub(crate) forward_credentials: bool,
    pub(crate) rejection_response: Arc<dyn RejectionResponse>,
    pub(crate) observer: Arc<dyn Observer>,
    /// The deadline of a proof's future.
    pub(crate) deadline: Duration,
    outages: Arc<Outages>,
    decisions: Arc<HotCounter<DecisionSeries>>,
    pub(crate) mode: M,
}

/// A name for closures that find the URI that the client sent.
pub(crate) trait FindUri: Fn(&mut Extensions) -> Option<&mut Uri> + Send + Sync {}

impl<F: Fn(&mut Extensions) -> Option<&mut Uri> + Send + Sync> FindUri for F {}

/// A proof's step after its future has ended, or after it got the digest of a body.
#[doc(hidden)]
#[allow(missing_debug_implementations, unnameable_types, reason = "hidden inside of the response future")]
pub struct Answer<M> {
    gate: Arc<Gate<M>>,
    began: Facts,
    step: Step,
}

impl Gate {
    pub(crate) fn new(proof: Arc<dyn Proof>) -> Self {
        Self {
            tenant: None,
            routing: Arc::new(Route::Production),
            exempt_preflights: true,
            original_uri: None,
            proofs: vec![proof],
            enforcement: Arc::new(Enforcement::Enforce),
            shadow_checks: Arc::default(),
            forward_credentials: false,
            rejection_response: Arc::new(ProblemDetails),
            observer: Arc::new(TracingObserver),
            deadline: Duration::from_secs(30),
            outages: Arc::default(),
            decisions: Arc::default(),
            mode: HeadOnly,
        }
    }
}

impl<M> Gate<M> {
    /// Sets whether the gate reads bodies.
    pub(crate) fn with_mode<N>(self, mode: N) -> Gate<N> {
        let Self { tenant, routing, exempt_preflights, original_uri, proofs, enforcement, .. } = self;
        let Self {
            shadow_checks,
            forward_credentials,
            rejection_response,
            observer,
            deadline,
            outages,
            decisions,
            ..
        } = self;
        Gate {
            tenant,
            routing,
            exempt_preflights,
            original_uri,
            proofs,
            enforcement,
            shadow_checks,
            forward_credentials,
            rejection_response,
            observer,
            deadline,
            outages,
            decisions,
            mode,
        }
    }

    /// Makes this the gate of a tenant, which shares no state with the gate that it was cloned from.
    pub(crate) fn set_tenant(&mut self, tenant: TenantName) {
        self.tenant = Some(tenant);
        self.shadow_checks = Arc::new(self.shadow_checks.emptied());
        self.outages = Arc::default();
        // The series that it remembers have the tenant's label.
        self.decisions = Arc::default();
    }

    fn route(&self, head: &mut request::Parts) -> Route {
        if self.exempt_preflights && is_preflight(head) && !self.shows_credentials(head) {
            head.extensions.insert(ExemptPreflight);
            return Route::Exempt;
        }
        self.routing.route(head)
    }

    /// Whether the head of a preflight holds a credential of any proof.
    #[cold]
    fn shows_credentials(&self, head: &request::Parts) -> bool {
        let mut stripped = without_extensions(head);
        self.proofs.iter().for_each(|proof| proof.strip(&mut stripped));
        stripped.headers != head.headers || stripped.uri != head.uri
    }

    /// Runs the proofs in order. The credentials of proofs after the deciding one are stripped.
    fn judge(&self, head: &mut request::Parts, facts: &mut Facts) -> Step {
        for (index, proof) in self.proofs.iter().enumerate() {
            facts.set_proof(index);
            let step = proof.judge(head, facts);
            if !matches!(step.next, Next::Absent) {
                self.strip(head, index + 1);
                return step;
            }
        }
        Step::rejected(Rejection::MissingToken)
    }

    /// Strips the credentials of the proofs from index `from` on.
    fn strip(&self, head: &mut request::Parts, from: usize) {
        for proof in self.proofs.iter().skip(from) {
            proof.strip(head);
        }
    }
}

impl<M: BodyMode> Gate<M> {
    /// `restore` turns the URI that the policy and the proofs see into that of the inner service.
    // Inlined for exempt requests, which do little else.
    #[inline(always)]
    fn admit_head(
        self: &Arc<Self>,
        head: &mut request::Parts,
        restore: impl FnOnce(&mut request::Parts),
    ) -> Progress<Self> {
        let (route, enforcement) = (self.route(head), self.enforcement.enforcement(head));
        if route == Route::Exempt {
            restore(head);
            self.report(&Event::exempt(enforcement.of_digest(None), self.tenant.as_ref(), head));
            return Progress::Forward(None);
        }
        let mut facts = Facts::new(route, enforcement, Timestamp::now()).of_tenant(self.tenant.clone());
        let forwarded = self.forward_credentials.then(|| Forwarded::of(head, |head| self.strip(head, 0)));
        // A request that cannot be checked beside itself costs little more than an exempt one.
        let is_left_out = enforcement == Enforcement::Shadow && self.shadow_checks.are_full();
        let step = if is_left_out {
            self.strip(head, 0);
            None
        } else {
            Some(self.judge(head, &mut facts))
        };
        if let Some(forwarded) = forwarded {
            let put_back = forwarded.put_back(head);
            head.extensions.insert(put_back);
        }
        restore(head);
        match step {
            Some(step) => self.go_on(step, &facts, &facts, head),
            None => self.leave_out(head),
        }
    }

    fn go_on(
        self: &Arc<Self>,
        step: Step,
        facts: &Facts,
        began: &Facts,
        head: &mut request::Parts,
    ) -> Progress<Self> {
        match step.next {
            Next::Decided(decision) => match step.promised {
                None => self.conclude(decision, facts, began, head),
                Some(digest) => self.conclude_by_promise(decision, *digest, facts, began, head),
            },
            Next::Ask(answer) => {
                let check = self.check(answer, facts, began.clone());
                if began.enforcement() == Enforcement::Shadow {
                    return self.shadow(check, head);
                }
                Progress::Wait(Box::pin(check))
            }
            Next::NeedsBody(..) if began.enforcement() == Enforcement::Shadow => self.leave_out(head),
            Next::NeedsBody(limit, then) => {
                let (gate, began) = (Arc::clone(self), began.clone().of_body());
                let then = move |digest: BodyDigest| {
                    let then = |digest| {
                        catch_unwind(AssertUnwindSafe(|| then(digest))).unwrap_or_else(|_| panicked())
                    };
                    Answer { gate, began, step: digest.map_or_else(Step::rejected, then) }
                };
                Progress::Read(self.mode.bounds().within(limit), Box::new(then))
            }
            Next::Absent => {
                let error = VerifyError::misconfigured("a proof that was present has become absent");
                self.conclude(Err(error.into()), facts, began, head)
            }
        }
    }

    /// Waits for the answer of a proof, within the deadline. `facts` hold the time of the question.
    fn check(
        self: &Arc<Self>,
        answer: BoxFuture<'static, Step>,
        facts: &Facts,
        began: Facts,
    ) -> impl Future<Output = Answer<M>> + Send + 'static {
        let gate = Arc::clone(self);
        // Not when the request began: the client may take its time for the body.
        let asked = facts.moment().monotonic;
        let span = span::of_check();
        let recorded = span.clone();
        let check = async move {
            let step = match within(gate.deadline, AssertUnwindSafe(answer).catch_unwind()).await {
                Ok(answer) => answer.unwrap_or_else(|_| panicked()),
                Err(_elapsed) => Step::rejected(VerifyError::unavailable(
                    "a proof gave no answer within the layer's deadline",
                )),
            };
            gate.note_verdict(&step, &began);
            if let Next::Decided(decision) = &step.next {
                span::decided(&recorded, decision, &began, asked);
            }
            Answer { gate, began, step }
        };
        check.instrument(span)
    }
}

impl<M: BodyMode> Decide for Gate<M> {
    type Mode = M;
    type Answer = Answer<M>;

    fn admit(self: &Arc<Self>, head: &mut request::Parts) -> Progress<Self> {
        // Extensions that other gates or layers set do not count.
        head.extensions.remove::<VerifiedDevice>();
        head.extensions.remove::<DeviceOutcome>();

        let original =
            self.original_uri.as_ref().and_then(|find| Some((find, find(&mut head.extensions)?.clone())));
        let Some((find, original)) = original else { return self.admit_head(head, |_| ()) };
        let stripped = mem::replace(&mut head.uri, original);
        self.admit_head(head, |head| {
            let shown = mem::replace(&mut head.uri, stripped);
            if let Some(original) = find(&mut head.extensions).filter(|original| **original != shown) {
                // A proof removed a part of the URI.
                head.uri = with_query_of(&head.uri, &shown);
                *original = shown;
            }
        })
    }

    fn answered(answer: Answer<M>, head: &mut request::Parts) -> Progress<Self> {
        let Answer { gate, began, step } = answer;
        gate.go_on(step, &began.renewed(), &began, head)
    }
}

/// A copy of the head without its extensions.
fn without_extensions(head: &request::Parts) -> request::Parts {
    let mut copy = Request::new(()).into_parts().0;
    (copy.method, copy.version) = (head.method.clone(), head.version);
    (copy.uri, copy.headers) = (head.uri.clone(), head.headers.clone());
    copy
}

fn panicked() -> Step {
    Step::rejected(VerifyError::unavailable("a proof panicked"))
}

/// Combines the path that a router has stripped with the query that the proofs left.
fn with_query_of(stripped: &Uri, shown: &Uri) -> Uri {
    let path_and_query = match shown.query() {
        Some(query) => format!("{}?{query}", stripped.path()),
        None => stripped.path().to_owned(),
    };
    let mut parts = stripped.clone().into_parts();
    parts.path_and_query = uri::PathAndQuery::try_from(path_and_query).ok();
    // This cannot fail, because both parts come from a valid URI.
    Uri::from_parts(parts).unwrap_or_default()
}

impl<M: fmt::Debug> fmt::Debug for Gate<M> {
    // Plug-ins may be closures and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schemes: Vec<_> = self.proofs.iter().map(|proof| proof.scheme()).collect();
        f.debug_struct("Gate")
            .field("proofs", &schemes)
            .field("forward_credentials", &self.forward_credentials)
            .field("deadline", &self.deadline)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
