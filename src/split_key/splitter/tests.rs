use super::*;
use crate::split_key::{
    error::SplitKeyErrorKind::{NotOpened, WrongFormat},
    fixtures::{KEYS, record, split, splitter},
    memory_store::MemorySplitKeyStore,
    parts::MAX_KEY_LENGTH,
    provider::Provider,
};

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
                assert_eq!(opened.metadata().version(), version);
                assert_eq!(opened.provider(), *provider);
            }
        }
    }
    // These lengths are around those at which the padding grows.
    for length in [1, 254, 255, 256, 257, 511, 512] {
        let key = "k".repeat(length);
        let split = split(Version::Sealed, "any", &key, 1);
        let opened = splitter(Version::Sealed).open(split.record(), split.client_part()).unwrap();
        assert_eq!(opened.expose(), key);
    }
}

/// A provider may change its format tomorrow, and version 2 does not read the key.
#[test]
fn w01_a_key_of_an_unknown_format_is_sealed_and_said_to_be_one() {
    let cases = [
        ("today's", "google", "AQ.Ab8RN6T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uWoYtIiKxCvB", true),
        ("today's, with more dots", "google", "AQ.T9wLmV3cXz7QbN2kR8y.J5hF1dG6sA4pE0uWo", true),
        ("yesterday's", "google", "AIzaT9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW", true),
        ("tomorrow's", "google", "BR-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW", false),
        ("tomorrow's", "openai", "oa_T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW", false),
        ("tomorrow's", "anthropic", "sk-claude-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW", false),
        ("of no format at all", "any", "T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW", true),
    ];
    for (name, provider, key, known) in cases {
        let sealed = split(Version::Sealed, provider, key, 5);
        let providers = Providers::default().with(Provider::new("any"));
        assert_eq!(providers.get(provider).unwrap().recognizes(key), known, "{name}: {provider}");
        let opened = splitter(Version::Sealed).open(sealed.record(), sealed.client_part()).unwrap();
        assert_eq!(opened.expose(), key, "{name}: {provider}");

        let cut = splitter(Version::Cut).split("project", provider, key).map_err(|error| error.kind());
        assert_eq!(cut.map(|_| ()), if known { Ok(()) } else { Err(WrongFormat) }, "{name}: {provider}");
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
        // In version 1, only the store ties a part to its project.
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

    // After another rotation, the old one retires no later than before.
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
    let error = splitter.rotate(&store, "project", old.record().split(), key, hour).await.unwrap_err();
    assert_eq!(error.kind(), SplitKeyErrorKind::Revoked);
    let error = revoke(&store, "another", old.record().split()).await.unwrap_err();
    assert_eq!(error.kind(), SplitKeyErrorKind::NotFound);
    assert_eq!(store.list().await.unwrap().len(), 3);
}
