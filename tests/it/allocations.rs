//! The layer's allocations, counted: a promise that needs no quiet machine.

use std::convert::Infallible;

use allocation_counter::measure;
use bytes::Bytes;
use futures::FutureExt;
use http::{Extensions, HeaderValue, Request, Response, request};
use http_body_util::Empty;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_devicecheck::{
    DeviceCheckLayer, Environment, Route, Verdict, VerifiedDevice,
    cache::{CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    testing::{realistic_token, verified_device},
};

use crate::support::{Counter, Stub, TOKEN_HEADER};

async fn answer(_: Request<()>) -> Result<Response<Empty<Bytes>>, Infallible> {
    Ok(Response::new(Empty::new()))
}

/// A header value that shares its buffer with others, as an HTTP server makes it.
fn header_value(token: &str) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(token.to_owned())).unwrap()
}

fn request(token: &HeaderValue) -> Request<()> {
    Request::builder().header(TOKEN_HEADER, token.clone()).body(()).unwrap()
}

#[tokio::test]
async fn a_hit_allocates_what_the_extension_needs_one_copy_of_the_token_and_nothing_else() {
    let asked = Counter::default();
    let layer = DeviceCheckLayer::new(Stub::genuine(&asked));
    let token = header_value(&realistic_token());
    let mut service = layer.layer(service_fn(answer));
    // With the feature `metrics`, the first hit also makes the series in which hits are counted.
    for _ in ["asked", "the first hit"] {
        assert!(service.ready().await.unwrap().call(request(&token)).await.unwrap().status().is_success());
    }
    assert_eq!(asked.get(), 1);

    let device: VerifiedDevice = verified_device(realistic_token().parse().unwrap(), Environment::Production);
    let mut extensions = Extensions::new();
    let insert = measure(|| {
        extensions.insert(device);
    });
    assert!(insert.count_total > 0);

    let hit_request = request(&token);
    let mut response = None;
    let hit = measure(|| response = service.call(hit_request).now_or_never());
    assert!(response.unwrap().unwrap().status().is_success());
    assert_eq!(hit.count_total, insert.count_total + 1);
    assert_eq!(hit.bytes_total, insert.bytes_total + token.len() as u64);
    assert_eq!(asked.get(), 1);
}

#[tokio::test]
async fn c09_a_verified_device_keeps_no_read_buffer_alive() {
    let asked = Counter::default();
    let layer = DeviceCheckLayer::new(Stub::genuine(&asked));
    let text = realistic_token();
    // As hyper reads an HTTP/1.1 request: all header values are parts of one buffer.
    for round in ["asked", "remembered"] {
        let buffer = Bytes::from([text.as_bytes(), &[b' '; 400_000]].concat());
        let token = HeaderValue::from_maybe_shared(buffer.slice(..text.len())).unwrap();
        let (kept, keep) = std::sync::mpsc::channel();
        let mut service = layer.layer(service_fn(move |request: Request<()>| {
            kept.send(request.extensions().get::<VerifiedDevice>().unwrap().clone()).unwrap();
            answer(request)
        }));
        let response = service.ready().await.unwrap().call(request(&token)).await.unwrap();
        assert!(response.status().is_success());
        drop(token);
        let device = keep.recv().unwrap();
        assert!(buffer.is_unique(), "{round}");
        drop(device);
    }
    assert_eq!(asked.get(), 1);
}

#[tokio::test]
async fn an_exempt_request_allocates_nothing() {
    let asked = Counter::default();
    let layer = DeviceCheckLayer::new(Stub::genuine(&asked)).with_routing(|_: &request::Parts| Route::Exempt);
    let mut service = layer.layer(service_fn(answer));
    let token = header_value(&realistic_token());
    // With the feature `metrics`, the first request also makes the series in which exempt requests are counted.
    assert!(service.call(request(&token)).now_or_never().unwrap().unwrap().status().is_success());
    let request = request(&token);
    let mut response = None;
    let exempt = measure(|| response = service.call(request).now_or_never());
    assert!(response.unwrap().unwrap().status().is_success());
    assert_eq!((exempt.count_total, asked.get()), (0, 0));
}

#[tokio::test]
async fn a_million_verdicts_take_less_than_150_megabytes() {
    const MILLION: usize = 1_000_000;
    let mut cache = None;
    let used = measure(|| {
        let filled = MemoryCache::with_capacity(MILLION, 1_000);
        for number in 0..MILLION {
            let token = format!("{number:012}").parse().unwrap();
            let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
            let now = std::time::SystemTime::now();
            let verdict =
                CachedVerdict::new(Verdict::Genuine, key.digest(), now, std::time::Duration::from_secs(300));
            filled.put(&key, verdict).now_or_never().unwrap().unwrap();
        }
        cache = Some(filled);
    });
    let megabytes = used.bytes_current / 1_000_000;
    println!("{megabytes} MB for {} verdicts", cache.as_ref().unwrap().genuine_len());
    assert!(cache.unwrap().genuine_len() > MILLION * 95 / 100);
    assert!(megabytes <= 150, "{megabytes} MB");
}
