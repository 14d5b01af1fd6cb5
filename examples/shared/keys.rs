//! The split keys of the operator: in a file, or in Redis.

use tower_devicecheck::{
    BoxError,
    split_key::{FileSplitKeyStore, SplitId, SplitKeyRecord, SplitKeyStore, SplitKeyStoreError},
};

/// The store that the settings name.
pub(crate) enum Keys {
    File(FileSplitKeyStore),
    #[cfg(feature = "redis")]
    Redis(tower_devicecheck::split_key::RedisSplitKeyStore),
}

impl Keys {
    /// The store in Redis, if `KEYS_IN_REDIS` is on.
    pub(crate) async fn in_redis() -> Result<Option<Self>, BoxError> {
        if !super::switch("KEYS_IN_REDIS")? {
            return Ok(None);
        }
        let url = super::variable("REDIS_URL")?.ok_or("KEYS_IN_REDIS needs REDIS_URL")?;
        Self::at(url.trim()).await.map(Some)
    }

    #[cfg(feature = "redis")]
    async fn at(url: &str) -> Result<Self, BoxError> {
        let redis = super::redis(url).await?;
        Ok(Self::Redis(tower_devicecheck::split_key::RedisSplitKeyStore::new(redis)))
    }

    #[cfg(not(feature = "redis"))]
    async fn at(_: &str) -> Result<Self, BoxError> {
        Err("KEYS_IN_REDIS: build the example with --features redis".into())
    }
}

impl SplitKeyStore for Keys {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        match self {
            Self::File(store) => store.get(project, split).await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => store.get(project, split).await,
        }
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        match self {
            Self::File(store) => SplitKeyStore::put(store, records).await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => store.put(records).await,
        }
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        match self {
            Self::File(store) => store.list().await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => store.list().await,
        }
    }

    async fn check(&self) -> Result<(), SplitKeyStoreError> {
        match self {
            Self::File(store) => store.check().await,
            #[cfg(feature = "redis")]
            Self::Redis(store) => store.check().await,
        }
    }
}
