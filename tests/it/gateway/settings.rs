//! Settings that contradict each other or mean nothing: the example does not start with them.

use std::{collections::BTreeSet, fs, path::Path, process::Stdio};

use tower_devicecheck::testing::FakeApple;

use super::{
    ai_gateway::cors,
    operator::{refused, start},
};

/// A key file without keys, gone with the test.
pub(super) struct KeyFile(pub(super) String);

impl KeyFile {
    pub(super) fn new(name: &str) -> Self {
        let file = format!("{}/{name}-{}.json", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        fs::write(&file, r#"{"format":1,"keys":[]}"#).unwrap();
        Self(file)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn w27_real_credentials_and_made_up_keys_contradict_each_other() {
    let fake = FakeApple::new();
    let pem = fake.private_key().to_pem();
    let all = [
        ("APPLE_JWT_ISS", fake.team_id()),
        ("APPLE_JWT_KID", fake.key_id()),
        ("APPLE_JWT_PRIVATE_KEY", &*pem),
        // Nobody is there: an outage of Apple's does not stop the start.
        ("DEVICECHECK_PRODUCTION_URL", "http://127.0.0.1:1"),
    ];
    for variables in [&all[..], &all[..1], &all[2..3]] {
        for more in [&[][..], &[("KEYS_IN_REDIS", "0")], &[("ALLOW_FAKE_APPLE", "1")]] {
            let variables = [variables, more].concat();
            refused("ai_gateway", &variables, &format!("{} is set", variables[0].0), "listen there");
            refused("ai_gateway", &variables, "KEYS_FILE", pem.lines().nth(1).unwrap());
        }
    }
    // With keys, it starts until it cannot listen.
    let keys = KeyFile::new("w27");
    let variables = [&all[..], &[("KEYS_FILE", &*keys.0), ("USAGE_FOLDER", "none")]].concat();
    refused("ai_gateway", &variables, "LISTEN", "KEYS_FILE is not");
}

#[test]
fn w27_zero_is_refused_where_it_means_nothing() {
    for name in ["MAX_BODY_BYTES", "USAGE_DAYS", "UPLOAD_TIMEOUT", "HEAD_TIMEOUT", "IDLE_TIMEOUT"] {
        for value in ["0", " 00 ", "-1", "1.5", "99999999999999999999"] {
            refused("ai_gateway", &[(name, value)], &format!("error: {name}: "), "listen there");
        }
        refused("ai_gateway", &[(name, "1")], "LISTEN", name);
    }
    // No connection is kept.
    refused("ai_gateway", &[("IDLE_CONNECTIONS", "0")], "LISTEN", "IDLE_CONNECTIONS");
}

#[test]
fn w08_an_admin_token_is_long_and_one_that_a_header_can_carry() {
    let short = "it is shorter than 16 characters";
    let odd = "it may hold visible ASCII characters only";
    for (token, fault) in [
        ("a", short),
        ("123456789012345", short),
        ("ääääääää", odd),
        ("a token with spaces in it", odd),
        ("fifteen-letters", short),
        ("sixteen-letters\u{7f}", odd),
        ("tab\tin-the-middle", odd),
    ] {
        for example in ["ai_gateway", "session"] {
            // A single letter is in any text.
            let secret = if token.len() == 1 { "listen there" } else { token };
            refused(example, &[("ADMIN_TOKEN", token)], &format!("error: ADMIN_TOKEN: {fault}"), secret);
        }
    }
    for token in ["1234567890123456", " sixteen--letters\n"] {
        for example in ["ai_gateway", "session"] {
            refused(example, &[("ADMIN_TOKEN", token)], "LISTEN", "ADMIN_TOKEN");
        }
    }
}

/// A test key is in apps, and whoever has one of those would read the counts.
#[test]
fn w27_an_admin_token_is_no_test_key() {
    let both = "one-secret-for-both-of-them";
    let same = [("ADMIN_TOKEN", both), ("TEST_KEY", " one-secret-for-both-of-them ")];
    refused("ai_gateway", &same, "ADMIN_TOKEN", both);
    refused("ai_gateway", &same, "TEST_KEY", "listen there");
    refused("ai_gateway", &[same[0], ("TEST_KEY", "another-secret-of-the-tests")], "LISTEN", "ADMIN_TOKEN");

    let (keys, fake) = (KeyFile::new("w27-projects"), FakeApple::new());
    let key = format!("{}.p8", keys.0);
    fs::write(&key, fake.private_key().to_pem()).unwrap();
    let project = |id: &str, test_key: &str| {
        serde_json::json!({
            "id": id, "team_id": fake.team_id(), "key_id": fake.key_id(), "private_key_file": key,
            "test_key": test_key,
        })
    };
    let projects = format!("{}.projects", keys.0);
    for (second, named, secret) in [
        (both, "project 2: its test key is ADMIN_TOKEN", both),
        ("another-secret-of-the-tests", "LISTEN", "TOKEN"),
    ] {
        let text =
            serde_json::json!({ "projects": [project("a", "the-first-test-key"), project("b", second)] });
        fs::write(&projects, text.to_string()).unwrap();
        let variables = [
            ("PROJECTS_FILE", &*projects),
            ("KEYS_FILE", &keys.0),
            ("USAGE_FOLDER", "none"),
            ("ADMIN_TOKEN", both),
            ("DEVICECHECK_PRODUCTION_URL", "http://127.0.0.1:1"),
        ];
        refused("ai_gateway", &variables, named, secret);
    }
    fs::remove_file(key).unwrap();
    fs::remove_file(projects).unwrap();
}

#[test]
fn w11_origins_that_are_none_are_refused_at_the_start() {
    for origins in ["*", "null", "https://app.example/path"] {
        refused("ai_gateway", &[("CORS_ORIGINS", origins)], "CORS_ORIGINS: entry 1: ", "/path");
    }
}

/// Browsers write each origin in one way, and the texts are compared.
#[test]
fn w27_an_origin_that_no_browser_sends_is_refused_by_its_number() {
    let cases = [
        ("https://app.example:443", "port"),
        ("http://app.example:80", "port"),
        ("https://app.example:", "port"),
        ("https://app.example:08443", "port"),
        ("https://app.example:99999", "written"),
        ("https://App.example", "lower case"),
        ("HTTPS://app.example", "lower case"),
        ("https://app.example/", "after the host"),
        ("https://app.example/path", "after the host"),
        ("https://app.example?query", "after the host"),
        ("https://app.example#x", "after the host"),
        ("capacitor://localhost/", "after the host"),
        ("app.example", "a scheme"),
        ("", "a scheme"),
        ("*", "none"),
        ("null", "none"),
        ("https://*.example", "written"),
        ("https://b\u{fc}cher.example", "written"),
        ("https://127.1", "written"),
        ("http://[0:0::1]", "written"),
        ("https://user:password@app.example", "written"),
        ("1a://localhost", "written"),
        ("file://", "written"),
        ("file://localhost", "written"),
    ];
    for (wrong, why) in cases {
        let error = cors::layer(&format!("https://good.example, {wrong} ,null")).unwrap_err().to_string();
        assert!(error.starts_with("entry 2: ") && error.contains(why), "{wrong}: {error}");
        for part in ["good", "password", "path", "query", "b\u{fc}"] {
            assert!(!error.contains(part), "{wrong}: {error}");
        }
    }
    let good = [
        "https://app.example:80",
        "http://app.example:443",
        "https://xn--bcher-kva.example",
        "http://127.0.0.1:8080",
        "http://[::1]:3",
        "http://localhost",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnop",
        "app+x://com.example.app:443",
    ];
    assert!(cors::layer(&good.join(",")).is_ok());
    for origin in good {
        assert!(cors::layer(origin).is_ok(), "{origin}");
    }
    refused("ai_gateway", &[("CORS_ORIGINS", "https://mine.example:443")], "CORS_ORIGINS: entry 1: ", "mine");
}

#[test]
fn w27_a_misspelt_variable_is_warned_of() {
    let warnings = |variables: &[(&str, &str)]| {
        let mut process = start("ai_gateway", variables);
        let output = process.env("LISTEN", "nowhere").stdout(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        crate::captured::printed(&text);
        assert!(!text.contains("hidden"), "{text}");
        text.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect::<Vec<_>>()
    };
    for (wrong, right) in [
        ("KEY_FILE", "KEYS_FILE"),
        ("KEYSFILE", "KEYS_FILE"),
        ("ADMIN_TOKENS", "ADMIN_TOKEN"),
        ("OPEN_AI_URL", "OPENAI_URL"),
        ("CORS_ORIGIN", "CORS_ORIGINS"),
        ("ADMIN_TOKNE", "ADMIN_TOKEN"),
        ("admin_token", "ADMIN_TOKEN"),
        ("PROVIDER_FILE", "PROVIDERS_FILE"),
        ("APPLE_JWT_TEAM_ID", "APPLE_JWT_"),
    ] {
        let lines = warnings(&[(wrong, "hidden")]);
        assert_eq!(lines.len(), 1, "{wrong}: {lines:?}");
        assert!(lines[0].contains(wrong) && lines[0].contains(right), "{wrong}: {lines:?}");
    }
    // Of other programs, and of the system.
    let others = [
        "PATH",
        "HOME",
        "LISTEN_FDS",
        "REDIS_PORT",
        "GATEWAY_SERVICE_HOST",
        "OPENAI_API_KEY",
        "HTTPS_PROXY",
        "SSL_CERT_FILE",
        "RUST_BACKTRACE",
        "MALLOC_ARENA_MAX",
        "KEY",
    ];
    let others = others.map(|name| (name, "hidden"));
    assert_eq!(warnings(&others), [""; 0]);
    // All that the docs name.
    let all: Vec<_> = documented().into_iter().filter(|name| name != "RUST_LOG").collect();
    let empty: Vec<_> = all.iter().map(|name| (&**name, "")).collect();
    assert_eq!(warnings(&empty), [""; 0]);
}

/// The variables in the table of the docs.
fn documented() -> BTreeSet<String> {
    let docs = include_str!("../../../docs/gateway.md");
    let table = docs.split("\n## Settings\n").nth(1).unwrap().split("\n#").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    // The first column.
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

/// The names in the strings of these files of the example.
fn in_sources(files: &[&str]) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let is_name = |text: &str| {
        let letters = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
        text.len() > 3 && text.bytes().all(letters) && !text.ends_with('_')
    };
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(root.join(file)).unwrap();
        names.extend(text.split('"').filter(|text| is_name(text)).map(str::to_owned));
    }
    names
}

#[test]
fn w27_every_variable_is_in_the_docs() {
    let read = in_sources(&[
        "ai_gateway.rs",
        "ai_gateway/admin.rs",
        "ai_gateway/client.rs",
        "ai_gateway/gateway.rs",
        "ai_gateway/projects.rs",
        "ai_gateway/providers.rs",
        "shared/keys.rs",
        "shared/metrics.rs",
        "shared/apple.rs",
        "shared/mod.rs",
    ]);
    assert!(read.len() > 30, "{read:?}");
    assert_eq!(documented(), read);
    assert_eq!(in_sources(&["ai_gateway/variables.rs"]), read, "a name would be taken for a misspelt one");
}
