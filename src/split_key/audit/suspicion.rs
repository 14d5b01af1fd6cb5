//! Detection of suspicious uses.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::runtime::{Instant, later, lock};
use crate::split_key::audit::event::{SplitKeyEvent, SplitKeyOutcome, SuspicionKind, SuspiciousUse};
use crate::split_key::metadata::SplitId;

/// The rules for suspicious uses, and whether a suspicion also blocks the split.
///
/// A window begins with the first use and does not slide, so up to twice the threshold may pass unnoticed around its
/// end. Each process counts separately.
#[derive(Clone, Debug)]
#[must_use]
pub struct Suspicion {
    window: Duration,
    devices: usize,
    refusals: u32,
    block: Option<Duration>,
}

impl Suspicion {
    /// Makes the default rules: windows of 10 minutes, thresholds of 1,000 device tokens and 100 refusals, no blocking.
    pub const fn new() -> Self {
        Self { window: Duration::from_secs(10 * 60), devices: 1_000, refusals: 100, block: None }
    }

    /// Sets the length of a window. Default: 10 minutes.
    pub const fn with_window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets the most device tokens with which one client part may be used within a window. Default: 1,000.
    ///
    /// A device token does not identify a device: a device gets a new token each time that its app asks for one. If
    /// every copy of an app has the same client part, the client part is used with at least as many tokens as the app
    /// has active devices. Set the threshold to the usual number for your app. Each process remembers 8 bytes of each
    /// token, for up to 20,000 splits.
    pub const fn with_max_devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the most refusals of one split within a window. They count if the client part is unknown or wrong, the key
    /// is retired or revoked, or a limit is not met. Default: 100.
    pub const fn with_max_refusals(mut self, refusals: u32) -> Self {
        self.refusals = refusals;
        self
    }

    /// Blocks a split for this time after a threshold was exceeded: the layer answers every use of the split with
    /// [`Blocked`](crate::split_key::SplitKeyRejection::Blocked). Then the block ends, and counting starts again.
    /// Default: no blocking.
    ///
    /// # Danger
    ///
    /// Split ids are not secret from the users of an app. Anyone who can send requests from a genuine device can get a
    /// split blocked, for all of its users.
    pub const fn with_blocking(mut self, duration: Duration) -> Self {
        self.block = Some(duration);
        self
    }
}

impl Default for Suspicion {
    fn default() -> Self {
        Self::new()
    }
}

/// The most splits of the store that are watched at the same time, and also the most other splits.
const MAX_SPLITS: usize = 10_000;

/// Counts uses by the rules of a [`Suspicion`].
pub(crate) struct Watch {
    rules: Suspicion,
    watched: Mutex<Watched>,
}

/// The watched splits. Splits that clients made up are kept separately, so that a flood of them displaces no split of
/// the store.
#[derive(Default)]
struct Watched {
    known: WatchedSplits,
    unknown: WatchedSplits,
}

#[derive(Default)]
struct WatchedSplits {
    by_key: HashMap<(Arc<str>, SplitId), WatchedSplit>,
    /// The time of the last search for ended windows. A search scans all windows.
    searched: Option<Instant>,
}

/// The shortest time between two such searches, so that a flood of made-up splits does not cost a search for each use.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// The uses of one split within one window.
struct WatchedSplit {
    began: Instant,
    /// The first 8 bytes of the digests of device tokens: SHA-256 is uniform, so they suffice.
    devices: HashSet<[u8; 8]>,
    refusals: u32,
    /// The provider of the key, for a split of the store.
    provider: Option<Arc<str>>,
    reported: Vec<SuspicionKind>,
    blocked: bool,
    ends: Instant,
}

/// A split that is blocked.
pub(crate) struct BlockedSplit {
    /// The time until the block ends, in whole seconds.
    pub(crate) left: Duration,
    pub(crate) provider: Option<Arc<str>>,
}

impl Watch {
    pub(crate) fn new(rules: Suspicion) -> Self {
        Self { rules, watched: Mutex::default() }
    }

    pub(crate) const fn rules(&self) -> &Suspicion {
        &self.rules
    }

    /// Whether a split is still blocked.
    pub(crate) fn blocked(&self, project: &Arc<str>, split: SplitId, now: Instant) -> Option<BlockedSplit> {
        self.rules.block?;
        let key = (Arc::clone(project), split);
        let watched = lock(&self.watched);
        [&watched.known, &watched.unknown].into_iter().find_map(|splits| {
            let split = splits.by_key.get(&key).filter(|split| split.blocked)?;
            let left = split.ends.checked_duration_since(now)?;
            let seconds = u64::try_from(left.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
            let left = Duration::from_secs(seconds);
            (!left.is_zero()).then(|| BlockedSplit { left, provider: split.provider.clone() })
        })
    }

    /// Counts a use, and returns the suspicions about it.
    pub(crate) fn note(&self, event: &SplitKeyEvent) -> Vec<SuspiciousUse> {
        let (Some(project), Some(metadata)) = (&event.project, event.metadata) else {
            return Vec::new();
        };
        let split = metadata.split();
        let refused = match event.outcome {
            SplitKeyOutcome::Opened | SplitKeyOutcome::OpenedRetiring => false,
            SplitKeyOutcome::Unknown
            | SplitKeyOutcome::Mismatch
            | SplitKeyOutcome::Retired
            | SplitKeyOutcome::Revoked
            | SplitKeyOutcome::LimitNotMet(_) => true,
            // The other outcomes are caused by the server, or say nothing about a split.
            _ => return Vec::new(),
        };
        let now = event.started.monotonic;
        let mut watched = lock(&self.watched);
        let splits = if event.provider.is_some() { &mut watched.known } else { &mut watched.unknown };
        let key = (Arc::clone(project), split);
        let Some(watched) = splits.current(key, now, self.rules.window) else {
            return Vec::new();
        };

        let report = |kind| {
            let blocks = matches!(kind, SuspicionKind::ManyDevices | SuspicionKind::ManyRefusals);
            SuspiciousUse {
                kind,
                project: Arc::clone(project),
                split,
                device: event.device,
                blocked_for: self.rules.block.filter(|_| blocks),
            }
        };
        let reports: Vec<_> = watched.count(event, refused, &self.rules).into_iter().map(report).collect();
        let block = reports.iter().find_map(SuspiciousUse::blocked_for);
        if let Some(time) = block {
            watched.blocked = true;
            watched.ends = later(now, time);
        }
        reports
    }
}

impl WatchedSplits {
    /// Returns the window of `now`, perhaps a new one. Returns `None` if too many other splits are watched.
    fn current(
        &mut self,
        key: (Arc<str>, SplitId),
        now: Instant,
        window: Duration,
    ) -> Option<&mut WatchedSplit> {
        if self.by_key.len() >= MAX_SPLITS && !self.by_key.contains_key(&key) {
            if self.searched.is_some_and(|searched| now < later(searched, SEARCH_INTERVAL)) {
                return None;
            }
            self.searched = Some(now);
            self.by_key.retain(|_, split| now < split.ends);
            if self.by_key.len() >= MAX_SPLITS {
                return None;
            }
        }
        let new = || WatchedSplit {
            began: now,
            devices: HashSet::new(),
            refusals: 0,
            provider: None,
            reported: Vec::new(),
            blocked: false,
            ends: later(now, window),
        };
        let split = self.by_key.entry(key).or_insert_with(new);
        if now >= split.ends && now > split.began {
            *split = new();
        }
        Some(split)
    }
}

impl WatchedSplit {
    /// Counts one use, and returns the suspicions that were not yet reported in this window.
    fn count(&mut self, event: &SplitKeyEvent, refused: bool, rules: &Suspicion) -> Vec<SuspicionKind> {
        self.provider.clone_from(&event.provider);
        let mut kinds = Vec::new();
        match event.outcome {
            SplitKeyOutcome::Retired => kinds.push(SuspicionKind::RetiredPart),
            SplitKeyOutcome::Revoked => kinds.push(SuspicionKind::RevokedPart),
            _ => {}
        }
        if refused {
            self.refusals = self.refusals.saturating_add(1);
            if self.refusals > rules.refusals {
                kinds.push(SuspicionKind::ManyRefusals);
            }
        } else if let Some(device) = event.device
            && self.devices.len() <= rules.devices
        {
            let [a, b, c, d, e, f, g, h, ..] = *device.as_bytes();
            self.devices.insert([a, b, c, d, e, f, g, h]);
            if self.devices.len() > rules.devices {
                kinds.push(SuspicionKind::ManyDevices);
            }
        }
        kinds.retain(|kind| !self.reported.contains(kind));
        self.reported.extend(&kinds);
        kinds
    }
}
