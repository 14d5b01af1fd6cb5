//! The evidence of this proof.

use crate::gate::evidence::Evidence;
use crate::session::claims::BoughtWith;

/// The proof's name, in `WWW-Authenticate` and in evidence.
pub(super) const SCHEME: &str = "DeviceSession";

/// The evidence of a session: what it was bought with, and whether it is over.
pub(super) const fn evidence(bought_with: BoughtWith, is_degraded: bool) -> Evidence {
    let basis = match (bought_with, is_degraded) {
        (BoughtWith::DeviceCheck, false) => "session-device-check",
        (BoughtWith::AppAttest, false) => "session-app-attest",
        (BoughtWith::DebugToken, false) => "session-debug-token",
        (BoughtWith::PlayIntegrity, false) => "session-play-integrity",
        (BoughtWith::DeviceCheck, true) => "degraded-session-device-check",
        (BoughtWith::AppAttest, true) => "degraded-session-app-attest",
        (BoughtWith::DebugToken, true) => "degraded-session-debug-token",
        (BoughtWith::PlayIntegrity, true) => "degraded-session-play-integrity",
    };
    match bought_with {
        BoughtWith::DebugToken => Evidence::remembered_stand_in(SCHEME, basis),
        _ => Evidence::remembered(SCHEME, basis),
    }
}

/// The way in which this evidence buys a session: it is fresh, or a debug token. A session is neither, so it never buys
/// a session.
pub(super) fn purchase(evidence: &Evidence) -> Option<BoughtWith> {
    match evidence.proof() {
        "DeviceCheck" if evidence.is_fresh() => Some(BoughtWith::DeviceCheck),
        "DeviceCheck" if evidence.is_stand_in() => Some(BoughtWith::DebugToken),
        "AppAttest" if evidence.is_fresh() => Some(BoughtWith::AppAttest),
        "PlayIntegrity" if evidence.is_fresh() => Some(BoughtWith::PlayIntegrity),
        _ => None,
    }
}
