//! Where the paths of the example `ai_gateway` lead, and where they cannot.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tower_devicecheck::split_key::{
    Limits, MemorySplitKeyStore, Provider, Providers, SplitKeyErrorKind, SplitKeyStore, Splitter,
    gateway::Target,
};

#[test]
fn where_paths_lead() {
    let anthropic = Provider::anthropic().with_base_url("https://proxy.example/anthropic/v1/").unwrap();
    let providers = Providers::default().with(anthropic);
    // With `X-Project-Id`, if the row has one: project in the path, URL, path that limits see; or the problem.
    type Row =
        (&'static str, Option<&'static str>, Result<(Option<&'static str>, &'static str, &'static str), u16>);
    const OPENAI: &str = "https://api.openai.com/v1/chat/completions";
    const CHAT: &str = "/v1/openai/chat/completions";
    const GOOGLE: &str = "https://generativelanguage.googleapis.com";
    const BAD: Result<(Option<&str>, &str, &str), u16> = Err(400);
    let google = |path: &'static str| -> &'static str { format!("{GOOGLE}{path}").leak() };
    let cases: Vec<Row> = vec![
        ("/v1/openai/app/chat/completions", None, Ok((Some("app"), OPENAI, CHAT))),
        ("/v1/openai/app/v1/chat/completions", None, Ok((Some("app"), OPENAI, CHAT))),
        ("/v1/openai/chat/completions", Some("app"), Ok((None, OPENAI, CHAT))),
        ("/v1/openai/v1/chat/completions", Some("app"), Ok((None, OPENAI, CHAT))),
        ("/v1/openai/app/chat/completions", Some("app"), Ok((None, OPENAI, CHAT))),
        ("/v1/openai/app/v1/chat/completions", Some("app"), Ok((None, OPENAI, CHAT))),
        (
            "/v1/openai/app/v2/chat",
            None,
            Ok((Some("app"), "https://api.openai.com/v2/chat", "/v1/openai/v2/chat")),
        ),
        (
            "/v1/anthropic/app/v1/messages?beta=true",
            None,
            Ok((
                Some("app"),
                "https://proxy.example/anthropic/v1/messages?beta=true",
                "/v1/anthropic/messages?beta=true",
            )),
        ),
        (
            "/v1/google/app/models/gemini-1.5:generateContent?alt=sse",
            None,
            Ok((
                Some("app"),
                google("/v1beta/models/gemini-1.5:generateContent?alt=sse"),
                "/v1/google/models/gemini-1.5:generateContent?alt=sse",
            )),
        ),
        ("/v1/google/app/v1/models", None, Ok((Some("app"), google("/v1/models"), "/v1/google/v1/models"))),
        (
            "/v1/google/app/upload/v1beta/files",
            None,
            Ok((Some("app"), google("/upload/v1beta/files"), "/v1/google/upload/v1beta/files")),
        ),
        (
            "/v1/openai/app/files/a%20b..c",
            None,
            Ok((Some("app"), "https://api.openai.com/v1/files/a%20b..c", "/v1/openai/files/a%20b..c")),
        ),
        ("/v1/openai/app", None, BAD),
        ("/v1/openai/app/", None, BAD),
        ("/v1/openai/", None, BAD),
        ("/v1/openai//app/chat", None, BAD),
        ("/v1/openai/app//chat", None, BAD),
        ("/v1/openai/app//evil.example/chat", None, BAD),
        ("/v1/openai/app/../secrets", None, BAD),
        ("/v1/openai/app/./chat", None, BAD),
        ("/v1/openai/../anthropic/app/messages", None, BAD),
        ("/v1/openai/app/%2e%2e/secrets", None, BAD),
        ("/v1/openai/app/%2E./secrets", None, BAD),
        ("/v1/openai/app/..%2fsecrets", None, BAD),
        ("/v1/openai/app/..%5csecrets", None, BAD),
        ("/v1/openai/app/%252e%252e/secrets", None, BAD),
        ("/v1/openai/app/..;x/secrets", None, BAD),
        ("/v1/openai/app/..%3bx/secrets", None, BAD),
        ("/v1/openai/app/..%20/secrets", None, BAD),
        ("/v1/openai/app/%c0%ae%c0%ae/secrets", None, BAD),
        ("/v1/openai/app/;x/secrets", None, BAD),
        ("/v1/openai/app/chat%00", None, BAD),
        ("/v1/openai/app/chat%0d%0aHost:evil", None, BAD),
        ("/v1/openai/app/chat%", None, BAD),
        ("/v1/openai/app/chat%zz", None, BAD),
        ("/v1/openai/%2e%2e/chat", Some("%2e%2e"), BAD),
        ("/v1/mistral/app/chat", None, Err(404)),
        ("/v2/openai/app/chat", None, Err(404)),
        ("/v1/openai", None, BAD),
        ("/v1/mistral", None, Err(404)),
        ("/v1/", None, Err(404)),
    ];
    for (path, project, expected) in cases {
        let mut headers = HeaderMap::new();
        if let Some(project) = project {
            headers.insert("x-project-id", project.parse().unwrap());
        }
        let found = Target::resolve(&path.parse().unwrap(), &headers, &providers);
        let found = found.map_err(|rejection| rejection.status().as_u16());
        let found = found.map(|target| {
            (target.project().map(str::to_owned), target.uri().to_string(), target.path().to_string())
        });
        let expected = expected
            .map(|(project, url, path)| (project.map(str::to_owned), url.to_owned(), path.to_owned()));
        assert_eq!(found, expected, "{path} {project:?}");
    }

    for (url, fits) in [
        ("https://api.example/v1", true),
        ("http://127.0.0.1:3000", true),
        ("http://[::1]:3000", true),
        ("http://localhost/v1", true),
        ("http://api.example/v1", false),
        ("http://127.0.0.1.example/v1", false),
        ("ftp://api.example", false),
        ("https://user:password@api.example", false),
        ("https://api.example/v1?key=1", false),
        ("api.example", false),
    ] {
        assert_eq!(Provider::openai().with_base_url(url).is_ok(), fits, "{url}");
    }
}

#[test]
fn w14_an_empty_segment_is_named() {
    for path in [
        "/v1/openai//chat/completions",
        "/v1/openai/app//chat/completions",
        "/v1/openai/app/chat/",
        "/v1/openai/app/",
        "/v1/openai/",
    ] {
        let found = Target::resolve(&path.parse().unwrap(), &HeaderMap::new(), &Providers::default());
        let rejection = found.unwrap_err();
        assert_eq!(rejection.code(), "empty_segment", "{path}");
        assert!(rejection.to_string().contains("slash"), "{path}: {rejection}");
    }
}

#[test]
fn w14_a_path_that_ends_too_early_says_so() {
    for (path, project, expected) in [
        ("/v1/openai", None, "no_project"),
        ("/v1/openai?limit=1", None, "no_project"),
        ("/v1/openai", Some("app"), "no_project"),
        ("/v1/openai/models", None, "no_project"),
        ("/v1/open", None, "unknown_provider"),
    ] {
        let name = HeaderName::from_static("x-project-id");
        let headers = project.map(|project| (name, HeaderValue::from_static(project))).into_iter().collect();
        let found = Target::resolve(&path.parse().unwrap(), &headers, &Providers::default());
        assert_eq!(found.unwrap_err().code(), expected, "{path} {project:?}");
    }
}

#[tokio::test]
async fn w14_a_path_that_can_never_match_is_not_issued() {
    let keys = MemorySplitKeyStore::new();
    for path in ["", "*", "chat", "/v1/*/x", "/v1/chat*", "/v1/chat?x=1", "/v1/..%3bx/*", "/a b"] {
        let limits = Limits::none().with_paths([path]);
        let issued = Splitter::new().issue(&keys, "app", "openai", super::KEY, limits).await;
        assert_eq!(issued.unwrap_err().kind(), SplitKeyErrorKind::ImpossiblePath, "{path:?}");
    }
    assert!(keys.list().await.unwrap().is_empty());
}
