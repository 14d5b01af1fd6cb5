//! App Attest: attested keys, their counters, and the requests that they sign.

pub(crate) mod endpoints;
mod key_store;
mod outages;
mod receipts;
mod requests;
mod sessions;
mod streamed;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body_util::{BodyExt, Empty, Full};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};
use tower_devicecheck::{
    DeviceCheckLayer, Environment, Event, GateBody, Observer, ReadBodies, Rejection, ResponseBody,
    app_attest::{
        Anchors, AppAttestProof, AppId, AttestEndpoint, AttestKeyStore, AttestKeyStoreError, AttestedKey,
        ChallengeEndpoint, ChallengeKey, ChallengePurpose, Challenges, ClientFacts, CounterRule, Freshness,
        Insertion, KeyId, MemoryAttestKeyStore, PublicKey,
    },
    replay::MemoryReplayGuard,
    testing::app_attest::{FakeAttestCa, Shape, VirtualDevice},
};

use crate::support::{Apple, Counter};

pub(crate) const APP_ID: &str = "A1B2C3D4E5.com.example.app";

const KEY_ID: &str = "x-app-attest-key-id";
const ASSERTION: &str = "x-app-attest-assertion";
pub(crate) const CHALLENGE: &str = "x-app-attest-challenge";
const TIME: &str = "x-app-attest-time";

fn app_id() -> AppId {
    APP_ID.parse().unwrap()
}

/// A store that fails while it is told to.
#[derive(Clone, Default)]
struct Store {
    kept: Arc<MemoryAttestKeyStore>,
    is_down: Arc<Mutex<bool>>,
    finds: Counter,
    advances: Counter,
}

impl Store {
    fn check(&self) -> Result<(), AttestKeyStoreError> {
        let is_down = *self.is_down.lock().unwrap();
        if is_down { Err(AttestKeyStoreError::new("the disk is full")) } else { Ok(()) }
    }

    fn fail(&self, is_down: bool) {
        *self.is_down.lock().unwrap() = is_down;
    }

    async fn key(&self, device: &VirtualDevice) -> AttestedKey {
        let key_id = device.key_id().parse().unwrap();
        self.kept.find("", &key_id).await.unwrap().unwrap()
    }
}

impl AttestKeyStore for Store {
    async fn insert(&self, key: AttestedKey) -> Result<Insertion, AttestKeyStoreError> {
        self.check()?;
        self.kept.insert(key).await
    }

    async fn find(&self, tenant: &str, key_id: &KeyId) -> Result<Option<AttestedKey>, AttestKeyStoreError> {
        self.finds.add();
        self.check()?;
        self.kept.find(tenant, key_id).await
    }

    async fn advance(
        &self,
        tenant: &str,
        key_id: &KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        self.advances.add();
        self.check()?;
        self.kept.advance(tenant, key_id, counter, rule, now).await
    }

    async fn revoke(
        &self,
        tenant: &str,
        key_id: &KeyId,
        reason: &str,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        self.kept.revoke(tenant, key_id, reason, now).await
    }

    async fn revoke_account(
        &self,
        tenant: &str,
        account: &str,
        reason: &str,
        now: SystemTime,
    ) -> Result<Vec<KeyId>, AttestKeyStoreError> {
        self.kept.revoke_account(tenant, account, reason, now).await
    }
}

/// A server with a store, its challenges, and a fake Apple that nobody should ask.
#[derive(Clone)]
struct World {
    ca: FakeAttestCa,
    store: Store,
    challenges: Challenges,
    apple: Apple,
    reasons: Reasons,
}

/// The reasons that the operator was told.
#[derive(Clone, Default)]
struct Reasons(Arc<Mutex<Vec<Option<&'static str>>>>);

impl Observer for Reasons {
    fn decision(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(event.reason());
    }
}

impl Reasons {
    fn last(&self) -> Option<&'static str> {
        *self.0.lock().unwrap().last().expect("an event")
    }
}

impl World {
    fn new() -> Self {
        let challenges = Challenges::new(ChallengeKey::random().unwrap(), MemoryReplayGuard::new());
        Self {
            ca: FakeAttestCa::new(),
            store: Store::default(),
            challenges,
            apple: Apple::new(),
            reasons: Reasons::default(),
        }
    }

    fn device(&self) -> VirtualDevice {
        self.ca.device(APP_ID, Shape::Ios27, Environment::Production)
    }

    /// Stores the key of a device as if it had been attested.
    async fn store(&self, device: &VirtualDevice, change: impl FnOnce(&mut AttestedKey)) {
        let public_key = PublicKey::from_bytes(&device.public_key()).unwrap();
        let app_id = device.app_id().parse().unwrap();
        let mut key = AttestedKey::new("", public_key, app_id, Environment::Production, SystemTime::now());
        change(&mut key);
        assert_eq!(self.store.kept.insert(key).await.unwrap(), Insertion::New);
    }

    async fn known_device(&self) -> VirtualDevice {
        let device = self.device();
        self.store(&device, |_| ()).await;
        device
    }

    fn proof(&self, freshness: Freshness) -> AppAttestProof {
        AppAttestProof::new(self.store.clone(), [app_id()], freshness)
    }

    fn layer(&self, proof: AppAttestProof) -> DeviceCheckLayer<ReadBodies> {
        let layer = self.apple.layer().with_bodies(ReadBodies::new()).with_observer(self.reasons.clone());
        layer.add_proof_before(proof).unwrap()
    }

    fn server(&self, proof: AppAttestProof) -> Server {
        Server::new(&self.layer(proof))
    }

    fn by_time(&self) -> Server {
        self.server(self.proof(Freshness::time()))
    }

    fn challenge(&self) -> String {
        self.challenges.issue("", ChallengePurpose::Assertion).unwrap()
    }

    fn anchors(&self) -> Anchors {
        let anchors = Anchors::apple().with_attestation_roots(self.ca.attestation_root_der()).unwrap();
        anchors.with_receipt_roots(self.ca.receipt_root_der()).unwrap()
    }

    fn endpoint(&self) -> AttestEndpoint {
        AttestEndpoint::new(self.store.clone(), [app_id()], self.challenges.clone())
            .with_anchors(self.anchors())
    }
}

/// The head of a request, and its body or the error of the body.
type Seen = (request::Parts, Result<Bytes, String>);

/// A layer around a service that reads the body to its end, and keeps what it saw.
#[derive(Clone)]
struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    service: BoxCloneSyncService<Request<Full<Bytes>>, Response<Bytes>, Infallible>,
}

impl Server {
    fn new(
        layer: &impl Layer<
            BoxCloneSyncService<Request<GateBody<Full<Bytes>>>, Response<Empty<Bytes>>, Infallible>,
            Service: Service<
                Request<Full<Bytes>>,
                Response = Response<ResponseBody<Empty<Bytes>>>,
                Error = Infallible,
                Future: Send,
            > + Clone
                         + Send
                         + Sync
                         + 'static,
        >,
    ) -> Self {
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let kept = Arc::clone(&seen);
        let inner = tower::service_fn(move |request: Request<GateBody<Full<Bytes>>>| {
            let kept = Arc::clone(&kept);
            async move {
                let (head, body) = request.into_parts();
                let body =
                    body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
                kept.lock().unwrap().push((head, body));
                Ok(Response::new(Empty::new()))
            }
        });
        let service = layer.layer(BoxCloneSyncService::new(inner)).and_then(whole);
        Self { seen, service: BoxCloneSyncService::new(service) }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        self.service.clone().oneshot(request).await.unwrap()
    }

    /// The code of the rejection, or `ok`. The service was called if and only if there is none.
    async fn code(&self, request: Request<Full<Bytes>>) -> &'static str {
        let before = self.calls();
        let response = self.send(request).await;
        let rejection = response.extensions().get::<Rejection>().copied();
        assert_eq!(self.calls() - before, usize::from(rejection.is_none()), "{rejection:?}");
        assert_eq!(rejection.map_or(StatusCode::OK, |rejection| rejection.status()), response.status());
        rejection.map_or("ok", |rejection| rejection.code())
    }

    fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().expect("the service was called").clone()
    }
}

async fn whole<B>(response: Response<B>) -> Result<Response<Bytes>, Infallible>
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, body.collect().await.unwrap().to_bytes()))
}

/// The current time as a header's text, so many seconds away.
fn time(offset: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    now.checked_add_signed(offset).unwrap().to_string()
}

/// A request that a device has signed by the default rule.
pub(crate) fn signed(
    device: &VirtualDevice,
    method: Method,
    path: &str,
    freshness: (&str, &str),
    body: &'static str,
) -> Request<Full<Bytes>> {
    let digest: [u8; 32] = Sha256::digest(body).into();
    let text = ClientFacts::new(&method, path, freshness.1, Some(&digest)).text();
    let request = Request::builder().method(method).uri(path).header(freshness.0, freshness.1);
    let request = request.header(KEY_ID, device.key_id());
    let assertion = STANDARD.encode(device.assert(&Sha256::digest(text)));
    request.header(ASSERTION, assertion).body(Full::from(body)).unwrap()
}

fn post(device: &VirtualDevice, freshness: (&str, &str)) -> Request<Full<Bytes>> {
    signed(device, Method::POST, "/v1/pay?x=1", freshness, "amount=1")
}

fn post_at(device: &VirtualDevice, time: &str) -> Request<Full<Bytes>> {
    post(device, (TIME, time))
}

fn post_now(device: &VirtualDevice) -> Request<Full<Bytes>> {
    post_at(device, &time(0))
}
