//! The end of a check: the gate reports the decision and carries it out.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::WWW_AUTHENTICATE, request};

use crate::gate::checked_body::PromisedDigest;
use crate::gate::decision::{DeviceOutcome, Rejected, VerifiedDevice};
use crate::gate::enforcement::Enforcement;
use crate::gate::error::VerifyError;
use crate::gate::future::{Decide, Progress};
use crate::gate::headers::{append, names_scheme};
use crate::gate::observer::{Event, Outage};
use crate::gate::proof::{Facts, Next, Step};
use crate::gate::{
    Answer, Gate, gate_body::BodyMode, rejection::Rejection, series::DecisionSeries, without_extensions,
};
use crate::meter::DECISIONS;
use crate::runtime::{Instant, has_tasks, spawn};

impl<M> Gate<M> {
    /// Reports a decision and carries it out on the request. `facts` hold the time of the decision.
    pub(super) fn conclude<D>(
        &self,
        mut decision: Result<VerifiedDevice, Rejected>,
        facts: &Facts,
        began: &Facts,
        head: &mut request::Parts,
    ) -> Progress<D>
    where
        D: Decide,
    {
        if let (Ok(device), Some(tenant)) = (&mut decision, began.tenant()) {
            device.set_tenant(tenant);
        }
        let enforcement = self.tell(&decision, began, head);
        match (decision, enforcement) {
            (Ok(device), enforcement) => {
                let headers = self.response_headers(&device, facts);
                if enforcement != Enforcement::Enforce {
                    head.extensions.insert(DeviceOutcome::Verified(device.clone()));
                }
                head.extensions.insert(device);
                Progress::Forward(headers)
            }
            (Err(rejected), Enforcement::Enforce) => {
                Progress::Respond(Box::new(self.respond(rejected.rejection, head)))
            }
            (Err(rejected), _) => {
                head.extensions.insert(DeviceOutcome::Rejected(rejected.rejection));
                Progress::Forward(None)
            }
        }
    }

    /// Does the same for a request whose body must have this digest.
    #[cold]
    pub(super) fn conclude_by_promise<D>(
        &self,
        decision: Result<VerifiedDevice, Rejected>,
        digest: [u8; 32],
        facts: &Facts,
        began: &Facts,
        head: &mut request::Parts,
    ) -> Progress<D>
    where
        D: Decide,
        M: BodyMode,
    {
        let error = "a proof promises a body to a layer that reads none, or has read it";
        let is_checked = M::READS && !began.has_body();
        let decision = if is_checked { decision } else { Err(VerifyError::misconfigured(error).into()) };
        let progress = self.conclude(decision, facts, began, head);
        // A layer that only monitors leaves the body alone.
        if matches!(progress, Progress::Forward(_)) && head.extensions.get::<DeviceOutcome>().is_none() {
            head.extensions.insert(PromisedDigest(digest));
        }
        progress
    }

    /// Reports a decision. Returns the treatment of the request: no share.
    fn tell(
        &self,
        decision: &Result<VerifiedDevice, Rejected>,
        began: &Facts,
        head: &request::Parts,
    ) -> Enforcement {
        let enforcement = began.enforcement().of_decision(decision);
        self.report(&Event::new(decision, began, enforcement, head));
        if let Err(rejected) = decision {
            self.note_outage(rejected, began, enforcement, head);
        }
        enforcement
    }

    /// Lets the request go on, and its check run beside it.
    pub(super) fn shadow<D>(
        &self,
        check: impl Future<Output = Answer<M>> + Send + 'static,
        head: &mut request::Parts,
    ) -> Progress<D>
    where
        D: Decide,
        M: BodyMode,
    {
        let Some(place) = self.shadow_checks.place().filter(|_| has_tasks()) else {
            return self.leave_out(head);
        };
        let copy = without_extensions(head);
        spawn(async move {
            let Answer { gate, began, step } = check.await;
            match step.next {
                Next::Decided(decision) => {
                    gate.tell(&decision, &began, &copy);
                }
                _ => gate.report(&Event::left_out(gate.tenant.as_ref(), &copy)),
            }
            drop(place);
        });
        head.extensions.insert(DeviceOutcome::Unknown);
        Progress::Forward(None)
    }

    /// Lets the request go on without a check.
    pub(super) fn leave_out<D>(&self, head: &mut request::Parts) -> Progress<D>
    where
        D: Decide,
    {
        self.report(&Event::left_out(self.tenant.as_ref(), head));
        head.extensions.insert(DeviceOutcome::Unknown);
        Progress::Forward(None)
    }

    pub(super) fn report(&self, event: &Event<'_>) {
        self.decisions.add(
            &DECISIONS,
            || DecisionSeries::of(event),
            |series| series.labels(self.tenant.as_ref()),
        );
        self.observer.decision(event);
    }

    fn note_outage(
        &self,
        rejected: &Rejected,
        began: &Facts,
        enforcement: Enforcement,
        head: &request::Parts,
    ) {
        let is_our_fault = rejected.rejection() == Rejection::Misconfigured;
        let is_outage = is_our_fault
            || matches!(rejected.rejection(), Rejection::Unavailable { .. } | Rejection::Throttled { .. });
        if is_outage && self.outages.begins(began.proof(), is_our_fault, Instant::now()) {
            let event = Event::rejected(rejected, began, enforcement, head);
            self.observer.outage(&Outage::Begins(event));
        }
    }

    /// A verdict that was not remembered ends an outage of its proof.
    pub(super) fn note_verdict(&self, step: &Step, began: &Facts) {
        let is_verdict = match &step.next {
            Next::Decided(Ok(device)) => device.evidence().is_fresh(),
            Next::Decided(Err(rejected)) => {
                let is_verdict = matches!(rejected.rejection(), Rejection::RefusedToken | Rejection::Denied);
                is_verdict && !rejected.is_remembered
            }
            _ => false,
        };
        if !is_verdict {
            return;
        }
        if let Some(over) = self.outages.ends(began.proof(), self.tenant.as_ref(), Instant::now()) {
            self.observer.outage(&over);
        }
    }

    fn response_headers(&self, device: &VerifiedDevice, facts: &Facts) -> Option<Box<HeaderMap>> {
        let mut all: Option<Box<HeaderMap>> = None;
        for proof in &self.proofs {
            if let Some(headers) = proof.admitted(device, facts) {
                match &mut all {
                    Some(all) => append(all, headers),
                    None => all = Some(Box::new(headers)),
                }
            }
        }
        all
    }

    fn respond(&self, rejection: Rejection, head: &request::Parts) -> Response<Bytes> {
        let mut response = self.rejection_response.response(&rejection, head);
        response.extensions_mut().insert(rejection);
        let headers = response.headers_mut();
        // A client without any credential learns of all schemes that the layer accepts.
        if rejection == Rejection::MissingToken && headers.contains_key(WWW_AUTHENTICATE) {
            for proof in &self.proofs {
                let scheme = proof.scheme();
                let mut challenges = headers.get_all(WWW_AUTHENTICATE).iter();
                let is_named = challenges.any(|value| names_scheme(value, scheme));
                if let (false, Ok(scheme)) = (is_named, HeaderValue::from_str(scheme)) {
                    headers.append(WWW_AUTHENTICATE, scheme);
                }
            }
        }
        response
    }
}
