//! A newcomer's first steps: the first screen of the documents, and what handlers of axum may return.

use std::{fs, path::Path};

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use http::{Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use tower_devicecheck::{
    BitsError, MalformedToken, Rejection, VerifyError,
    split_key::SplitKeyRejection,
    testing::{Endpoint, Reply},
};

use crate::support::{Apple, TOKEN_HEADER};

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The problem that a response tells.
async fn problem(response: axum::response::Response) -> (StatusCode, Value) {
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn p04_rejections_and_errors_are_answers_of_axum() {
    let responses = [
        ("a rejection", Rejection::RefusedToken.into_response(), 401, "refused_token"),
        ("one with a detail", Rejection::from(MalformedToken::Empty).into_response(), 401, "malformed_token"),
        ("no verdict", VerifyError::throttled(None, "x").into_response(), 503, "throttled"),
        ("our fault", VerifyError::misconfigured("x").into_response(), 500, "misconfigured"),
        ("no bits", BitsError::from(VerifyError::unavailable("x")).into_response(), 503, "unavailable"),
        ("no key", SplitKeyRejection::InvalidKey.into_response(), 401, "invalid_key"),
    ];
    for (name, response, status, code) in responses {
        assert_eq!(response.headers().contains_key("retry-after"), status == 503, "{name}");
        assert_eq!(response.headers().contains_key("www-authenticate"), status == 401, "{name}");
        let of_the_gate = response.extensions().get::<Rejection>().map(Rejection::code);
        let of_a_key = response.extensions().get::<SplitKeyRejection>().map(SplitKeyRejection::code);
        assert_eq!(of_the_gate.or(of_a_key), Some(code), "{name}: the response tells outer layers");
        let (answered, problem) = problem(response).await;
        assert_eq!((answered.as_u16(), problem["code"].as_str()), (status, Some(code)), "{name}");
    }
}

#[tokio::test]
async fn p04_a_handler_may_end_in_an_error_of_the_client() {
    let apple = Apple::new();
    let client = apple.client.clone();
    let bits = move |device: tower_devicecheck::VerifiedDevice| {
        let client = client.clone();
        async move { Ok::<_, BitsError>(client.query_bits(&device).await?.bit0().to_string()) }
    };
    let app = Router::new().route("/", get(bits)).route_layer(apple.layer());
    let token = apple.genuine();
    let request = || Request::get("/").header(TOKEN_HEADER, &token).body(Body::empty()).unwrap();
    assert_eq!(app.clone().oneshot(request()).await.unwrap().status(), StatusCode::OK);

    apple.fake.always(Reply::status(429));
    let (status, problem) = problem(app.oneshot(request()).await.unwrap()).await;
    assert_eq!((status.as_u16(), problem["code"].as_str()), (503, Some("throttled")));
    assert_eq!(apple.fake.calls_to(Endpoint::QueryBits), 2);
}

#[test]
fn p04_the_forgotten_feature_is_named_where_one_looks() {
    for file in ["README.md", "src/gate/decision.rs"] {
        let text = text(file);
        assert!(text.contains("`Handler<_, _>` is not satisfied"), "{file}");
        assert!(text.contains("--features axum"), "{file}");
    }
}

#[test]
fn p05_the_first_screen_says_what_one_has_to_know() {
    let readme = text("README.md");
    let first_screen = readme.lines().take(40).collect::<Vec<_>>().join("\n");
    let rust = format!("Rust {}", env!("CARGO_PKG_RUST_VERSION"));
    for word in ["X-Apple-Device-Token", "App Attest", &rust, "tower", "axum"] {
        assert!(first_screen.contains(word), "{word}");
    }
}

#[test]
fn p05_the_front_page_of_the_docs_leads_on() {
    let library = text("src/lib.rs");
    let page: Vec<_> = library.lines().filter_map(|line| line.strip_prefix("//!")).collect();
    let page = page.join("\n");
    for link in ["[`AppleClient`]", "[`DeviceCheckLayer::new`]", "[`VerifiedDevice`]", "[`Rejection`]"] {
        assert!(page.contains(link), "{link}");
    }
    assert!(page.contains("axum::serve"), "there is no axum program");
    assert!(page.contains("```text"), "there is no picture of a request's way");
}

#[test]
fn p05_tables_have_headers_and_pictures_fit() {
    let mut files = vec!["README.md".to_owned(), "src/lib.rs".to_owned()];
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        files.extend(name.ends_with(".md").then(|| format!("docs/{name}")));
    }
    for file in &files {
        let text = text(file);
        let mut picture = false;
        let mut lines = text.lines().map(|line| line.trim_start_matches("//! ").trim()).peekable();
        while let Some(line) = lines.next() {
            if line.starts_with("```") {
                picture = !picture && line == "```text";
            }
            // The column of a page of rustdoc's at 1,280 pixels; transcripts may scroll.
            assert!(
                !picture || !line.contains('▶') || line.chars().count() <= 96,
                "{file}: too wide: {line}"
            );
            let is_header = lines.peek().is_some_and(|next| next.starts_with("|--"));
            if is_header {
                let mut cells = line.trim_matches('|').split('|');
                assert!(cells.all(|cell| !cell.trim().is_empty()), "{file}: an empty header: {line}");
            }
        }
    }
}

#[test]
fn p05_the_guides_index_says_each_name_once() {
    let guide = text("src/guide.rs");
    for (number, line) in guide.lines().enumerate() {
        let Some(page) =
            line.trim().strip_prefix("#[doc = include_str!(\"../").and_then(|rest| rest.split('"').next())
        else {
            continue;
        };
        // The index shows a page's first paragraph, which is its title unless the guide says something else.
        let own = guide.lines().nth(number.saturating_sub(1)).unwrap_or_default();
        assert!(own.starts_with("/// "), "{page}: the index would repeat its title");
    }
}

/// The code, the title and the status of each row of both tables, as they stand in the source.
fn rows_of_both_tables() -> Vec<(String, String, u16)> {
    let tables = text("src/gate/rejection.rs") + &text("src/split_key/rejection.rs");
    let rows = tables.lines().filter_map(|line| {
        let (strings, status) = line.split_once("=> (\"")?.1.split_once("\", StatusCode::")?;
        let (code, title) = strings.split_once("\", \"")?;
        let status = match status.split_once(',')?.0 {
            "UNAUTHORIZED" => 401,
            "FORBIDDEN" => 403,
            "REQUEST_TIMEOUT" => 408,
            "PAYLOAD_TOO_LARGE" => 413,
            "TOO_MANY_REQUESTS" => 429,
            "INTERNAL_SERVER_ERROR" => 500,
            "SERVICE_UNAVAILABLE" => 503,
            other => panic!("{code}: add the status {other} here and to docs/clients-openapi.yaml"),
        };
        Some((code.to_owned(), title.to_owned(), status))
    });
    rows.collect()
}

#[test]
fn the_page_for_clients_and_the_openapi_document_have_every_rejection() {
    let rows = rows_of_both_tables();
    assert_eq!(rows.len(), 19, "the tables have another form now, or another length");
    let page = text("docs/clients.md");
    let openapi = text("docs/clients-openapi.yaml");
    let words = openapi.split_whitespace().collect::<Vec<_>>().join(" ");
    let problem = Rejection::RefusedToken.into_response();
    let problem = futures::executor::block_on(problem.into_body().collect()).unwrap().to_bytes();
    let problem: Value = serde_json::from_slice(&problem).unwrap();
    let base = problem["type"].as_str().unwrap().strip_suffix("refused_token").unwrap();
    for (code, title, status) in &rows {
        // Both rustdoc and GitHub make the anchor `#code` of this heading.
        assert_eq!(page.matches(&format!("\n### `{code}`\n")).count(), 1, "{code}: a section");
        assert!(page.contains(&format!("\n| `{code}` | {status} |")), "{code}: a row of the table");
        let example =
            format!("{code}: value: type: {base}{code} title: {title} status: {status} code: {code} ");
        assert!(format!("{words} ").contains(&example), "{code}: {example}");
        assert!(openapi.contains(&format!("\n        - {code}\n")), "{code}: an example of a code");
    }
    // The gateway answers in the shape of its providers' errors, which the OpenAPI document does not have.
    let gateway = text("src/split_key/gateway/rejection.rs");
    let gateway: Vec<_> = gateway
        .lines()
        .filter_map(|line| line.split_once("=> (\"")?.1.split('"').next())
        // A revoked key is that of the split keys' table.
        .filter(|code| rows.iter().all(|(other, ..)| other != code))
        .collect();
    assert_eq!(gateway.len(), 19, "the gateway's table has another form now, or another length");
    let table: String = page.lines().filter(|line| line.starts_with("| `")).collect();
    for code in &gateway {
        assert_eq!(page.matches(&format!("\n### `{code}`\n")).count(), 1, "{code}: a section");
        assert!(table.contains(&format!("`{code}`")), "{code}: in a row of the table");
    }
    let sections = page.lines().filter(|line| line.starts_with("### `")).count();
    assert_eq!(sections, rows.len() + gateway.len(), "a section for a code that does not exist");
    let examples = openapi.lines().filter(|line| line.trim() == "value:").count();
    assert_eq!(examples, rows.len(), "an example for a code that does not exist");
}
