//! The times of refreshes, as pure decisions.

use std::time::Duration;

use crate::app_attest::receipt::Receipt;
use crate::app_attest::refresh::event::RefreshFailureKind;
use crate::app_attest::refresh::stored::{DAY, StoredReceipt, expiry, random};
use crate::runtime::SystemTime;

const HOUR: Duration = Duration::from_secs(60 * 60);
/// The first back-off doubles this often at most.
const MOST_DOUBLINGS: u32 = 4;

/// Plans what is stored after a newer receipt came. Its refresh is due at a random time from its not-before time on, at most
/// `longest_wait` later. The last tenth of the time until its expiry is left for further attempts.
pub(super) fn renewed(
    old: StoredReceipt,
    receipt: &Receipt,
    now: SystemTime,
    longest_wait: Duration,
) -> StoredReceipt {
    let expiry = expiry(receipt);
    let from = receipt.not_before().map_or(now, |not_before| not_before.max(now));
    let rest = expiry.duration_since(from).unwrap_or_default();
    StoredReceipt {
        receipt: receipt.as_bytes().to_vec(),
        not_before: receipt.not_before(),
        expiry,
        risk_metric: receipt.risk_metric().or(old.risk_metric),
        fetched_at: now,
        failures: 0,
        next_attempt: Some(from + random((rest - rest / 10).min(longest_wait))),
        ..old
    }
}

/// Plans what is stored after a failure. `retry_after` is the time that Apple names.
pub(super) fn failed(
    old: StoredReceipt,
    kind: RefreshFailureKind,
    retry_after: Option<Duration>,
    now: SystemTime,
) -> StoredReceipt {
    use RefreshFailureKind as Kind;

    let is_outage = matches!(kind, Kind::Throttled | Kind::Unavailable);
    let next_attempt = match kind {
        Kind::Rejected | Kind::Expired => None,
        Kind::NotYet => {
            let tomorrow = now + DAY;
            Some(old.not_before.map_or(tomorrow, |not_before| not_before.max(tomorrow)) + random(DAY))
        }
        Kind::NoData => Some(now + 3 * DAY + random(2 * DAY)),
        Kind::Unverified => Some(now + DAY + random(DAY)),
        Kind::Misconfigured | Kind::Store => Some(now + HOUR + random(HOUR)),
        Kind::Throttled | Kind::Unavailable => {
            let back_off = HOUR * (1 << old.failures.min(MOST_DOUBLINGS));
            let named = retry_after.unwrap_or_default().min(DAY);
            Some(now + back_off.max(named) + random(back_off))
        }
    };
    let failures = if is_outage { old.failures.saturating_add(1) } else { 0 };
    StoredReceipt { failures, next_attempt, ..old }
}
