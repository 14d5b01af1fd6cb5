//! Mistakes of the operator's, which the tool refuses or warns of.

use std::fs;

use tower_devicecheck::split_key::{ClientPart, FileSplitKeyStore, SplitKeyStore, Splitter};

use super::{KEYS, Tool, proxeds_pairs};

const ADD: &str = "add --file keys.json --project app --provider openai";

/// A provider may change the format of its keys before this tool knows it.
#[tokio::test]
async fn w01_a_key_of_a_new_format_is_taken_with_a_warning() {
    let tool = Tool::new("formats");
    let (newest, unknown) =
        ("AQ.Ab8RN6T9wLmV3cXz7QbN2kR8y.J5hF1dG6sA4pE0uWo", "BR-T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW");
    let cases = [
        ("google", newest, false),
        ("google", unknown, true),
        ("openai", unknown, true),
        ("anthropic", unknown, true),
        ("groq", unknown, true),
    ];
    for (provider, key, warns) in cases {
        let add = format!("add --file keys.json --project app --provider {provider}");
        let output = tool.run(&add, key);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{provider}: {error}");
        assert_eq!(error.contains("WARN"), warns, "{provider}: {error}");
        assert!(!error.contains(&key[3..15]), "{provider}: {error}");
        let part: ClientPart = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let store = FileSplitKeyStore::open(tool.file()).unwrap();
        let record = store.get("app", part.metadata().split()).await.unwrap().unwrap();
        assert_eq!(Splitter::new().open(&record, &part).unwrap().expose(), key);
        // A rotation takes the same keys.
        let split = part.metadata().split();
        let rotated = tool.run(&format!("rotate --file keys.json --project app --split {split}"), key);
        assert!(rotated.status.success(), "{provider}: {}", String::from_utf8_lossy(&rotated.stderr));
    }
    let error = tool.fail("add --file keys.json --project app --provider google --version 1", unknown);
    assert!(error.contains("no format that is known"), "{error}");
}

/// A typing mistake in a limit makes a key that never works, or a file that nobody wanted.
#[test]
fn w28_limits_that_no_request_meets_are_refused() {
    let tool = Tool::new("limits");
    let key = KEYS[0].1;
    let pair = &proxeds_pairs()[0];
    let pair = serde_json::json!({
        "project": "p", "provider": "openai", "server_part": pair["server_part"], "client_part": pair["client_part"],
    })
    .to_string();
    for (limit, why) in [
        ("--path v1/openai/chat/completions", "--path"),
        ("--path /v1/openai/* --path chat", "--path"),
        ("--path /v1/openai/chat*", "--path"),
        ("--path /v1/openai/chat?x=1", "--path"),
        ("--path=", "--path"),
        ("--method post", "--method"),
        ("--method PSOT", "--method"),
        ("--method POST --method CONNECT", "--method"),
        ("--expires-in 0d", "--expires-in"),
        ("--expires-in 0s", "--expires-in"),
    ] {
        for (command, stdin) in [(ADD, key), ("import --file keys.json", &pair)] {
            let error = tool.fail(&format!("{command} {limit}"), stdin);
            assert!(error.starts_with(&format!("error: {why}: ")), "{command} {limit}: {error}");
            assert!(!tool.file().exists(), "{command} {limit}");
        }
    }
}

/// A server of the operator's own may have other paths than the gateway.
#[test]
fn w28_a_path_that_is_none_of_the_gateways_is_warned_of() {
    let tool = Tool::new("paths");
    for (path, warns) in [
        ("/v1/openai/chat/completions", false),
        ("/v1/openai/*", false),
        ("/v1/*", false),
        ("/*", false),
        ("/chat/completions", true),
        ("/v1/chat/completions", true),
        ("/v1/anthropic/*", true),
        ("/v1/openai", true),
        ("/v1/openai/app/chat/completions", true),
        ("/v1/openai/app/*", true),
        ("/v1/openai/v1/chat/completions", true),
        ("/v1/openai/vector_stores", false),
    ] {
        let output = tool.run(&format!("{ADD} --path {path}"), KEYS[0].1);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{path}: {error}");
        assert_eq!(error.contains("WARN") && error.contains("path"), warns, "{path}: {error}");
    }
    let pair = &proxeds_pairs()[0];
    let pair = serde_json::json!({
        "project": "p", "provider": "openai", "server_part": pair["server_part"], "client_part": pair["client_part"],
    });
    let output = tool.run("import --file keys.json --path /chat/*", &pair.to_string());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.contains("path"), "{error}");
}

#[test]
fn w28_a_key_that_has_ended_is_not_rotated() {
    let tool = Tool::new("ended");
    let key = KEYS[0].1;
    let split = |part: &str| {
        let part: ClientPart = part.parse().unwrap();
        part.metadata().split()
    };
    let revoked = split(&tool.succeed(ADD, key));
    tool.succeed(&format!("revoke --file keys.json --project app --split {revoked}"), "");
    let expired = split(&tool.succeed(&format!("{ADD} --expires-in 9d"), key));
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(tool.file()).unwrap()).unwrap();
    let records = file["keys"].as_array_mut().unwrap();
    let record = records.iter_mut().find(|record| record["expires_at_ms"].is_u64()).unwrap();
    record["expires_at_ms"] = 1_000.into();
    fs::write(tool.file(), file.to_string()).unwrap();
    let before = fs::read(tool.file()).unwrap();
    for (split, why) in [(revoked, "revoked"), (expired, "expired")] {
        let error = tool.fail(&format!("rotate --file keys.json --project app --split {split}"), key);
        assert!(error.starts_with("error: ") && error.contains(why), "{error}");
        assert_eq!(fs::read(tool.file()).unwrap(), before);
    }
}

#[test]
fn w28_a_command_that_fails_leaves_no_file() {
    let tool = Tool::new("none");
    let key = KEYS[0].1;
    let long = "k".repeat(5_000);
    for (arguments, stdin) in [
        ("import --file keys.json", "no pair"),
        ("import --file keys.json", ""),
        (ADD, ""),
        (ADD, "a key with spaces"),
        (ADD, &long),
        ("add --file keys.json --project app --provider google --version 1", key),
        ("add --file keys.json --project= --provider openai", key),
        ("rotate --file keys.json --project app --split 00000000", key),
    ] {
        tool.fail(arguments, stdin);
        let left: Vec<_> =
            fs::read_dir(&tool.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{arguments}: {left:?}");
    }
}

/// The file of the gateway's.
#[test]
fn w28_the_providers_of_the_gateways_file_are_known() {
    let tool = Tool::new("providers");
    let text = "[[provider]]\nname = \"groq\"\nbase_url = \"https://api.groq.com/openai/v1\"\n\
                key_prefixes = [\"gsk_\"]\n[[provider]]\nname = \"azure\"\nbase_url = \"https://x.example\"\n";
    fs::write(tool.folder.join("providers.toml"), text).unwrap();
    let run = |provider: &str, key: &str, file: &str| {
        let add = format!("add --file keys.json --project app --provider {provider}");
        let output = tool.run_with(&add, key, &[("PROVIDERS_FILE", file)]);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let groq = "gsk_T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW";
    for (provider, key, warning) in [
        ("groq", groq, ""),
        ("azure", groq, ""),
        ("openai", KEYS[0].1, ""),
        ("groq", "T9wLmV3cXz7QbN2kR8yJ5hF1dG6sA4pE0uW", "no format"),
        ("mistral", groq, "PROVIDERS_FILE"),
    ] {
        let (succeeded, error) = run(provider, key, "providers.toml");
        assert!(succeeded, "{provider}: {error}");
        assert_eq!(error.contains("WARN"), !warning.is_empty(), "{provider}: {error}");
        assert!(error.contains(warning) && !error.contains(&key[4..12]), "{provider}: {error}");
    }
    // Version 1 needs to know what is public.
    let cut = "add --file keys.json --project app --provider groq --version 1";
    assert!(tool.run_with(cut, groq, &[("PROVIDERS_FILE", "providers.toml")]).status.success());
    // A file that is none is an error, and is not quoted.
    fs::write(tool.folder.join("wrong.toml"), "[[provider]]\nkey = \"MARKER\"\n").unwrap();
    for file in ["wrong.toml", "nothing.toml"] {
        let (succeeded, error) = run("groq", groq, file);
        assert!(
            !succeeded && error.contains("error: PROVIDERS_FILE: ") && !error.contains("MARKER"),
            "{error}"
        );
    }
}
