//! The series of the metric that counts decisions.

use crate::gate::enforcement::Enforcement;
use crate::gate::evidence::Evidence;
use crate::gate::tenant::name::TenantName;
use crate::gate::{observer::Event, routing::Environment};
use crate::meter::{Label, label};

/// The labels of a counted decision.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct DecisionSeries {
    outcome: &'static str,
    evidence: &'static str,
    environment: &'static str,
    enforcement: Enforcement,
}

impl DecisionSeries {
    pub(super) fn of(event: &Event<'_>) -> Self {
        Self {
            outcome: event.outcome().as_str(),
            evidence: event.evidence().map_or("none", Evidence::basis),
            environment: event.environment().map_or("none", Environment::as_str),
            enforcement: event.enforcement(),
        }
    }

    pub(super) fn labels(self, tenant: Option<&TenantName>) -> [Label; 5] {
        [
            label("outcome", self.outcome),
            label("evidence", self.evidence),
            label("environment", self.environment),
            label("enforcement", self.enforcement.as_str()),
            tenant_label(tenant),
        ]
    }
}

/// The operator names the tenants, so there are few values.
pub(super) fn tenant_label(tenant: Option<&TenantName>) -> Label {
    match tenant {
        Some(tenant) => ("tenant", tenant.to_string().into()),
        None => label("tenant", "none"),
    }
}
