//! Twins of the plug-in traits with async methods that can be trait objects.

use futures_util::future::BoxFuture;

use crate::{
    cache::{CacheError, CachedVerdict, VerdictCache, VerdictKey},
    routing::Environment,
    token::DeviceToken,
    verdict::Verdict,
    verifier::{DeviceVerifier, VerifyError},
};

pub(crate) trait ErasedVerifier: Send + Sync {
    fn verify<'a>(
        &'a self,
        token: &'a DeviceToken,
        environment: Environment,
    ) -> BoxFuture<'a, Result<Verdict, VerifyError>>;
    fn scope(&self) -> &str;
}

impl<V: DeviceVerifier> ErasedVerifier for V {
    fn verify<'a>(
        &'a self,
        token: &'a DeviceToken,
        environment: Environment,
    ) -> BoxFuture<'a, Result<Verdict, VerifyError>> {
        Box::pin(DeviceVerifier::verify(self, token, environment))
    }

    fn scope(&self) -> &str {
        DeviceVerifier::scope(self)
    }
}

pub(crate) trait ErasedCache: Send + Sync {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict>;
    fn get<'a>(&'a self, key: &'a VerdictKey<'_>)
    -> BoxFuture<'a, Result<Option<CachedVerdict>, CacheError>>;
    fn put<'a>(
        &'a self,
        key: &'a VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> BoxFuture<'a, Result<(), CacheError>>;
}

impl<C: VerdictCache> ErasedCache for C {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        VerdictCache::peek(self, key)
    }

    fn get<'a>(
        &'a self,
        key: &'a VerdictKey<'_>,
    ) -> BoxFuture<'a, Result<Option<CachedVerdict>, CacheError>> {
        Box::pin(VerdictCache::get(self, key))
    }

    fn put<'a>(
        &'a self,
        key: &'a VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(VerdictCache::put(self, key, verdict))
    }
}
