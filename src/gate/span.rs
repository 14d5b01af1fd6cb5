//! The span of a check that asks a cache, Apple or another service.

use tracing::{Level, Span, field::Empty, span};

use crate::gate::observer::{Chain, Event, TARGET};
use crate::gate::{decision::Enforcement, routing::Environment};
use crate::meter::{CHECK_DURATION, label};

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
        otel.status_code = Empty,
    )
}

/// Records the end of the check in the current span, which [`of_check`] has made.
pub(super) fn decided(event: &Event<'_>) {
    let outcome = event.outcome().as_str();
    CHECK_DURATION.record(event.latency(), [label("outcome", outcome)]);
    let span = Span::current();
    span.record("outcome", outcome);
    span.record("environment", event.environment().map(Environment::as_str));
    span.record("evidence", event.evidence().map(tracing::field::display));
    span.record("digest", event.digest().map(tracing::field::display));
    span.record("reason", event.reason());
    span.record("enforced", event.enforcement() == Enforcement::Enforce);
    if let Some(error) = event.error() {
        span.record("error", tracing::field::display(Chain(error)));
        // OpenTelemetry marks spans that failed. A refusal is no failure of the check.
        span.record("otel.status_code", "ERROR");
    }
}
