//! Uses of keys that look suspicious.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    runtime::{Instant, lock},
    split_key::{
        audit::event::{SplitKeyEvent, SplitKeyOutcome, SuspicionKind, SuspiciousUse},
        metadata::SplitId,
    },
};

/// What counts as suspicious, and whether it leads to more than an event.
///
/// Windows begin with the first use and do not slide, so that up to twice the threshold may pass unnoticed
/// around the end of one. Each process counts for itself.
#[derive(Clone, Debug)]
#[must_use]
pub struct Suspicion {
    window: Duration,
    devices: usize,
    refusals: u32,
    block: Option<Duration>,
}

impl Suspicion {
    /// Windows of 10 minutes; more than 1,000 devices, or more than 100 refusals; nothing is blocked.
    pub const fn new() -> Self {
        Self { window: Duration::from_secs(10 * 60), devices: 1_000, refusals: 100, block: None }
    }

    /// The time within which uses are counted. Default: 10 minutes.
    pub const fn with_window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// With how many device tokens one client part may be used within a window. Default: 1,000.
    ///
    /// Apple does not tell devices apart: a device has another token each time that its app asks for one. A
    /// client part that is the same in every copy of an app is used with as many tokens as the app has active
    /// devices, or more. Set the threshold to what is usual for yours. Each process remembers 8 bytes of
    /// each, for as many splits as are in use.
    pub const fn with_max_devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// How often a split may be refused within a window: for an unknown or a wrong client part, a retired or
    /// revoked key, or a limit. Default: 100.
    pub const fn with_max_refusals(mut self, refusals: u32) -> Self {
        self.refusals = refusals;
        self
    }

    /// Answers every use of a split with [`Blocked`](crate::split_key::SplitKeyRejection::Blocked) for this long
    /// after a threshold was passed. Then it is released, and counting begins anew. Default: nothing is
    /// blocked.
    ///
    /// Split ids are no secret to those who have the app. Whoever can send requests from a genuine device
    /// can have a split blocked, for all who use it.
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

/// How many splits are watched at the same time: those that are in the store, and as many others.
const MAX_SPLITS: usize = 10_000;

/// Counts uses.
pub(crate) struct Watch {
    rules: Suspicion,
    sightings: Mutex<Sightings>,
}

/// Those that the store has, and those that clients made up: a flood of the latter must not displace the
/// former.
#[derive(Default)]
struct Sightings {
    known: Splits,
    unknown: Splits,
}

#[derive(Default)]
struct Splits(HashMap<Arc<str>, HashMap<SplitId, Sighting>>);

/// A split is blocked.
pub(crate) struct Block {
    /// For how long, in whole seconds.
    pub(crate) left: Duration,
    pub(crate) provider: Option<Arc<str>>,
}

/// What was seen of one split within one window.
struct Sighting {
    began: Instant,
    /// The first 8 bytes of the digests of device tokens, which are as good as random.
    devices: HashSet<[u8; 8]>,
    refusals: u32,
    /// The provider of the key, for a split that the store has.
    provider: Option<Arc<str>>,
    /// What was reported already.
    reported: Vec<SuspicionKind>,
    blocked: bool,
    ends: Instant,
}

impl Watch {
    pub(crate) fn new(rules: Suspicion) -> Self {
        Self { rules, sightings: Mutex::default() }
    }

    pub(crate) const fn rules(&self) -> &Suspicion {
        &self.rules
    }

    /// Whether a split is still blocked.
    pub(crate) fn blocked(&self, project: &str, split: SplitId, now: Instant) -> Option<Block> {
        self.rules.block?;
        let sightings = lock(&self.sightings);
        let block = |splits: &Splits| {
            let sighting = splits.0.get(project)?.get(&split)?;
            let left = sighting.ends.checked_duration_since(now)?;
            let seconds = u64::try_from(left.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
            (sighting.blocked && seconds > 0)
                .then(|| Block { left: Duration::from_secs(seconds), provider: sighting.provider.clone() })
        };
        block(&sightings.known).or_else(|| block(&sightings.unknown))
    }

    /// Counts a use, and says what is suspicious about it.
    pub(crate) fn note(&self, event: &SplitKeyEvent) -> Vec<SuspiciousUse> {
        let (Some(project), Some(split)) = (&event.project, event.split()) else {
            return Vec::new();
        };
        let known = event.provider.is_some();
        let refused = match event.outcome {
            SplitKeyOutcome::Opened | SplitKeyOutcome::OpenedRetiring => false,
            SplitKeyOutcome::Unknown
            | SplitKeyOutcome::Mismatch
            | SplitKeyOutcome::Retired
            | SplitKeyOutcome::Revoked
            | SplitKeyOutcome::LimitNotMet(_) => true,
            // The server's own doing, or what says nothing about a split.
            _ => return Vec::new(),
        };
        let now = event.started.monotonic;
        let mut sightings = lock(&self.sightings);
        let splits = if known { &mut sightings.known } else { &mut sightings.unknown };
        let Some(sighting) = splits.sighting(project, split, now, self.rules.window) else {
            return Vec::new();
        };

        sighting.provider.clone_from(&event.provider);
        let mut kinds = Vec::new();
        match event.outcome {
            SplitKeyOutcome::Retired => kinds.push(SuspicionKind::RetiredPart),
            SplitKeyOutcome::Revoked => kinds.push(SuspicionKind::RevokedPart),
            _ => {}
        }
        if refused {
            sighting.refusals = sighting.refusals.saturating_add(1);
            if sighting.refusals > self.rules.refusals {
                kinds.push(SuspicionKind::ManyRefusals);
            }
        } else if let Some(device) = event.device
            && sighting.devices.len() <= self.rules.devices
        {
            let [a, b, c, d, e, f, g, h, ..] = *device.as_bytes();
            sighting.devices.insert([a, b, c, d, e, f, g, h]);
            if sighting.devices.len() > self.rules.devices {
                kinds.push(SuspicionKind::ManyDevices);
            }
        }
        kinds.retain(|kind| !sighting.reported.contains(kind));
        sighting.reported.extend(&kinds);
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
        let reports: Vec<_> = kinds.into_iter().map(report).collect();
        let block = reports.iter().find_map(SuspiciousUse::blocked_for);
        // A time beyond what the clock can express is no block at all.
        if let Some(ends) = block.and_then(|time| now.checked_add(time)) {
            sighting.blocked = true;
            sighting.ends = ends;
        }
        reports
    }
}

impl Splits {
    /// The sighting in whose window `now` is. `None` if too many others are watched.
    fn sighting(
        &mut self,
        project: &Arc<str>,
        split: SplitId,
        now: Instant,
        window: Duration,
    ) -> Option<&mut Sighting> {
        let present = self.0.get(project).is_some_and(|splits| splits.contains_key(&split));
        if !present && self.len() >= MAX_SPLITS {
            self.0.retain(|_, splits| {
                splits.retain(|_, sighting| now < sighting.ends);
                !splits.is_empty()
            });
            if self.len() >= MAX_SPLITS {
                return None;
            }
        }
        let new = || Sighting {
            began: now,
            devices: HashSet::new(),
            refusals: 0,
            provider: None,
            reported: Vec::new(),
            blocked: false,
            ends: now.checked_add(window).unwrap_or(now),
        };
        let splits = self.0.entry(Arc::clone(project)).or_default();
        let sighting = splits.entry(split).or_insert_with(new);
        if now >= sighting.ends && now > sighting.began {
            *sighting = new();
        }
        Some(sighting)
    }

    fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.fmt(f)
    }
}
