//! A store that replicas share.

use std::collections::HashMap;
use std::time::Duration;

use web_time::UNIX_EPOCH;

use crate::app_attest::app_id::AppId;
use crate::app_attest::category::Category;
use crate::app_attest::key_id::KeyId;
use crate::app_attest::keys::attested_key::{AttestedKey, KeyRevocation, hex};
use crate::app_attest::keys::counter::{CounterRule, KeyCounter};
use crate::app_attest::keys::store::{AttestKeyStore, AttestKeyStoreError, Insertion};
use crate::app_attest::public_key::PublicKey;
use crate::gate::credential::TokenDigest;
use crate::gate::routing::Environment;
use crate::redis::{Access, Commands, Redis, RedisFailure, RedisUser, expiry};
use crate::runtime::{SystemTime, millis, since_epoch};

/// A store in Redis or Valkey, for all replicas that use the same server and prefix.
///
/// ```no_run
/// use tower_devicecheck::{Redis, app_attest::RedisAttestKeyStore};
///
/// # async fn store() -> redis::RedisResult<RedisAttestKeyStore> {
/// let store = RedisAttestKeyStore::new(Redis::connect("redis://127.0.0.1/").await?);
/// # Ok(store)
/// # }
/// ```
///
/// Each key is a hash of about 400 bytes, and each account with keys a set of their ids. The counter advances in one
/// script, atomic for all replicas. While Redis does not answer within the [deadline](Redis::with_deadline), 1 second by
/// default, requests are [`Unavailable`](crate::Rejection::Unavailable). So are requests with a key whose value in Redis
/// this crate has not written. The name of an account is hashed in names of keys in Redis, and plain in their values.
///
/// # Danger
///
/// A counter that Redis loses, in a restart without persistence or in a failover to a replica that lags, lets
/// assertions that were captured since be used once more; by time only within 2 minutes, and by challenge only if the
/// guard of the challenges was lost as well. A key that Redis loses has to be attested anew. Turn on persistence
/// (`appendonly yes`) and let Redis evict nothing (`maxmemory-policy noeviction`).
#[derive(Clone, Debug)]
pub struct RedisAttestKeyStore {
    redis: Redis,
    retention: Option<Duration>,
}

const USER: RedisUser = RedisUser {
    name: "store of attested keys",
    commands: &["EVAL", "HGET", "HMGET", "HSET", "PEXPIRE"],
    must_keep: true,
    access: Access::AttestedKey,
};

// A key is a hash. Its field `account` is always there: empty, or `=` and the account. Its field `seen` is the map of the
// counters as 64 characters, the greatest counter first, because numbers in Lua have only 53 bits. Times are milliseconds
// since the Unix epoch.
const FIELDS: [&str; 15] = [
    "public_key",
    "app_id",
    "on_mac",
    "environment",
    "highest",
    "seen",
    "account",
    "attested_at",
    "last_seen_at",
    "category",
    "bundle_version",
    "platform",
    "system_version",
    "revoked_at",
    "revoked_reason",
];

/// Arguments: time to live in milliseconds or 0, account, then fields and their values.
const INSERT: &str = r"
local account = redis.call('HGET', KEYS[1], 'account')
if account then
  if account ~= ARGV[2] then return 3 end
  return redis.call('HGET', KEYS[1], 'revoked_at') and 4 or 2
end
redis.call('HSET', KEYS[1], 'account', ARGV[2], unpack(ARGV, 3))
if ARGV[1] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1";

/// Arguments: time to live in milliseconds or 0, counter, 1 for the window, time.
const ADVANCE: &str = r"
local found = redis.call('HMGET', KEYS[1], 'highest', 'seen', 'revoked_at', 'last_seen_at')
local highest, seen, counter = tonumber(found[1] or ''), found[2], tonumber(ARGV[2])
if not highest or not seen or found[3] then return 0 end
if counter > highest then
  seen = string.sub('1' .. string.rep('0', math.min(counter - highest - 1, 63)) .. seen, 1, 64)
  redis.call('HSET', KEYS[1], 'highest', ARGV[2])
else
  local place = highest - counter + 1
  if ARGV[3] ~= '1' or place > 64 or string.sub(seen, place, place) ~= '0' then return 0 end
  seen = string.sub(seen, 1, place - 1) .. '1' .. string.sub(seen, place + 1)
end
local last = found[4]
if tonumber(ARGV[4]) > (tonumber(last or '') or 0) then last = ARGV[4] end
redis.call('HSET', KEYS[1], 'seen', seen, 'last_seen_at', last)
if ARGV[1] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1";

/// Arguments: time, reason, and the account, if the key must be one of it.
const REVOKE: &str = r"
local account = redis.call('HGET', KEYS[1], 'account')
if not account or ARGV[3] and ARGV[3] ~= account then return 0 end
if not redis.call('HGET', KEYS[1], 'revoked_at') then
  redis.call('HSET', KEYS[1], 'revoked_at', ARGV[1], 'revoked_reason', ARGV[2])
end
return 1";

impl RedisAttestKeyStore {
    /// Makes a store on this server.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        redis.add_user(&USER);
        Self { redis, retention: None }
    }

    /// Sets the time after which Redis forgets a key that made no assertion, and with it its revocation. The set of its
    /// account keeps its id, 32 bytes. Default: Redis forgets none.
    #[must_use]
    pub const fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// A cluster chooses the node by the text in braces, the id.
    fn name(&self, tenant: &str, key_id: &KeyId) -> String {
        format!("{}:attest1:{tenant}:{{{}}}", self.redis.prefix(), hex(key_id.as_bytes()))
    }

    fn account_name(&self, tenant: &str, account: &str) -> String {
        format!("{}:attest1:{tenant}:account:{}", self.redis.prefix(), TokenDigest::of(account.as_bytes()))
    }

    fn time_to_live(&self) -> String {
        self.retention.map_or_else(|| "0".to_owned(), expiry)
    }

    async fn revoke_one(
        &self,
        name: String,
        reason: &str,
        now: SystemTime,
        account: Option<&str>,
    ) -> Result<bool, AttestKeyStoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(REVOKE).arg(1).arg(name).arg(number(now)).arg(reason);
        command.arg(account.map(|account| account_field(Some(account))));
        self.redis.query_for_operator(command).await.map_err(AttestKeyStoreError::new)
    }
}

fn number(time: SystemTime) -> u64 {
    millis(since_epoch(time))
}

fn account_field(account: Option<&str>) -> String {
    account.map_or_else(String::new, |account| format!("={account}"))
}

fn map_text(counter: KeyCounter) -> String {
    (0..u64::BITS).map(|bit| if counter.seen >> bit & 1 == 1 { '1' } else { '0' }).collect()
}

/// The bits of the 64 characters.
fn map_bits(text: &str) -> Option<u64> {
    let bit = |(place, digit)| match digit {
        '0' => Some(0),
        '1' => Some(1_u64 << place),
        _ => None,
    };
    (text.len() == 64).then(|| text.chars().enumerate().map(bit).sum())?
}

/// The fields of a new key, and their values.
fn fields(key: &AttestedKey) -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let mut fields = vec![
        ("public_key", key.public_key.as_bytes().to_vec()),
        ("app_id", text(key.app_id.as_str())),
        ("on_mac", text(if key.app_id.is_on_mac() { "1" } else { "0" })),
        ("environment", text(key.environment.as_str())),
        ("highest", key.counter.highest.to_string().into()),
        ("seen", map_text(key.counter).into()),
        ("attested_at", number(key.attested_at).to_string().into()),
        ("last_seen_at", number(key.last_seen_at).to_string().into()),
    ];
    let optional = [
        ("category", key.category.map(|category| category.number().to_string())),
        ("bundle_version", key.bundle_version.as_ref().map(|version| version.as_str().to_owned())),
        ("platform", key.platform.clone()),
        ("system_version", key.system_version.clone()),
        ("revoked_at", key.revocation.as_ref().map(|revocation| number(revocation.at).to_string())),
        ("revoked_reason", key.revocation.as_ref().map(|revocation| revocation.reason.clone())),
    ];
    fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?.into()))));
    fields
}

/// The values of a hash.
struct Values(HashMap<&'static str, Vec<u8>>);

impl Values {
    fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.0.get(name)?).ok()
    }

    fn time(&self, name: &str) -> Option<SystemTime> {
        let millis: u64 = self.text(name)?.parse().ok()?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// A value that may be missing. `None` if it is there and cannot be read.
    fn optional<T>(&self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
        if !self.0.contains_key(name) {
            return Some(None);
        }
        read(self.text(name)?).map(Some)
    }

    /// Returns `None` if the values are not those of this key.
    fn key(&self, tenant: &str, key_id: &KeyId) -> Option<AttestedKey> {
        let public_key = PublicKey::from_bytes(self.0.get("public_key")?).ok()?;
        let app_id: AppId = self.text("app_id")?.parse().ok()?;
        let app_id = if self.text("on_mac")? == "1" { app_id.on_mac() } else { app_id };
        let environment: Environment = self.text("environment")?.parse().ok()?;
        let text = |text: &str| Some(text.to_owned());
        let mut key = AttestedKey::new(tenant, public_key, app_id, environment, self.time("attested_at")?);
        key.last_seen_at = self.time("last_seen_at")?;
        key.counter = KeyCounter::new(self.text("highest")?.parse().ok()?, map_bits(self.text("seen")?)?);
        key.account = match self.text("account")? {
            "" => None,
            account => Some(account.strip_prefix('=')?.to_owned()),
        };
        key.category =
            self.optional("category", |number| Category::from_number(number.parse().ok()?).ok())?;
        key.bundle_version = self.optional("bundle_version", |version| version.parse().ok())?;
        key.platform = self.optional("platform", text)?;
        key.system_version = self.optional("system_version", text)?;
        if self.0.contains_key("revoked_at") {
            let reason = self.text("revoked_reason").unwrap_or_default();
            key.revocation = Some(KeyRevocation::new(self.time("revoked_at")?, reason));
        }
        (key.key_id == *key_id).then_some(key)
    }
}

impl AttestKeyStore for RedisAttestKeyStore {
    async fn insert(&self, key: AttestedKey) -> Result<Insertion, AttestKeyStoreError> {
        if let Some(account) = &key.account {
            // First: an id without a key does no harm, and a key that its account does not name could not be revoked.
            let mut command = redis::cmd("SADD");
            command.arg(self.account_name(&key.tenant, account)).arg(key.key_id.as_bytes());
            let answer = self.redis.query::<i64>(Access::AttestedKey, command).await;
            answer.map_err(AttestKeyStoreError::new)?;
        }
        let mut command = redis::cmd("EVAL");
        command.arg(INSERT).arg(1).arg(self.name(&key.tenant, &key.key_id)).arg(self.time_to_live());
        command.arg(account_field(key.account.as_deref()));
        for (name, value) in fields(&key) {
            command.arg(name).arg(value);
        }
        let answer = self.redis.query(Access::AttestedKey, Commands::from(command).once()).await;
        match answer.map_err(AttestKeyStoreError::new)? {
            1 => Ok(Insertion::New),
            2 => Ok(Insertion::Known),
            3 => Ok(Insertion::OtherAccount),
            4 => Ok(Insertion::Revoked),
            _ => Err(AttestKeyStoreError::new(RedisFailure::Rubbish)),
        }
    }

    async fn find(&self, tenant: &str, key_id: &KeyId) -> Result<Option<AttestedKey>, AttestKeyStoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.name(tenant, key_id)).arg(&FIELDS);
        let answer = self.redis.query(Access::AttestedKey, command).await;
        let found: Vec<Option<Vec<u8>>> = answer.map_err(AttestKeyStoreError::new)?;
        let found = FIELDS.into_iter().zip(found).filter_map(|(name, value)| Some((name, value?)));
        let values = Values(found.collect());
        if values.0.is_empty() {
            return Ok(None);
        }
        let key = values.key(tenant, key_id);
        key.map(Some).ok_or_else(|| AttestKeyStoreError::new(self.redis.rubbish()))
    }

    async fn advance(
        &self,
        tenant: &str,
        key_id: &KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(ADVANCE).arg(1).arg(self.name(tenant, key_id)).arg(self.time_to_live());
        command.arg(counter).arg(u8::from(rule == CounterRule::Window)).arg(number(now));
        // Sent twice, it would refuse the counter that it has just admitted.
        let answer = self.redis.query(Access::AttestedKey, Commands::from(command).once()).await;
        answer.map_err(AttestKeyStoreError::new)
    }

    async fn revoke(
        &self,
        tenant: &str,
        key_id: &KeyId,
        reason: &str,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        self.revoke_one(self.name(tenant, key_id), reason, now, None).await
    }

    async fn revoke_account(
        &self,
        tenant: &str,
        account: &str,
        reason: &str,
        now: SystemTime,
    ) -> Result<Vec<KeyId>, AttestKeyStoreError> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(self.account_name(tenant, account));
        let answer = self.redis.query_for_operator(command).await;
        let ids: Vec<Vec<u8>> = answer.map_err(AttestKeyStoreError::new)?;
        let mut revoked = Vec::new();
        for id in ids {
            let Ok(id) = <[u8; 32]>::try_from(id) else { continue };
            let key_id = KeyId::from(id);
            // The set also has the id of a key that could not be inserted for this account. The key is not read: one that
            // nobody can read must not stop the revocation of the others.
            if self.revoke_one(self.name(tenant, &key_id), reason, now, Some(account)).await? {
                revoked.push(key_id);
            }
        }
        Ok(revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_text_and_read_back() {
        for seen in [1, 3, u64::MAX, 1 | 1 << 63, 0x8000_0001_0000_0001] {
            let text = map_text(KeyCounter::new(64, seen));
            assert_eq!((text.len(), map_bits(&text)), (64, Some(seen)));
            assert!(text.starts_with('1'), "the greatest counter is first");
        }
        for text in ["", "1", &"2".repeat(64), &"1".repeat(65), &"é".repeat(32)] {
            assert_eq!(map_bits(text), None, "{text}");
        }
    }
}
