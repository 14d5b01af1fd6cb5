//! A guard in the memory of this process.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::gate::credential::TokenDigest;
use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::replay::guard::{DEFAULT_LEASE, DEFAULT_RETENTION, GuardError, ReplayGuard};
use crate::replay::owner::Owner;
use crate::runtime::{Instant, later, lock};

/// Remembers tokens in the memory of this process.
///
/// The guard is bounded. When it is full, it forgets no token early, because that token could be replayed. It
/// fails instead, and requests with further tokens are answered with
/// [`Unavailable`](crate::Rejection::Unavailable). Give it room for the genuine tokens of the [retention
/// time](Self::with_retention) and the refused ones of the [lease](Self::with_lease). A token takes about 300
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
    by_id: HashMap<TokenId, KeptToken>,
    /// The ends of all tokens, the first one first.
    ends: BTreeSet<(Instant, TokenId)>,
}

type TokenId = [u8; 32];

#[derive(Clone, Copy)]
struct KeptToken {
    /// The holder: `None` after the holder has withdrawn from the one retry.
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
        let now = Instant::now();
        // Requests may have the lock in between.
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
    /// The most tokens that one call forgets. More may have ended, and are looked over until their turn comes.
    const FORGOTTEN_AT_ONCE: usize = 16;

    /// Removes tokens that have ended. Returns whether more may be left.
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

/// Identifies a token and scope in 32 bytes. The length keeps scope and digest apart.
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
            // This is the one retry of a spent token, which stays spent.
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
