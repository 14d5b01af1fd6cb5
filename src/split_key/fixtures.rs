//! Fixtures of several test modules.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, ServiceExt, service_fn};
use web_time::UNIX_EPOCH;

use crate::gate::decision::VerifiedDevice;
use crate::gate::evidence::Evidence;
use crate::gate::routing::Environment;
use crate::split_key::audit::event::{SplitKeyEvent, SplitKeyOutcome, SuspicionKind, SuspiciousUse};
use crate::split_key::audit::observer::SplitKeyObserver;
use crate::split_key::metadata::{Metadata, SplitId, Version};
use crate::split_key::provider::{Provider, Providers};
use crate::split_key::record::{SplitKeyRecord, SplitKeyState};
use crate::split_key::splitter::{Split, Splitter};
use crate::split_key::store::{SplitKeyStore, SplitKeyStoreError};
use crate::split_key::{
    api_key::ApiKey, error::SplitKeyError, layer::SplitKeyLayer, limits::Limits,
    memory_store::MemorySplitKeyStore, random::Random,
};
use crate::{apple::token::DeviceToken, runtime::SystemTime};

/// A generator that makes the same numbers in every run.
pub(super) struct Seeded(pub(super) u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SplitKeyError> {
        for byte in bytes {
            // The highest bits of a 64-bit LCG are good enough.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 56) as u8;
        }
        Ok(())
    }
}

pub(super) const NOW: SystemTime = UNIX_EPOCH;

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

pub(super) fn splitter(version: Version) -> Splitter {
    let providers = Providers::default().with(Provider::new("any"));
    Splitter::new().with_version(version).with_providers(providers)
}

pub(super) fn split(version: Version, provider: &str, key: &str, seed: u64) -> Split {
    splitter(version).split_at("project", provider, key, NOW, &mut Seeded(seed)).unwrap()
}

pub(super) fn record(project: &str, provider: &str, metadata: Metadata, server: &str) -> SplitKeyRecord {
    SplitKeyRecord::new(project, provider, metadata, server.parse().unwrap()).unwrap()
}

pub(super) type NoBody = Empty<Bytes>;

/// A record of the requests that the inner service got.
#[derive(Default)]
pub(super) struct Inner {
    pub(super) calls: AtomicUsize,
    pub(super) headers: Mutex<HeaderMap>,
}

/// An observer that keeps what it got.
#[derive(Default)]
pub(super) struct Notes {
    outcomes: Mutex<Vec<SplitKeyOutcome>>,
    suspicions: Mutex<Vec<(SuspicionKind, Option<Duration>)>>,
}

impl SplitKeyObserver for Notes {
    fn used(&self, event: &SplitKeyEvent) {
        self.outcomes.lock().unwrap().push(event.outcome());
    }

    fn suspicious(&self, event: &SuspiciousUse) {
        let note = (event.kind(), event.blocked_for());
        self.suspicions.lock().unwrap().push(note);
    }
}

/// A store that can be broken.
pub(super) struct Fragile {
    pub(super) store: MemorySplitKeyStore,
    pub(super) gets: AtomicUsize,
}

impl SplitKeyStore for Fragile {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        if project == "down" {
            return Err(SplitKeyStoreError::unavailable("pulled the plug"));
        }
        self.store.get(project, split).await
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        self.store.put(records).await
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        self.store.list().await
    }
}

pub(super) struct Fixture {
    pub(super) store: Arc<Fragile>,
    pub(super) notes: Arc<Notes>,
    pub(super) inner: Arc<Inner>,
    pub(super) layer: SplitKeyLayer,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let store = Arc::new(Fragile { store: MemorySplitKeyStore::new(), gets: AtomicUsize::new(0) });
        let notes = Arc::new(Notes::default());
        let layer = SplitKeyLayer::new(Arc::clone(&store)).with_observer(Arc::clone(&notes));
        Self { store, notes, inner: Arc::default(), layer }
    }

    /// A key in a state and with limits.
    pub(super) async fn key(&self, state: SplitKeyState, limits: Limits) -> Split {
        let (provider, key) = KEYS[0];
        let split = Splitter::new().issue(&self.store, "project", provider, key, limits).await.unwrap();
        if state != SplitKeyState::Active {
            self.store.put(vec![split.record().changed_to(state)]).await.unwrap();
        }
        split
    }

    pub(super) async fn send(&self, request: Request<NoBody>) -> Response<Bytes> {
        let inner = Arc::clone(&self.inner);
        let service = service_fn(move |request: Request<NoBody>| {
            let inner = Arc::clone(&inner);
            async move {
                inner.calls.fetch_add(1, Ordering::Relaxed);
                *inner.headers.lock().unwrap() = request.headers().clone();
                let key = request.extensions().get::<ApiKey>();
                let body = key.map_or_else(|| "no key".to_owned(), |key| key.expose().to_owned());
                Ok::<_, Infallible>(Response::new(http_body_util::Full::from(body)))
            }
        });
        let response = self.layer.layer(service).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    pub(super) fn outcome(&self) -> Option<SplitKeyOutcome> {
        self.notes.outcomes.lock().unwrap().pop()
    }

    pub(super) fn suspicions(&self) -> Vec<(SuspicionKind, Option<Duration>)> {
        std::mem::take(&mut self.notes.suspicions.lock().unwrap())
    }
}

pub(super) fn device(text: &str) -> VerifiedDevice {
    let token: DeviceToken = text.parse().unwrap();
    let digest = token.digest();
    VerifiedDevice::new(digest, Environment::Production, Evidence::APPLE, SystemTime::now())
        .with_text(&token.into_text())
}

pub(super) fn request(headers: &[(&str, &str)]) -> Request<NoBody> {
    let mut request = Request::post("/v1/chat").extension(device("AgAA"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(NoBody::new()).unwrap()
}

pub(super) fn with(client_part: &str) -> Request<NoBody> {
    request(&[("x-ai-key", client_part), ("x-project-id", "project")])
}

/// A temporary folder of one test.
#[cfg(not(target_arch = "wasm32"))]
pub(super) struct Folder(pub(super) std::path::PathBuf);

#[cfg(not(target_arch = "wasm32"))]
impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).unwrap();
        let name = format!("tower-devicecheck-{name}-{:x}", u64::from_le_bytes(suffix));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
