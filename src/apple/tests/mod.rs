//! Tests of the client over a transport that they script, and the fixtures for that.

mod attempts;
mod client;
#[cfg(feature = "testing")]
mod clock_steps;
#[cfg(feature = "app-attest")]
mod receipts;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use p256::{SecretKey, pkcs8::EncodePrivateKey};
use tower::{service_fn, util::BoxCloneSyncService};

use crate::apple::token::{DeviceToken, Verdict};
use crate::apple::{
    builder::AppleClientBuilder, client::AppleClient, credentials::Credentials, transport::TransportError,
};
use crate::gate::decision::VerifiedDevice;
use crate::gate::evidence::Evidence;
use crate::gate::{credential::TokenDigest, error::VerifyError, routing::Environment};
use crate::runtime::SystemTime;

type TransportResult = Result<Response<Bytes>, TransportError>;
type Transport = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, TransportError>;

const TOKEN: &str = "AgAASECRETTOKEM=";
const NOT_GENUINE: &str = "Missing or incorrectly formatted device token payload";

fn credentials_of(seed: u8) -> Credentials {
    let key = SecretKey::from_slice(&[seed; 32]).unwrap().to_pkcs8_der().unwrap();
    Credentials::from_der("TEAM123456", &format!("KEY12345{seed:02}"), key.as_bytes()).unwrap()
}

/// With a key id of its own: credentials of one key share their provider token, those of other tests too.
fn builder() -> AppleClientBuilder {
    static BUILT: AtomicUsize = AtomicUsize::new(0);
    let key = SecretKey::from_slice(&[7; 32]).unwrap().to_pkcs8_der().unwrap();
    let key_id = format!("KEY{:07}", BUILT.fetch_add(1, Ordering::Relaxed));
    AppleClient::builder(Credentials::from_der("TEAM123456", &key_id, key.as_bytes()).unwrap())
}

fn token() -> DeviceToken {
    TOKEN.parse().unwrap()
}

fn device(environment: Environment) -> VerifiedDevice {
    let digest = TokenDigest::from([0; 32]);
    VerifiedDevice::new(digest, environment, Evidence::APPLE, SystemTime::UNIX_EPOCH)
        .with_text(&token().into_text())
}

fn status(status: u16, body: &'static str) -> TransportResult {
    Ok(Response::builder().status(status).body(Bytes::from(body)).unwrap())
}

/// The requests that were sent, in order.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Request<Bytes>>>>);

impl Sent {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The provider tokens that were used, each once, in order.
    fn provider_tokens(&self) -> Vec<HeaderValue> {
        let mut tokens = Vec::new();
        for request in &*self.0.lock().unwrap() {
            let value = request.headers()[AUTHORIZATION].clone();
            if !tokens.contains(&value) {
                tokens.push(value);
            }
        }
        tokens
    }
}

/// An Apple that answers the n-th request with `answer(n, request)`.
fn apple(
    answer: impl Fn(usize, &Request<Bytes>) -> BoxFuture<'static, TransportResult> + Send + Sync + 'static,
) -> (Sent, Transport) {
    let sent = Sent::default();
    let log = sent.clone();
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<Bytes>| {
        let mut log = log.0.lock().unwrap();
        let future = answer(log.len(), &request);
        log.push(request);
        future
    });
    (sent, BoxCloneSyncService::new(service))
}

/// An Apple that gives these answers one after the other, and repeats the last one.
fn script(answers: Vec<fn() -> TransportResult>) -> (Sent, Transport) {
    apple(move |n, _| {
        let answer = answers[n.min(answers.len() - 1)]();
        Box::pin(std::future::ready(answer))
    })
}

async fn validate(builder: AppleClientBuilder, transport: Transport) -> Result<Verdict, VerifyError> {
    let client = builder.transport(transport).build().unwrap();
    client.validate(&token(), Environment::Production).await
}
