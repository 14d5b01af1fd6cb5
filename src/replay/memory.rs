//! A guard in the memory of this process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::{fmt, time::Duration};

use sha2::{Digest, Sha256};

use crate::gate::credential::TokenDigest;
use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::replay::guard::{DEFAULT_LEASE, DEFAULT_RETENTION, GuardError, ReplayGuard};
use crate::replay::owner::Owner;
use crate::runtime::{Instant, lock};

/// Remembers tokens in the memory of this process.
///
/// The guard is bounded. When it is full, it forgets no token early, because that token could be replayed. It
/// fails instead, and requests with further tokens are answered with
/// [`Unavailable`](crate::Rejection::Unavailable). Give it room for the genuine tokens of the [retention
/// time](Self::with_retention) and the refused ones of the [lease](Self::with_lease). A token takes about 200
/// bytes.
///
/// # Danger
///
/// The memory goes with the process. After a restart a token can be used again for as long as Apple accepts
/// it.
pub struct MemoryReplayGuard {
    capacity: usize,
    lease: Duration,
    retention: Duration,
    tokens: Mutex<Tokens>,
}

#[derive(Default)]
struct Tokens {
    by_id: HashMap<[u8; 32], KeptToken>,
    // Two queues of the tokens' ends. Each has one duration, so it stays in order. A token that was released
    // or changed leaves a stale line behind.
    reserved: VecDeque<(Instant, [u8; 32])>,
    spent: VecDeque<(Instant, [u8; 32])>,
}

#[derive(Clone, Copy)]
struct KeptToken {
    owner: Owner,
    ends_at: Instant,
    state: TokenState,
}

#[derive(Clone, Copy)]
enum TokenState {
    Reserved,
    Spent {
        /// The idempotency key of the one retry that is let through, and the end of its window.
        retry: Option<(TokenDigest, Instant)>,
    },
}

impl MemoryReplayGuard {
    /// A guard that remembers 1,000,000 tokens.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(1_000_000)
    }

    /// A guard that remembers this many tokens. It takes memory as it needs it.
    #[must_use]
    pub fn with_capacity(tokens: usize) -> Self {
        Self {
            capacity: tokens,
            lease: DEFAULT_LEASE,
            retention: DEFAULT_RETENTION,
            tokens: Mutex::default(),
        }
    }

    /// The time after which a reservation lapses that is neither confirmed nor released. Default: 30 seconds.
    ///
    /// Keep it longer than the deadline for Apple's answer.
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The time for which a spent token is remembered. Default: 1 hour.
    ///
    /// # Danger
    ///
    /// Keep it longer than Apple accepts a token: after it, a captured token can be used again. Apple does
    /// not say how long that is. Developers have seen half a minute.
    #[must_use]
    pub const fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// The number of tokens that are reserved or spent.
    #[must_use]
    pub fn len(&self) -> usize {
        let mut tokens = self.tokens();
        tokens.forget(Instant::now());
        tokens.by_id.len()
    }

    /// Whether no token is reserved or spent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    fn spend(&self, tokens: &mut Tokens, id: [u8; 32], claim: &Claim, now: Instant) {
        let retry = claim.retry_digest().map(|key| (key, later(now, claim.retry_window())));
        let ends_at = later(now, self.retention);
        tokens
            .by_id
            .insert(id, KeptToken { owner: claim.owner(), ends_at, state: TokenState::Spent { retry } });
        tokens.spent.push_back((ends_at, id));
    }
}

/// Adds to an instant, which could overflow. A century is as good as any longer time.
fn later(now: Instant, duration: Duration) -> Instant {
    now + duration.min(Duration::from_secs(100 * 365 * 24 * 60 * 60))
}

impl Tokens {
    /// Removes the tokens that have ended. Each line of the queues is looked at once.
    fn forget(&mut self, now: Instant) {
        for queue in [&mut self.reserved, &mut self.spent] {
            while queue.front().is_some_and(|(ends_at, _)| *ends_at <= now)
                && let Some((_, id)) = queue.pop_front()
            {
                if self.by_id.get(&id).is_some_and(|entry| entry.ends_at <= now) {
                    self.by_id.remove(&id);
                }
            }
        }
    }

    fn release(&mut self, id: &[u8; 32], owner: Owner) {
        if let Some(KeptToken { owner: holder, state: TokenState::Reserved, .. }) = self.by_id.get(id)
            && *holder == owner
        {
            self.by_id.remove(id);
        }
    }
}

/// Identifies a token and scope in 32 bytes. The length keeps scope and digest apart.
fn id(key: &ReplayKey<'_>) -> [u8; 32] {
    let length = key.scope().len() as u64;
    Sha256::new()
        .chain_update(length.to_be_bytes())
        .chain_update(key.scope())
        .chain_update(key.digest().as_bytes())
        .finalize()
        .into()
}

impl ReplayGuard for MemoryReplayGuard {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        let id = id(key);
        let mut tokens = self.tokens();
        let now = Instant::now();
        tokens.forget(now);
        // A released token leaves a line in the queue, which takes room until it is due.
        let full = tokens.by_id.len().max(tokens.reserved.len()) >= self.capacity;
        match tokens.by_id.get_mut(&id) {
            Some(KeptToken { owner, state: TokenState::Spent { retry }, .. }) => {
                let may_repeat = |(key, until): &(TokenDigest, Instant)| {
                    claim.retry_digest() == Some(*key) && now < *until
                };
                if !retry.as_ref().is_some_and(may_repeat) {
                    return Ok(Claimed::Taken);
                }
                *retry = None;
                *owner = claim.owner();
                Ok(Claimed::Yours)
            }
            Some(KeptToken { state: TokenState::Reserved, .. }) => Ok(Claimed::Taken),
            None if full => Err(GuardError::new("the replay guard is full")),
            None => {
                let ends_at = later(now, self.lease);
                let entry = KeptToken { owner: claim.owner(), ends_at, state: TokenState::Reserved };
                tokens.by_id.insert(id, entry);
                tokens.reserved.push_back((ends_at, id));
                Ok(Claimed::Yours)
            }
        }
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        let id = id(key);
        let mut tokens = self.tokens();
        let now = Instant::now();
        tokens.forget(now);
        match tokens.by_id.get(&id) {
            Some(entry) if entry.owner != claim.owner() => Ok(Claimed::Taken),
            // This is the one retry of a spent token, which stays spent.
            Some(KeptToken { state: TokenState::Spent { .. }, .. }) => Ok(Claimed::Yours),
            Some(_) | None => {
                self.spend(&mut tokens, id, claim, now);
                Ok(Claimed::Yours)
            }
        }
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        self.abandon(key, claim);
        Ok(())
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        self.tokens().release(&id(key), claim.owner());
    }
}

impl Default for MemoryReplayGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryReplayGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReplayGuard")
            .field("capacity", &self.capacity)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
