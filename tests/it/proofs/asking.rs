//! Proofs that ask somebody, before or after the body is read, and proofs that break the rules.

use std::{convert::Infallible, future::pending, time::Duration};

use futures::{
    future::{join_all, poll_immediate},
    stream,
};
use http::{HeaderValue, Request, StatusCode};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_devicecheck::{
    Enforcement, Evidence, Facts, LayerError, ReadBodies, Rejection, Step, TokenDigest, VerifyError,
};

use super::{BodyApp, Made, Pieces, Reader, data, digest, digested, hex, key, keyed, post, trailers};
use crate::captured::Fails as _;
use crate::{
    readiness::ReadinessProbe,
    support::{App, Apple, Counter, Log, plain, rejection},
};

/// Asks whether somebody knows the key `known`, and then checks the digest that follows it.
fn known_then_digest(asked: &Counter) -> Made {
    let asked = asked.clone();
    let judge = move |value: HeaderValue, facts: &Facts| {
        let (asked, facts) = (asked.clone(), facts.clone());
        Step::ask(async move {
            asked.add();
            tokio::task::yield_now().await;
            match value.to_str().unwrap().strip_prefix("known ") {
                Some(value) => digested(usize::MAX, value.parse().unwrap(), &facts),
                None => Step::rejected(Rejection::RefusedToken),
            }
        })
    };
    Made::new("Digest", "x-digest", judge).reading()
}

/// Checks the digest, and then asks whether it was seen before.
fn digest_then_unseen(asked: &Counter) -> Made {
    let asked = asked.clone();
    let judge = move |value: HeaderValue, facts: &Facts| {
        let (asked, facts) = (asked.clone(), facts.clone());
        Step::needs_body(100, move |digest| {
            let digest = TokenDigest::from(digest);
            if value != digest.to_string() {
                return Step::rejected(Rejection::RefusedToken);
            }
            Step::ask(async move {
                asked.add();
                tokio::task::yield_now().await;
                let device = facts.verified(Evidence::fresh("Digest", "body"), digest);
                // Asking again is allowed.
                Step::ask(async { Step::verified(device) })
            })
        })
    };
    Made::new("Digest", "x-digest", judge).reading()
}

#[tokio::test]
async fn nothing_is_buffered_for_an_unknown_key() {
    let asked = Counter::default();
    let app = BodyApp::with(ReadBodies::new(), known_then_digest(&asked));
    for (name, value, status, is_read) in [
        ("unknown", "unknown".to_owned(), 401, false),
        ("known, another body", format!("known {}", hex(b"other")), 401, true),
        ("known", format!("known {}", hex(b"body")), 200, true),
    ] {
        let body = Pieces::whole("body");
        let polls = body.polls.clone();
        assert_eq!(app.send(post(&value, body)).await.status(), status, "{name}");
        assert_eq!(polls.get() > 0, is_read, "{name}");
    }
    assert_eq!((asked.get(), app.reader.calls(), app.apple.calls()), (3, 1, 0));
    assert_eq!(app.reader.last().bytes, b"body");
}

#[tokio::test]
async fn nobody_is_asked_about_a_body_that_is_not_what_it_should_be() {
    let asked = Counter::default();
    let app = BodyApp::with(ReadBodies::new(), digest_then_unseen(&asked));
    assert_eq!(app.post(b"other", Pieces::whole("body")).await, 401);
    assert_eq!(app.post(&[0; 101], Pieces::of([data(vec![0; 101])])).await, 413);
    assert_eq!(app.post(b"", Pieces::of([Err("gone")])).await, 408);
    assert_eq!((asked.get(), app.reader.calls()), (0, 0));

    let body = Pieces::of([data("bo"), data("dy"), trailers()]);
    assert_eq!(app.post(b"body", body).await, 200);
    let seen = app.reader.last();
    assert_eq!((&*seen.bytes, seen.trailers.unwrap().len()), (&b"body"[..], 1));
    assert_eq!((asked.get(), app.reader.calls(), app.apple.calls()), (1, 1, 0));
}

#[cfg(feature = "_prometheus")]
#[tokio::test(start_paused = true)]
async fn the_time_of_a_check_leaves_out_the_time_in_which_the_client_sends_the_body() {
    let metrics = crate::metrics::Metrics::record();
    let asked = Counter::default();
    let app = BodyApp::with(ReadBodies::new(), digest_then_unseen(&asked));
    let slow = stream::once(async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        data("body")
    });
    assert_eq!(app.post(b"body", Pieces::new(slow)).await, 200);
    let labels = [("outcome", "verified"), ("tenant", "none")];
    let time = metrics.value("devicecheck_check_duration_seconds_sum", &labels);
    assert_eq!(time, Some(0.0));
    assert_eq!((asked.get(), app.apple.calls()), (1, 0));
}

#[tokio::test]
async fn a_proof_that_needs_bodies_is_not_added_to_a_layer_that_reads_none() {
    let apple = Apple::new();
    let never = |scheme| Made::new(scheme, "x-never", |_, _| Step::absent());
    let is_error = |error: LayerError| {
        let text = error.to_string();
        assert!(text.contains("`Digest`") && text.contains("with_bodies"), "{text}");
        assert!(format!("{error:?}").contains("Digest"));
    };
    is_error(apple.layer().add_proof_before(digest(1)).failure());
    is_error(apple.layer().add_proof_after(digest(1)).failure());
    let reading = apple.layer().with_bodies(ReadBodies::new());
    let reading = reading.add_proof_before(digest(1)).unwrap().add_proof_after(digest(1)).unwrap();
    // Proofs that were added before, and settings, are kept.
    let before = apple.layer().add_proof_before(key()).unwrap().add_proof_before(never("Last")).unwrap();
    let before = before.with_deadline(Duration::from_millis(7_321));
    let debug = format!("{:?} {:?}", reading, before.with_bodies(ReadBodies::new()));
    for part in [r#"["Digest", "DeviceCheck", "Digest"]"#, r#"["Key", "Last", "DeviceCheck"]"#, "7.321s"] {
        assert!(debug.contains(part), "{debug}");
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn proofs_that_break_the_rules_are_the_operators_fault() {
    let log = Log::default();
    let _guard = log.listen(tracing::Level::DEBUG);
    let resumed = Counter::default();
    let needs_body = |resumed: &Counter| {
        let resumed = resumed.clone();
        Step::needs_body(10, move |_| {
            resumed.add();
            Step::absent()
        })
    };

    // In a layer that reads no bodies, by a proof that did not say so.
    let apple = Apple::new();
    for asks in [false, true] {
        let resumed = resumed.clone();
        let proof = Made::new("Liar", "x-key", move |_, _| {
            let step = needs_body(&resumed);
            if asks { Step::ask(async { step }) } else { step }
        });
        let layer = apple.layer().add_proof_before(proof).unwrap();
        for (enforcement, status, calls) in [(Enforcement::Enforce, 500, 0), (Enforcement::Monitor, 200, 1)] {
            let app = App::new(&layer.clone().with_enforcement(enforcement));
            let mut request = plain();
            request.headers_mut().insert("x-key", "any".parse().unwrap());
            let response = app.send(request).await;
            assert_eq!((response.status().as_u16(), app.inner.calls()), (status, calls));
            if status == 500 {
                assert_eq!(rejection(&response), Rejection::Misconfigured);
            }
            let logged = log.take();
            assert!(logged.contains("needs the body"), "{logged}");
            // The incident is told once for both.
            assert_eq!(logged.contains("ERROR"), status == 500, "{logged}");
        }
    }
    assert_eq!((resumed.get(), apple.calls()), (0, 0));

    // In one that reads them.
    let twice = |_, _: &Facts| Step::needs_body(10, |_| Step::needs_body(10, |_| Step::absent()));
    let twice_with_a_question = |_, _: &Facts| {
        Step::needs_body(10, |_| Step::ask(async { Step::needs_body(10, |_| Step::absent()) }))
    };
    let cases = [
        ("twice", Made::new("Liar", "x-digest", twice).reading(), "needs the body"),
        ("twice, and asks", Made::new("Liar", "x-digest", twice_with_a_question).reading(), "needs the body"),
        (
            "absent after asking",
            Made::new("Liar", "x-digest", |_, _| Step::ask(async { Step::absent() })),
            "has become absent",
        ),
        (
            "absent after reading",
            Made::new("Liar", "x-digest", |_, _| Step::needs_body(10, |_| Step::absent())).reading(),
            "has become absent",
        ),
    ];
    for (name, proof, message) in cases {
        let app = BodyApp::with(ReadBodies::new(), proof);
        assert_eq!(app.post(b"", Pieces::whole("body")).await, 500, "{name}");
        let logged = log.take();
        assert!(logged.contains("ERROR") && logged.contains(message), "{name}: {logged}");
        assert_eq!((app.reader.calls(), app.apple.calls()), (0, 0), "{name}");

        let app = app.monitoring();
        assert_eq!(app.post(b"", Pieces::whole("body")).await, 200, "{name}");
        assert_eq!(app.reader.last().bytes, b"body", "{name}");
        log.take();
    }
}

#[tokio::test]
async fn an_error_of_a_proof_is_the_rejection_of_the_table() {
    let log = Log::default();
    let _guard = log.listen(tracing::Level::DEBUG);
    let apple = Apple::new();
    let proof = Made::new("Store", "x-key", |value, _| {
        Step::ask(async move {
            let retry_after = Some(Duration::from_secs(7));
            Step::rejected(match value.to_str().unwrap() {
                "busy" => VerifyError::throttled(retry_after, "the store is busy"),
                "down" => VerifyError::unavailable("the store is down"),
                _ => VerifyError::misconfigured("the store has another password"),
            })
        })
    });
    let app = App::new(&apple.layer().add_proof_before(proof).unwrap());
    for (value, status, retry_after, message) in [
        ("busy", 503, 7..=10, "the store is busy"),
        ("down", 503, 1..=5, "the store is down"),
        ("shut", 500, 0..=0, "the store has another password"),
    ] {
        let mut request = plain();
        request.headers_mut().insert("x-key", value.parse().unwrap());
        let response = app.send(request).await;
        assert_eq!(response.status(), status, "{value}");
        let found = response.headers().get("retry-after").map(|value| value.to_str().unwrap());
        let found: u64 = found.map_or(0, |seconds| seconds.parse().unwrap());
        assert!(retry_after.contains(&found), "{value}: {found}");
        assert!(log.take().contains(message), "{value}");
    }
    assert_eq!((app.inner.calls(), apple.calls()), (0, 0));
}

/// Says which requests the service takes: its inner one takes any.
async fn ready<S>(service: &mut S) -> &mut S
where
    S: Service<Request<Pieces>, Error = Infallible>,
{
    service.ready().await.unwrap()
}

/// Counts when it is dropped.
struct Held(Counter);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.add();
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_frees_all_that_it_held() {
    let freed = Counter::default();
    let asks = {
        let freed = freed.clone();
        move |_, _: &Facts| {
            let held = Held(freed.clone());
            Step::ask(async move {
                let _held = held;
                pending().await
            })
        }
    };
    let reads = {
        let freed = freed.clone();
        move |_, _: &Facts| {
            let held = Held(freed.clone());
            Step::needs_body(100, move |_| {
                drop(held);
                Step::absent()
            })
        }
    };
    for (name, proof) in [
        ("asking", Made::new("Slow", "x-digest", asks).reading()),
        ("reading", Made::new("Slow", "x-digest", reads).reading()),
    ] {
        let app = BodyApp::with(ReadBodies::new(), proof);
        let limit = ConcurrencyLimitLayer::new(1).layer(app.reader.clone());
        let mut service = app.layer.layer(limit.clone());
        let body = Pieces::new(stream::pending());
        let drops = body.drops.clone();
        let before = freed.get();
        let mut call = Box::pin(ready(&mut service).await.call(post("any", body)));
        for _ in 0..3 {
            assert!(poll_immediate(&mut call).await.is_none(), "{name}");
        }
        assert_eq!((drops.get(), freed.get()), (0, before), "{name}");
        drop(call);
        assert_eq!((drops.get(), freed.get()), (1, before + 1), "{name}");
        assert_eq!((app.reader.calls(), app.apple.calls()), (0, 0), "{name}");
    }
}

#[tokio::test]
async fn requests_that_wait_for_an_answer_or_a_body_hold_no_permit_of_the_inner_service() {
    let proof = || Made::new("Slow", "x-key", |_, _| Step::ask(pending()));
    let app = BodyApp::new(ReadBodies::new());
    let layer = app.layer.clone().add_proof_before(proof()).unwrap();
    let service = layer.layer(ConcurrencyLimitLayer::new(1).layer(app.reader.clone()));
    let mut waiting = Vec::new();
    for header in ["x-key", "x-digest"] {
        let mut service = service.clone();
        let request =
            Request::post("/").header(header, hex(b"")).body(Pieces::new(stream::pending())).unwrap();
        ready(&mut service).await;
        let mut call = Box::pin(service.call(request));
        assert!(poll_immediate(&mut call).await.is_none());
        waiting.push((service, call));
    }
    let response = service.oneshot(post(&hex(b"body"), Pieces::whole("body"))).await.unwrap();
    assert_eq!((response.status(), app.reader.calls(), app.apple.calls()), (StatusCode::OK, 1, 0));
}

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_called_on_every_way() {
    let asked = Counter::default();
    let apple = Apple::new();
    let (good, known) = (hex(b"body"), format!("known {}", hex(b"body")));
    let whole = || Pieces::whole("body");
    let late = || {
        Pieces::new(stream::once(async {
            tokio::task::yield_now().await;
            data("body")
        }))
    };
    type Row<'a> = (&'a str, fn(&Counter) -> Made, &'a str);
    let proofs: [Row<'_>; 4] = [
        (
            "at once",
            |_| Made::new("Digest", "x-digest", |_, facts| keyed(&"good".parse().unwrap(), facts)),
            &good,
        ),
        ("body", |_| digest(100), &good),
        ("ask, body", known_then_digest, &known),
        ("body, ask", digest_then_unseen, &good),
    ];
    for (name, proof, header) in proofs {
        for enforcement in [Enforcement::Enforce, Enforcement::Monitor] {
            let layer = apple.layer().with_bodies(ReadBodies::new()).with_enforcement(enforcement);
            let layer = layer.add_proof_before(proof(&asked)).unwrap();
            let reader = Reader::default();
            let mut service = layer.layer(ReadinessProbe::new(reader.clone()));
            for body in [whole(), late(), Pieces::of([Err("gone")])] {
                let ready = ready(&mut service).await;
                let response = ready.call(post(header, body)).await.unwrap();
                assert!([200, 408].contains(&response.status().as_u16()), "{name}");
            }
            // A refusal is no call of the inner service, and leaves it usable.
            let response = ready(&mut service).await.call(post("", whole())).await.unwrap();
            let is_refused = name != "at once" && enforcement == Enforcement::Enforce;
            assert_eq!(response.status(), if is_refused { 401 } else { 200 }, "{name}");
            let broken = usize::from(name == "at once" || enforcement == Enforcement::Monitor);
            assert_eq!(reader.calls(), 2 + broken + usize::from(!is_refused), "{name} {enforcement:?}");
            // On a clone that has not been polled.
            let response = service.clone().oneshot(post(header, whole())).await.unwrap();
            assert_eq!(response.status(), 200, "{name}");
        }
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn many_requests_at_once_each_get_their_own_answer() {
    let asked = Counter::default();
    let app = BodyApp::with(ReadBodies::new(), known_then_digest(&asked));
    let statuses = join_all((0..200u32).map(async |number| {
        let bytes = number.to_be_bytes();
        let digest = if number % 2 == 0 { hex(&bytes) } else { hex(b"other") };
        let body = Pieces::of(bytes.map(|byte| data(vec![byte])));
        app.send(post(&format!("known {digest}"), body)).await.status().as_u16()
    }))
    .await;
    let expected: Vec<u16> = (0..200).map(|number| if number % 2 == 0 { 200 } else { 401 }).collect();
    assert_eq!(statuses, expected);
    assert_eq!((asked.get(), app.reader.calls(), app.apple.calls()), (200, 100, 0));
}

/// The body that was read would reach the inner service unchecked.
#[tokio::test]
async fn a_proof_that_has_had_the_body_cannot_admit_it_by_a_promise() {
    for asks in [false, true] {
        let judge = move |_: HeaderValue, facts: &Facts| {
            let device = facts.verified(Evidence::fresh("Digest", "body"), TokenDigest::of(b"x"));
            Step::needs_body(100, move |_| {
                let promised = Step::verified_by_promise(device, [7; 32]);
                if asks { Step::ask(async { promised }) } else { promised }
            })
        };
        let app = BodyApp::with(ReadBodies::new(), Made::new("Digest", "x-digest", judge).reading());
        assert_eq!(app.post(b"body", Pieces::whole("body")).await, 500, "{asks}");
        assert_eq!((app.reader.calls(), app.apple.calls()), (0, 0));
    }
}
