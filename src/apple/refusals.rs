//! The back-off while Apple refuses our credentials.

use std::{sync::Mutex, time::Duration};

use crate::apple::{per_environment::PerEnvironment, wire::Answer};
use crate::gate::routing::Environment;
use crate::runtime::{Instant, lock};

/// The refusals in force, one for each environment: Apple's two servers may judge differently.
#[derive(Default)]
pub(super) struct Refusals(PerEnvironment<Mutex<Option<Refusal>>>);

struct Refusal {
    answer: Answer,
    delay: Duration,
    /// The time from which one more request may ask. `None` after the first refusal, because it may be transient.
    next: Option<Instant>,
}

impl Refusals {
    const FIRST_DELAY: Duration = Duration::from_secs(1);
    const LONGEST_DELAY: Duration = Duration::from_secs(30);

    /// Returns Apple's last answer while the back-off lasts.
    pub(super) fn in_force(&self, environment: Environment, now: Instant) -> Option<Answer> {
        let place = lock(self.0.of(environment));
        let refusal = place.as_ref()?;
        (now < refusal.next?).then(|| refusal.answer.clone())
    }

    /// The same for a call that would be sent at once. Lets one through from time to time, and doubles the delay each
    /// time.
    pub(super) fn hold(&self, environment: Environment, now: Instant) -> Option<Answer> {
        let mut place = lock(self.0.of(environment));
        let refusal = place.as_mut()?;
        if now < refusal.next? {
            return Some(refusal.answer.clone());
        }
        refusal.delay = (refusal.delay * 2).min(Self::LONGEST_DELAY);
        refusal.next = Some(now + refusal.delay);
        None
    }

    /// Records that Apple refused a request, and its renewed provider token too. The second such refusal in a row with
    /// the same status begins the back-off.
    pub(super) fn refused(&self, environment: Environment, answer: &Answer, now: Instant) {
        let mut place = lock(self.0.of(environment));
        let answer = answer.clone();
        match &mut *place {
            Some(refusal) if refusal.answer.status == answer.status => {
                refusal.next.get_or_insert(now + refusal.delay);
                refusal.answer = answer;
            }
            _ => *place = Some(Refusal { answer, delay: Self::FIRST_DELAY, next: None }),
        }
    }

    pub(super) fn accepted(&self, environment: Environment) {
        *lock(self.0.of(environment)) = None;
    }

    /// Ends the back-off, because the credentials have changed.
    pub(super) fn forget(&self) {
        self.accepted(Environment::Production);
        self.accepted(Environment::Development);
    }
}
