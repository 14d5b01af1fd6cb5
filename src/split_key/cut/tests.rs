use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::split_key::{
    error::SplitKeyErrorKind::{NotOpened, TooShort},
    fixtures::{KEYS, NOW, Seeded, record, splitter},
    provider::Providers,
    splitter::Splitter,
};

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
        serde_json::from_str(include_str!("../../../tests/vectors/partial-keys.json")).unwrap();
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
    // One of these clients got all but `sk-p`.
    assert!(unsound >= 2, "{unsound}");

    for (one, other) in pairs.iter().zip(&pairs[1..]) {
        let client: ClientPart = one.client_part.parse().unwrap();
        let record = record("project", "openai", client.metadata(), &other.server_part);
        let error = Splitter::new().open(&record, &client).unwrap_err();
        assert_eq!(error.kind(), NotOpened);
    }
}

#[test]
fn w02_a_lint_counts_what_nobody_knows() {
    const SALT: &str = "0123456789abcdef";
    let metadata = "00000001000001a2004e1d6f33d53640";
    let cases: &[(&str, &str, &str, usize, usize)] = &[
        ("inside the prefix", "sk-p", "roj-0123456789", 10, 0),
        ("after the prefix", "sk-proj-", "0123456789", 10, 0),
        ("later", "sk-proj-0123", "456789", 6, 4),
        ("nothing for the client", "sk-proj-0123456789", "", 0, 10),
        ("a service account's", "sk-svcacct-0123", "456789", 6, 4),
        ("an administrator's", "sk-admin-0123", "456789", 6, 4),
        ("nobody's", "sk-None-0123", "456789", 6, 4),
        ("the fixed text with the server", "sk-0123T3BlbkFJ45", "6789", 4, 6),
        ("the fixed text cut in two", "sk-0123T3Bl", "bkFJ456789", 6, 4),
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
    let more = [
        ("any", "T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0u"),
        ("openai", "sk-svcacct-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0u"),
        ("google", "AQ.Ab8RN6T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0u.WoYt"),
    ];
    for (name, key) in KEYS.iter().chain(&more) {
        let provider = Providers::default().with(Provider::new("any")).get(name).unwrap().clone();
        let (_, secrets) = provider.secrets(key).unwrap().around(0);
        let mut cuts = BTreeMap::<usize, u64>::new();
        for _ in 0..SPLITS {
            let split = splitter.split_at("project", name, key, NOW, &mut random).unwrap();
            let at = split.record().server_part().expose().len() - 16;
            let lint = lint(split.record().server_part(), split.client_part(), &provider).unwrap();
            assert!(lint.is_sound(), "{name}");
            *cuts.entry(at).or_default() += 1;
        }
        let choices = secrets - 2 * LACKING + 1;
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

/// The fixed text is on one side of each cut, or on both, and saves nobody a secret character.
#[test]
fn w02_no_cut_counts_the_fixed_text_of_openai() {
    let mut random = Seeded(2);
    for key in ["sk-svcacct-0123456789abT3BlbkFJ0123456789ab", "sk-0123456789abcT3BlbkFJ0123456789ab"] {
        for _ in 0..200 {
            let split = splitter(Version::Cut).split_at("project", "openai", key, NOW, &mut random).unwrap();
            let server = split.record().server_part().expose();
            let head = server[..server.len() - 16].replace("T3BlbkFJ", "");
            assert!(head.trim_start_matches("sk-").trim_start_matches("svcacct-").len() >= LACKING, "{head}");
            assert!(key[server.len() - 16..].replace("T3BlbkFJ", "").len() >= LACKING, "{server}");
        }
    }
    let error = splitter(Version::Cut).split("project", "openai", "sk-admin-0123456789aT3BlbkFJ0123456789ab");
    assert_eq!(error.unwrap_err().kind(), TooShort);
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

proptest::proptest! {
    /// A server part of version 1 says the head of the key, and of the tail only that it is long enough: every other tail
    /// has a client part.
    #[test]
    fn a_head_fits_every_other_tail(seed: u64, tail in "[A-Za-z0-9]{64}") {
        let (provider, key) = KEYS[0];
        let split =
            splitter(Version::Cut).split_at("project", provider, key, NOW, &mut Seeded(seed)).unwrap();
        let server = split.record().server_part();
        let (head, salt) = server.expose().split_at(server.expose().len() - SALT);
        let tail = &tail[..key.len() - head.len()];
        let client = ClientPart::new(format!("{tail}{salt}").as_bytes(), split.client_part().metadata());
        let opened = splitter(Version::Cut).open(split.record(), &client.unwrap()).unwrap();
        proptest::prop_assert_eq!(opened.expose(), format!("{head}{tail}"));
    }
}
