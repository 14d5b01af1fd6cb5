//! Promises about types.

use std::{
    fmt::Debug,
    marker::PhantomPinned,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::Full;
use tower::{Layer, service_fn};
use tower_devicecheck::{
    AppleClient, Candidate, Credentials, DeviceCheck, DeviceCheckLayer, DeviceOutcome, DeviceToken,
    Environment, Event, Evidence, Facts, GateBody, HeadOnly, HttpTransport, LayerError, Owner, Proof,
    ReadBodies, Rejected, Rejection, ReqwestTransport, ResponseBody, RolloutReport, Route, TokenDigest,
    VerifiedDevice, VerifyError,
    cache::{CacheError, CachedVerdict, MemoryCache, Tiered, VerdictKey},
    limit::Limiter,
    replay::{Claim, GuardError, MemoryReplayGuard, ReplayKey},
};

fn shared<T: ?Sized + Send + Sync + 'static>() {}
fn cloned<T: Clone + Debug + Send + Sync + 'static>() {}

#[test]
fn auto_traits() {
    cloned::<AppleClient>();
    cloned::<Candidate>();
    cloned::<Credentials>();
    cloned::<DeviceCheck<u8>>();
    cloned::<DeviceCheck<u8, ReadBodies>>();
    cloned::<DeviceCheckLayer>();
    cloned::<DeviceCheckLayer<ReadBodies>>();
    cloned::<DeviceOutcome>();
    cloned::<DeviceToken>();
    cloned::<Environment>();
    cloned::<Evidence>();
    cloned::<Facts>();
    cloned::<HeadOnly>();
    cloned::<LayerError>();
    cloned::<ReadBodies>();
    cloned::<Rejected>();
    cloned::<Rejection>();
    cloned::<Route>();
    cloned::<HttpTransport<u8>>();
    cloned::<ReqwestTransport>();
    cloned::<TokenDigest>();
    #[cfg(feature = "limit")]
    {
        cloned::<tower_devicecheck::limit::LimitKey>();
        cloned::<tower_devicecheck::limit::RateLimiter>();
    }
    cloned::<VerifiedDevice>();
    cloned::<VerifyError>();
    cloned::<CachedVerdict>();
    cloned::<Tiered<Arc<MemoryCache>, Arc<MemoryCache>>>();
    shared::<CacheError>();
    shared::<Event<'static>>();
    shared::<GateBody<Full<bytes::Bytes>>>();
    shared::<dyn Limiter>();
    shared::<dyn Proof>();
    shared::<MemoryCache>();
    shared::<MemoryReplayGuard>();
    shared::<RolloutReport>();
    shared::<Claim>();
    shared::<GuardError>();
    cloned::<Owner>();
    cloned::<ReplayKey<'static>>();
    #[cfg(feature = "redis")]
    {
        cloned::<tower_devicecheck::Redis>();
        cloned::<tower_devicecheck::cache::RedisCache>();
        cloned::<tower_devicecheck::replay::RedisReplayGuard>();
    }
    shared::<VerdictKey<'static>>();
}

#[test]
fn the_service_asks_nothing_of_the_bodies() {
    /// Neither `Send` nor `Default` nor `Debug` nor a body.
    struct Odd(#[allow(dead_code, reason = "it only has to be there")] std::rc::Rc<u8>);

    fn is_service<S: tower::Service<http::Request<Odd>>>(_: &S) {}

    let layer: DeviceCheckLayer = crate::support::Apple::new().layer();
    let service = layer.layer(service_fn(async |request: http::Request<Odd>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
    }));
    is_service(&service);
}

#[test]
fn a_service_that_reads_bodies_asks_nothing_of_them_but_their_bytes() {
    /// Neither `Send` nor `Unpin` nor `Default` nor `Debug` nor of all time, and its error is no error.
    struct Odd<'a>(Full<bytes::Bytes>, std::marker::PhantomData<(&'a std::rc::Rc<u8>, PhantomPinned)>);
    struct NoError;

    impl http_body::Body for Odd<'_> {
        type Data = bytes::Bytes;
        type Error = NoError;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, NoError>>> {
            let _ = &self.0;
            Poll::Ready(Some(Err(NoError)))
        }
    }

    fn takes<S: tower::Service<http::Request<B>>, B>(_: &S) {}

    fn is_service<'a>(layer: &DeviceCheckLayer<ReadBodies>, _: &'a str) {
        let service = layer.layer(service_fn(async |request: http::Request<GateBody<Odd<'a>>>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
        }));
        takes::<_, Odd<'a>>(&service);
    }

    is_service(&crate::support::Apple::new().layer().with_bodies(ReadBodies::new()), "not static");
}

#[test]
fn a_response_body_is_default_where_the_inner_one_is() {
    let body = ResponseBody::<Full<bytes::Bytes>>::default();
    assert!(http_body::Body::is_end_stream(&body));
}

/// The layer can be named: no type parameters for its plug-ins.
#[allow(dead_code, reason = "it only has to compile")]
struct Named {
    layer: DeviceCheckLayer,
    service: DeviceCheck<Arc<str>>,
}
