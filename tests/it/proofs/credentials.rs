//! Several proofs in one layer: the order in which they are looked at, and the place that their credentials end up in.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
    request,
};
use http_body_util::Full;
use tower_devicecheck::{
    BearerToken, DebugTokens, DeviceCheckLayer, DeviceOutcome, Enforcement, Evidence, Facts, HeaderToken,
    MalformedToken, Proof, Rejection, Step, TokenDigest, VerifiedDevice,
};

use super::{headers, key, keyed};
use crate::support::{App, Apple, TOKEN_HEADER, plain, rejection};

const DEBUG_SECRET: &str = "debug-secret-7d9f1c6e";
const BOTH: [Enforcement; 2] = [Enforcement::Enforce, Enforcement::Monitor];

/// The headers `X-Name` and `X-Secret`, which go together. It tells the inner service the name, in `X-User`.
struct Pair;

impl Proof for Pair {
    fn scheme(&self) -> &'static str {
        "Pair"
    }

    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
        match (head.headers.remove("x-name"), head.headers.remove("x-secret")) {
            (None, None) => Step::absent(),
            (Some(name), Some(secret)) => {
                head.headers.insert("x-user", name);
                head.headers.append("x-note", HeaderValue::from_static("from the proof"));
                keyed(&secret, facts)
            }
            _ => Step::rejected(Rejection::from(MalformedToken::Incomplete)),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        head.headers.remove("x-name");
        head.headers.remove("x-secret");
    }
}

fn request(pairs: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = plain();
    *request.headers_mut() = headers(pairs);
    request
}

/// `verified`, or the code of the rejection: what the layer decided, even if it only monitors.
fn outcome(app: &App, response: &Response<Bytes>) -> String {
    match response.extensions().get::<Rejection>() {
        Some(rejection) => rejection.code().to_owned(),
        None => match app.inner.last().extensions.get::<DeviceOutcome>() {
            Some(outcome) => outcome.as_str().to_owned(),
            None => app.device().evidence().proof().to_owned(),
        },
    }
}

#[tokio::test]
async fn the_first_proof_that_is_present_decides_and_a_refusal_never_falls_through() {
    let apple = Apple::new();
    let in_front = |layer: DeviceCheckLayer| layer.add_proof_before(key()).unwrap();
    let behind = |layer: DeviceCheckLayer| layer.add_proof_after(key()).unwrap();
    let (good, bad) = (Some("good"), Some("bad"));
    let (genuine, forged, malformed) = (Some("genuine"), Some("forged"), Some("%"));
    // A request's key and token; the decision and the calls to Apple with the key in front, and behind.
    type Row = (Option<&'static str>, Option<&'static str>, (&'static str, usize), (&'static str, usize));
    let cases: &[Row] = &[
        (None, None, ("missing_token", 0), ("missing_token", 0)),
        (good, None, ("Key", 0), ("Key", 0)),
        (bad, None, ("refused_token", 0), ("refused_token", 0)),
        (None, genuine, ("DeviceCheck", 1), ("DeviceCheck", 1)),
        (None, forged, ("refused_token", 1), ("refused_token", 1)),
        (None, malformed, ("malformed_token", 0), ("malformed_token", 0)),
        (good, genuine, ("Key", 0), ("DeviceCheck", 1)),
        (bad, genuine, ("refused_token", 0), ("DeviceCheck", 1)),
        (good, forged, ("Key", 0), ("refused_token", 1)),
        (good, malformed, ("Key", 0), ("malformed_token", 0)),
        (bad, malformed, ("refused_token", 0), ("malformed_token", 0)),
    ];
    for (key, token, first, second) in cases {
        for (layer, (expected, calls)) in [(in_front(apple.layer()), first), (behind(apple.layer()), second)]
        {
            for enforcement in BOTH {
                let name = format!("{key:?} {token:?} {enforcement:?} {expected}");
                // The cache is each layer's own, and the token another one.
                let app = App::new(&layer.clone().without_cache().with_enforcement(enforcement));
                let mut request = request(&[("accept", "*/*")]);
                if let Some(key) = key {
                    request.headers_mut().insert("x-key", HeaderValue::from_static(key));
                }
                if let Some(token) = token {
                    let token = match *token {
                        "genuine" => apple.genuine(),
                        "forged" => apple.fake.forged_token(),
                        other => other.to_owned(),
                    };
                    request.headers_mut().insert(TOKEN_HEADER, token.parse().unwrap());
                }
                apple.fake.reset_counts();
                let response = app.send(request).await;
                let is_verified = ["Key", "DeviceCheck"].contains(expected);
                let expected_outcome =
                    if is_verified && enforcement == Enforcement::Monitor { "verified" } else { expected };
                assert_eq!(outcome(&app, &response), expected_outcome, "{name}");
                assert_eq!(apple.calls(), *calls, "{name}");
                let reaches_inner = is_verified || enforcement == Enforcement::Monitor;
                assert_eq!(app.inner.calls(), usize::from(reaches_inner), "{name}");
                if reaches_inner {
                    assert_eq!(app.inner.last().headers, headers(&[("accept", "*/*")]), "{name}");
                }
                if is_verified {
                    assert_eq!(app.device().evidence().proof(), *expected, "{name}");
                }
            }
        }
    }
}

#[tokio::test]
async fn half_a_credential_is_malformed_and_does_not_stay_behind() {
    let apple = Apple::new();
    let layer = apple.layer().add_proof_before(Pair).unwrap();
    for half in [("x-name", "alice"), ("x-secret", "good")] {
        for enforcement in BOTH {
            let app = App::new(&layer.clone().with_enforcement(enforcement));
            let response = app.send(request(&[half, (TOKEN_HEADER, &apple.genuine())])).await;
            assert_eq!(outcome(&app, &response), "malformed_token", "{half:?}");
            if enforcement == Enforcement::Enforce {
                assert_eq!(rejection(&response), MalformedToken::Incomplete.into());
                assert!(std::str::from_utf8(response.body()).unwrap().contains("a part of the credential"));
                assert_eq!(app.inner.calls(), 0);
            } else {
                assert_eq!(app.inner.last().headers, HeaderMap::new(), "{half:?}");
            }
        }
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn malformed_credentials_of_the_proofs_behind_are_taken_away_too() {
    let apple = Apple::new();
    let layer = apple
        .layer()
        .with_token_source(HeaderToken::default())
        .add_token_source(BearerToken::new())
        .with_debug_tokens(DebugTokens::new().add("ci", DEBUG_SECRET).unwrap())
        .add_proof_before(key())
        .unwrap()
        .add_proof_after(Pair)
        .unwrap();
    for (key, enforcement) in [("good", BOTH[0]), ("good", BOTH[1]), ("bad", BOTH[1])] {
        let app = App::new(&layer.clone().with_enforcement(enforcement));
        let mut request = request(&[("x-key", key), ("x-name", "alice")]);
        for (name, value) in [
            (TOKEN_HEADER, "%"),
            (TOKEN_HEADER, "AgAA"),
            ("authorization", "Bearer a.b.c"),
            ("authorization", "bearer d"),
            ("x-debug-token", DEBUG_SECRET),
            ("x-debug-token", "another"),
        ] {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        assert_eq!(app.send(request).await.status(), StatusCode::OK);
        assert_eq!(app.inner.last().headers, HeaderMap::new(), "{key} {enforcement:?}");
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn forwarded_credentials_are_all_there_and_sensitive_and_undo_nothing_that_a_proof_did() {
    let apple = Apple::new();
    let layer = apple
        .layer()
        .with_forwarded_credentials(true)
        .with_token_source(HeaderToken::default())
        .add_token_source(BearerToken::new())
        .add_proof_before(Pair)
        .unwrap()
        .add_proof_after(key())
        .unwrap();
    let token = apple.genuine();
    let bearer = format!("Bearer part.metadata.{token}");
    let credentials = [
        ("x-name", "alice"),
        ("x-secret", "good"),
        ("x-key", "good"),
        (TOKEN_HEADER, &*token),
        ("authorization", &*bearer),
    ];
    for enforcement in BOTH {
        let app = App::new(&layer.clone().with_enforcement(enforcement));
        let mut request = request(&credentials);
        // The client says that it is somebody else; the proof knows better.
        request.headers_mut().append("x-user", "mallory".parse().unwrap());
        request.headers_mut().append("x-note", "from the client".parse().unwrap());
        assert_eq!(app.send(request).await.status(), StatusCode::OK);
        let seen = app.inner.last().headers;
        for (name, value) in credentials {
            assert_eq!(seen.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
            assert!(seen[name].is_sensitive(), "{name}");
        }
        let values = |name| seen.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("x-user"), ["alice"], "{enforcement:?}");
        assert_eq!(values("x-note"), ["from the client", "from the proof"], "{enforcement:?}");
        assert!(!seen["x-note"].is_sensitive());
    }

    // A refused one, a malformed one and a repeated one, where the layer only monitors.
    let app = App::new(&layer.with_enforcement(Enforcement::Monitor));
    for (name, value, code) in [
        ("x-secret", "bad", "refused_token"),
        ("x-name", "", "malformed_token"),
        (TOKEN_HEADER, "%", "verified"),
        ("x-key", "bad", "verified"),
    ] {
        let mut request = request(&credentials);
        if value.is_empty() {
            request.headers_mut().remove(name);
        } else {
            request.headers_mut().append(name, value.parse().unwrap());
            // The made-up pair takes the first of two, so the first one it is.
            let values: Vec<_> = request.headers().get_all(name).iter().rev().cloned().collect();
            request.headers_mut().remove(name);
            for value in values {
                request.headers_mut().append(name, value);
            }
        }
        let sent = request.headers().clone();
        let response = app.send(request).await;
        assert_eq!(outcome(&app, &response), code, "{name}");
        let seen = app.inner.last().headers;
        for name in sent.keys() {
            let values = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
            assert_eq!(values(&seen), values(&sent), "{name}");
            assert!(seen.get_all(name).iter().all(HeaderValue::is_sensitive), "{name}");
        }
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn a_request_without_any_credential_is_told_of_every_proof_once() {
    let apple = Apple::new();
    let layer = || {
        apple.layer().add_proof_before(Pair).unwrap().add_proof_after(key()).unwrap().add_proof_after(key())
    };
    let layer = || layer().unwrap();
    let named = |response: &Response<Bytes>| {
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let mut values: Vec<_> = values.map(|value| value.to_str().unwrap().to_owned()).collect();
        values.sort_unstable();
        values
    };
    let app = App::new(&layer());
    let response = app.send(plain()).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(named(&response), ["DeviceCheck", "Key", "Pair"]);
    assert_eq!(named(&app.send(request(&[("x-key", "bad")])).await), ["DeviceCheck"]);

    let mut grpc = request(&[(CONTENT_TYPE.as_str(), "application/grpc")]);
    *grpc.method_mut() = http::Method::POST;
    let response = app.send(grpc).await;
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &"16".parse().unwrap())
    );
    assert_eq!(named(&response), [""; 0]);

    // Parameters, lists and other cases name a scheme as well.
    for (challenge, expected) in [
        ("devicecheck realm=\"a, b\"", vec!["Key", "Pair", "devicecheck realm=\"a, b\""]),
        ("DeviceCheck, pair realm=\"x\"", vec!["DeviceCheck, pair realm=\"x\"", "Key"]),
        ("Basic", vec!["Basic", "DeviceCheck", "Key", "Pair"]),
    ] {
        let app = App::new(&layer().with_rejection_response(move |_: &Rejection, _: &request::Parts| {
            let response = Response::builder().status(401).header(WWW_AUTHENTICATE, challenge);
            response.body(Bytes::new()).unwrap()
        }));
        assert_eq!(named(&app.send(plain()).await), expected);
    }
    // An answer of the operator's own that challenges nobody stays as it is.
    let bare = |_: &Rejection, _: &request::Parts| Response::new(Bytes::new());
    assert_eq!(named(&App::new(&layer().with_rejection_response(bare)).send(plain()).await), [""; 0]);
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn a_device_of_the_clients_making_does_not_get_past_a_proof() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().add_proof_before(key()).unwrap());
    assert_eq!(app.send(request(&[("x-key", "good")])).await.status(), StatusCode::OK);
    let device = app.device();
    assert_eq!(device.digest(), TokenDigest::of(b"good"));
    let mut forged = request(&[("x-key", "bad")]);
    forged.extensions_mut().insert::<VerifiedDevice>(device);
    assert_eq!(app.send(forged).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!((app.inner.calls(), apple.calls()), (1, 0));
    assert!(!app.inner.last().headers.contains_key(AUTHORIZATION));
    assert_eq!(app.evidence(), Evidence::fresh("Key", "key"));
}
