//! Bodies that pass while they come, by the digest that their head promises.

use std::time::Duration;

use futures::{StreamExt, stream};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use tower_devicecheck::{DeviceOutcome, Enforcement, GateBodyError};

use super::*;

/// Promises the digest of a body.
fn promise(request: &mut Request<Full<Bytes>>, body: &str) {
    let digest = format!("sha-512=:AAAA:, sha-256=:{}:", STANDARD.encode(Sha256::digest(body)));
    request.headers_mut().insert("content-digest", digest.parse().unwrap());
}

fn promised(device: &VirtualDevice, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = signed(device, Method::POST, "/upload", (TIME, &time(0)), body);
    promise(&mut request, body);
    request
}

#[tokio::test]
async fn a_body_other_than_promised_ends_in_an_error() {
    let world = World::new();
    let device = world.known_device().await;
    let proof = world.proof(Freshness::time()).with_streamed_bodies(true).with_body_limit(0);
    let server = world.server(proof.clone());
    for body in ["amount=1", ""] {
        assert_eq!(server.code(promised(&device, body)).await, "ok");
        let (head, seen) = server.last();
        assert_eq!(seen.unwrap(), body);
        assert!(head.headers.contains_key("content-digest"));
    }
    for body in ["amount=2", "amount=1 ", "", "amount"] {
        let mut request = promised(&device, "amount=1");
        *request.body_mut() = Full::from(body);
        assert_eq!(server.send(request).await.status(), 200, "the head is right");
        assert_eq!(
            server.last().1.unwrap_err(),
            "the body has another digest than its head promised",
            "{body}"
        );
    }
    // A promise that was not signed.
    let mut request = promised(&device, "amount=1");
    promise(&mut request, "amount=2");
    assert_eq!(server.code(request).await, "refused_token");
    let mut request = promised(&device, "amount=1");
    request.headers_mut().remove("content-digest");
    assert_eq!(server.code(request).await, "malformed_token");
    let captured = promised(&device, "amount=1");
    assert_eq!(server.code(captured.clone()).await, "ok");
    assert_eq!(server.code(captured).await, "reused_token");

    // A layer that only monitors leaves bodies alone.
    let monitor = Server::new(&world.layer(proof).with_enforcement(Enforcement::Monitor));
    let mut request = promised(&device, "amount=1");
    *request.body_mut() = Full::from("amount=2");
    assert_eq!(monitor.send(request).await.status(), 200);
    let (head, seen) = monitor.last();
    assert_eq!(head.extensions.get::<DeviceOutcome>().unwrap().as_str(), "verified");
    assert_eq!(seen.unwrap(), "amount=2");
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn chunks_pass_one_by_one_and_the_last_one_only_after_the_check() {
    let world = World::new();
    let device = world.known_device().await;
    let layer = world.layer(world.proof(Freshness::time()).with_streamed_bodies(true));
    let whole = ["one ", "two ", "three"];
    for sent in [whole, ["one ", "two ", "thref"], ["one ", "twp ", "three"]] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let service = layer.layer(tower::service_fn(move |request: Request<GateBody<_>>| {
            let kept = Arc::clone(&kept);
            async move {
                let mut body = std::pin::pin!(request.into_body());
                assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, None));
                while let Some(frame) = body.frame().await {
                    assert!(frame.as_ref().err().is_none_or(|error| *error == GateBodyError::OtherDigest));
                    let text = frame.map(|frame| match frame.into_data() {
                        Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                        Err(frame) => format!("{} trailers", frame.into_trailers().unwrap().len()),
                    });
                    kept.lock().unwrap().push(text.map_err(|_| ()));
                }
                assert!(body.is_end_stream());
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }));
        let head = promised(&device, "one two three").into_parts().0;
        let trailers = [("x-trailer".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        let frames = sent.map(|chunk| Frame::data(Bytes::from(chunk))).into_iter();
        let frames = stream::iter(frames.chain([Frame::trailers(trailers)])).then(async |frame| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(frame)
        });
        let body = StreamBody::new(Box::pin(frames));
        assert_eq!(service.oneshot(Request::from_parts(head, body)).await.unwrap().status(), 200);
        let seen: Vec<_> =
            seen.lock().unwrap().iter().filter(|text| text.as_deref() != Ok("")).cloned().collect();
        let ok = |text: &str| Ok(text.to_owned());
        let end = if sent == whole { vec![ok("three"), ok("1 trailers")] } else { vec![Err(())] };
        let expected: Vec<_> = sent[..2].iter().map(|text| ok(text)).chain(end).collect();
        assert_eq!(seen, expected, "{sent:?}");
    }
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn an_empty_chunk_does_not_free_the_last_one() {
    let world = World::new();
    let device = world.known_device().await;
    let layer = world.layer(world.proof(Freshness::time()).with_streamed_bodies(true));
    // HTTP/2 has empty frames. A handler that counts to `Content-Length` stops reading with the last byte.
    for sent in [vec!["amount=2", ""], vec!["", "amount=2", "", ""], vec!["amount=", "2", ""]] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let service = layer.layer(tower::service_fn(move |request: Request<GateBody<_>>| {
            let kept = Arc::clone(&kept);
            async move {
                let mut body = std::pin::pin!(request.into_body());
                let mut error = None;
                while let Some(frame) = body.frame().await {
                    match frame {
                        Ok(frame) => kept.lock().unwrap().extend(frame.into_data().unwrap()),
                        Err(reason) => error = Some(reason),
                    }
                }
                assert_eq!(error, Some(GateBodyError::OtherDigest));
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }));
        let head = promised(&device, "amount=1").into_parts().0;
        let frames = sent.iter().map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from(*chunk))));
        let body = StreamBody::new(stream::iter(frames.collect::<Vec<_>>()));
        assert_eq!(service.oneshot(Request::from_parts(head, body)).await.unwrap().status(), 200);
        let seen = seen.lock().unwrap().clone();
        assert!(!String::from_utf8(seen).unwrap().contains('2'), "{sent:?}");
    }
    assert_eq!(world.apple.calls(), 0);
}
