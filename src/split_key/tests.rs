//! The two formats.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use web_time::{SystemTime, UNIX_EPOCH};

use super::{
    cut::LACKING,
    error::SplitKeyErrorKind::{NotOpened, TooShort},
    random::Random,
    *,
};

/// The same numbers in every run.
pub(super) struct Seeded(pub(super) u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SplitKeyError> {
        for byte in bytes {
            // An LCG of 64 bits, of which the highest are good.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 56) as u8;
        }
        Ok(())
    }
}

const NOW: SystemTime = UNIX_EPOCH;

pub(super) const KEYS: &[(&str, &str)] = &[
    ("openai", "sk-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uWoYtIiKxCvBnMq"),
    (
        "openai",
        "sk-proj-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uWoYtIiKxCvBnMqT9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uWoYtIi",
    ),
    (
        "anthropic",
        "sk-ant-api03-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uWoYtIiKxCvBnMq-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pAA",
    ),
    ("google", "AIzaT9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW"),
];

fn splitter(version: Version) -> Splitter {
    let providers = Providers::default().with(Provider::new("any"));
    Splitter::new().with_version(version).with_providers(providers)
}

fn split(version: Version, provider: &str, key: &str, seed: u64) -> Split {
    splitter(version).split_at("project", provider, key, NOW, &mut Seeded(seed)).unwrap()
}

fn record(project: &str, provider: &str, metadata: Metadata, server: &str) -> SplitKeyRecord {
    SplitKeyRecord::new(project, provider, metadata, server.parse().unwrap()).unwrap()
}

#[test]
fn pairs_made_by_proxed_are_reassembled() {
    #[derive(Deserialize)]
    struct Pair {
        provider: String,
        api_key: String,
        server_part: String,
        client_part: String,
    }
    let pairs: Vec<Pair> =
        serde_json::from_str(include_str!("../../tests/vectors/partial-keys.json")).unwrap();
    assert_eq!(pairs.len(), 24);
    let mut unsound = 0;
    for pair in &pairs {
        let name = pair.provider.trim_end_matches("_project");
        let client: ClientPart = pair.client_part.parse().unwrap();
        let record = record("project", name, client.metadata(), &pair.server_part);
        let key = Splitter::new().open(&record, &client).unwrap();
        assert_eq!(key.expose(), pair.api_key);

        let provider = Providers::default().get(name).unwrap().clone();
        let lint = lint(record.server_part(), &client, &provider).unwrap();
        let tail = pair.client_part.len() - 1 - 32 - 16;
        assert!(lint.unknown_to_server() <= tail, "{}", pair.api_key);
        assert!(lint.unknown_to_client() < pair.server_part.len() - 16, "{}", pair.api_key);
        unsound += usize::from(!lint.is_sound());
    }
    // Among them, one whose client got all but `sk-p`.
    assert!(unsound >= 2, "{unsound}");

    for (one, other) in pairs.iter().zip(&pairs[1..]) {
        let client: ClientPart = one.client_part.parse().unwrap();
        let record = record("project", "openai", client.metadata(), &other.server_part);
        let error = Splitter::new().open(&record, &client).unwrap_err();
        assert_eq!(error.kind(), NotOpened);
    }
}

#[test]
fn what_a_lint_says() {
    const SALT: &str = "0123456789abcdef";
    let metadata = "00000001000001a2004e1d6f33d53640";
    let cases: &[(&str, &str, &str, usize, usize)] = &[
        ("inside the prefix", "sk-p", "roj-0123456789", 10, 0),
        ("after the prefix", "sk-proj-", "0123456789", 10, 0),
        ("later", "sk-proj-0123", "456789", 6, 4),
        ("nothing for the client", "sk-proj-0123456789", "", 0, 10),
    ];
    for (name, head, tail, server, client) in cases {
        let parts =
            (format!("{head}{SALT}").parse().unwrap(), format!("{tail}{SALT}.{metadata}").parse().unwrap());
        let lint = lint(&parts.0, &parts.1, &Provider::openai()).unwrap();
        assert_eq!(lint.unknown_to_server(), *server, "{name}");
        assert_eq!(lint.unknown_to_client(), *client, "{name}");
        assert!(!lint.is_sound(), "{name}");
    }
}

#[test]
fn version_1_cuts_are_uniform_and_never_inside_the_prefix() {
    const SPLITS: u64 = 10_000;
    let splitter = splitter(Version::Cut);
    let mut random = Seeded(36);
    let any = ("any", "T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0u");
    for (name, key) in KEYS.iter().chain([&any]) {
        let provider = Providers::default().with(Provider::new("any")).get(name).unwrap().clone();
        let prefix = provider.prefix_length(key).unwrap();
        let mut cuts = BTreeMap::<usize, u64>::new();
        for _ in 0..SPLITS {
            let split = splitter.split_at("project", name, key, NOW, &mut random).unwrap();
            let at = split.record().server_part().expose().len() - 16;
            assert!(at >= prefix + LACKING, "{name}: the client lacks too little");
            assert!(key.len() - at >= LACKING, "{name}: the server lacks too little");
            let lint = lint(split.record().server_part(), split.client_part(), &provider).unwrap();
            assert!(lint.is_sound(), "{name}");
            *cuts.entry(at).or_default() += 1;
        }
        let choices = key.len() - prefix - 2 * LACKING + 1;
        assert_eq!(cuts.len(), choices, "{name}: some cuts never occur");

        // Pearson's test: a uniform choice passes this bound but once in a million, by the approximation of
        // Wilson and Hilferty to the chi-squared distribution (4.753 is the normal distribution's quantile).
        let expected = SPLITS as f64 / choices as f64;
        let statistic: f64 = cuts.values().map(|count| (*count as f64 - expected).powi(2) / expected).sum();
        let freedom = choices as f64 - 1.0;
        let spread = 2.0 / (9.0 * freedom);
        let bound = freedom * (1.0 - spread + 4.753 * spread.sqrt()).powi(3);
        assert!(statistic < bound, "{name}: {statistic} of {bound}");
    }
}

#[test]
fn a_key_too_short_to_be_cut_is_refused() {
    let cases = [(24, Ok(())), (23, Err(TooShort)), (1, Err(TooShort))];
    for (length, expected) in cases {
        let key = format!("AIza{}", "x".repeat(length));
        let split = splitter(Version::Cut).split("project", "google", &key);
        assert_eq!(split.map(|_| ()).map_err(|error| error.kind()), expected, "{length}");
    }
}

#[test]
fn keys_survive_in_both_versions() {
    let long = "x".repeat(MAX_KEY_LENGTH);
    let odd = [
        ("any", "a.key.with.dots.......................in.it"),
        ("any", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~0123456789"),
        ("any", &*long),
    ];
    for (provider, key) in KEYS.iter().chain(&odd) {
        for version in [Version::Cut, Version::Sealed] {
            for seed in 0..50 {
                let split = split(version, provider, key, seed);
                let text = split.client_part().expose();
                let client: ClientPart = text.parse().unwrap();
                let opened = splitter(version).open(split.record(), &client).unwrap();
                assert_eq!(opened.expose(), *key);
                assert_eq!(opened.version(), version);
                assert_eq!(opened.provider(), *provider);
            }
        }
    }
    // Around the lengths at which the padding grows.
    for length in [1, 254, 255, 256, 257, 511, 512] {
        let key = "k".repeat(length);
        let split = split(Version::Sealed, "any", &key, 1);
        let opened = splitter(Version::Sealed).open(split.record(), split.client_part()).unwrap();
        assert_eq!(opened.expose(), key);
    }
}

#[test]
fn the_length_of_a_sealed_key_does_not_show() {
    let lengths: Vec<_> = KEYS
        .iter()
        .map(|(provider, key)| split(Version::Sealed, provider, key, 1).record().server_part().expose().len())
        .collect();
    assert!(lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
}

/// Every text that differs from this one in one bit and is UTF-8.
fn flipped(text: &str) -> impl Iterator<Item = String> {
    (0..text.len() * 8).filter_map(|bit| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        String::from_utf8(bytes).ok()
    })
}

#[test]
fn one_flipped_bit_anywhere_does_not_open() {
    let (provider, key) = KEYS[0];
    let split = split(Version::Sealed, provider, key, 7);
    let record = split.record();
    let server = record.server_part();
    let client = split.client_part();
    let opens = |server: &ServerPart, client: &ClientPart, project: &str, metadata| {
        let by_parts = sealed::open(server, client, project).is_ok();
        let record = SplitKeyRecord::new(project, provider, metadata, server.clone());
        let by_record = record.is_ok_and(|record| splitter(Version::Sealed).open(&record, client).is_ok());
        by_parts || by_record
    };
    assert!(opens(server, client, "project", client.metadata()));

    let mut tried = 0;
    // The client part with its metadata, also where the record says the same.
    for text in flipped(client.expose()) {
        if let Ok(changed) = text.parse::<ClientPart>() {
            assert!(!opens(server, &changed, "project", client.metadata()), "{text}");
            assert!(!opens(server, &changed, "project", changed.metadata()), "{text}");
            tried += 1;
        }
    }
    for text in flipped(server.expose()) {
        if let Ok(changed) = text.parse() {
            assert!(!opens(&changed, client, "project", client.metadata()), "{text}");
            tried += 1;
        }
    }
    for project in flipped("project") {
        assert!(!opens(server, client, &project, client.metadata()), "{project:?}");
        tried += 1;
    }
    assert!(tried > 1_500, "{tried}");

    // The same, below the base64.
    let sealed =
        base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, server.expose()).unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let text = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, changed);
        assert!(!opens(&text.parse().unwrap(), client, "project", client.metadata()), "{bit}");
    }
}

#[test]
fn parts_of_two_keys_projects_or_versions_do_not_mix() {
    let (provider, key) = KEYS[0];
    for version in [Version::Cut, Version::Sealed] {
        let other_version = match version {
            Version::Cut => Version::Sealed,
            Version::Sealed => Version::Cut,
        };
        let one = split(version, provider, key, 1);
        let other = split(version, provider, key, 2);
        let foreign = split(other_version, provider, key, 1);
        let server = one.record().server_part().expose();
        let client = one.client_part();
        let renamed: ClientPart =
            format!("{}.{}", client.expose().rsplit_once('.').unwrap().0, other.client_part().metadata())
                .parse()
                .unwrap();
        let own = client.metadata();
        let cases = [
            (
                "another key's server part",
                record("project", provider, own, other.record().server_part().expose()),
                client,
            ),
            ("another key's client part", one.record().clone(), other.client_part()),
            ("another version's client part", one.record().clone(), foreign.client_part()),
            (
                "another version's server part",
                record("project", provider, own, foreign.record().server_part().expose()),
                client,
            ),
            ("another split id", one.record().clone(), &renamed),
        ];
        for (name, record, client) in &cases {
            let error = splitter(version).open(record, client).unwrap_err();
            assert_eq!(error.kind(), NotOpened, "{version}: {name}");
        }
        let elsewhere = record("other", provider, own, server);
        let opened = splitter(version).open(&elsewhere, client);
        // In version 1 nothing but the store ties a part to its project.
        assert_eq!(opened.is_ok(), version == Version::Cut, "{version}");
    }
}

#[test]
fn nothing_secret_is_printed() {
    for version in [Version::Cut, Version::Sealed] {
        let (provider, key) = KEYS[0];
        let split = split(version, provider, key, 3);
        let opened = splitter(version).open(split.record(), split.client_part()).unwrap();
        let printed = format!(
            "{split:?} {opened:?} {:?} {:?} {:?}",
            opened.header_value(),
            opened.bearer_value(),
            opened.expose().parse::<ClientPart>().unwrap_err(),
        );
        let client = split.client_part().expose().rsplit_once('.').unwrap().0;
        for secret in [
            &key[3..15],
            &key[key.len() - 12..],
            &client[..12],
            &split.record().server_part().expose()[3..15],
        ] {
            assert!(!printed.contains(secret), "{version}: {printed}");
        }
    }
}

#[test]
fn header_values() {
    let (provider, key) = KEYS[2];
    let split = split(Version::Sealed, provider, key, 3);
    let opened = splitter(Version::Sealed).open(split.record(), split.client_part()).unwrap();
    assert_eq!(opened.header_value(), key);
    assert!(opened.header_value().is_sensitive());
    assert_eq!(opened.bearer_value(), format!("Bearer {key}"));
    assert!(opened.bearer_value().is_sensitive());
}

#[test]
fn records_in_json() {
    let (provider, key) = KEYS[0];
    let split = split(Version::Sealed, provider, key, 3);
    let later = UNIX_EPOCH + Duration::from_millis(1_795_302_000_123);
    let record = split
        .record()
        .clone()
        .with_limits(
            Limits::none().with_paths(["/v1/*"]).with_methods([http::Method::POST]).with_expiry(later),
        )
        .changed_to(SplitKeyState::Retiring { until: later });
    let json = serde_json::to_string(&record).unwrap();
    let read: SplitKeyRecord = serde_json::from_str(&json).unwrap();
    assert_eq!(read.project(), "project");
    assert_eq!(read.metadata(), record.metadata());
    assert_eq!(read.state(), record.state());
    assert_eq!(read.limits(), record.limits());
    assert_eq!(read.revision(), 1);
    assert!(splitter(Version::Sealed).open(&read, split.client_part()).is_ok());

    let broken = [
        ("a slip of the pen", json.replace("allowed_paths", "allowed_path")),
        ("no project", json.replace(r#""project":"project""#, r#""project":"""#)),
        ("an unknown state", json.replace("retiring", "resting")),
        ("upper case metadata", json.replace("00000002", "0000000F")),
        ("no method", json.replace("POST", "P OST")),
        ("no server part", json.replace("server_part", "server_port")),
    ];
    for (name, text) in broken {
        assert_ne!(text, json, "{name}");
        assert!(serde_json::from_str::<SplitKeyRecord>(&text).is_err(), "{name}");
    }
}

#[tokio::test]
async fn rotation_and_its_end() {
    let (provider, key) = KEYS[0];
    let store = MemorySplitKeyStore::new();
    let splitter = splitter(Version::Sealed);
    let limits = Limits::none().with_methods([http::Method::POST]);
    let old = splitter.issue(&store, "project", provider, key, limits.clone()).await.unwrap();
    let hour = Duration::from_secs(3600);
    let before = SystemTime::now();
    let new = splitter.rotate(&store, "project", old.record().split(), key, hour).await.unwrap();
    assert_eq!(new.record().limits(), &limits);
    assert_ne!(new.client_part(), old.client_part());

    let state = async |split: &Split| {
        let record = store.get("project", split.record().split()).await.unwrap().unwrap();
        assert!(splitter.open(&record, split.client_part()).is_ok());
        record.state()
    };
    assert_eq!(state(&new).await, SplitKeyState::Active);
    let SplitKeyState::Retiring { until } = state(&old).await else {
        panic!("the old one does not retire");
    };
    assert!(until >= before + hour);

    // Rotated again, the old one retires no later than before.
    splitter.rotate(&store, "project", old.record().split(), key, 2 * hour).await.unwrap();
    assert_eq!(state(&old).await, SplitKeyState::Retiring { until });

    let later = until + hour;
    retire(&store, "project", old.record().split(), later).await.unwrap();
    assert_eq!(state(&old).await, SplitKeyState::Retiring { until: later });
    for _ in 0..2 {
        let revoked = revoke(&store, "project", old.record().split()).await.unwrap();
        assert_eq!(revoked.revision(), 3);
    }
    let error = retire(&store, "project", old.record().split(), later).await.unwrap_err();
    assert_eq!(error.kind(), SplitKeyErrorKind::Revoked);
    let error = revoke(&store, "another", old.record().split()).await.unwrap_err();
    assert_eq!(error.kind(), SplitKeyErrorKind::NotFound);
    assert_eq!(store.list().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_store_takes_all_records_or_none() {
    let (provider, key) = KEYS[0];
    let store = MemorySplitKeyStore::new();
    let one = split(Version::Sealed, provider, key, 1).record().clone();
    let two = split(Version::Sealed, provider, key, 2).record().clone();
    store.put(vec![one.clone()]).await.unwrap();
    let revoked = |record: &SplitKeyRecord| record.changed_to(SplitKeyState::Revoked);
    let conflicts = [
        ("not new", vec![two.clone(), one.clone()]),
        ("nothing to change", vec![revoked(&one), revoked(&two)]),
        ("changed twice", vec![revoked(&revoked(&one))]),
    ];
    for (name, records) in conflicts {
        assert!(store.put(records).await.unwrap_err().is_conflict(), "{name}");
        let records = store.list().await.unwrap();
        assert_eq!(records.len(), 1, "{name}");
        assert_eq!(records[0].revision(), 0, "{name}");
    }
    store.put(vec![revoked(&one), two]).await.unwrap();
    assert!(store.put(vec![revoked(&one)]).await.unwrap_err().is_conflict());
}
