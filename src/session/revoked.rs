//! The revocations that this process knows.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        RwLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use crate::runtime::{SystemTime, read, since_epoch, write};
use crate::session::claims::{Claims, NO_SUBJECT};

/// A replica's clock may be ahead of this one's by so many seconds.
pub(super) const CLOCK_SKEW: u32 = 60;

/// The revocations that this process knows.
#[derive(Default)]
pub(super) struct Revoked {
    /// No session counts that was issued earlier. Unix seconds.
    issued_before: AtomicU32,
    /// The ids and subjects that do not count, and until when, in Unix seconds.
    denied: RwLock<HashMap<[u8; 16], u32>>,
    /// The size of `denied`.
    count: AtomicUsize,
}

/// One or more revocations.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) issued_before: u32,
    pub(super) denied: Vec<([u8; 16], u32)>,
}

/// The set of denied sessions and subjects is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full;

impl Revoked {
    /// The most entries of `denied`.
    pub(super) const CAPACITY: usize = 100_000;

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether a session does not count, apart from its subject. `now` is in Unix seconds.
    pub(super) fn is_revoked(&self, claims: &Claims, now: u32) -> bool {
        claims.issued < self.issued_before() || self.is_denied(claims.id.as_bytes(), now)
    }

    pub(super) fn is_subject_denied(&self, subject: &[u8; 16], now: u32) -> bool {
        *subject != NO_SUBJECT && self.is_denied(subject, now)
    }

    pub(super) fn issued_before(&self) -> u32 {
        self.issued_before.load(Ordering::Relaxed)
    }

    fn is_denied(&self, id: &[u8; 16], now: u32) -> bool {
        self.count.load(Ordering::Acquire) > 0 && read(&self.denied).get(id).is_some_and(|until| *until > now)
    }

    /// Adds revocations. Of two times for one id, the later one counts.
    pub(super) fn merge(&self, change: &Change, now: u32) -> Result<(), Full> {
        self.issued_before.fetch_max(change.issued_before, Ordering::Relaxed);
        let mut denied = write(&self.denied);
        if denied.len() + change.denied.len() > Self::CAPACITY {
            denied.retain(|_, until| *until > now);
        }
        let mut full = false;
        for (id, until) in change.denied.iter().filter(|(_, until)| *until > now) {
            let is_full = denied.len() >= Self::CAPACITY;
            match denied.entry(*id) {
                Entry::Occupied(mut known) => *known.get_mut() = (*known.get()).max(*until),
                Entry::Vacant(_) if is_full => full = true,
                Entry::Vacant(free) => {
                    free.insert(*until);
                }
            }
        }
        self.count.store(denied.len(), Ordering::Release);
        if full { Err(Full) } else { Ok(()) }
    }

    /// Forgets what is over.
    #[cfg(feature = "redis")]
    pub(super) fn clean(&self, now: u32) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut denied = write(&self.denied);
            denied.retain(|_, until| *until > now);
            self.count.store(denied.len(), Ordering::Release);
        }
    }

    /// The revocations that this process knows and the other side does not.
    #[cfg(feature = "redis")]
    pub(super) fn beyond(&self, known: &Change, now: u32) -> Option<Change> {
        let theirs: HashMap<_, _> = known.denied.iter().copied().collect();
        let is_news = |(id, until): &(&[u8; 16], &u32)| {
            **until > now && theirs.get(*id).is_none_or(|theirs| theirs < until)
        };
        let ours = read(&self.denied);
        let denied: Vec<_> = ours.iter().filter(is_news).map(|(id, until)| (*id, *until)).collect();
        let issued_before = self.issued_before();
        let has_news = issued_before > known.issued_before || !denied.is_empty();
        has_news.then_some(Change { issued_before, denied })
    }
}

pub(super) fn unix_seconds(time: SystemTime) -> u32 {
    capped(since_epoch(time).as_secs())
}

pub(super) fn capped(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
