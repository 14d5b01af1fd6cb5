//! Providers from a file, each in front of a fake that takes nothing but its own form.

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
};
use tower_devicecheck::split_key::{Limits as KeyLimits, Providers};

use super::{
    Gateway, KEY,
    ai_gateway::{Limits, providers},
    code, names, provider,
};
use crate::support::behind_a_private_authority;

/// The file that the example ships, with the servers of these providers in another place.
fn file(url: &str) -> String {
    let text = include_str!("../../../examples/ai_gateway/providers.toml");
    let text = text.replace("https://my-resource.openai.azure.com", url);
    text.replace("https://openrouter.ai", url).replace("https://api.deepseek.com", url)
}

/// A gateway with a key of this provider.
async fn gateway(name: &str, url: &str) -> Gateway {
    let providers = providers::add(Providers::default(), &file(url)).unwrap();
    Gateway::start((name, KEY), providers, Limits::default(), KeyLimits::none()).await
}

fn only(headers: &HeaderMap, expected: &[(&str, &str)]) -> bool {
    let mut all: Vec<_> = expected.iter().map(|(name, _)| *name).chain(["content-length", "host"]).collect();
    all.sort_unstable();
    let mut found = names(headers);
    // Of the client that this test is.
    found.retain(|name| *name != "accept");
    found == all && expected.iter().all(|(name, value)| headers[*name] == *value)
}

/// Azure answers 401 without its header, and 404 to another path or without a version that it knows.
async fn azure(request: Request) -> Response {
    let target = request.uri().to_string();
    let paths = [
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "/openai/deployments/gpt-4o/embeddings?api-version=2024-10-21",
        "/openai/v1/chat/completions",
    ];
    if !only(request.headers(), &[("api-key", KEY), ("content-type", "application/json")]) {
        return (StatusCode::UNAUTHORIZED, format!("{:?}", names(request.headers()))).into_response();
    }
    if request.method() != Method::POST || !paths.contains(&&*target) {
        return (StatusCode::NOT_FOUND, target).into_response();
    }
    "azure".into_response()
}

#[tokio::test]
async fn azure_takes_its_header_its_version_and_the_deployment_in_the_path() {
    let (url, seen) = provider(azure).await;
    let gateway = gateway("azure", &url).await;
    let credential = gateway.credential();
    let bearer = format!("Bearer {credential}");
    for (name, path, header) in [
        (
            "Azure's SDK",
            "deployments/gpt-4o/chat/completions?api-version=2023-05-15",
            ("api-key", &credential),
        ),
        ("without a version", "deployments/gpt-4o/embeddings", ("api-key", &credential)),
        ("OpenAI's SDK", "deployments/gpt-4o/chat/completions", ("authorization", &bearer)),
        ("Anthropic's header", "deployments/gpt-4o/embeddings", ("x-api-key", &credential)),
    ] {
        let request = gateway.client.post(format!("{}/v1/azure/app/{path}", gateway.url));
        let request =
            request.header(header.0, header.1).header("content-type", "application/json").body("{}");
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!((status, &*text), (StatusCode::OK, "azure"), "{name}");
    }
    assert_eq!(seen.lock().unwrap().len(), 4);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn azure_s_newer_form_has_its_header_only() {
    let (url, _) = provider(azure).await;
    let gateway = gateway("azure-v1", &url).await;
    for path in ["chat/completions", "v1/chat/completions"] {
        let request = gateway.post(&format!("/v1/azure-v1/app/{path}"));
        let response = request.header("content-type", "application/json").body("{}").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(gateway.apple.calls(), 2);
}

#[tokio::test]
async fn openrouter_gets_the_operators_headers_and_none_of_the_clients() {
    let key = format!("Bearer {KEY}");
    let (url, seen) = provider(move |request: Request| {
        let expected = [
            ("authorization", &*key),
            ("content-type", "application/json"),
            ("http-referer", "https://app.example"),
            ("x-title", "My app"),
        ];
        let fits = request.method() == Method::POST
            && request.uri() == "/api/v1/chat/completions"
            && only(request.headers(), &expected);
        async move { if fits { StatusCode::OK } else { StatusCode::BAD_REQUEST }.into_response() }
    })
    .await;
    let gateway = gateway("openrouter", &url).await;
    for (name, value) in [("x-title", "The client's"), ("http-referer", "https://evil.example"), ("x-x", "1")]
    {
        let request = gateway.post("/v1/openrouter/app/chat/completions").header(name, value);
        let request = request.header("content-type", "application/json").body("{}");
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK, "{name}");
    }
    // The gateway's own errors are OpenAI's, as those of all that are compatible with it.
    let request = gateway.client.get(format!("{}/v1/openrouter/app/models?access_token=x", gateway.url));
    assert_eq!(code(request.send().await.unwrap()).await, "bad_query");
    assert_eq!((seen.lock().unwrap().len(), gateway.apple.calls()), (3, 3));
}

#[tokio::test]
async fn a_provider_of_the_file_has_keys_and_limits_of_its_own() {
    let (url, seen) = provider(super::ok).await;
    let gateway = gateway("deepseek", &url).await;
    let response = gateway.post("/v1/deepseek/app/chat/completions").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap()[0].uri, "/v1/chat/completions");
    let response = gateway.post("/v1/groq/app/chat/completions").send().await.unwrap();
    assert_eq!(code(response).await, "wrong_provider");
    let response = gateway.post("/v1/nobody/app/chat/completions").send().await.unwrap();
    assert_eq!(code(response).await, "unknown_provider");
    assert_eq!((seen.lock().unwrap().len(), gateway.apple.calls()), (1, 2));
}

#[test]
fn an_error_in_the_file_names_the_provider_and_quotes_nothing() {
    const SECRET: &str = "sk-proj-MARKERmarkerMARKERmarker";
    let good = "[[provider]]\nname = \"other\"\nbase_url = \"https://api.example/v1\"\n";
    for (text, named) in [
        (SECRET.to_owned(), "line 1"),
        (format!("{good}api_key = \"{SECRET}\""), "line "),
        (format!("{good}{SECRET} = 1"), "line "),
        (format!("{good}errors = \"{SECRET}\""), "line 4"),
        (format!("{good}headers = \"{SECRET}\""), "line 4"),
        (format!("{good}headers = {{ \"{SECRET} \" = \"x\" }}"), "provider 1: headers"),
        (format!("{good}headers = {{ x = \"{SECRET}\\n\" }}"), "provider 1: headers"),
        (format!("{good}query = {{ \"{SECRET}&\" = \"x\" }}"), "provider 1"),
        (format!("{good}key_scheme = \"{SECRET} x\""), "provider 1"),
        (format!("{good}key_header = \"{SECRET} x\""), "provider 1: key_header"),
        (format!("{good}key_header = \"Transfer-Encoding\""), "provider 1: key_header"),
        (format!("{good}headers = {{ \"Content-Length\" = \"1\" }}"), "provider 1: headers"),
        (format!("{good}default_headers = {{ host = \"x\" }}"), "provider 1: default_headers"),
        (format!("{good}\n{good}"), "provider 2"),
        (format!("[[provider]]\nname = \"{SECRET}\"\nbase_url = \"https://x/v1\""), "provider 1: its name"),
        (
            format!("[[provider]]\nname = \"x\"\nbase_url = \"https://x:{SECRET}@x/v1\""),
            "provider 1: base_url",
        ),
        ("[[provider]]\nname = \"x\"".to_owned(), "base_url is missing"),
    ] {
        let error = providers::add(Providers::default(), &text).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
        assert!(!error.contains("MARKER"), "{text}: {error}");
    }
}

/// Over TLS, as to all providers but a test's.
#[tokio::test]
async fn a_root_of_the_operators_own_is_trusted() {
    let (url, pem, seen) = behind_a_private_authority().await;
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("roots-{}.pem", std::process::id()));
    std::fs::write(&file, pem).unwrap();
    for (roots, status) in [(None, StatusCode::BAD_GATEWAY), (Some(file.clone()), StatusCode::OK)] {
        let gateway = Gateway::trusting(&url, roots).await;
        let response = gateway.post(super::CHAT).body("{}").send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(gateway.apple.calls(), 1);
    }
    std::fs::remove_file(file).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("POST /base/v1/chat/completions HTTP/1.1\r\n"), "{seen:?}");
    assert!(seen[0].contains(&format!("authorization: Bearer {KEY}\r\n")), "{seen:?}");
}
