//! Projects of the example `ai_gateway` with a team and a test key of their own.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    http::{StatusCode, request},
};
use serde_json::json;
use tower_devicecheck::{
    AppleClient, BoxError, Credentials, DebugTokens, DeviceCheckLayer,
    split_key::{Limits as KeyLimits, MemorySplitKeyStore, Provider, Providers, Splitter, UsageLog},
    testing::{FakeApple, PrivateKey},
};

use super::{
    ADMIN, KEY,
    ai_gateway::{Limits, Settings, app_of_projects, models::Models, projects},
    code, ok, provider, serve,
};
use crate::{captured, support::Apple, tenants_example::refused};

const PROJECTS: [&str; 2] = ["app", "game"];
/// A project with keys, but without a team.
const HOMELESS: &str = "homeless";

/// A file that is gone at the end of the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(text: &str) -> Self {
        let name = format!("projects-{}", uuid::Uuid::new_v4().simple());
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn test_key(project: &str) -> String {
    format!("a-test-key-of-the-{project}-0f7a1c52")
}

/// A gateway for [`PROJECTS`], each with an Apple of its own.
struct World {
    url: String,
    apples: Vec<Apple>,
    parts: Vec<String>,
    client: reqwest::Client,
    seen: Arc<Mutex<Vec<request::Parts>>>,
}

impl World {
    async fn new() -> Self {
        let other = FakeApple::with_key(&PrivateKey::generate(), "TEAM654321", "KEY7654321");
        let client = AppleClient::builder(other.credentials()).transport(other.transport()).build().unwrap();
        let apples = vec![Apple::new(), Apple { fake: other, client }];
        let keys = MemorySplitKeyStore::new();
        let (mut parts, mut files, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for project in PROJECTS.into_iter().chain([HOMELESS]) {
            let split =
                Splitter::new().issue(&keys, project, "openai", KEY, KeyLimits::none()).await.unwrap();
            parts.push(split.client_part().expose().to_owned());
        }
        for (project, Apple { fake, .. }) in PROJECTS.iter().zip(&apples) {
            let file = Temporary::new(&fake.private_key().to_pem());
            captured::secret(&test_key(project));
            entries.push(json!({
                "id": project, "team_id": fake.team_id(), "key_id": fake.key_id(),
                "private_key_file": file.path(), "test_key": test_key(project),
            }));
            files.push(file);
        }
        let gate = async |credentials: Credentials| {
            let apple = apples.iter().find(|apple| apple.fake.team_id() == credentials.team_id());
            Ok::<_, BoxError>(apple.ok_or("another team")?.layer())
        };
        let projects = projects::read(&json!({ "projects": entries }).to_string(), None, gate).await.unwrap();

        let (provider, seen) = provider(ok).await;
        let settings = Settings {
            providers: Providers::none()
                .with(Provider::openai().with_base_url(&format!("{provider}/v1")).unwrap()),
            models: Models::default(),
            roots: None,
            limits: Limits::default(),
            usage: UsageLog::new(),
            admin_token: Some(ADMIN.to_owned()),
            debug_tokens: DebugTokens::new().add("of-no-project", &test_key("gateway")).unwrap(),
            cors: None,
            single_use: false,
        };
        let app = app_of_projects(projects, keys, settings).unwrap();
        let url = serve(Router::new().fallback_service(app)).await;
        Self { url, apples, parts, client: reqwest::Client::new(), seen }
    }

    /// A request to a project, by the header or by the path.
    fn to(&self, project: &str, by_header: bool) -> reqwest::RequestBuilder {
        match by_header {
            true => self.at("/v1/openai/chat/completions").header("x-project-id", project),
            false => self.at(&format!("/v1/openai/{project}/chat/completions")),
        }
    }

    fn at(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    fn calls(&self) -> Vec<usize> {
        self.apples.iter().map(Apple::calls).collect()
    }

    fn forwarded(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn bearer(part: &str, token: &str) -> String {
    format!("Bearer {part}.{token}")
}

/// Every pair of the project of a credential and the project of a request, and both places of the project.
fn pairs() -> impl Iterator<Item = (usize, usize, bool)> {
    (0..8).map(|case| (case & 1, case >> 1 & 1, case & 4 == 0))
}

#[tokio::test]
async fn a_device_uses_keys_of_its_teams_project_only() {
    let world = World::new().await;
    let mut calls = vec![0, 0];
    for (credential, asked, by_header) in pairs() {
        let token = world.apples[credential].genuine();
        let request = world.to(PROJECTS[asked], by_header);
        let response =
            request.header("authorization", bearer(&world.parts[asked], &token)).send().await.unwrap();
        calls[asked] += 1;
        assert_eq!(world.calls(), calls);
        if credential == asked {
            assert_eq!(response.status(), StatusCode::OK);
        } else {
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert_eq!(code(response).await, "refused_token");
        }
    }
    assert_eq!(world.forwarded(), 4);
}

#[tokio::test]
async fn a_test_key_stands_in_for_devices_of_its_project_only() {
    let world = World::new().await;
    for (credential, asked, by_header) in pairs() {
        let (key, part) = (test_key(PROJECTS[credential]), &world.parts[asked]);
        let request = || world.to(PROJECTS[asked], by_header);
        let requests = [
            request().header("x-proxed-test-key", &key).header("x-ai-key", part),
            request().header("authorization", bearer(part, &key)),
        ];
        for request in requests {
            let expected = if credential == asked { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            assert_eq!(request.send().await.unwrap().status(), expected, "{credential} {asked} {by_header}");
        }
        // That of a gateway without projects.
        let request = request().header("x-proxed-test-key", test_key("gateway")).header("x-ai-key", part);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!((world.calls(), world.forwarded()), (vec![0, 0], 8));
}

#[tokio::test]
async fn a_client_part_opens_keys_of_its_project_only() {
    let world = World::new().await;
    for (credential, asked, by_header) in pairs() {
        let token = world.apples[asked].genuine();
        let request = world.to(PROJECTS[asked], by_header);
        let part = &world.parts[credential];
        let response = request.header("authorization", bearer(part, &token)).send().await.unwrap();
        if credential == asked {
            assert_eq!(response.status(), StatusCode::OK);
        } else {
            assert_eq!(code(response).await, "invalid_key");
        }
    }
    assert_eq!((world.calls(), world.forwarded()), (vec![4, 4], 4));
}

#[tokio::test]
async fn an_unknown_project_is_a_refused_token_and_nobody_is_asked() {
    let world = World::new().await;
    let known = world
        .to("app", true)
        .header("authorization", bearer(&world.parts[0], &world.apples[0].fake.forged_token()));
    let known = known.send().await.unwrap();
    assert_eq!(world.calls(), [1, 0]);
    let shape = |response: &reqwest::Response| {
        let mut headers = response.headers().clone();
        headers.remove("date");
        headers.remove("x-gateway-request-id");
        (response.status(), headers)
    };
    let (expected, body) = (shape(&known), known.text().await.unwrap());
    assert_eq!(expected.0, StatusCode::UNAUTHORIZED);

    let long = "a".repeat(65);
    let twice = world.to("app", true).header("x-project-id", "app");
    let requests = [
        ("unknown, in the header", world.to("nobody", true)),
        ("unknown, in the path", world.to("nobody", false)),
        ("with keys, but without a team", world.to(HOMELESS, false)),
        ("twice", twice),
        ("empty", world.to("", true)),
        ("in capitals", world.to("APP", true)),
        ("encoded", world.to("%61pp", false)),
        ("too long", world.to(&long, false)),
        ("a list", world.to("app, game", true)),
        (
            "known in the path, but another in the header",
            world.to("app", false).header("x-project-id", "nobody"),
        ),
    ];
    for (name, request) in requests {
        for part in &world.parts {
            let token = world.apples[0].genuine();
            let request = request.try_clone().unwrap().header("authorization", bearer(part, &token));
            let response = request.send().await.unwrap();
            assert_eq!(shape(&response), expected, "{name}");
            assert_eq!(response.text().await.unwrap(), body, "{name}");
        }
        let request =
            request.header("x-proxed-test-key", test_key("app")).header("x-ai-key", &world.parts[0]);
        assert_eq!(code(request.send().await.unwrap()).await, "refused_token", "{name}");
    }
    assert_eq!((world.calls(), world.forwarded()), (vec![1, 0], 0));
}

/// Beside the header, a path has no project, as in a gateway without projects.
#[tokio::test]
async fn the_header_counts_where_the_path_names_another_project() {
    let world = World::new().await;
    let send = async |device: usize, part: usize| {
        let token = world.apples[device].genuine();
        let request = world.to("game", false).header("x-project-id", "app");
        request.header("authorization", bearer(&world.parts[part], &token)).send().await.unwrap()
    };
    assert_eq!(send(0, 0).await.status(), StatusCode::OK);
    assert_eq!(world.seen.lock().unwrap()[0].uri.path(), "/v1/game/chat/completions");
    assert_eq!(code(send(0, 1).await).await, "invalid_key");
    assert_eq!(code(send(1, 1).await).await, "refused_token");
    assert_eq!((world.calls(), world.forwarded()), (vec![3, 0], 1));
}

const SECRET: &str = "MARKERmarkerMARKERmarker";

/// Texts of the file that are wrong, with a part of the error.
fn bad_files(key_file: &str) -> Vec<(String, &'static str)> {
    let good = json!({
        "id": "app", "team_id": "TEAM123456", "key_id": "KEY1234567", "private_key_file": key_file,
        "test_key": SECRET,
    });
    let with = |name: &str, value: serde_json::Value| {
        let mut project = good.clone();
        project[name] = value;
        json!({ "projects": [project] }).to_string()
    };
    let mut second = good.clone();
    second["id"] = "game".into();
    vec![
        (SECRET.to_owned(), "line 1"),
        (json!({ "projects": [] }).to_string(), "no project"),
        (json!({ "projects": [good], SECRET: 1 }).to_string(), "line 1"),
        (json!({ "projects": SECRET }).to_string(), "line 1"),
        (json!({ "projects": [good, good] }).to_string(), "project 2"),
        (json!({ "projects": [good, second] }).to_string(), "project 2"),
        (with(SECRET, json!(1)), "line 1"),
        (with("test_key", json!([SECRET])), "line 1"),
        (with("id", json!(format!("{SECRET} {SECRET}"))), "project 1"),
        (with("id", json!(format!("{SECRET}/"))), "project 1"),
        (with("team_id", json!(format!("{SECRET}{SECRET}="))), "project 1"),
        (with("key_id", json!(format!("{SECRET}{SECRET}="))), "project 1"),
        (with("private_key_file", json!(SECRET)), "project 1"),
        (with("test_key", json!(&SECRET[..12])), "project 1"),
    ]
}

#[tokio::test]
async fn an_error_in_the_file_names_the_project_and_quotes_nothing() {
    let key = Temporary::new(&FakeApple::new().private_key().to_pem());
    for (text, named) in bad_files(key.path()) {
        let gate = async |_| Ok::<_, BoxError>(DeviceCheckLayer::new(Apple::new().client));
        let Err(error) = projects::read(&text, None, gate).await else { panic!("{text}") };
        let error = error.to_string();
        assert!(error.contains(named) && !error.contains(&SECRET[..12]), "{text}: {error}");
    }
}

#[test]
fn a_secret_in_the_wrong_variable_is_not_printed() {
    let key = Temporary::new(&FakeApple::new().private_key().to_pem());
    let keys = Temporary::new(r#"{"format":1,"keys":[]}"#);
    let file = Temporary::new(&bad_files(key.path())[2].0);
    let with_keys = ("KEYS_FILE", keys.path());
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("PROJECTS_FILE", SECRET)], "KEYS_FILE"),
        (&[("PROJECTS_FILE", SECRET), with_keys], "PROJECTS_FILE"),
        (&[("PROJECTS_FILE", file.path()), with_keys], "PROJECTS_FILE: line 1"),
        (&[("PROJECTS_FILE", file.path()), with_keys, ("TEST_KEY", SECRET)], "TEST_KEY"),
        (&[("PROJECTS_FILE", file.path()), with_keys, ("APPLE_JWT_ISS", SECRET)], "APPLE_JWT_*"),
        (&[("PROJECTS_FILE", file.path()), ("KEYS_FILE", SECRET)], "KEYS_FILE"),
    ];
    for (variables, named) in cases {
        refused("ai_gateway", variables, named, SECRET);
    }
}
