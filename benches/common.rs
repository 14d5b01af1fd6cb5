//! Shared by the benchmarks: services, tokens and requests.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, Service, service_fn, util::ServiceFn};
use tower_devicecheck::{
    DeviceCheckLayer, DeviceVerifier, TokenQuestion, Verdict, VerifiedDevice, VerifyError,
    session::{Exchange, JwtKey, Jwts, KeyRing, MasterKey, SessionProof, Sessions},
    testing::{FakeApple, realistic_token},
};

use crate::baseline::{Afternoon, TOKEN_HEADER, Verify};

pub(crate) const TEAM_ID: &str = "TEAM123456";

/// Believes or refuses everything, without waiting.
#[derive(Clone, Copy)]
pub(crate) struct Instantly(pub(crate) Verdict);

impl DeviceVerifier for Instantly {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        Ok(self.0)
    }

    fn scope(&self) -> &str {
        TEAM_ID
    }
}

impl Verify for Instantly {
    async fn verify(&self, _: HeaderValue) -> Result<bool, ()> {
        Ok(self.0 == Verdict::Genuine)
    }
}

pub(crate) fn ours(verdict: Verdict) -> DeviceCheckLayer {
    DeviceCheckLayer::new(Instantly(verdict))
}

pub(crate) fn afternoon(verdict: Verdict) -> Afternoon<ServiceFn<Bare>, Instantly> {
    Afternoon::new(bare_service(), Instantly(verdict))
}

pub(crate) type Bare = fn(Request<()>) -> Ready<Result<Response<Empty<Bytes>>, Infallible>>;

/// The inner service: looks for the extension, as a handler does.
#[allow(clippy::needless_pass_by_value, reason = "as tower has it")]
fn bare(request: Request<()>) -> Ready<Result<Response<Empty<Bytes>>, Infallible>> {
    black_box(request.extensions().get::<VerifiedDevice>());
    ready(Ok(Response::new(Empty::new())))
}

pub(crate) fn bare_service() -> ServiceFn<Bare> {
    service_fn(bare as Bare)
}

/// A header value that shares its buffer, as an HTTP server makes it.
pub(crate) fn header_value(token: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(token)).unwrap()
}

/// A token of 2,952 characters that no cache has seen.
pub(crate) fn fresh_token() -> HeaderValue {
    header_value(realistic_token())
}

pub(crate) fn request(token: HeaderValue) -> Request<()> {
    Request::builder().header(TOKEN_HEADER, token).body(()).unwrap()
}

/// A layer that takes sessions, and a session that it admits.
pub(crate) fn with_session() -> (DeviceCheckLayer, HeaderValue) {
    selling(|sessions| (Exchange::new(sessions.clone()), SessionProof::new(sessions)))
}

/// The same with a session as JSON Web Token.
pub(crate) fn with_jwt() -> (DeviceCheckLayer, HeaderValue) {
    selling(|sessions| {
        let key = JwtKey::from_pem(&FakeApple::new().private_key().to_pem()).unwrap();
        let jwts = Jwts::new("https://api.example.com", ["a".to_owned()], &sessions, vec![key]).unwrap();
        let exchange = Exchange::new(sessions.clone()).with_jwt(jwts.clone());
        (exchange, SessionProof::new(sessions).with_jwt(jwts))
    })
}

fn selling(ways: impl FnOnce(Sessions) -> (Exchange, SessionProof)) -> (DeviceCheckLayer, HeaderValue) {
    let ring = KeyRing::new(MasterKey::new(1, [7; 32]));
    let sessions = Sessions::new("", "TEAM123456.com.example.app", &ring).unwrap();
    let (exchange, proof) = ways(sessions);
    let mut exchange = ours(Verdict::Genuine).layer(exchange);
    let purchase = Request::post("/").header(TOKEN_HEADER, fresh_token()).body(()).unwrap();
    let response = exchange.call(purchase).now_or_never().unwrap().unwrap();
    let answer = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let session = header_value(answer["session"].as_str().unwrap().to_owned());
    (ours(Verdict::Genuine).with_sessions(proof), session)
}

pub(crate) fn session_request(session: HeaderValue) -> Request<()> {
    Request::builder().header("x-device-session", session).body(()).unwrap()
}

/// The resident memory of this process, in bytes, where the system tells.
pub(crate) fn resident_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|kilobytes| kilobytes * 1024)
}
