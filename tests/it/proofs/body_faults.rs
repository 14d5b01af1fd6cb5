//! Bodies that cannot be read: refused, or passed on as they are where the layer only monitors.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body::SizeHint;
use tower_devicecheck::{DeviceOutcome, ReadBodies};

use super::{BodyApp, Made, Pieces, data, digested, trailers};

fn outcome(app: &BodyApp) -> String {
    app.reader.last().head.extensions.get::<DeviceOutcome>().unwrap().as_str().to_owned()
}

/// The hint of a body of `lower` bytes at least, and nobody knows how many at most.
fn at_least(lower: u64) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(lower);
    hint
}

fn same(hint: &SizeHint, other: &SizeHint) -> bool {
    (hint.lower(), hint.upper()) == (other.lower(), other.upper())
}

const SEVEN: Duration = Duration::from_secs(7);

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_read_goes_on_as_it_is_where_the_layer_only_monitors() {
    struct Row {
        name: &'static str,
        body: Pieces,
        outcome: &'static str,
        /// As the inner service gets it.
        bytes: &'static [u8],
        trailers: bool,
        error: Option<&'static str>,
        hint: SizeHint,
        ended: bool,
    }
    let exact = SizeHint::with_exact;
    let late = stream::once(async {
        tokio::time::sleep(SEVEN * 2).await;
        data("late")
    });
    let cases = [
        Row {
            name: "read, and another digest",
            body: Pieces::of([data("bo"), data("dy")]),
            outcome: "refused_token",
            bytes: b"body",
            trailers: false,
            error: None,
            hint: exact(4),
            ended: false,
        },
        Row {
            name: "empty, and another digest",
            body: Pieces::of([]),
            outcome: "refused_token",
            bytes: b"",
            trailers: false,
            error: None,
            hint: exact(0),
            ended: true,
        },
        // A length would let a proxy leave the trailers out.
        Row {
            name: "with trailers",
            body: Pieces::of([data("body"), trailers()]),
            outcome: "refused_token",
            bytes: b"body",
            trailers: true,
            error: None,
            hint: at_least(4),
            ended: false,
        },
        Row {
            name: "announced as too large",
            body: Pieces::whole("0123456789abc"),
            outcome: "too_large",
            bytes: b"0123456789abc",
            trailers: false,
            error: None,
            hint: exact(13),
            ended: false,
        },
        Row {
            name: "too large at once",
            body: Pieces::of([data("0123456789abc"), trailers()]),
            outcome: "too_large",
            bytes: b"0123456789abc",
            trailers: true,
            error: None,
            hint: at_least(13),
            ended: false,
        },
        Row {
            name: "too large in the end, and then an error",
            body: Pieces::of([data("01234567"), data("89a"), data("bc"), Err("gone")]),
            outcome: "too_large",
            bytes: b"0123456789abc",
            trailers: false,
            error: Some("gone"),
            hint: at_least(11),
            ended: false,
        },
        Row {
            name: "longer than announced",
            body: Pieces::of([data("01234567"), data("89abc"), data("de")]).announcing(8),
            outcome: "too_large",
            bytes: b"0123456789abcde",
            trailers: false,
            error: None,
            hint: exact(13),
            ended: false,
        },
        // A length would let a proxy take the part for the whole.
        Row {
            name: "an error after some bytes",
            body: Pieces::of([data("bo"), Err("gone"), data("never")]).announcing(4),
            outcome: "incomplete_body",
            bytes: b"bo",
            trailers: false,
            error: Some("gone"),
            hint: at_least(2),
            ended: false,
        },
        Row {
            name: "an error at once",
            body: Pieces::of([Err("gone")]),
            outcome: "incomplete_body",
            bytes: b"",
            trailers: false,
            error: Some("gone"),
            hint: at_least(0),
            ended: false,
        },
        Row {
            name: "late",
            body: Pieces::new(stream::iter([data("not ")]).chain(late)).announcing(8),
            outcome: "incomplete_body",
            bytes: b"not late",
            trailers: false,
            error: None,
            hint: exact(8),
            ended: false,
        },
    ];
    for row in cases {
        let name = row.name;
        let app = BodyApp::new(ReadBodies::new().with_limit(10).with_deadline(SEVEN)).monitoring();
        let drops = row.body.drops.clone();
        assert_eq!(app.post(b"another", row.body).await, 200, "{name}");
        let seen = app.reader.last();
        assert_eq!(outcome(&app), row.outcome, "{name}");
        assert_eq!(seen.bytes, row.bytes, "{name}");
        assert_eq!(seen.trailers.is_some(), row.trailers, "{name}");
        assert_eq!(seen.error.as_deref(), row.error, "{name}");
        assert!(same(&seen.hint, &row.hint), "{name}: {:?}", seen.hint);
        assert_eq!(seen.ended, row.ended, "{name}");
        assert_eq!(drops.get(), 1, "{name}");
        assert_eq!(app.apple.calls(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_rebuilt_body_knows_when_it_is_at_its_end() {
    for (name, body) in [
        ("bytes", Pieces::of([data("body")])),
        ("trailers", Pieces::of([data("body"), trailers()])),
        ("an error", Pieces::of([data("body"), Err("gone")])),
        ("nothing", Pieces::of([])),
    ] {
        let app = BodyApp::new(ReadBodies::new()).monitoring();
        assert_eq!(app.post(b"another", body).await, 200, "{name}");
        let seen = app.reader.last();
        assert!(seen.last_ended && same(&seen.last_hint, &SizeHint::with_exact(0)), "{name}: {seen:?}");
        assert_eq!(app.apple.calls(), 0);
    }
}

#[tokio::test]
async fn a_body_error_is_408_and_the_inner_service_is_not_called() {
    for body in [Pieces::of([Err("gone")]), Pieces::of([data("body"), Err("gone")])] {
        let app = BodyApp::new(ReadBodies::new());
        let drops = body.drops.clone();
        let response = app.send(super::post("any", body)).await;
        assert_eq!(response.status(), 408);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!((drops.get(), app.reader.calls(), app.apple.calls()), (1, 0, 0));
    }
}

#[tokio::test]
async fn with_forwarded_credentials_the_digest_is_there_for_the_inner_service_too() {
    let app = BodyApp::new(ReadBodies::new().with_limit(10));
    let app = BodyApp { layer: app.layer.with_forwarded_credentials(true), ..app };
    let monitoring =
        BodyApp { apple: app.apple.clone(), layer: app.layer.clone(), reader: app.reader.clone() };
    let monitoring = monitoring.monitoring();
    assert_eq!(app.post(b"body", Pieces::whole("body")).await, 200);
    assert!(app.reader.last().head.headers["x-digest"].is_sensitive());
    assert_eq!(monitoring.post(b"body", Pieces::whole("much too large a body")).await, 200);
    assert_eq!(outcome(&monitoring), "too_large");
    assert!(monitoring.reader.last().head.headers["x-digest"].is_sensitive());
    assert_eq!((app.reader.calls(), app.apple.calls()), (2, 0));
}

#[tokio::test]
async fn the_rest_of_a_large_piece_is_shared_with_what_the_inner_service_gets() {
    let large = Bytes::from(vec![b'a'; 1000]);
    let proof = Made::new("Digest", "x-digest", |value, facts| digested(500, value, facts)).reading();
    let app = BodyApp::with(ReadBodies::new(), proof).monitoring();
    assert_eq!(app.post(b"", Pieces::of([data("0"), data(large), data("1")])).await, 200);
    let seen = app.reader.last();
    assert_eq!((seen.bytes.len(), seen.frames), (1002, 3), "the buffer, the piece, the rest");
    assert_eq!(app.apple.calls(), 0);
}
