//! The span of a check that asks a cache, Apple or another service.

use tracing::{
    Level, Span,
    field::{Empty, display},
    span,
};

use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::enforcement::Enforcement;
use crate::gate::observer::{Chain, Outcome, TARGET};
use crate::gate::proof::Facts;
use crate::gate::{series::tenant_label, tenant::name::TenantName};
use crate::meter::{CHECK_DURATION, label};
use crate::runtime::Instant;

/// Makes the span of a check. Its parent is the span in which the service is called.
pub(super) fn of_check() -> Span {
    span!(
        target: TARGET,
        Level::INFO,
        "devicecheck",
        outcome = Empty,
        environment = Empty,
        evidence = Empty,
        digest = Empty,
        reason = Empty,
        error = Empty,
        enforced = Empty,
        tenant = Empty,
        otel.status_code = Empty,
    )
}

/// Records the end of a check that began to ask at `asked`, in the span that [`of_check`] has made.
pub(super) fn decided(
    span: &Span,
    decision: &Result<VerifiedDevice, Rejected>,
    began: &Facts,
    asked: Instant,
) {
    let outcome = match decision {
        Ok(device) => Outcome::Verified(device),
        Err(rejected) => Outcome::Rejected(&rejected.rejection),
    };
    CHECK_DURATION
        .record(asked.elapsed(), [label("outcome", outcome.as_str()), tenant_label(began.tenant())]);
    span.record("tenant", began.tenant().map(TenantName::as_str));
    span.record("outcome", outcome.as_str());
    span.record("enforced", began.enforcement().of_decision(decision) == Enforcement::Enforce);
    match decision {
        Ok(device) => {
            span.record("environment", device.environment().as_str());
            span.record("evidence", display(device.evidence()));
            span.record("digest", display(device.digest()));
        }
        Err(rejected) => {
            let environment = rejected.environment.unwrap_or_else(|| began.environment());
            span.record("environment", environment.as_str());
            span.record("digest", rejected.digest.map(display));
            span.record("reason", rejected.reason);
            if let Some(error) = &rejected.error {
                span.record("error", display(Chain(error)));
                // OpenTelemetry marks spans that failed. A refusal is no failure of the check.
                span.record("otel.status_code", "ERROR");
            }
        }
    }
}
