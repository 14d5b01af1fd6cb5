//! A device without an iPhone: its app, its secure enclave and Apple's authority, at the fake's address for orders.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{Method, StatusCode},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower_devicecheck::{
    BoxError, Environment,
    app_attest::{Anchors, AppId, ClientFacts},
    testing::app_attest::{FakeAttestCa, Shape, VirtualDevice},
};

const HELP: &str = "\
Orders that the fake device takes (\"$DEVICE\" is the URL of this page, without /fake/device):

# attests the key: the answer of POST /challenge goes in, and the body for POST /attest comes out
curl \"$DEVICE/fake/attest\" -d \"$CHALLENGE\"
# signs a request: its body goes in, and its headers come out. method=POST and path=/pay can be changed;
# challenge=… is signed in place of the time
curl \"$DEVICE/fake/assert?method=POST&path=/pay\" -d \"amount=1\"
# the headers of the last signed request again, as someone who has captured them
curl \"$DEVICE/fake/captured\"
# deletes the app and installs it again: a new key, which the server does not know
curl -X POST \"$DEVICE/fake/reinstall\"
";

/// A virtual device on which one app runs. Clones are the same device.
#[derive(Clone)]
pub(crate) struct FakeDevice {
    ca: FakeAttestCa,
    state: Arc<Mutex<Installation>>,
}

struct Installation {
    device: VirtualDevice,
    /// The headers of the last request.
    captured: String,
}

impl FakeDevice {
    pub(crate) fn new(app_id: &AppId, environment: Environment) -> Self {
        let ca = FakeAttestCa::new();
        let device = ca.device(app_id.as_str(), Shape::Ios27, environment);
        Self { ca, state: Arc::new(Mutex::new(Installation { device, captured: String::new() })) }
    }

    pub(crate) const fn ca(&self) -> &FakeAttestCa {
        &self.ca
    }

    /// Apple's anchors, and those of the fake.
    pub(crate) fn anchors(&self) -> Result<Anchors, BoxError> {
        let anchors = Anchors::apple().with_attestation_roots(self.ca.attestation_root_der())?;
        Ok(anchors.with_receipt_roots(self.ca.receipt_root_der())?)
    }

    pub(crate) fn orders(self) -> Router {
        Router::new()
            .route("/fake/device", get(HELP))
            .route("/fake/attest", post(attest))
            .route("/fake/assert", post(assert))
            .route("/fake/captured", get(captured))
            .route("/fake/reinstall", post(reinstall))
            .with_state(self)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Installation) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The answer of `POST /challenge`.
#[derive(Deserialize)]
struct Challenge {
    challenge: String,
}

// `curl -d` sends another content type than JSON.
async fn attest(
    State(fake): State<FakeDevice>,
    body: Bytes,
) -> Result<Json<Value>, (StatusCode, &'static str)> {
    let Challenge { challenge } = serde_json::from_slice(&body)
        .map_err(|_| (StatusCode::BAD_REQUEST, "the body is not an answer of POST /challenge"))?;
    let (key_id, attestation) = fake.with(|installation| {
        let device = &installation.device;
        (device.key_id(), device.attest(&Sha256::digest(&challenge), SystemTime::now()))
    });
    let attestation = STANDARD.encode(attestation);
    Ok(Json(json!({ "key_id": key_id, "challenge": challenge, "attestation": attestation })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signing {
    method: Option<String>,
    path: Option<String>,
    challenge: Option<String>,
}

async fn assert(
    State(fake): State<FakeDevice>,
    Query(order): Query<Signing>,
    body: Bytes,
) -> Result<String, (StatusCode, &'static str)> {
    let method = order.method.as_deref().unwrap_or("POST");
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| (StatusCode::BAD_REQUEST, "method is not the name of a method"))?;
    let path = order.path.as_deref().unwrap_or("/pay");
    let (header, freshness) = match order.challenge {
        Some(challenge) => ("X-App-Attest-Challenge", challenge),
        None => ("X-App-Attest-Time", unix_seconds().to_string()),
    };
    let digest = Sha256::digest(&body).into();
    let text = ClientFacts::new(&method, path, &freshness, Some(&digest)).text();
    Ok(fake.with(|installation| {
        let device = &installation.device;
        let assertion = STANDARD.encode(device.assert(&Sha256::digest(text)));
        installation.captured = format!(
            "X-App-Attest-Key-Id: {}\nX-App-Attest-Assertion: {assertion}\n{header}: {freshness}\n",
            device.key_id(),
        );
        installation.captured.clone()
    }))
}

async fn captured(State(fake): State<FakeDevice>) -> String {
    fake.with(|installation| installation.captured.clone())
}

async fn reinstall(State(fake): State<FakeDevice>) -> StatusCode {
    fake.with(|installation| installation.device = installation.device.reinstalled());
    StatusCode::NO_CONTENT
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
