//! From a header to a session.

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    DeviceCheckLayer, DeviceVerifier, Environment, Rejection, TokenQuestion, Verdict, VerifiedDevice,
    VerifyError,
    session::{Exchange, KeyRing, MasterKey, SessionProof, Sessions},
    testing::{realistic_token, verified_device},
};

use super::wait;

struct Nobody;

impl DeviceVerifier for Nobody {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        panic!("a session is checked here, and Apple is not asked");
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

thread_local! {
    static ISSUED: (DeviceCheckLayer, String, String) = issued();
}

/// A layer, a session that it accepts, and one of another app that the same keys have signed.
fn issued() -> (DeviceCheckLayer, String, String) {
    let ring = KeyRing::new(MasterKey::new(1, [7; 32]));
    let buy = |app_id: &str| {
        let sessions = Sessions::new("", app_id, &ring).expect("sessions");
        let mut purchase = Request::post("/").body(()).expect("a request");
        let device = verified_device(realistic_token().parse().expect("a token"), Environment::Production);
        purchase.extensions_mut().insert::<VerifiedDevice>(device);
        let answer = wait(Exchange::new(sessions.clone()).oneshot(purchase)).expect("an answer");
        let body = wait(answer.into_body().collect()).expect("a body").to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        (sessions, json["session"].as_str().expect("a session").to_owned())
    };
    let (sessions, ours) = buy("TEAM123456.com.example.app");
    let (_, theirs) = buy("TEAM123456.com.example.other");
    (DeviceCheckLayer::new(Nobody).with_sessions(SessionProof::new(sessions)), ours, theirs)
}

/// The first byte says whether the rest is a text, or changes of a real session: pairs of a place and a mask. A session
/// that was not issued admits nobody.
pub(crate) fn session(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    ISSUED.with(|(layer, ours, theirs)| {
        let shown = match choice % 3 {
            0 => data.to_vec(),
            real => {
                let mut text = (if real == 1 { ours } else { theirs }).clone().into_bytes();
                for change in data.chunks_exact(2) {
                    let place = usize::from(change[0]) % text.len();
                    text[place] ^= change[1];
                }
                text
            }
        };
        let Ok(value) = HeaderValue::from_bytes(&shown) else { return };
        let inner = service_fn(async |request: Request<Empty<Bytes>>| {
            assert!(!request.headers().contains_key("x-device-session"));
            Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let mut request = Request::new(Empty::new());
        request.headers_mut().insert("x-device-session", value);
        let response = wait(layer.layer(inner).oneshot(request)).expect("an answer");
        let is_admitted = response.extensions().get::<Rejection>().is_none();
        assert_eq!(
            is_admitted,
            shown.trim_ascii() == ours.as_bytes(),
            "{:?}",
            String::from_utf8_lossy(&shown)
        );
    });
}
