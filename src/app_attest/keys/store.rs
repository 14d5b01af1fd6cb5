//! The `AttestKeyStore` trait, its dyn-safe twin, and its error.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::app_attest::key_id::KeyId;
use crate::app_attest::keys::attested_key::AttestedKey;
use crate::app_attest::keys::counter::CounterRule;
use crate::runtime::SystemTime;
use crate::{BoxError, gate::error::impl_error};

/// A store for attested keys. [`MemoryAttestKeyStore`](crate::app_attest::MemoryAttestKeyStore) works within one process,
/// `RedisAttestKeyStore` across processes.
///
/// The tenant and the id of a key are its primary key. No method finds a key by its id alone. `tenant` is empty where
/// there are no [tenants](crate::tenant).
///
/// The layer sets no deadline of its own for a store, except for the layer's
/// [deadline](crate::DeviceCheckLayer::with_deadline) of 30 seconds for a whole check.
///
/// # SQL
///
/// In PostgreSQL, a store needs this table:
///
/// ```sql
/// CREATE TABLE attested_keys (
///   tenant         text NOT NULL,
///   key_id         bytea NOT NULL,
///   public_key     bytea NOT NULL,
///   app_id         text NOT NULL,
///   environment    text NOT NULL,
///   highest        bigint NOT NULL DEFAULT 0,
///   seen           bigint NOT NULL DEFAULT 1,
///   account        text,
///   attested_at    timestamptz NOT NULL,
///   last_seen_at   timestamptz NOT NULL,
///   category       integer,
///   bundle_version text,
///   platform       text,
///   system_version text,
///   revoked_at     timestamptz,
///   revoked_reason text,
///   PRIMARY KEY (tenant, key_id)
/// );
/// CREATE INDEX ON attested_keys (tenant, account);
/// CREATE INDEX ON attested_keys (last_seen_at);
/// ```
///
/// [`advance`](Self::advance) is one statement, and has won if it changed one row. `$3` is the counter, `$4` the time. By
/// [`CounterRule::Strict`]:
///
/// ```sql
/// UPDATE attested_keys SET
///   seen = CASE WHEN $3 - highest < 64 THEN (seen << ($3 - highest)::int) | 1 ELSE 1 END,
///   highest = $3, last_seen_at = $4
/// WHERE tenant = $1 AND key_id = $2 AND revoked_at IS NULL AND $3 > highest;
/// ```
///
/// By [`CounterRule::Window`]. `seen` is the map of [`KeyCounter`](crate::app_attest::KeyCounter), as a signed number:
///
/// ```sql
/// UPDATE attested_keys SET
///   seen = CASE WHEN $3 <= highest       THEN seen | (1::bigint << (highest - $3)::int)
///               WHEN $3 - highest < 64   THEN (seen << ($3 - highest)::int) | 1
///               ELSE 1 END,
///   highest = GREATEST(highest, $3), last_seen_at = $4
/// WHERE tenant = $1 AND key_id = $2 AND revoked_at IS NULL
///   AND ($3 > highest
///        OR (highest - $3 < 64 AND (seen & (1::bigint << (highest - $3)::int)) = 0));
/// ```
///
/// `$3` must be a `bigint`. PostgreSQL checks the condition again after it has waited for a row that another request was
/// changing, so that of two requests with one counter one wins. [`insert`](Self::insert) is `INSERT … ON CONFLICT DO
/// NOTHING`, and if that changed no row, a `SELECT` of `account` and `revoked_at`. Keys that nobody uses any more are
/// deleted by `last_seen_at`.
///
/// # Danger
///
/// A store that reads the counter and writes it in a second step admits a captured assertion twice. A store whose
/// copies lag, such as Workers KV or a read replica, does the same.
#[diagnostic::on_unimplemented(
    note = "use `MemoryAttestKeyStore` or `RedisAttestKeyStore`, or implement `insert`, `find`, `advance`, `revoke`, \
            `revoke_account`"
)]
pub trait AttestKeyStore: Send + Sync + 'static {
    /// Inserts a key, in one atomic step, unless the store has it. A key that the store has stays as it is, with its
    /// counter.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. The key may be in it all the same.
    fn insert(&self, key: AttestedKey)
    -> impl Future<Output = Result<Insertion, AttestKeyStoreError>> + Send;

    /// Finds a key, revoked or not. `key_id` comes from the client, and may be anything.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. The layer rejects the request as
    /// [`Unavailable`](crate::Rejection::Unavailable), so a store must not say `None` while it does not know.
    fn find(
        &self,
        tenant: &str,
        key_id: &KeyId,
    ) -> impl Future<Output = Result<Option<AttestedKey>, AttestKeyStoreError>> + Send;

    /// Advances the counter of a key, in one atomic step, as [`KeyCounter::after`](crate::app_attest::KeyCounter::after)
    /// does, and sets when the key was last seen. Returns whether the counter was admitted.
    ///
    /// The answer is `false` if the rule does not admit the counter, or if the key is revoked or gone. If the future is
    /// dropped, the counter may be spent.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. The counter may be spent, and the layer does not admit the request.
    fn advance(
        &self,
        tenant: &str,
        key_id: &KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> impl Future<Output = Result<bool, AttestKeyStoreError>> + Send;

    /// Revokes a key, and keeps its record. Returns whether the store has the key. A key that is revoked keeps its first
    /// revocation.
    ///
    /// The layer never calls this. Sessions that the key has bought end by
    /// `Sessions::revocations` and [`AttestedKey::subject`].
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. The key may be revoked all the same.
    fn revoke(
        &self,
        tenant: &str,
        key_id: &KeyId,
        reason: &str,
        now: SystemTime,
    ) -> impl Future<Output = Result<bool, AttestKeyStoreError>> + Send;

    /// Revokes all keys of an account that the store has. Returns their ids, those included that were revoked before.
    ///
    /// The account can attest further keys: an [`AttestPolicy`](crate::app_attest::AttestPolicy) can deny it.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed. Some keys may be revoked all the same.
    fn revoke_account(
        &self,
        tenant: &str,
        account: &str,
        reason: &str,
        now: SystemTime,
    ) -> impl Future<Output = Result<Vec<KeyId>, AttestKeyStoreError>> + Send;
}

/// A store's answer to a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Insertion {
    /// The key is new, and stored.
    New,
    /// The key was stored before, for the same account or for none as well.
    Known,
    /// The key was stored before, for another account, or for none where this one has one.
    OtherAccount,
    /// The key was stored before, for the same account, and is revoked.
    Revoked,
}

impl Insertion {
    /// The answer about a key that is in the store.
    #[must_use]
    pub fn of_stored(stored: &AttestedKey, account: Option<&str>) -> Self {
        if stored.account.as_deref() != account {
            return Self::OtherAccount;
        }
        if stored.revocation.is_some() { Self::Revoked } else { Self::Known }
    }
}

impl<S: AttestKeyStore> AttestKeyStore for Arc<S> {
    async fn insert(&self, key: AttestedKey) -> Result<Insertion, AttestKeyStoreError> {
        S::insert(self, key).await
    }

    async fn find(&self, tenant: &str, key_id: &KeyId) -> Result<Option<AttestedKey>, AttestKeyStoreError> {
        S::find(self, tenant, key_id).await
    }

    async fn advance(
        &self,
        tenant: &str,
        key_id: &KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        S::advance(self, tenant, key_id, counter, rule, now).await
    }

    async fn revoke(
        &self,
        tenant: &str,
        key_id: &KeyId,
        reason: &str,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        S::revoke(self, tenant, key_id, reason, now).await
    }

    async fn revoke_account(
        &self,
        tenant: &str,
        account: &str,
        reason: &str,
        now: SystemTime,
    ) -> Result<Vec<KeyId>, AttestKeyStoreError> {
        S::revoke_account(self, tenant, account, reason, now).await
    }
}

/// A step of a store, boxed.
type StoreStep<'a, T> = BoxFuture<'a, Result<T, AttestKeyStoreError>>;

/// The part of [`AttestKeyStore`] that the layer calls, as a trait object.
pub(in crate::app_attest) trait ErasedAttestKeyStore: Send + Sync {
    fn insert(&self, key: AttestedKey) -> StoreStep<'_, Insertion>;
    fn find<'a>(&'a self, tenant: &'a str, key_id: &'a KeyId) -> StoreStep<'a, Option<AttestedKey>>;
    fn advance<'a>(
        &'a self,
        tenant: &'a str,
        key_id: &'a KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> StoreStep<'a, bool>;
}

impl<S: AttestKeyStore> ErasedAttestKeyStore for S {
    fn insert(&self, key: AttestedKey) -> StoreStep<'_, Insertion> {
        Box::pin(AttestKeyStore::insert(self, key))
    }

    fn find<'a>(&'a self, tenant: &'a str, key_id: &'a KeyId) -> StoreStep<'a, Option<AttestedKey>> {
        Box::pin(AttestKeyStore::find(self, tenant, key_id))
    }

    fn advance<'a>(
        &'a self,
        tenant: &'a str,
        key_id: &'a KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> StoreStep<'a, bool> {
        Box::pin(AttestKeyStore::advance(self, tenant, key_id, counter, rule, now))
    }
}

/// The error of a store of attested keys that failed.
#[derive(Debug)]
pub struct AttestKeyStoreError {
    source: BoxError,
}

impl AttestKeyStoreError {
    /// Makes an error with this cause. The cause is logged, so it must hold no secret.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into() }
    }
}

impl_error!(AttestKeyStoreError, |error| Some(&*error.source), "the store of attested keys failed");
