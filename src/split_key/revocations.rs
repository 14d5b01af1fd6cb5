//! The end of keys that are in use: a response that streams for minutes must not outlive its key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::runtime::{lock, pause, wall_clock};
use crate::split_key::store::ErasedSplitKeyStore;
use crate::split_key::{metadata::Metadata, record::SplitKeyState};

/// The time between two looks at a key in use. With the half second after which a key file is looked at ahead of time,
/// and the time to read it, a revocation is seen within a second.
const INTERVAL: Duration = Duration::from_millis(200);

/// Ends when the key may no longer be used. All uses of one split share one.
pub(super) type Revoked = Shared<BoxFuture<'static, ()>>;

/// The splits that are in use, and their store.
pub(super) struct Revocations {
    store: Arc<dyn ErasedSplitKeyStore>,
    running: Mutex<Running>,
}

/// The end of each split in use, by project and metadata.
type Running = HashMap<(Arc<str>, Metadata), WeakShared<BoxFuture<'static, ()>>>;

impl Revocations {
    pub(super) fn new(store: Arc<dyn ErasedSplitKeyStore>) -> Self {
        Self { store, running: Mutex::default() }
    }

    /// The end of this split.
    pub(super) fn revoked(&self, project: &Arc<str>, metadata: Metadata) -> Revoked {
        let mut running = lock(&self.running);
        let key = (Arc::clone(project), metadata);
        // One that has ended does not count: the store may have the split again.
        let present =
            running.get(&key).and_then(WeakShared::upgrade).filter(|revoked| revoked.peek().is_none());
        if let Some(present) = present {
            return present;
        }
        running.retain(|_, revoked| revoked.upgrade().is_some());
        let revoked = until_revoked(Arc::clone(&self.store), Arc::clone(project), metadata).boxed().shared();
        running.extend(revoked.downgrade().map(|weak| (key, weak)));
        revoked
    }
}

/// One use of a key, which need not hold the key to learn of its end.
pub(super) struct KeyUse {
    pub(super) revocations: Arc<Revocations>,
    pub(super) project: Arc<str>,
    pub(super) metadata: Metadata,
}

impl KeyUse {
    pub(super) fn revoked(&self) -> Revoked {
        self.revocations.revoked(&self.project, self.metadata)
    }
}

async fn until_revoked(store: Arc<dyn ErasedSplitKeyStore>, project: Arc<str>, metadata: Metadata) {
    loop {
        pause(INTERVAL).await;
        // A store that fails revokes nothing.
        let Ok(record) = store.get(&project, metadata.split()).await else { continue };
        let record = record.filter(|record| {
            let expires_at = record.limits().expires_at();
            record.metadata() == metadata && expires_at.is_none_or(|expires_at| wall_clock() < expires_at)
        });
        match record.map(|record| record.state()) {
            Some(SplitKeyState::Active) => {}
            Some(SplitKeyState::Retiring { until }) if wall_clock() < until => {}
            _ => return,
        }
    }
}
