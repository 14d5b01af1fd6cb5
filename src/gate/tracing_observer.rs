//! The default observer, which logs with `tracing`.

use tracing::{Level, event};

use crate::gate::observer::{CacheError, Chain, Event, Observer, Outage, Outcome, TARGET};
use crate::gate::tenant::name::TenantName;
use crate::gate::{enforcement::Enforcement, rejection::Rejection, routing::Environment};

/// The default observer: `tracing` events under the target `tower_devicecheck`.
///
/// | level | event |
/// |---|---|
/// | error | an outage begins: a request was rejected because Apple does not accept the server's credentials, or because the layer is set up incorrectly |
/// | warn | an outage begins: a request was rejected because there is no verdict; also each admission by a debug token |
/// | info | an outage is over |
/// | debug | every other admission and rejection, including the later rejections of an outage; requests that [shadow mode](Enforcement::Shadow) left out; each failure of the cache, which itself logs each incident once |
/// | trace | exempt requests |
///
/// Fields of decisions: `tenant` if the layer has [tenants](crate::tenant), `outcome`, `environment`, `evidence`, `digest`, `latency_us` (microseconds), `reason` if the
/// outcome does not say everything, `error` with its causes, and `enforced`, which is false if the layer only monitors
/// and lets rejected requests through. Fields of the end of an [`Outage`]: `tenant`, `rejections` and `seconds`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct TracingObserver;

// This is a macro because `tracing` fixes the level at the call site.
macro_rules! decision {
    ($event:expr, $level:expr, $message:literal) => {{
        let event: &Event<'_> = $event;
        event!(
            target: TARGET,
            $level,
            tenant = event.tenant().map(TenantName::as_str),
            outcome = event.outcome().as_str(),
            environment = event.environment().map(Environment::as_str),
            evidence = event.evidence().map(tracing::field::display),
            digest = event.digest().map(tracing::field::display),
            reason = event.reason(),
            error = event.error().map(|error| tracing::field::display(Chain(error))),
            enforced = event.enforcement() == Enforcement::Enforce,
            latency_us = u64::try_from(event.latency().as_micros()).unwrap_or(u64::MAX),
            $message
        )
    }};
}

impl Observer for TracingObserver {
    fn decision(&self, event: &Event<'_>) {
        match event.outcome() {
            Outcome::Exempt => {
                let tenant = event.tenant().map(TenantName::as_str);
                event!(target: TARGET, Level::TRACE, tenant, outcome = "exempt", "request is exempt");
            }
            Outcome::LeftOut => {
                let tenant = event.tenant().map(TenantName::as_str);
                event!(target: TARGET, Level::DEBUG, tenant, outcome = "left_out", "request left out of shadow mode");
            }
            Outcome::Verified(device) if device.evidence().is_stand_in() => {
                decision!(event, Level::WARN, "debug token admitted");
            }
            Outcome::Verified(_) => decision!(event, Level::DEBUG, "device verified"),
            Outcome::Rejected(_) => decision!(event, Level::DEBUG, "request rejected"),
        }
    }

    fn outage(&self, outage: &Outage<'_>) {
        match outage {
            Outage::Begins(event)
                if matches!(event.outcome(), Outcome::Rejected(Rejection::Misconfigured)) =>
            {
                decision!(
                    event,
                    Level::ERROR,
                    "request rejected: Apple does not accept our credentials, or the layer is set up incorrectly (more of \
                     these at level debug)"
                )
            }
            Outage::Begins(event) => {
                decision!(event, Level::WARN, "request rejected: no verdict (more of these at level debug)")
            }
            Outage::Over { rejections, lasted, tenant } => {
                let (tenant, seconds) = (tenant.map(TenantName::as_str), lasted.as_secs());
                event!(target: TARGET, Level::INFO, tenant, rejections, seconds, "there are verdicts again");
            }
        }
    }

    fn cache_error(&self, error: &CacheError) {
        event!(target: TARGET, Level::DEBUG, error = %Chain(error), "verdict cache failed");
    }
}
