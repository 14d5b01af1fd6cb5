//! Sessions through a layer, under a clock that the tests set.

mod attacks;
mod checks;
mod hand_out;
#[cfg(feature = "jwt")]
mod jwt;
mod keys;
mod life;
mod revocations;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::HeaderName};
use http_body_util::{BodyExt, Empty, Full};
use tower::{Layer, ServiceExt, service_fn};
use web_time::UNIX_EPOCH;

use super::*;
use crate::runtime::{SystemTime, set_wall_clock};
use crate::testing::FakeApple;
use crate::{AppleClient, DeviceCheckLayer, Environment, Rejection, VerifiedDevice};

const NOON: u64 = 1_790_000_000;
const APP_ID: &str = "TEAM123456.com.example.app";
const HOUR: u64 = 60 * 60;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Sets the wall clock to so many seconds after noon.
fn after_noon(seconds: u64) {
    set_wall_clock(at(NOON + seconds));
}

/// Sets both clocks to so many seconds after noon. The monotonic one is paused.
async fn pass(seconds: u64) {
    let passed = crate::runtime::wall_clock().duration_since(at(NOON)).unwrap();
    tokio::time::advance(Duration::from_secs(seconds) - passed).await;
    after_noon(seconds);
}

fn master(number: u8) -> MasterKey {
    MasterKey::new(u32::from(number), [number; 32])
}

fn sessions() -> Sessions {
    after_noon(0);
    Sessions::new("acme", APP_ID, &KeyRing::new(master(1))).unwrap()
}

/// A fake Apple, and a layer that asks it.
struct World {
    fake: FakeApple,
    by_token: DeviceCheckLayer,
}

impl World {
    fn new() -> Self {
        let fake = FakeApple::new();
        let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
        Self { fake, by_token: DeviceCheckLayer::new(apple) }
    }

    fn token(&self) -> Request<Full<Bytes>> {
        self.token_in(Environment::Production)
    }

    fn token_in(&self, environment: Environment) -> Request<Full<Bytes>> {
        with("x-apple-device-token", &self.fake.genuine_token(environment))
    }

    /// Buys a session with a new token.
    async fn buy(&self, exchange: &Exchange) -> String {
        self.buy_with(exchange, self.token()).await.0
    }

    /// Returns the session and its seconds.
    async fn buy_with(&self, exchange: &Exchange, request: Request<Full<Bytes>>) -> (String, u64) {
        let response = self.exchange(exchange, request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["content-type"], "application/json");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let expires_in = body["expires_in"].as_u64().unwrap();
        assert_eq!(body["refresh_in"], expires_in / 2);
        (body["session"].as_str().unwrap().to_owned(), expires_in)
    }

    async fn exchange(&self, exchange: &Exchange, mut request: Request<Full<Bytes>>) -> Response<Bytes> {
        *request.method_mut() = http::Method::POST;
        let response = self.by_token.layer(exchange.clone()).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    async fn ask(&self, proof: &SessionProof, request: Request<Full<Bytes>>) -> Answer {
        send(&self.by_token.clone().with_sessions(proof.clone()), request).await
    }
}

/// The outcome of a request.
struct Answer {
    response: Response<()>,
    device: Option<VerifiedDevice>,
}

impl Answer {
    fn rejection(&self) -> Option<Rejection> {
        self.response.extensions().get().copied()
    }

    fn device(&self) -> &VerifiedDevice {
        self.device.as_ref().expect("an admitted request")
    }

    fn handed_out(&self) -> Option<&str> {
        self.response.headers().get("x-device-session").map(|value| value.to_str().unwrap())
    }
}

async fn send(layer: &DeviceCheckLayer, request: Request<Full<Bytes>>) -> Answer {
    let inner = service_fn(async |request: Request<Full<Bytes>>| {
        assert!(!request.headers().contains_key("x-device-session"), "the session is taken away");
        let mut response = Response::new(Empty::<Bytes>::new());
        response.extensions_mut().insert(request.extensions().get::<VerifiedDevice>().unwrap().clone());
        Ok::<_, std::convert::Infallible>(response)
    });
    let response = layer.layer(inner).oneshot(request).await.unwrap().map(drop);
    let device = response.extensions().get().cloned();
    assert_eq!(device.is_some(), response.status() == StatusCode::OK);
    Answer { response, device }
}

fn with(name: &'static str, value: &str) -> Request<Full<Bytes>> {
    and(Request::new(Full::default()), name, value)
}

fn and(mut request: Request<Full<Bytes>>, name: &'static str, value: &str) -> Request<Full<Bytes>> {
    request.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
    request
}

fn shown(session: &str) -> Request<Full<Bytes>> {
    with("x-device-session", session)
}
