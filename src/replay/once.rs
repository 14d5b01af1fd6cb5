//! The admission of one request for a credential: reserve, check, confirm.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::{credential::TokenDigest, error::VerifyError, rejection::Rejection};
use crate::meter::{RESERVATIONS, label};
use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::replay::guard::{ErasedReplayGuard, GuardError};
use crate::runtime::{Instant, patiently, pause, spawn};

/// The time limit of one step of a guard. A slower step counts as failed, and the request is not admitted.
const GUARD_DEADLINE: Duration = Duration::from_secs(1);

/// Decides about a credential that admits one request only. `check` decides about the credential itself. `is_last` says
/// that nobody else is asked about a credential that `check` refuses.
///
/// If this future is dropped, or if its decision is no verdict, the claim is withdrawn.
pub(crate) async fn admit_once(
    guard: &Arc<dyn ErasedReplayGuard>,
    key: ReplayKey<'_>,
    claim: &Claim,
    is_last: bool,
    check: impl Future<Output = Result<VerifiedDevice, Rejected>>,
) -> Result<VerifiedDevice, Rejected> {
    // `reservation` also withdraws a claim that the guard reserves while this future is dropped.
    let mut reservation = Reservation { guard, key, claim, armed: true };
    let reserved = in_time(|| guard.reserve(&key, claim)).await;
    let result = match &reserved {
        Ok(Claimed::Yours) => "reserved",
        Ok(Claimed::Taken) => "reused",
        Err(_) => "failed",
    };
    RESERVATIONS.add([label("result", result)]);
    match reserved {
        Ok(Claimed::Yours) => {}
        Ok(Claimed::Taken) => {
            reservation.armed = false;
            return Err(Rejection::ReusedToken.into());
        }
        Err(error) => {
            reservation.armed = !error.is_untouched();
            return Err(VerifyError::unavailable(error).into());
        }
    }
    let decision = match check.await {
        Ok(device) => match in_time(|| guard.confirm(&key, claim)).await {
            Ok(Claimed::Yours) => Ok(device),
            Ok(Claimed::Taken) => {
                Err(Rejected::from(Rejection::ReusedToken).with_environment(device.environment()))
            }
            // The token may or may not be spent now, but its request is not admitted.
            Err(error) => {
                let rejected = Rejected::from(VerifyError::unavailable(error));
                return Err(rejected.with_environment(device.environment()));
            }
        },
        // There is no point in asking again about a token that was refused, or whose device was denied: the reservation
        // lapses.
        Err(rejected) if is_last && rejected.rejection() == Rejection::RefusedToken => Err(rejected),
        Err(rejected) if rejected.rejection() == Rejection::Denied => Err(rejected),
        Err(rejected) => {
            reservation.armed = in_time(|| guard.withdraw(&key, claim)).await.is_err();
            return Err(rejected);
        }
    };
    reservation.armed = false;
    decision
}

async fn in_time<'a, T>(ask: impl FnOnce() -> BoxFuture<'a, Result<T, GuardError>>) -> Result<T, GuardError> {
    let answer = AssertUnwindSafe(async { ask().await }).catch_unwind();
    match patiently(GUARD_DEADLINE, answer).await {
        Ok(answer) => answer.unwrap_or_else(|_panic| Err(GuardError::new("the guard panicked"))),
        Err(_elapsed) => Err(GuardError::new("no answer within a second")),
    }
}

/// A claim, withdrawn on drop while it is armed.
struct Reservation<'a> {
    guard: &'a Arc<dyn ErasedReplayGuard>,
    key: ReplayKey<'a>,
    claim: &'a Claim,
    armed: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.armed {
            let (scope, digest) = (self.key.scope().to_owned(), self.key.digest());
            // A panic during unwinding would abort the process.
            let _ = catch_unwind(AssertUnwindSafe(|| self.guard.abandon(&self.key, self.claim)));
            spawn(withdraw(Arc::clone(self.guard), scope, digest, self.claim.clone()));
        }
    }
}

/// Withdraws a claim. Retries until it succeeds or the lease is over.
async fn withdraw(guard: Arc<dyn ErasedReplayGuard>, scope: String, digest: TokenDigest, claim: Claim) {
    let key = ReplayKey::new(&scope, digest);
    let started = Instant::now();
    let mut time = Duration::from_millis(50);
    while in_time(|| guard.withdraw(&key, &claim)).await.is_err() && started.elapsed() < guard.lease() {
        pause(time).await;
        time = (time * 2).min(Duration::from_millis(500));
    }
}
