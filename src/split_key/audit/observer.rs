//! The `SplitKeyObserver` trait, and the default observer.

use std::sync::Arc;

use tracing::{Level, event};

use crate::gate::observer::{Chain, TARGET};
use crate::split_key::audit::event::{SplitKeyEvent, SplitKeyOutcome, SuspiciousUse};

/// An observer of every use of a key, and of suspicious uses.
///
/// The layer calls the observer on the task that serves the request, so the observer must not block. The layer does not
/// report CORS preflights, nor requests whose clients disconnect while the key is looked up.
/// [`TracingSplitKeyObserver`] is the default. To keep it beside another observer, give the layer both:
/// `with_observer((TracingSplitKeyObserver, usage_log))`.
#[diagnostic::on_unimplemented(note = "implement `used`")]
pub trait SplitKeyObserver: Send + Sync + 'static {
    /// Reports that a request got its key or was refused.
    fn used(&self, event: &SplitKeyEvent);

    /// Reports a suspicious use of a key. Default: does nothing.
    fn suspicious(&self, event: &SuspiciousUse) {
        let _ = event;
    }
}

/// Calls both observers, the left one first.
impl<A: SplitKeyObserver, B: SplitKeyObserver> SplitKeyObserver for (A, B) {
    fn used(&self, event: &SplitKeyEvent) {
        self.0.used(event);
        self.1.used(event);
    }

    fn suspicious(&self, event: &SuspiciousUse) {
        self.0.suspicious(event);
        self.1.suspicious(event);
    }
}

impl<O: SplitKeyObserver> SplitKeyObserver for Arc<O> {
    fn used(&self, event: &SplitKeyEvent) {
        O::used(self, event);
    }

    fn suspicious(&self, event: &SuspiciousUse) {
        O::suspicious(self, event);
    }
}

/// The default observer: `tracing` events under the target `tower_devicecheck`.
///
/// | level | event |
/// |---|---|
/// | error | a request without a verified device |
/// | warn | a failure of the store; everything suspicious |
/// | info | a request that got its key |
/// | debug | every other refusal, since clients cause those at will |
///
/// Fields: `outcome` or `suspicion`, `project`, `provider`, `split`, `version`, `device` (the digest of the
/// device token), `latency_us` (microseconds), `blocked_s` (seconds), and `error` with its causes.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "users name it beside an observer of their own")]
pub struct TracingSplitKeyObserver;

impl SplitKeyObserver for TracingSplitKeyObserver {
    fn used(&self, event: &SplitKeyEvent) {
        // `tracing` fixes the level at the call site, hence a macro.
        macro_rules! used {
            ($level:expr, $message:literal) => {
                event!(
                    target: TARGET,
                    $level,
                    outcome = event.outcome.as_str(),
                    project = event.project(),
                    provider = event.provider(),
                    split = event.metadata.map(|metadata| tracing::field::display(metadata.split())),
                    version = event.metadata.map(|metadata| metadata.version().number()),
                    device = event.device.map(tracing::field::display),
                    error = event.error().map(|error| tracing::field::display(Chain(error))),
                    latency_us = u64::try_from(event.latency().as_micros()).unwrap_or(u64::MAX),
                    $message
                )
            };
        }
        match event.outcome {
            SplitKeyOutcome::Opened | SplitKeyOutcome::OpenedRetiring => used!(Level::INFO, "key opened"),
            SplitKeyOutcome::StoreFailed => used!(Level::WARN, "key refused: the key store failed"),
            SplitKeyOutcome::Unverified => {
                used!(
                    Level::ERROR,
                    "key refused: no verified device; is `DeviceCheckLayer` outside of `SplitKeyLayer`?"
                );
            }
            _ => used!(Level::DEBUG, "key refused"),
        }
    }

    fn suspicious(&self, event: &SuspiciousUse) {
        event!(
            target: TARGET,
            Level::WARN,
            suspicion = event.kind.as_str(),
            project = event.project(),
            split = %event.split,
            device = event.device.map(tracing::field::display),
            blocked_s = event.blocked_for.map(|time| time.as_secs()),
            "suspicious use of a key"
        );
    }
}
