//! The report of one request to Apple: a span with OpenTelemetry's names for HTTP clients, and the metrics.

use http::{StatusCode, Uri};
use tracing::{Instrument, Level, Span, field::Empty, instrument::Instrumented, span};

use crate::apple::wire::{Class, Operation};
use crate::gate::{observer::TARGET, routing::Environment};
use crate::meter::{APPLE_DURATION, APPLE_RETRIES, label};
use crate::runtime::Instant;

/// One request to Apple. No context of the trace is sent along: a trace tells others about the server and its users.
pub(super) struct Attempt {
    span: Span,
    environment: &'static str,
    operation: &'static str,
    sent: Instant,
}

impl Attempt {
    /// Begins to report the request number `number` of a call, from 0 on.
    pub(super) fn begin(environment: Environment, operation: Operation, uri: &Uri, number: u32) -> Self {
        let operation_path = operation.path();
        let (environment, operation) = (environment.as_str(), operation.name());
        let span = span!(
            target: TARGET,
            Level::INFO,
            "apple",
            otel.name = "POST",
            otel.kind = "client",
            environment,
            operation,
            http.request.method = "POST",
            http.request.resend_count = (number > 0).then_some(number),
            server.address = uri.host(),
            server.port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 }),
            // Not the full URL: the path of a base URL is the operator's, and may be a secret.
            url.template = operation_path,
            http.response.status_code = Empty,
            error.r#type = Empty,
            otel.status_code = Empty,
        );
        if number > 0 {
            APPLE_RETRIES.add([label("environment", environment), label("operation", operation)]);
        }
        Self { span, environment, operation, sent: Instant::now() }
    }

    /// Runs the request within the span.
    pub(super) fn within<F: Future>(&self, request: F) -> Instrumented<F> {
        request.instrument(self.span.clone())
    }

    pub(super) fn answered(&self, status: StatusCode, class: Class) {
        self.span.record("http.response.status_code", status.as_u16());
        let result = match class {
            Class::Accepted => "accepted",
            Class::RefusedDeviceToken | Class::RefusedReceipt => "refused",
            Class::NotYet => "not_yet",
            Class::NoData => "no_data",
            Class::RefusedProviderToken | Class::Misconfigured => "misconfigured",
            Class::Throttled => "throttled",
            Class::Unavailable => "unavailable",
        };
        // OpenTelemetry calls every status from 400 on an error of a client's span. A refused token is none of Apple.
        if !matches!(class, Class::Accepted | Class::RefusedDeviceToken | Class::NotYet | Class::NoData) {
            self.failed_with(status.as_str());
        }
        self.measure(result);
    }

    pub(super) fn got_no_answer(&self, is_timeout: bool) {
        self.failed_with(if is_timeout { "timeout" } else { "transport" });
        self.measure("no_answer");
    }

    fn failed_with(&self, error_type: &str) {
        self.span.record("error.type", error_type);
        self.span.record("otel.status_code", "ERROR");
    }

    fn measure(&self, result: &'static str) {
        let Self { environment, operation, sent, .. } = *self;
        let labels =
            [label("environment", environment), label("operation", operation), label("result", result)];
        APPLE_DURATION.record(sent.elapsed(), labels);
    }
}
