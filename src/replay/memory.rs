//! A guard in the memory of this process.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::gate::credential::TokenDigest;
use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::replay::guard::{DEFAULT_LEASE, DEFAULT_RETENTION, GuardError, ReplayGuard};
use crate::replay::owner::Owner;
use crate::runtime::{Instant, later, lock};
use crate::sync::{Mutex, MutexGuard};

/// A guard in the memory of this process.
///
/// The guard is bounded. A full guard does not forget a token early, because that token could then be replayed. Instead
/// it fails, and the layer rejects requests with further tokens as [`Unavailable`](crate::Rejection::Unavailable).
/// Choose a capacity for all genuine tokens within the [retention time](Self::with_retention) and all refused tokens
/// within the [lease](Self::with_lease). A token takes about 300 bytes.
///
/// # Danger
///
/// The guard's memory is lost when the process ends. After a restart, a token can be used again for as long as Apple
/// accepts it.
pub struct MemoryReplayGuard {
    capacity: usize,
    lease: Duration,
    retention: Duration,
    tokens: Mutex<Tokens>,
}

#[derive(Default)]
struct Tokens {
    by_id: HashMap<TokenId, KeptToken>,
    /// The end times of all tokens, the earliest first.
    ends: BTreeSet<(Instant, TokenId)>,
}

type TokenId = [u8; 32];

#[derive(Clone, Copy)]
struct KeptToken {
    /// The holder. `None` after the holder has withdrawn from the one retry.
    owner: Option<Owner>,
    ends_at: Instant,
    state: TokenState,
}

#[derive(Clone, Copy)]
enum TokenState {
    Reserved,
    Spent {
        /// The idempotency key of the one retry that is let through, and the end of its window.
        retry: Option<(TokenDigest, Instant)>,
        /// Whether the owner is that retry.
        is_retried: bool,
    },
}

impl MemoryReplayGuard {
    /// Makes a guard that remembers up to 1,000,000 tokens.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(1_000_000)
    }

    /// Makes a guard that remembers up to this many tokens. It allocates memory as needed.
    #[must_use]
    pub fn with_capacity(tokens: usize) -> Self {
        Self {
            capacity: tokens,
            lease: DEFAULT_LEASE,
            retention: DEFAULT_RETENTION,
            tokens: Mutex::default(),
        }
    }

    /// Sets the time after which a reservation lapses if it is neither confirmed nor released. Default: 30 seconds.
    ///
    /// It must be longer than the deadline for Apple's answer.
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the time for which the guard remembers a spent token. Default: 1 hour.
    ///
    /// # Danger
    ///
    /// After this time, a captured token can be used again if Apple still accepts it. Apple does not document for how
    /// long it accepts a token. Developers have seen half a minute.
    #[must_use]
    pub const fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// The number of tokens that are reserved or spent.
    #[must_use]
    pub fn len(&self) -> usize {
        let now = Instant::now();
        // Other requests may take the lock in between.
        while self.tokens().forget(now) {}
        self.tokens().by_id.len()
    }

    /// Whether no token is reserved or spent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }
}

impl Tokens {
    /// The most expired tokens that one call removes. Later calls remove the rest; until then, lookups ignore them.
    const FORGOTTEN_AT_ONCE: usize = 16;

    /// Removes expired tokens. Returns whether more may be left.
    fn forget(&mut self, now: Instant) -> bool {
        for _ in 0..Self::FORGOTTEN_AT_ONCE {
            match self.ends.first() {
                Some((ends_at, id)) if *ends_at <= now => {
                    let id = *id;
                    self.remove(&id);
                }
                _ => return false,
            }
        }
        true
    }

    fn get(&mut self, id: &TokenId, now: Instant) -> Option<&mut KeptToken> {
        self.by_id.get_mut(id).filter(|token| token.ends_at > now)
    }

    fn keep(&mut self, id: TokenId, token: KeptToken) {
        self.remove(&id);
        self.by_id.insert(id, token);
        self.ends.insert((token.ends_at, id));
    }

    fn remove(&mut self, id: &TokenId) {
        if let Some(token) = self.by_id.remove(id) {
            self.ends.remove(&(token.ends_at, *id));
        }
    }
}

/// Computes an id of 32 bytes for a scope and a token. Hashing the length of the scope keeps scope and digest apart.
fn id(key: &ReplayKey<'_>) -> TokenId {
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
        let full = tokens.by_id.len() >= self.capacity && !tokens.by_id.contains_key(&id);
        let owner = Some(claim.owner());
        let Some(token) = tokens.get(&id, now) else {
            if full {
                return Err(GuardError::new("the replay guard is full"));
            }
            let ends_at = later(now, self.lease);
            tokens.keep(id, KeptToken { owner, ends_at, state: TokenState::Reserved });
            return Ok(Claimed::Yours);
        };
        match &mut token.state {
            TokenState::Reserved | TokenState::Spent { is_retried: true, .. } if token.owner == owner => {
                Ok(Claimed::Yours)
            }
            TokenState::Spent { retry: Some((key, until)), is_retried: is_retried @ false }
                if claim.retry_digest() == Some(*key) && now < *until =>
            {
                *is_retried = true;
                token.owner = owner;
                Ok(Claimed::Yours)
            }
            _ => Ok(Claimed::Taken),
        }
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        let id = id(key);
        let mut tokens = self.tokens();
        let now = Instant::now();
        tokens.forget(now);
        let owner = Some(claim.owner());
        match tokens.get(&id, now) {
            Some(token) if token.owner != owner => return Ok(Claimed::Taken),
            // This is the one retry of a spent token. The token stays spent.
            Some(KeptToken { state: TokenState::Spent { .. }, .. }) => return Ok(Claimed::Yours),
            Some(_) | None => {}
        }
        let retry = claim.retry_digest().map(|key| (key, later(now, claim.retry_window())));
        let state = TokenState::Spent { retry, is_retried: false };
        tokens.keep(id, KeptToken { owner, ends_at: later(now, self.retention), state });
        Ok(Claimed::Yours)
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        let id = id(key);
        let mut tokens = self.tokens();
        if let Some(KeptToken { owner, state: TokenState::Reserved, .. }) = tokens.by_id.get(&id)
            && *owner == Some(claim.owner())
        {
            tokens.remove(&id);
        }
        Ok(())
    }

    async fn withdraw(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        self.abandon(key, claim);
        Ok(())
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        let id = id(key);
        let mut tokens = self.tokens();
        match tokens.by_id.get_mut(&id).filter(|token| token.owner == Some(claim.owner())) {
            Some(KeptToken {
                owner, state: TokenState::Spent { is_retried: is_retried @ true, .. }, ..
            }) => {
                (*owner, *is_retried) = (None, false);
            }
            Some(_) => tokens.remove(&id),
            None => {}
        }
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
