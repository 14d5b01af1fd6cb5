//! Splitting, opening and managing keys.

use std::{sync::Arc, time::Duration};

use crate::runtime::SystemTime;
use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::metadata::{Metadata, SplitId, Version};
use crate::split_key::random::{OsRandom, Random};
use crate::split_key::record::{SplitKeyRecord, SplitKeyState, project_id};
use crate::split_key::{
    api_key::ApiKey, cut, limits::Limits, parts::ClientPart, sealed, store::SplitKeyStore,
};
use crate::split_key::{key_format::check_key, provider::Providers};

/// The number of attempts of an operation while others change the same record.
const ATTEMPTS: usize = 8;

/// Splits API keys, and manages split keys in a store.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use tower_devicecheck::split_key::{Limits, MemorySplitKeyStore, SplitKeyError, Splitter, revoke};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), SplitKeyError> {
/// let store = MemorySplitKeyStore::new();
/// let splitter = Splitter::new();
/// let key = "sk-proj-not-a-real-key";
/// let first = splitter.issue(&store, "my-app", "openai", key, Limits::none()).await?;
/// println!("{}", first.client_part().expose()); // into the app
///
/// // Both work for two weeks.
/// let overlap = Duration::from_secs(14 * 24 * 60 * 60);
/// let second = splitter.rotate(&store, "my-app", first.record().split(), key, overlap).await?;
/// revoke(&store, "my-app", first.record().split()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Splitter {
    providers: Providers,
    version: Version,
}

/// The two parts of a key that was just split.
#[derive(Clone, Debug)]
pub struct Split {
    record: SplitKeyRecord,
    client_part: ClientPart,
}

impl Split {
    /// The record for the server.
    #[must_use]
    pub const fn record(&self) -> &SplitKeyRecord {
        &self.record
    }

    /// The client part. This is its only copy: neither the record nor the store can restore it.
    #[must_use]
    pub const fn client_part(&self) -> &ClientPart {
        &self.client_part
    }
}

impl Splitter {
    /// Makes a splitter of version 2 for keys of the default [`Providers`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the providers. Default: [`Providers::default`].
    pub fn with_providers(mut self, providers: Providers) -> Self {
        self.providers = providers;
        self
    }

    /// Sets the version of new splits. Default: [`Version::Sealed`].
    ///
    /// # Danger
    ///
    /// With [`Version::Cut`], each part reveals its characters of the key.
    pub const fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Splits a key without storing the record. The record has no limits.
    ///
    /// # Errors
    ///
    /// Returns an error if the project id, the provider or the key is invalid, or if the operating system gives no random
    /// bytes. In [`Version::Cut`], also if the key is too short to be cut, or if its format is unknown, because then the
    /// number of its secret characters is unknown as well.
    pub fn split(&self, project: &str, provider: &str, api_key: &str) -> Result<Split, SplitKeyError> {
        self.split_at(project, provider, api_key, SystemTime::now(), &mut OsRandom)
    }

    pub(super) fn split_at(
        &self,
        project: &str,
        provider: &str,
        api_key: &str,
        now: SystemTime,
        random: &mut dyn Random,
    ) -> Result<Split, SplitKeyError> {
        let project = project_id(project)?;
        let provider = self.providers.get(provider).ok_or(SplitKeyErrorKind::UnknownProvider)?;
        check_key(api_key)?;
        let metadata = Metadata::new(self.version, now, SplitId::new(random.next_u32()?));
        let (server_part, client_part) = match self.version {
            Version::Cut => cut::cut(api_key, provider, metadata, random)?,
            Version::Sealed => sealed::seal(api_key, &project, metadata, random)?,
        };
        Ok(Split {
            record: SplitKeyRecord::new(&project, provider.name(), metadata, server_part)?,
            client_part,
        })
    }

    /// Restores the key from both parts. Ignores the record's state and limits.
    ///
    /// # Errors
    ///
    /// Returns [`NotOpened`](SplitKeyErrorKind::NotOpened) if the parts do not belong together.
    pub fn open(&self, record: &SplitKeyRecord, client_part: &ClientPart) -> Result<ApiKey, SplitKeyError> {
        open_record(&self.providers, record, client_part)
    }

    /// Splits a key and puts the record into the store.
    ///
    /// # Errors
    ///
    /// The same as for [`split`](Self::split). Also returns an error if the store fails, or
    /// [`ImpossiblePath`](SplitKeyErrorKind::ImpossiblePath) if the limits have a path that no request can have.
    pub async fn issue(
        &self,
        store: &impl SplitKeyStore,
        project: &str,
        provider: &str,
        api_key: &str,
        limits: Limits,
    ) -> Result<Split, SplitKeyError> {
        if !limits.are_possible() {
            return Err(SplitKeyErrorKind::ImpossiblePath.into());
        }
        retried(async || {
            let split = self.split(project, provider, api_key)?.limited(limits.clone());
            store.put(vec![split.record.clone()]).await?;
            Ok(split)
        })
        .await
    }

    /// Issues a new split with the provider and limits of an old one, for the same API key or another, and retires the
    /// old split. Both splits work during `overlap`, then only the new one. If the old split already retires earlier, it
    /// stays unchanged.
    ///
    /// The caller passes the API key, because the store does not have it. With the old client part,
    /// [`open`](Self::open) restores the API key.
    ///
    /// # Errors
    ///
    /// Returns [`NotFound`](SplitKeyErrorKind::NotFound) if there is no old split, and
    /// [`Revoked`](SplitKeyErrorKind::Revoked) if it is revoked: a split that takes the place of a revoked one is
    /// [issued](Self::issue). Further errors are those of [`issue`](Self::issue). An error leaves the old split unchanged.
    pub async fn rotate(
        &self,
        store: &impl SplitKeyStore,
        project: &str,
        split: SplitId,
        api_key: &str,
        overlap: Duration,
    ) -> Result<Split, SplitKeyError> {
        retried(async || {
            let old = find(store, project, split).await?;
            if old.state() == SplitKeyState::Revoked {
                return Err(SplitKeyErrorKind::Revoked.into());
            }
            let new = self.split(project, old.provider(), api_key)?.limited(old.limits().clone());
            let mut changes = vec![new.record.clone()];
            let until = SystemTime::now().checked_add(overlap);
            changes.extend(until.and_then(|until| retiring(&old, until)));
            store.put(changes).await?;
            Ok(new)
        })
        .await
    }
}

impl Split {
    fn limited(mut self, limits: Limits) -> Self {
        self.record = self.record.with_limits(limits);
        self
    }
}

/// Retires a key at the given time, even if the key would have retired earlier or later.
///
/// # Errors
///
/// Returns [`NotFound`](SplitKeyErrorKind::NotFound) if there is no such key, [`Revoked`](SplitKeyErrorKind::Revoked)
/// if the key is revoked, and another error if the store fails.
pub async fn retire(
    store: &impl SplitKeyStore,
    project: &str,
    split: SplitId,
    until: SystemTime,
) -> Result<SplitKeyRecord, SplitKeyError> {
    change(store, project, split, |state| match state {
        SplitKeyState::Revoked => Err(SplitKeyErrorKind::Revoked.into()),
        _ => Ok(SplitKeyState::Retiring { until }),
    })
    .await
}

/// Revokes a key for ever. Revoking it again changes nothing.
///
/// # Errors
///
/// Returns [`NotFound`](SplitKeyErrorKind::NotFound) if there is no such key, and another error if the store fails.
pub async fn revoke(
    store: &impl SplitKeyStore,
    project: &str,
    split: SplitId,
) -> Result<SplitKeyRecord, SplitKeyError> {
    change(store, project, split, |_| Ok(SplitKeyState::Revoked)).await
}

async fn change(
    store: &impl SplitKeyStore,
    project: &str,
    split: SplitId,
    next: impl Fn(SplitKeyState) -> Result<SplitKeyState, SplitKeyError>,
) -> Result<SplitKeyRecord, SplitKeyError> {
    retried(async || {
        let record = find(store, project, split).await?;
        let state = next(record.state())?;
        if state == record.state() {
            return Ok(record);
        }
        let record = record.changed_to(state);
        store.put(vec![record.clone()]).await?;
        Ok(record)
    })
    .await
}

/// Returns the changed record, or `None` if the key is revoked or already retires earlier.
fn retiring(record: &SplitKeyRecord, until: SystemTime) -> Option<SplitKeyRecord> {
    match record.state() {
        SplitKeyState::Revoked => None,
        SplitKeyState::Retiring { until: earlier } if earlier <= until => None,
        SplitKeyState::Active | SplitKeyState::Retiring { .. } => {
            Some(record.changed_to(SplitKeyState::Retiring { until }))
        }
    }
}

async fn find(
    store: &impl SplitKeyStore,
    project: &str,
    split: SplitId,
) -> Result<SplitKeyRecord, SplitKeyError> {
    let found = store.get(project, split).await?;
    found.ok_or(SplitKeyErrorKind::NotFound.into())
}

/// Repeats an operation while it conflicts with others.
async fn retried<T>(operation: impl AsyncFn() -> Result<T, SplitKeyError>) -> Result<T, SplitKeyError> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        match operation().await {
            Err(error) if error.kind() == SplitKeyErrorKind::Conflict && attempts > 0 => {}
            result => return result,
        }
    }
}

/// Restores a key from its parts.
pub(super) fn open_record(
    providers: &Providers,
    record: &SplitKeyRecord,
    client_part: &ClientPart,
) -> Result<ApiKey, SplitKeyError> {
    let key = match client_part.metadata().version() {
        Version::Cut => {
            let provider = providers.get(record.provider());
            cut::join(record.server_part(), client_part, provider)
        }
        Version::Sealed => sealed::open(record.server_part(), client_part, record.project()),
    };
    // The comparison follows the attempt, so that the timing does not reveal its result.
    if client_part.metadata() != record.metadata() {
        return Err(SplitKeyErrorKind::NotOpened.into());
    }
    ApiKey::new(
        key?,
        Arc::clone(record.shared_project()),
        Arc::clone(record.shared_provider()),
        record.metadata(),
    )
}

#[cfg(test)]
mod tests;
