//! Receipts beside the requests: stored at the attestation, and noted as seen.

use std::time::Duration;

use tower_devicecheck::app_attest::{
    MemoryReceiptStore, ReceiptKey, ReceiptStore, ReceiptStoreError, StoredReceipt,
};

use super::*;

/// A store that counts, and fails while it is told to.
#[derive(Clone, Default)]
struct Receipts {
    kept: Arc<MemoryReceiptStore>,
    is_down: Arc<Mutex<bool>>,
    puts: Counter,
    touches: Counter,
}

impl Receipts {
    fn check(&self) -> Result<(), ReceiptStoreError> {
        if *self.is_down.lock().unwrap() { Err(ReceiptStoreError::new("the disk is full")) } else { Ok(()) }
    }
}

impl ReceiptStore for Receipts {
    async fn put(&self, key: &ReceiptKey, receipt: StoredReceipt) -> Result<(), ReceiptStoreError> {
        self.puts.add();
        self.check()?;
        self.kept.put(key, receipt).await
    }

    async fn get(&self, key: &ReceiptKey) -> Result<Option<StoredReceipt>, ReceiptStoreError> {
        self.check()?;
        self.kept.get(key).await
    }

    async fn touch(&self, key: &ReceiptKey, now: SystemTime) -> Result<(), ReceiptStoreError> {
        self.touches.add();
        self.check()?;
        self.kept.touch(key, now).await
    }

    async fn due(
        &self,
        now: SystemTime,
        until: SystemTime,
        limit: usize,
    ) -> Result<Vec<ReceiptKey>, ReceiptStoreError> {
        self.kept.due(now, until, limit).await
    }

    async fn remove(&self, key: &ReceiptKey) -> Result<(), ReceiptStoreError> {
        self.kept.remove(key).await
    }
}

/// Has a device attest its key, and returns the status.
async fn attest(world: &World, endpoint: &AttestEndpoint, device: &VirtualDevice) -> u16 {
    let challenge = world.challenges.issue("", ChallengePurpose::Attestation).unwrap();
    let attestation = device.attest(&Sha256::digest(&challenge), SystemTime::now());
    let body = json!({
        "key_id": device.key_id(), "challenge": challenge, "attestation": STANDARD.encode(attestation),
    });
    let request = Request::post("/attest").body(Full::<Bytes>::from(body.to_string())).unwrap();
    endpoint.clone().oneshot(request).await.unwrap().status().as_u16()
}

fn key_of(device: &VirtualDevice) -> ReceiptKey {
    ReceiptKey { tenant: None, key_id: device.key_id().parse().unwrap() }
}

#[tokio::test]
async fn an_attestation_stores_its_receipt_once() {
    let (world, receipts) = (World::new(), Receipts::default());
    let endpoint = world.endpoint().with_receipts(receipts.clone());
    let device = world.device();
    assert_eq!(attest(&world, &endpoint, &device).await, 201);
    let mut stored = receipts.kept.get(&key_of(&device)).await.unwrap().unwrap();
    assert_eq!((&stored.app_id, stored.environment), (&app_id(), Environment::Production));
    // A metric that has come meanwhile stays.
    stored.risk_metric = Some(3);
    receipts.kept.put(&key_of(&device), stored).await.unwrap();
    assert_eq!(attest(&world, &endpoint, &device).await, 200);
    let stored = receipts.kept.get(&key_of(&device)).await.unwrap().unwrap();
    assert_eq!((stored.risk_metric, receipts.puts.get()), (Some(3), 1));
    // An attestation can come without one.
    let device = world.device().with_receipts(None);
    assert_eq!(attest(&world, &endpoint, &device).await, 201);
    assert_eq!((receipts.puts.get(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn a_receipt_store_that_is_down_stops_no_request() {
    let (world, receipts) = (World::new(), Receipts::default());
    *receipts.is_down.lock().unwrap() = true;
    let device = world.device();
    let endpoint = world.endpoint().with_receipts(receipts.clone());
    assert_eq!(attest(&world, &endpoint, &device).await, 201);
    let server = world.server(world.proof(Freshness::time()).with_receipts(receipts.clone()));
    assert_eq!(server.code(post_now(&device)).await, "ok");
    assert_eq!(receipts.kept.get(&key_of(&device)).await.unwrap(), None);
    let another = world.device();
    world.store(&another, |key| key.last_seen_at -= Duration::from_secs(3600)).await;
    assert_eq!(server.code(post_now(&another)).await, "ok");
    assert_eq!((receipts.touches.get(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn a_key_is_noted_as_seen_once_an_hour() {
    let (world, receipts) = (World::new(), Receipts::default());
    let server = world.server(world.proof(Freshness::time()).with_receipts(receipts.clone()));
    let hour = Duration::from_secs(3600);
    let device = world.device();
    world.store(&device, |key| key.last_seen_at -= hour).await;
    let mut refused = post_now(&device);
    *refused.body_mut() = Full::from("amount=2");
    assert_eq!(server.code(refused).await, "refused_token");
    assert_eq!(receipts.touches.get(), 0);
    assert_eq!(server.code(post_now(&device)).await, "ok");
    assert_eq!(receipts.touches.get(), 1);
    // This key was seen in an hour that is not over, whatever the clock says.
    let device = world.device();
    world.store(&device, |key| key.last_seen_at += hour).await;
    assert_eq!(server.code(post_now(&device)).await, "ok");
    assert_eq!((receipts.touches.get(), world.apple.calls()), (1, 0));
}
