//! Split keys behind the gate.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::{
    BearerToken, DeviceCheckLayer, Evidence, HeaderToken, Rejection, VerifiedDevice,
    split_key::{
        ApiKey, ClientPart, Limits, MemorySplitKeyStore, Provider, Providers, Split, SplitKeyLayer,
        SplitKeyRejection, Splitter, Version, lint, retire, revoke,
    },
};

use crate::captured;
use crate::support::Apple;

pub(crate) const KEYS: [(&str, &str); 4] = [
    ("openai", "sk-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6"),
    ("openai", "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9"),
    ("anthropic", "sk-ant-api03-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9"),
    ("google", "AIza9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1w"),
];
const DOTTED: &str = "sk-9a.1c.2e.3g.4i.5k.6m.7o.8q.9s.0u.1w.2y.3a.4c.5e.6.";

/// The gate, split keys inside of it, and a service that answers with the key.
struct App {
    apple: Apple,
    store: Arc<MemorySplitKeyStore>,
    gate: DeviceCheckLayer,
    split_keys: SplitKeyLayer,
}

impl App {
    fn new() -> Self {
        let (apple, store) = (Apple::new(), Arc::new(MemorySplitKeyStore::new()));
        let gate = apple
            .layer()
            .with_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
            .add_token_source(BearerToken::new());
        let split_keys = SplitKeyLayer::new(Arc::clone(&store));
        Self { apple, store, gate, split_keys }
    }

    async fn issue(&self, project: &str, version: Version, key: &str) -> Split {
        let splitter = Splitter::new().with_version(version);
        let split = splitter.issue(&self.store, project, "openai", key, Limits::none()).await.unwrap();
        captured::secret(split.client_part().expose());
        captured::shown(&(&splitter, &split, &self.store, &self.gate, &self.split_keys));
        split
    }

    async fn send(&self, headers: &[(&str, &str)]) -> Response<Bytes> {
        let stack = ServiceBuilder::new().layer(&self.gate).layer(&self.split_keys);
        let service = service_fn(async |request: Request<Full<Bytes>>| {
            let device = request.extensions().get::<VerifiedDevice>().unwrap();
            assert!([Evidence::APPLE, Evidence::CACHE].contains(device.evidence()));
            assert!(request.headers().is_empty(), "credentials are left: {:?}", request.headers());
            let key = request.extensions().get::<ApiKey>().unwrap();
            captured::shown(key);
            Ok::<_, Infallible>(Response::new(Full::from(key.expose().to_owned())))
        });
        let mut request = Request::post("/v1/chat");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = stack.service(service).oneshot(request.body(Full::default()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    async fn bearer(&self, project: &str, part: &str, token: &str) -> Response<Bytes> {
        let value = format!("Bearer {part}.{token}");
        self.send(&[("authorization", &value), ("x-project-id", project)]).await
    }

    async fn headers(&self, project: &str, part: &str, token: &str) -> Response<Bytes> {
        self.send(&[("x-ai-key", part), ("x-device-token", token), ("x-project-id", project)]).await
    }
}

#[tokio::test]
async fn r33_the_bearer_form_is_cut_at_the_last_dot() {
    let app = App::new();
    let split = app.issue("project", Version::Cut, DOTTED).await;
    let part = split.client_part().expose();
    assert!(part.matches('.').count() > 1, "the client part holds dots");
    let token = app.apple.genuine();
    let response = app.bearer("project", part, &token).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(*response.body(), DOTTED);
    assert_eq!(app.apple.calls(), 1);

    // The whole of it is what comes after the last dot: a spelling of the token that is not accepted.
    let url_safe = token.replace('+', "-").replace('/', "_");
    assert_ne!(url_safe, token);
    let response = app.bearer("project", part, &url_safe).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let rejection = response.extensions().get::<Rejection>();
    assert!(matches!(rejection, Some(Rejection::MalformedToken(_))), "{rejection:?}");
    assert_eq!(app.apple.calls(), 1);
}

#[tokio::test]
async fn r34_parts_of_two_keys_projects_or_versions_cannot_be_mixed() {
    let app = App::new();
    let (one, two) = (KEYS[0].1, KEYS[1].1);
    let sealed = app.issue("project", Version::Sealed, one).await;
    let other = app.issue("project", Version::Sealed, two).await;
    let elsewhere = app.issue("elsewhere", Version::Sealed, one).await;
    let cut = app.issue("project", Version::Cut, one).await;
    let other_cut = app.issue("project", Version::Cut, two).await;
    let revoked = app.issue("project", Version::Sealed, one).await;
    revoke(&app.store, "project", revoked.record().split()).await.unwrap();
    let retired = app.issue("project", Version::Sealed, one).await;
    retire(&app.store, "project", retired.record().split(), SystemTime::now()).await.unwrap();

    let text = |split: &Split| split.client_part().expose().to_owned();
    // The secret of one with the metadata of another.
    let mixed = |secret: &Split, metadata: &Split| {
        let (secret, metadata) = (text(secret), text(metadata));
        let secret = secret.rsplit_once('.').unwrap().0;
        format!("{secret}.{}", metadata.rsplit_once('.').unwrap().1)
    };
    let of_version = |split: &Split, version: char| {
        let text = text(split);
        let (secret, metadata) = text.rsplit_once('.').unwrap();
        format!("{secret}.0000000{version}{}", &metadata[8..])
    };
    let unknown = Splitter::new().split("project", "openai", one).unwrap();
    let cases = [
        ("another key's secret", "project", mixed(&other, &sealed)),
        ("another key's secret, version 1", "project", mixed(&other_cut, &cut)),
        ("version 1 in the place of 2", "project", mixed(&cut, &sealed)),
        ("version 2 in the place of 1", "project", mixed(&sealed, &cut)),
        ("said to be version 1", "project", of_version(&sealed, '1')),
        ("said to be version 2", "project", of_version(&cut, '2')),
        ("said to be version 3", "project", of_version(&sealed, '3')),
        ("another project's part", "project", text(&elsewhere)),
        ("another project's record", "elsewhere", text(&sealed)),
        ("a project that nobody has", "nowhere", text(&sealed)),
        ("a split that nobody has", "project", text(&unknown)),
        ("revoked", "project", text(&revoked)),
        ("retired", "project", text(&retired)),
        ("no metadata", "project", one.to_owned()),
    ];
    let token = app.apple.genuine();
    for (name, project, part) in &cases {
        for response in [app.bearer(project, part, &token).await, app.headers(project, part, &token).await] {
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{name}");
            assert_eq!(response.extensions().get(), Some(&SplitKeyRejection::InvalidKey), "{name}");
            let mut names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(
                names,
                ["cache-control", "content-type", "www-authenticate", "x-devicecheck-code"],
                "{name}"
            );
            let uniform = app.headers("nowhere", "nothing.at-all", &token).await;
            assert_eq!(response.headers(), uniform.headers(), "{name}");
            assert_eq!(response.body(), uniform.body(), "{name}");
        }
    }
    for split in [&sealed, &other, &cut, &other_cut] {
        assert_eq!(app.headers("project", &text(split), &token).await.status(), StatusCode::OK);
    }
    // One device, whatever its client parts.
    assert_eq!(app.apple.calls(), 1);
}

#[tokio::test]
async fn r35_version_1_cuts_are_uniform_and_never_inside_the_prefix() {
    const SPLITS: usize = 10_000;
    let providers = Providers::default();
    let splitter = Splitter::new().with_version(Version::Cut);
    for (name, key) in KEYS {
        let provider: &Provider = providers.get(name).unwrap();
        let prefix = match name {
            "anthropic" => "sk-ant-api03-".len(),
            "google" => "AIza".len(),
            _ if key.starts_with("sk-proj-") => "sk-proj-".len(),
            _ => "sk-".len(),
        };
        let allowed = prefix + 12..=key.len() - 12;
        let mut counts = vec![0_usize; key.len()];
        for _ in 0..SPLITS {
            let split = splitter.split("project", name, key).unwrap();
            let server = split.record().server_part();
            // A server part ends in 16 characters of salt.
            let cut = server.expose().len() - 16;
            assert!(allowed.contains(&cut), "{key}: cut at {cut}");
            assert!(key.starts_with(&server.expose()[..cut]));
            counts[cut] += 1;
            if counts[cut] == 1 {
                assert!(lint(server, split.client_part(), provider).unwrap().is_sound());
            }
        }
        // Each count is binomial. Beyond 7 standard deviations is one in 10^11, for 150 counts in all.
        let choices = allowed.clone().count() as f64;
        let expected = SPLITS as f64 / choices;
        let bound = 7.0 * (expected * (1.0 - 1.0 / choices)).sqrt();
        for cut in allowed {
            let off = (counts[cut] as f64 - expected).abs();
            assert!(off <= bound, "{key}: {} cuts at {cut}, not {expected:.0} ± {bound:.0}", counts[cut]);
        }
    }

    let app = App::new();
    let split = app.issue("project", Version::Cut, KEYS[0].1).await;
    let response = app.headers("project", split.client_part().expose(), &app.apple.genuine()).await;
    assert_eq!(*response.body(), KEYS[0].1);
    assert_eq!(app.apple.calls(), 1);
}

#[tokio::test]
async fn r36_an_api_key_that_contains_a_dot_survives() {
    let app = App::new();
    let mut expected = 0;
    for version in [Version::Cut, Version::Sealed] {
        for key in [DOTTED, "sk-....................................................."] {
            let split = app.issue("project", version, key).await;
            let part = split.client_part().expose();
            assert_eq!(part.parse::<ClientPart>().unwrap(), *split.client_part());
            let token = app.apple.genuine();
            for response in
                [app.bearer("project", part, &token).await, app.headers("project", part, &token).await]
            {
                assert_eq!(*response.body(), key, "{version:?}");
            }
            expected += 1;
            assert_eq!(app.apple.calls(), expected);
        }
    }
}
