//! Twins of the plug-in traits with async methods that can be trait objects.

use futures_util::future::BoxFuture;

use crate::{
    apple::DeviceToken,
    device_check::cache::{CacheError, CachedVerdict, Lease, VerdictCache, VerdictKey},
    device_check::verifier::{DeviceVerifier, VerifyError},
    gate::decision::Verdict,
    gate::routing::Environment,
    replay::owner::Owner,
    replay::{Claim, GuardError, ReplayGuard, ReplayKey, Reservation},
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
    fn lease<'a>(&'a self, key: &'a VerdictKey<'_>) -> BoxFuture<'a, Lease>;
    fn release<'a>(&'a self, key: &'a VerdictKey<'_>, owner: Owner) -> BoxFuture<'a, ()>;
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

    fn lease<'a>(&'a self, key: &'a VerdictKey<'_>) -> BoxFuture<'a, Lease> {
        Box::pin(VerdictCache::lease(self, key))
    }

    fn release<'a>(&'a self, key: &'a VerdictKey<'_>, owner: Owner) -> BoxFuture<'a, ()> {
        Box::pin(VerdictCache::release(self, key, owner))
    }
}

pub(crate) trait ErasedReplayGuard: Send + Sync {
    fn reserve<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<Reservation, GuardError>>;
    fn confirm<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<Reservation, GuardError>>;
    fn release<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<(), GuardError>>;
    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim);
}

impl<G: ReplayGuard> ErasedReplayGuard for G {
    fn reserve<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<Reservation, GuardError>> {
        Box::pin(ReplayGuard::reserve(self, key, claim))
    }

    fn confirm<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<Reservation, GuardError>> {
        Box::pin(ReplayGuard::confirm(self, key, claim))
    }

    fn release<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<(), GuardError>> {
        Box::pin(ReplayGuard::release(self, key, claim))
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        ReplayGuard::abandon(self, key, claim);
    }
}
