//! From the values that a shared Redis holds to verdicts, marks, keys and claims.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use redis::{Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike};
use tower_devicecheck::{
    Bits, DeviceToken, Environment, Month, Owner, Redis, TokenDigest, Verdict,
    app_attest::{AttestKeyStore, AttestedKey, KeyId, PublicKey, RedisAttestKeyStore},
    cache::{CachedVerdict, RedisCache, VerdictCache, VerdictKey},
    replay::{Claim, Claimed, RedisReplayGuard, ReplayGuard, ReplayKey},
    split_key::{Metadata, RedisSplitKeyStore, SplitKeyStore},
};

use super::wait;

/// A connection that gives one answer to everything, and keeps what it was sent.
#[derive(Clone)]
struct Told {
    answer: Value,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Told {
    fn redis(answer: Value) -> (Self, Redis) {
        let told = Self { answer, sent: Arc::default() };
        (told.clone(), Redis::new(told))
    }
}

impl ConnectionLike for Told {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.sent.lock().expect("a lock").push(command.get_packed_command());
        let answer = self.answer.clone();
        Box::pin(async { Ok(answer) })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let answer = match &self.answer {
            Value::Array(answers) => answers.clone(),
            answer => vec![answer.clone()],
        };
        Box::pin(async { Ok(answer) })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// The first byte chooses what is read.
pub(crate) fn value(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 6 {
        0 => OPEN.with(|own| foreign_verdict(data, b"", own)),
        1 => SEALED.with(|own| foreign_verdict(data, SECRET, own)),
        2 => own_verdict(data),
        3 => split_key(data),
        4 => attested_key(data),
        _ => claim(data),
    }
}

fn token() -> DeviceToken {
    "c2VjcmV0IGRldmljZSB0b2tlbg".parse().expect("a token")
}

/// The verdict under a key, as the cache writes it.
fn written(key: &VerdictKey<'_>, secret: &[u8], verdict: CachedVerdict) -> Option<Vec<u8>> {
    let (told, redis) = Told::redis(Value::Okay);
    let cache = RedisCache::new(redis).with_secret(secret);
    wait(cache.put(key, verdict)).expect("it is written");
    let sent = told.sent.lock().expect("a lock");
    // A value of 54 bytes, of which the first is the version.
    let command = sent.last()?;
    let start = command.windows(5).position(|window| window == b"$54\r\n")? + 5;
    Some(command[start..start + 54].to_vec())
}

fn read(key: &VerdictKey<'_>, secret: &[u8], value: &[u8], left: i64) -> Option<CachedVerdict> {
    let answer = Value::Array(vec![Value::BulkString(value.to_vec()), Value::Int(left)]);
    let cache = RedisCache::new(Told::redis(answer).1).with_secret(secret);
    wait(cache.get(key)).ok().flatten()
}

const SECRET: &[u8] = b"a secret of all replicas";

// Written once: libFuzzer remembers what was compared, so it would show a value of an earlier run.
thread_local! {
    static OPEN: Vec<u8> = genuine(b"");
    static SEALED: Vec<u8> = genuine(SECRET);
}

fn genuine(secret: &[u8]) -> Vec<u8> {
    let token = token();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let verdict = CachedVerdict::new(Verdict::Genuine, token.digest(), SystemTime::now(), week);
    written(&key, secret, verdict).expect("a value")
}

/// Values that the cache has not written under this key count as none: any bytes, and changes of its own value.
fn foreign_verdict(data: &[u8], secret: &[u8], own: &[u8]) {
    let token = token();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
    let changed: Vec<u8> =
        own.iter().zip(data.iter().chain(std::iter::repeat(&0))).map(|(own, mask)| own ^ mask).collect();
    for value in [data, &changed] {
        assert_eq!(read(&key, secret, value, 1_000).is_some(), value == own, "{value:?}");
    }
    for other in [
        VerdictKey::new("TEAM654321", Environment::Production, &token),
        VerdictKey::new("TEAM123456", Environment::Development, &token),
        key.for_marks(true),
    ] {
        assert!(read(&other, secret, own, 1_000).is_none(), "{other:?}");
        assert!(read(&other, secret, &changed, 1_000).is_none(), "{other:?}");
    }
    assert!(secret.is_empty() || read(&key, b"", own, 1_000).is_none(), "another secret");
}

/// A verdict with any times and marks is read as it was written, and lives no longer than it was meant to.
fn own_verdict(data: &[u8]) {
    let mut bytes = [0; 24];
    bytes.iter_mut().zip(data).for_each(|(byte, given)| *byte = *given);
    let [a, b, c, d, ..] = bytes;
    let number =
        |at: usize| u64::from(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    let checked_at = SystemTime::UNIX_EPOCH + Duration::from_millis(number(4) << 16 | number(8));
    let (meant, left) =
        (Duration::from_millis(number(12) << (a & 31)), i64::from_be_bytes([b, c, d, a, b, c, d, 9]));
    let token = token();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token).for_marks(a & 1 == 0);
    let update = Month::new(u16::from_be_bytes([b, c]) % 10_000, d % 13);
    let bits = (a & 2 == 0).then(|| Bits::new(b & 1 == 0, c & 1 == 0, update));
    let verdict = if a & 4 == 0 { Verdict::Genuine } else { Verdict::Refused };
    let stored = CachedVerdict::new(verdict, token.digest(), checked_at, meant).with_bits(bits);
    let Some(value) = written(&key, b"secret", stored) else {
        assert!(meant.is_zero());
        return;
    };
    let Some(found) = read(&key, b"secret", &value, left) else { return };
    assert_eq!((found.verdict(), found.bits(), found.digest()), (verdict, bits, token.digest()));
    assert_eq!(found.checked_at(), checked_at);
    let at_redis = u64::try_from(left).map_or(Duration::MAX, Duration::from_millis);
    assert!(
        found.time_to_live() <= at_redis && !found.time_to_live().is_zero() || left == 0,
        "{found:?} {left}"
    );
}

/// A record that is found is the one that was asked for, and is written as it was read.
fn split_key(data: &[u8]) {
    let metadata: Metadata = "000000020000019900000000deadbeef".parse().expect("metadata");
    let store = RedisSplitKeyStore::new(Told::redis(Value::BulkString(data.to_vec())).1);
    let Ok(Some(record)) = wait(store.get("project", metadata.split())) else { return };
    assert_eq!((record.project(), record.split()), ("project", metadata.split()));
    let mut value = format!("{}\n", record.revision()).into_bytes();
    value.extend(serde_json::to_vec(&record).expect("JSON"));
    let store = RedisSplitKeyStore::new(Told::redis(Value::BulkString(value.clone())).1);
    let again = wait(store.get("project", metadata.split())).expect("what was written").expect("it");
    assert_eq!(serde_json::to_vec(&again).ok(), serde_json::to_vec(&record).ok());
}

/// The base point of P-256, whose private key is 1.
const POINT: [u8; 65] = [
    0x04, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40, 0xf2,
    0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f,
    0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce,
    0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
];

/// Reads the fields of a key, separated by line ends; an empty one is missing. A byte 1 alone is the public key. A key
/// that is found is the one that was asked for.
fn attested_key(data: &[u8]) {
    let key = PublicKey::from_bytes(&POINT).expect("a point");
    let fields = data.split(|byte| *byte == b'\n').map(|field| match field {
        [] => Value::Nil,
        [1] => Value::BulkString(POINT.to_vec()),
        // One that is there and empty.
        [2] => Value::BulkString(Vec::new()),
        field => Value::BulkString(field.to_vec()),
    });
    let store = RedisAttestKeyStore::new(Told::redis(Value::Array(fields.collect())).1);
    let found = |id: &KeyId| -> Option<AttestedKey> { wait(store.find("tenant", id)).ok().flatten() };
    assert!(found(&[9; 32].into()).is_none(), "no public key has this id");
    if let Some(found) = found(&key.key_id()) {
        assert_eq!((found.tenant.as_str(), found.key_id, &found.public_key), ("tenant", key.key_id(), &key));
        assert_eq!(found.counter.seen & 1, 1);
    }
}

/// A claim counts only if Redis says yes.
fn claim(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data).into_owned();
    let (answer, is_yes) = match choice % 7 {
        0 => (Value::Nil, false),
        1 => (Value::Array(data.iter().map(|byte| Value::Int(i64::from(*byte))).collect()), false),
        2 => (Value::BulkString(data.to_vec()), matches!(data, b"1" | b"true")),
        3 => (Value::SimpleString(text.clone()), matches!(data, b"1" | b"true")),
        4 => (Value::Int(data.len() as i64), !data.is_empty()),
        5 => (Value::Boolean(data.is_empty()), data.is_empty()),
        _ => (Value::Double(data.len() as f64), false),
    };
    let guard = RedisReplayGuard::new(Told::redis(answer).1);
    let key = ReplayKey::new("TEAM123456", TokenDigest::from([7; 32]));
    let claim = Claim::new(Owner::random());
    let claimed = wait(guard.reserve(&key, &claim));
    assert_eq!(matches!(claimed, Ok(Claimed::Yours)), is_yes, "{choice} {text:?}");
}
