//! The end of a check: the gate reports the decision and carries it out.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::WWW_AUTHENTICATE, request};

use crate::gate::decision::{DeviceOutcome, Rejected, VerifiedDevice};
use crate::gate::enforcement::Enforcement;
use crate::gate::future::{Decide, Progress};
use crate::gate::headers::{append, names_scheme};
use crate::gate::observer::{Event, Outage};
use crate::gate::proof::{Facts, Next, Step};
use crate::gate::{Gate, rejection::Rejection, series::DecisionSeries};
use crate::{meter::DECISIONS, runtime::Instant};

impl<M> Gate<M> {
    /// Reports a decision and carries it out on the request. `facts` hold the time of the decision.
    pub(super) fn conclude<D>(
        &self,
        decision: Result<VerifiedDevice, Rejected>,
        facts: &Facts,
        began: &Facts,
        head: &mut request::Parts,
    ) -> Progress<D>
    where
        D: Decide,
    {
        self.report(&Event::new(&decision, began, self.enforcement, head));
        match (decision, self.enforcement) {
            (Ok(device), enforcement) => {
                let headers = self.response_headers(&device, facts);
                if enforcement == Enforcement::Monitor {
                    head.extensions.insert(DeviceOutcome::Verified(device.clone()));
                }
                head.extensions.insert(device);
                Progress::Forward(headers)
            }
            (Err(rejected), Enforcement::Monitor) => {
                self.note_outage(&rejected, began, head);
                head.extensions.insert(DeviceOutcome::Rejected(rejected.rejection));
                Progress::Forward(None)
            }
            (Err(rejected), Enforcement::Enforce) => {
                self.note_outage(&rejected, began, head);
                Progress::Respond(Box::new(self.respond(rejected.rejection, head)))
            }
        }
    }

    pub(super) fn report(&self, event: &Event<'_>) {
        self.decisions.add(&DECISIONS, || DecisionSeries::of(event), DecisionSeries::labels);
        self.observer.decision(event);
    }

    pub(super) fn note_outage(&self, rejected: &Rejected, began: &Facts, head: &request::Parts) {
        let is_our_fault = rejected.rejection() == Rejection::Misconfigured;
        let is_outage = is_our_fault
            || matches!(rejected.rejection(), Rejection::Unavailable { .. } | Rejection::Throttled { .. });
        if is_outage && self.outages.begins(is_our_fault, Instant::now()) {
            let event = Event::rejected(rejected, began, self.enforcement, head);
            self.observer.outage(&Outage::Begins(event));
        }
    }

    /// A verdict that was not remembered ends an outage.
    pub(super) fn note_verdict(&self, step: &Step) {
        let is_verdict = match &step.0 {
            Next::Decided(Ok(device)) => device.evidence().is_fresh(),
            Next::Decided(Err(rejected)) => rejected.rejection() == Rejection::RefusedToken,
            _ => false,
        };
        if is_verdict && let Some(over) = self.outages.ends(Instant::now()) {
            self.observer.outage(&over);
        }
    }

    pub(super) fn response_headers(&self, device: &VerifiedDevice, facts: &Facts) -> Option<Box<HeaderMap>> {
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

    pub(super) fn respond(&self, rejection: Rejection, head: &request::Parts) -> Response<Bytes> {
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
