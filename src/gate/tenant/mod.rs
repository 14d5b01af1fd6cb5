//! Many gates behind one layer: each request belongs to one tenant, whose gate decides about it.

pub(crate) mod hosts;
pub(crate) mod name;
pub(crate) mod paths;
pub(crate) mod resolver;

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, RwLock},
};

use http::request;

use crate::gate::decision::{DeviceOutcome, Rejected, VerifiedDevice};
use crate::gate::future::{Decide, Progress};
use crate::gate::observer::{Event, Observer};
use crate::gate::proof::Facts;
use crate::gate::rejection::{ProblemDetails, Rejection, RejectionResponse};
use crate::gate::series::DecisionSeries;
use crate::gate::tenant::name::TenantName;
use crate::gate::tenant::resolver::{TenantChoice, TenantResolver};
use crate::gate::tracing_observer::TracingObserver;
use crate::gate::{Answer, FindUri, Gate, enforcement::Enforcement, gate_body::BodyMode, routing::Route};
use crate::meter::{DECISIONS, HotCounter};
use crate::runtime::{Timestamp, read};

/// The rules by which [`Tenants`](crate::tenant::Tenants) decide: a gate for each tenant.
pub struct TenantGates<M> {
    pub(crate) resolver: Arc<dyn TenantResolver>,
    pub(crate) gates: Arc<RwLock<HashMap<TenantName, Arc<Gate<M>>>>>,
    pub(crate) original_uri: Option<Arc<dyn FindUri>>,
    pub(crate) rejection_response: Arc<dyn RejectionResponse>,
    pub(crate) observer: Arc<dyn Observer>,
    decisions: Arc<HotCounter<DecisionSeries>>,
}

impl<M> TenantGates<M> {
    pub(crate) fn new(resolver: impl TenantResolver) -> Self {
        Self {
            resolver: Arc::new(resolver),
            gates: Arc::default(),
            original_uri: None,
            rejection_response: Arc::new(ProblemDetails),
            observer: Arc::new(TracingObserver),
            decisions: Arc::default(),
        }
    }

    fn resolve(&self, head: &mut request::Parts) -> TenantChoice {
        let find = self.original_uri.as_ref();
        let Some(original) = find.and_then(|find| find(&mut head.extensions).cloned()) else {
            return self.resolver.resolve(head);
        };
        let stripped = mem::replace(&mut head.uri, original);
        let choice = self.resolver.resolve(head);
        head.uri = stripped;
        choice
    }

    fn report(&self, event: &Event<'_>) {
        self.decisions.add(&DECISIONS, || DecisionSeries::of(event), |series| series.labels(None));
        self.observer.decision(event);
    }

    /// The answer is that of a tenant to a refused token.
    #[cold]
    fn refuse<D: Decide>(&self, head: &request::Parts) -> Progress<D> {
        let rejection = Rejection::RefusedToken;
        let facts = Facts::new(Route::Production, Enforcement::Enforce, Timestamp::now());
        let rejected = Rejected::from(rejection).with_reason("no tenant");
        self.report(&Event::rejected(&rejected, &facts, Enforcement::Enforce, head));
        let mut response = self.rejection_response.response(&rejection, head);
        response.extensions_mut().insert(rejection);
        Progress::Respond(Box::new(response))
    }
}

impl<M: BodyMode> Decide for TenantGates<M> {
    type Mode = M;
    type Answer = Answer<M>;

    fn admit(self: &Arc<Self>, head: &mut request::Parts) -> Progress<Self> {
        let gate = match self.resolve(head) {
            TenantChoice::Tenant(name) => read(&self.gates).get(&name).cloned(),
            TenantChoice::Unknown => None,
            TenantChoice::Exempt => {
                head.extensions.remove::<VerifiedDevice>();
                head.extensions.remove::<DeviceOutcome>();
                self.report(&Event::exempt(Enforcement::Enforce, None, head));
                return Progress::Forward(None);
            }
        };
        match gate {
            Some(gate) => gate.admit(head).of_same_answer(),
            None => self.refuse(head),
        }
    }

    /// The answer has the gate that the request began with, which another one may have replaced meanwhile.
    fn answered(answer: Answer<M>, head: &mut request::Parts) -> Progress<Self> {
        Gate::answered(answer, head).of_same_answer()
    }
}

impl<M> Clone for TenantGates<M> {
    fn clone(&self) -> Self {
        Self {
            resolver: Arc::clone(&self.resolver),
            gates: Arc::clone(&self.gates),
            original_uri: self.original_uri.clone(),
            rejection_response: Arc::clone(&self.rejection_response),
            observer: Arc::clone(&self.observer),
            decisions: Arc::clone(&self.decisions),
        }
    }
}

impl<M> fmt::Debug for TenantGates<M> {
    // Plug-ins may be closures and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = read(&self.gates).keys().cloned().collect();
        names.sort_unstable();
        f.debug_struct("TenantGates").field("tenants", &names).finish_non_exhaustive()
    }
}
