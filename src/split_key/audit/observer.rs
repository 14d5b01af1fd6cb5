//! Who is told about the use of keys.

use std::sync::Arc;

use tracing::{Level, event};

use crate::{
    gate::observer::{Chain, TARGET},
    split_key::{
        audit::event::{SplitKeyEvent, SplitKeyOutcome, SuspiciousUse},
        metadata::Version,
    },
};

/// Is told about every use of a key, and about uses that look suspicious.
///
/// Called on the task that serves the request: it must not block. A request that its client abandons while
/// its key is looked up is not reported, and neither are CORS preflights. [`TracingSplitKeyObserver`] is the
/// default; to keep it beside another one, give the layer both: `with_observer((TracingSplitKeyObserver,
/// usage_log))`.
#[diagnostic::on_unimplemented(note = "implement `used`")]
pub trait SplitKeyObserver: Send + Sync + 'static {
    /// A request was given its key, or was refused it.
    fn used(&self, event: &SplitKeyEvent);

    /// Something about the use of a key is suspicious. Default: nothing.
    fn suspicious(&self, event: &SuspiciousUse) {
        let _ = event;
    }
}

/// Both are told, the left one first.
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
/// | level | what |
/// |---|---|
/// | error | a request without a verified device |
/// | warn | a failure of the store; everything suspicious |
/// | info | a request that was given its key |
/// | debug | every other refusal: the client's doing, and not to fill our logs with |
///
/// Fields: `outcome` or `suspicion`, `project`, `provider`, `split`, `version`, `device` (the digest of the
/// device token), `latency_us` (microseconds), `blocked_s` (seconds), and `error` with its causes.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "users name it beside an observer of their own")]
pub struct TracingSplitKeyObserver;

impl SplitKeyObserver for TracingSplitKeyObserver {
    fn used(&self, event: &SplitKeyEvent) {
        // A level is fixed at its call site, hence a macro.
        macro_rules! used {
            ($level:expr, $message:literal) => {
                event!(
                    target: TARGET,
                    $level,
                    outcome = event.outcome.as_str(),
                    project = event.project(),
                    provider = event.provider(),
                    split = event.split().map(tracing::field::display),
                    version = event.version().map(Version::number),
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
