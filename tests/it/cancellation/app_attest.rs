//! App Attest: a challenge counts once, a counter never goes back, and neither is lost with a client that leaves early.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    DeviceCheckLayer, Environment, GateBody, ReadBodies, Rejection,
    app_attest::{
        Anchors, AppAttestProof, AttestEndpoint, AttestKeyStore, AttestKeyStoreError, AttestedKey,
        ChallengeKey, ChallengePurpose, Challenges, CounterRule, Freshness, Insertion, KeyId,
        MemoryAttestKeyStore, MemoryReceiptStore, PublicKey, ReceiptKey, ReceiptStore, ReceiptStoreError,
        StoredReceipt,
    },
    replay::MemoryReplayGuard,
    testing::app_attest::{FakeAttestCa, Shape, VirtualDevice},
};

use super::{Slow, SlowService, explore, rest, slowly, world::Admitted};
use crate::{
    app_attest::{APP_ID, CHALLENGE, endpoints::attest, signed},
    support::{Apple, Counter},
};

impl<S: AttestKeyStore> AttestKeyStore for Slow<S> {
    async fn insert(&self, key: AttestedKey) -> Result<Insertion, AttestKeyStoreError> {
        slowly(self.0.insert(key)).await
    }

    async fn find(&self, tenant: &str, key_id: &KeyId) -> Result<Option<AttestedKey>, AttestKeyStoreError> {
        slowly(self.0.find(tenant, key_id)).await
    }

    async fn advance(
        &self,
        tenant: &str,
        key_id: &KeyId,
        counter: u32,
        rule: CounterRule,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        slowly(self.0.advance(tenant, key_id, counter, rule, now)).await
    }

    async fn revoke(
        &self,
        tenant: &str,
        key_id: &KeyId,
        reason: &str,
        now: SystemTime,
    ) -> Result<bool, AttestKeyStoreError> {
        self.0.revoke(tenant, key_id, reason, now).await
    }

    async fn revoke_account(
        &self,
        tenant: &str,
        account: &str,
        reason: &str,
        now: SystemTime,
    ) -> Result<Vec<KeyId>, AttestKeyStoreError> {
        self.0.revoke_account(tenant, account, reason, now).await
    }
}

impl<S: ReceiptStore> ReceiptStore for Slow<S> {
    async fn put(&self, key: &ReceiptKey, receipt: StoredReceipt) -> Result<(), ReceiptStoreError> {
        slowly(self.0.put(key, receipt)).await
    }

    async fn get(&self, key: &ReceiptKey) -> Result<Option<StoredReceipt>, ReceiptStoreError> {
        slowly(self.0.get(key)).await
    }

    async fn touch(&self, key: &ReceiptKey, now: SystemTime) -> Result<(), ReceiptStoreError> {
        slowly(self.0.touch(key, now)).await
    }

    async fn due(
        &self,
        now: SystemTime,
        until: SystemTime,
        limit: usize,
    ) -> Result<Vec<ReceiptKey>, ReceiptStoreError> {
        slowly(self.0.due(now, until, limit)).await
    }

    async fn remove(&self, key: &ReceiptKey) -> Result<(), ReceiptStoreError> {
        slowly(self.0.remove(key)).await
    }
}

/// The same request with a body that comes late.
fn late(
    request: &Request<Full<Bytes>>,
) -> Request<impl Body<Data = Bytes, Error = Infallible> + Send + use<>> {
    request.clone().map(|body| {
        StreamBody::new(futures::stream::once(slowly(async move {
            Ok::<_, Infallible>(Frame::data(body.collect().await.unwrap().to_bytes()))
        })))
        .boxed_unsync()
    })
}

/// A server whose stores are slow, and a fake Apple that nobody should ask.
struct World {
    ca: FakeAttestCa,
    keys: Arc<MemoryAttestKeyStore>,
    guard: Arc<MemoryReplayGuard>,
    challenges: Challenges,
    receipts: Slow<Arc<MemoryReceiptStore>>,
    apple: Apple,
}

impl World {
    fn new() -> Self {
        let guard = Arc::new(MemoryReplayGuard::new());
        Self {
            ca: FakeAttestCa::new(),
            keys: Arc::default(),
            challenges: Challenges::new(ChallengeKey::new(1, [7; 32]), Slow(Arc::clone(&guard))),
            guard,
            receipts: Slow(Arc::new(MemoryReceiptStore::new())),
            apple: Apple::new(),
        }
    }

    fn device(&self) -> VirtualDevice {
        self.ca.device(APP_ID, Shape::Ios27, Environment::Production)
    }

    fn store(&self) -> Slow<Arc<MemoryAttestKeyStore>> {
        Slow(Arc::clone(&self.keys))
    }

    async fn counter(&self, device: &VirtualDevice) -> u32 {
        let key_id = device.key_id().parse().unwrap();
        self.keys.find("", &key_id).await.unwrap().map_or(0, |key| key.counter.highest)
    }
}

#[tokio::test(start_paused = true)]
async fn an_attestation() {
    explore("an attestation", 25, async |at| {
        let world = World::new();
        let anchors = Anchors::apple().with_attestation_roots(world.ca.attestation_root_der()).unwrap();
        let anchors = anchors.with_receipt_roots(world.ca.receipt_root_der()).unwrap();
        let app_id = APP_ID.parse().unwrap();
        let endpoint = AttestEndpoint::new(world.store(), [app_id], world.challenges.clone())
            .with_anchors(anchors)
            .with_receipts(world.receipts.clone());
        let device = world.device();
        let challenge = world.challenges.issue("", ChallengePurpose::Attestation).unwrap();
        let request = attest(&device, &challenge);
        let status = async || endpoint.clone().oneshot(late(&request)).await.unwrap().status();
        let done = at.of(status()).await;
        let again = status().await;
        match done {
            Some(status) => {
                assert_eq!((status, again), (StatusCode::CREATED, StatusCode::UNAUTHORIZED), "{at:?}");
            }
            // The key may be there already, and the challenge is good for it once more.
            None => assert!([StatusCode::CREATED, StatusCode::OK].contains(&again), "{at:?}: {again}"),
        }
        assert_eq!(status().await, StatusCode::UNAUTHORIZED, "{at:?}");
        rest().await;
        let key_id = device.key_id().parse().unwrap();
        assert!(world.keys.find("", &key_id).await.unwrap().is_some(), "{at:?}");
        assert_eq!((world.guard.len(), world.apple.calls()), (1, 0), "{at:?}");
        done.is_some()
    })
    .await;
}

/// Each assertion admits one request. A client that leaves may have spent the counter, but not the challenge.
#[tokio::test(start_paused = true)]
async fn an_assertion() {
    explore("an assertion with a challenge", 33, async |at| {
        let world = World::new();
        let device = world.device();
        let public_key = PublicKey::from_bytes(&device.public_key()).unwrap();
        let now = SystemTime::now();
        let app_id = APP_ID.parse().unwrap();
        let key = AttestedKey::new("", public_key, app_id, Environment::Production, now);
        world.keys.insert(key).await.unwrap();

        let freshness = Freshness::challenge(world.challenges.clone());
        let proof = AppAttestProof::new(world.store(), [APP_ID.parse().unwrap()], freshness)
            .with_receipts(world.receipts.clone());
        let (admitted, served) = (Admitted::default(), Counter::default());
        let layer = DeviceCheckLayer::new(world.apple.client.clone()).with_bodies(ReadBodies::new());
        let layer = layer.with_observer(admitted.clone()).add_proof_before(proof).unwrap();
        let count = served.clone();
        let service = layer.layer(SlowService::new(service_fn(move |request: Request<GateBody<_>>| {
            let count = count.clone();
            async move {
                let body: GateBody<_> = request.into_body();
                assert_eq!(slowly(body.collect()).await.unwrap().to_bytes(), "amount=1");
                count.add();
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        })));
        let send = async |request: &Request<Full<Bytes>>| {
            let response = service.clone().oneshot(late(request)).await.unwrap();
            match response.extensions().get::<Rejection>() {
                None => "ok",
                Some(rejection) => rejection.code(),
            }
        };
        let challenge = || world.challenges.issue("", ChallengePurpose::Assertion).unwrap();
        let sign =
            |challenge: &str| signed(&device, Method::POST, "/v1/pay", (CHALLENGE, challenge), "amount=1");

        let first = challenge();
        let request = sign(&first);
        let done = at.of(send(&request)).await;
        assert!(done.is_none_or(|code| code == "ok"), "{at:?}");
        let (was_admitted, counter) = (admitted.0.get() == 1, world.counter(&device).await);
        assert!(counter == 1 || !was_admitted, "{at:?}");
        // The same assertion again.
        let is_fresh = !was_admitted && counter == 0;
        assert_eq!(send(&request).await, if is_fresh { "ok" } else { "reused_token" }, "{at:?}");
        // A new assertion with the same challenge.
        let is_left = admitted.0.get() == 0;
        assert_eq!(send(&sign(&first)).await, if is_left { "ok" } else { "reused_token" }, "{at:?}");
        assert_eq!(admitted.0.get(), 1, "{at:?}: the challenge counts once");
        assert!(world.counter(&device).await >= counter, "{at:?}");
        assert_eq!(send(&sign(&challenge())).await, "ok", "{at:?}");
        assert_eq!(world.counter(&device).await, 3, "{at:?}");
        rest().await;
        assert_eq!((world.guard.len(), world.apple.calls()), (2, 0), "{at:?}");
        assert!(served.get() <= admitted.0.get(), "{at:?}");
        done.is_some()
    })
    .await;
}
