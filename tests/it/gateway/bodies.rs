//! Bodies: passed on piece by piece, with a limit for their length and one for silence.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::StatusCode,
    response::IntoResponse,
};
use futures::{StreamExt, channel::mpsc, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use tower_devicecheck::split_key::gateway::PassedBody;

use super::{CHAT, Gateway, ai_gateway::Limits, code, provider, provider_of_events, status};

type Piece = Result<Frame<Bytes>, Infallible>;

/// A body that the test sends piece by piece.
fn piecemeal() -> (mpsc::UnboundedSender<Piece>, StreamBody<mpsc::UnboundedReceiver<Piece>>) {
    let (sender, receiver) = mpsc::unbounded();
    (sender, StreamBody::new(receiver))
}

fn piece(text: &'static str) -> Piece {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let (events, body) = piecemeal();
    let url = provider_of_events(body).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        // The next one is sent when this one was seen.
        events.unbounded_send(piece(event)).unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), event);
    }
    drop(events);
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn request_bodies_are_not_held_back() {
    let (pieces, mut seen) = mpsc::unbounded();
    let (url, _) = provider(move |request| {
        let pieces = pieces.clone();
        async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                pieces.unbounded_send(frame.unwrap().into_data().unwrap()).unwrap();
            }
            StatusCode::OK.into_response()
        }
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let (upload, body) = piecemeal();
    let response = tokio::spawn(gateway.post(CHAT).body(reqwest::Body::wrap(body)).send());
    for text in ["one", "two", "three"] {
        upload.unbounded_send(piece(text)).unwrap();
        assert_eq!(seen.next().await.unwrap(), text);
    }
    drop(upload);
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn bodies_have_a_limit_also_without_a_length() {
    let (url, _) = provider(async |request: Request| {
        match request.into_body().collect().await {
            Ok(body) => body.to_bytes().into_response(),
            // The gateway hung up.
            Err(_) => StatusCode::IM_A_TEAPOT.into_response(),
        }
    })
    .await;
    let gateway = Gateway::new(&url, Limits { body: 10, ..Limits::default() }).await;
    let chunked = |text: &'static str| reqwest::Body::wrap(StreamBody::new(stream::iter([piece(text)])));
    for (name, body, expected) in [
        ("as much as allowed", "0123456789".into(), 200),
        ("one more", "0123456789x".into(), 413),
        ("in chunks", chunked("0123456789"), 200),
        ("in chunks, one more", chunked("0123456789x"), 413),
    ] {
        let response = gateway.post(CHAT).body(body).send().await.unwrap();
        assert_eq!(response.status(), expected, "{name}");
        let text = response.text().await.unwrap();
        assert!(
            if expected == 200 { text == "0123456789" } else { text.contains("body_too_large") },
            "{name}"
        );
    }
    // The one whose length is said to be too much does not get that far.
    assert_eq!(gateway.apple.calls(), 3);
}

#[tokio::test]
async fn silence_ends() {
    let short = Duration::from_millis(50);
    let (url, _) = provider(async |_| std::future::pending().await).await;
    let gateway = Gateway::new(&url, Limits { head: short, ..Limits::default() }).await;
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(code(response).await, "provider_timeout");

    // The provider begins, and then says nothing more.
    let (events, body) = piecemeal();
    let body = Arc::new(Mutex::new(Some(body)));
    let (url, _) = provider(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async { Body::new(body).into_response() }
    })
    .await;
    events.unbounded_send(piece("data: 1\n\n")).unwrap();
    let short = Duration::from_secs(1);
    let gateway = Gateway::new(&url, Limits { idle: short, ..Limits::default() }).await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    assert!(response.chunk().await.is_err(), "a stream that was cut must not look complete");

    // The client does.
    let (url, _) = provider(async |request: Request| {
        let _ = request.into_body().collect().await;
        StatusCode::OK.into_response()
    })
    .await;
    let gateway = Gateway::new(&url, Limits { upload: short, ..Limits::default() }).await;
    let (upload, body) = piecemeal();
    upload.unbounded_send(piece("{")).unwrap();
    let response = gateway.post(CHAT).body(reqwest::Body::wrap(body)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(code(response).await, "request_timeout");
    assert_eq!(gateway.apple.calls(), 1);
}

/// Over sockets, by hand: no HTTP client writes such a body.
#[tokio::test]
async fn a_body_that_is_malformed_or_breaks_off_is_the_clients_fault() {
    let whole = Arc::new(AtomicUsize::new(0));
    let (url, _) = {
        let whole = Arc::clone(&whole);
        provider(move |request: Request| {
            let whole = Arc::clone(&whole);
            async move {
                if request.into_body().collect().await.is_ok() {
                    whole.fetch_add(1, Ordering::SeqCst);
                }
                StatusCode::OK.into_response()
            }
        })
        .await
    };
    let gateway = Gateway::new(&url, Limits::default()).await;
    let send = async |body: &str, half_close: bool| {
        let credential = gateway.credential();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {credential}"
        );
        let mut stream = TcpStream::connect(gateway.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
        if half_close {
            stream.shutdown().await.unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let chunked = |chunks: &str| format!("transfer-encoding: chunked\r\n\r\n{chunks}");
    let broken = [
        ("no size of a chunk", chunked("5\r\nhello\r\nzz\r\n"), false),
        ("no end of a chunk", chunked("5\r\nhello, world\r\n0\r\n\r\n"), false),
        ("a size beyond all numbers", chunked("fffffffffffffffff\r\nhello"), false),
        ("broken off in a chunk", chunked("9\r\nhello"), true),
        ("broken off between two chunks", chunked("5\r\nhello\r\n"), true),
        ("broken off before its length", "content-length: 9\r\n\r\nhello".to_owned(), true),
    ];
    for (name, body, half_close) in &broken {
        let answer = send(body, *half_close).await;
        assert_eq!(status(&answer), "400", "{name}: {answer}");
        assert!(answer.contains("\r\nx-devicecheck-code: broken_body\r\n"), "{name}: {answer}");
    }
    assert_eq!(whole.load(Ordering::SeqCst), 0);
    let answer = send(&chunked("5\r\nhello\r\n0\r\n\r\n"), false).await;
    assert_eq!((status(&answer), whole.load(Ordering::SeqCst)), ("200", 1));
    assert_eq!(gateway.apple.calls(), broken.len() + 1);
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_for_silence_and_not_for_the_whole() {
    let pieces = |pause: u64| {
        let pieces = stream::iter(0..20).then(move |_| async move {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            Ok::<_, Infallible>(Bytes::from_static(b"x"))
        });
        PassedBody::request(Body::from_stream(pieces), 1_000, Duration::from_secs(10)).collect()
    };
    assert_eq!(pieces(9).await.unwrap().to_bytes().len(), 20);
    assert!(pieces(11).await.is_err());
}
