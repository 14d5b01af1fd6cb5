//! Proofs that need the body's digest: the inner service gets the body as the client sent it.

use std::{iter, time::Duration};

use allocation_counter::measure;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{GateBody, ReadBodies, Rejection, VerifiedDevice};

use super::{BodyApp, Pieces, data, digest, hex, key, post, trailers};
use crate::support::{Apple, Counter};

#[tokio::test]
async fn the_right_digest_lets_the_body_through_byte_by_byte() {
    let app = BodyApp::new(ReadBodies::new());
    let pieces = || Pieces::of([data("one "), data(""), data("two"), data(vec![0, 255])]);
    let bytes = b"one two\0\xff";
    type Row<'a> = (&'a str, &'a [u8], Pieces, &'a [u8], bool);
    let cases: [Row<'_>; 6] = [
        ("whole", b"body", Pieces::whole("body"), b"body", false),
        ("in pieces", bytes, pieces(), bytes, false),
        ("with trailers", b"body", Pieces::of([data("bo"), data("dy"), trailers()]), b"body", true),
        ("trailers alone", b"", Pieces::of([trailers()]), b"", true),
        ("empty", b"", Pieces::of([]), b"", false),
        ("empty, announced", b"", Pieces::whole("").announcing(0), b"", false),
    ];
    for (name, expected, body, bytes, with_trailers) in cases {
        let drops = body.drops.clone();
        assert_eq!(app.post(expected, body).await, 200, "{name}");
        let seen = app.reader.last();
        assert_eq!(seen.bytes, bytes, "{name}");
        assert_eq!(
            seen.trailers.map(|trailers| trailers["x-trailer"] == "kept"),
            with_trailers.then_some(true)
        );
        assert_eq!(seen.error, None, "{name}");
        assert_eq!(drops.get(), 1, "{name}");
        let device = seen.head.extensions.get::<VerifiedDevice>().unwrap();
        assert_eq!(
            (device.evidence().proof(), device.digest().to_string()),
            ("Digest", hex(bytes)),
            "{name}"
        );
        assert!(!seen.head.headers.contains_key("x-digest"), "{name}");
    }
    let calls = app.reader.calls();
    for body in [Pieces::whole("body"), Pieces::of([]), Pieces::of([data("bod"), data("y!")])] {
        assert_eq!(app.post(b"other", body).await, 401);
    }
    assert_eq!((app.reader.calls(), app.apple.calls()), (calls, 0));
}

#[tokio::test]
async fn a_body_that_no_proof_asks_for_is_not_even_polled() {
    let apple = Apple::new();
    let layer = apple.layer().with_bodies(ReadBodies::new().with_limit(0));
    let layer = layer.add_proof_before(key()).unwrap().add_proof_after(digest(100)).unwrap();
    let layer = layer.with_routing(|head: &http::request::Parts| match head.uri.path() {
        "/open" => tower_devicecheck::Route::Exempt,
        _ => tower_devicecheck::Route::Production,
    });
    let service = layer.layer(service_fn(async |request: Request<GateBody<Pieces>>| {
        assert_eq!(request.body().size_hint().exact(), Some(4));
        assert!(!request.body().is_end_stream());
        Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    let token = apple.genuine();
    type Row<'a> = (&'a str, &'a str, &'a [(&'static str, &'a str)], u16);
    let cases: &[Row<'_>] = &[
        ("exempt", "/open", &[("x-digest", "any")], 200),
        ("another proof", "/", &[("x-key", "good"), ("x-digest", "any")], 200),
        ("another proof refuses", "/", &[("x-key", "bad"), ("x-digest", "any")], 401),
        ("a device token", "/", &[(crate::support::TOKEN_HEADER, &token), ("x-digest", "any")], 200),
        ("the same, remembered", "/", &[(crate::support::TOKEN_HEADER, &token)], 200),
        ("no proof", "/", &[], 401),
    ];
    for (name, path, headers, status) in cases {
        let body = Pieces::whole("body");
        let polls = body.polls.clone();
        let mut request = Request::post(*path).body(body).unwrap();
        *request.headers_mut() = super::headers(headers);
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), polls.get()), (*status, 0), "{name}");
    }
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_not_read_beyond_it() {
    let ten = || data("0123456789");
    let chunked = |pieces| Pieces::of(iter::repeat_with(ten).take(pieces));
    let announced = |pieces: u64| chunked(usize::try_from(pieces).unwrap()).announcing(pieces * 10);
    // The limits of the layer and of the proof, the body, the status, and how often the body is polled.
    let cases: [(&str, usize, usize, Pieces, u16, usize); 9] = [
        ("at the limit", 30, 100, chunked(3), 200, 4),
        ("at the limit, announced", 30, 100, announced(3), 200, 4),
        ("over the layer's", 29, 100, chunked(9), 413, 3),
        ("over the proof's", 100, 29, chunked(9), 413, 3),
        ("over the layer's, announced", 29, 100, announced(3), 413, 0),
        ("over the proof's, announced", 100, 29, announced(3), 413, 0),
        ("longer than announced", 25, 25, chunked(9).announcing(20), 413, 3),
        ("nothing allowed, nothing sent", 0, 0, chunked(0), 200, 1),
        ("nothing allowed", 0, 0, chunked(1), 413, 1),
    ];
    for (name, layer, proof, body, status, expected) in cases {
        let app = BodyApp::with(ReadBodies::new().with_limit(layer), digest(proof));
        let (polls, drops) = (body.polls.clone(), body.drops.clone());
        let right = "0123456789".repeat(if layer == 0 { 0 } else { 3 });
        let response = app.send(post(&hex(right.as_bytes()), body)).await;
        assert_eq!(response.status(), status, "{name}");
        assert_eq!((polls.get(), drops.get()), (expected, 1), "{name}");
        assert_eq!(app.reader.calls(), usize::from(status == 200), "{name}");
        if status == 413 {
            assert_eq!(response.extensions().get(), Some(&Rejection::TooLarge), "{name}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(std::str::from_utf8(&body).unwrap().contains(r#""code":"too_large""#), "{name}");
        }
        assert_eq!(app.apple.calls(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_ends_by_the_deadline() {
    let every = |pause: Duration, count: usize| {
        Pieces::new(stream::iter(iter::repeat_with(|| data("a")).take(count)).then(move |piece| async move {
            tokio::time::sleep(pause).await;
            piece
        }))
    };
    let seconds = Duration::from_secs;
    let cases: [(&str, Pieces); 4] = [
        ("silent", Pieces::new(stream::pending())),
        ("silent after a while", Pieces::new(stream::iter([data("a")]).chain(stream::pending()))),
        ("a byte each second", every(seconds(1), 100)),
        ("a byte each millisecond", every(Duration::from_millis(1), 100_000)),
    ];
    for (name, body) in cases {
        let app = BodyApp::new(ReadBodies::new().with_deadline(seconds(7)));
        let drops = body.drops.clone();
        let started = Instant::now();
        let response = app.send(post("any", body)).await;
        assert_eq!(
            (response.status(), started.elapsed()),
            (StatusCode::REQUEST_TIMEOUT, seconds(7)),
            "{name}"
        );
        assert_eq!(response.extensions().get(), Some(&Rejection::IncompleteBody), "{name}");
        assert_eq!((drops.get(), app.reader.calls(), app.apple.calls()), (1, 0, 0), "{name}");
    }
    // One that makes it.
    let app = BodyApp::new(ReadBodies::new().with_deadline(seconds(7)));
    assert_eq!(app.post(b"aaa", every(seconds(2), 3)).await, 200);
}

/// Polls a body to its end on a runtime that has something else to do, too. Tells how often that got its turn.
async fn turns(app: &BodyApp, expected: &[u8], body: Pieces) -> (u16, usize) {
    let turns = Counter::default();
    let other = tokio::spawn({
        let turns = turns.clone();
        async move {
            loop {
                turns.add();
                tokio::task::yield_now().await;
            }
        }
    });
    let status = app.post(expected, body).await;
    other.abort();
    (status, turns.get())
}

#[tokio::test]
async fn streams_that_never_pend_are_bounded_and_let_others_have_their_turn() {
    let app = BodyApp::new(ReadBodies::new());
    let tiny = |count: usize| Pieces::of(iter::repeat_with(|| data("a")).take(count));
    let (status, others) = turns(&app, &[b'a'; 20_000], tiny(20_000)).await;
    assert_eq!(status, 200);
    assert!(others > 100, "{others}");
    assert_eq!(app.reader.last().bytes.len(), 20_000);

    for (name, piece) in [("empty", ""), ("one byte", "a")] {
        let body = Pieces::of(iter::repeat_with(move || data(piece)));
        let polls = body.polls.clone();
        let (status, others) = turns(&app, b"", body).await;
        assert_eq!(status, 413, "{name}");
        assert!(polls.get() < 100_000, "{name}: {}", polls.get());
        assert!(others > 500, "{name}: {others}");
    }
    assert_eq!((app.reader.calls(), app.apple.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_for_a_stream_that_never_pends() {
    let app = BodyApp::new(ReadBodies::new().with_deadline(Duration::from_secs(7)));
    let slow = tokio::spawn(async {
        for _ in 0..8 {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    });
    let body = Pieces::of(iter::repeat_with(|| data("")));
    let polls = body.polls.clone();
    assert_eq!(app.post(b"", body).await, 408);
    assert!(polls.get() < 30_000, "{}", polls.get());
    slow.await.unwrap();
    assert_eq!((app.reader.calls(), app.apple.calls()), (0, 0));
}

#[tokio::test]
async fn a_large_limit_allows_as_many_frames_as_its_bytes_come_in() {
    static KIB: [u8; 256] = [b'a'; 256];
    const FRAMES: usize = 70_000;
    let app = BodyApp::new(ReadBodies::new().with_limit(FRAMES * KIB.len()));
    let body = Pieces::of(iter::repeat_with(|| data(Bytes::from_static(&KIB))).take(FRAMES));
    // Which digest it has does not matter: it is read.
    assert_eq!(app.post(b"", body).await, 401);
    assert_eq!(app.apple.calls(), 0);
}

/// The most memory that a request holds at once while its body is read.
fn peak(app: &BodyApp, expected: &[u8], body: Pieces) -> (u16, u64) {
    let service = app.layer.layer(app.reader.clone());
    let request = post(&hex(expected), body);
    let mut status = 0;
    let used = measure(|| {
        let mut call = Box::pin(service.oneshot(request));
        loop {
            if let Some(response) = (&mut call).now_or_never() {
                status = response.unwrap().status().as_u16();
                break;
            }
        }
    });
    (status, used.bytes_max)
}

#[test]
fn a_body_takes_little_more_memory_than_its_bytes() {
    const LENGTH: usize = 60_000;
    let app = BodyApp::new(ReadBodies::new().with_limit(LENGTH));
    let tiny = Pieces::of(iter::repeat_with(|| data(Bytes::from_static(b"a"))).take(LENGTH));
    // The wrong digest: the inner service, which keeps a copy, is not called.
    let (status, bytes) = peak(&app, b"", tiny);
    assert_eq!(status, 401);
    assert!(bytes < 4 * LENGTH as u64, "{bytes}");

    // A piece that is too large is in memory already; it is not copied.
    let large = Bytes::from(vec![b'a'; 4 << 20]);
    let (status, bytes) = peak(&app, b"", Pieces::of([data("a"), data(large)]));
    assert_eq!(status, 413);
    assert!(bytes < 100_000, "{bytes}");
    assert_eq!((app.reader.calls(), app.apple.calls()), (0, 0));
}
