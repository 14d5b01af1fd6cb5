//! Promises about types.

use std::{fmt::Debug, sync::Arc};

use http_body_util::Full;
use tower::{Layer, service_fn};
use tower_devicecheck::{
    AppleClient, Candidate, Credentials, DeviceCheck, DeviceCheckLayer, DeviceOutcome, DeviceToken,
    Environment, Event, HttpTransport, Owner, Rejection, ReqwestTransport, ResponseBody, Route, TokenDigest,
    VerifiedDevice, VerifyError,
    cache::{CacheError, CachedVerdict, MemoryCache, Tiered, VerdictKey},
    replay::{Claim, GuardError, MemoryReplayGuard, ReplayKey},
};

fn shared<T: Send + Sync + 'static>() {}
fn cloned<T: Clone + Debug + Send + Sync + 'static>() {}

#[test]
fn auto_traits() {
    cloned::<AppleClient>();
    cloned::<Candidate>();
    cloned::<Credentials>();
    cloned::<DeviceCheck<u8>>();
    cloned::<DeviceCheckLayer>();
    cloned::<DeviceOutcome>();
    cloned::<DeviceToken>();
    cloned::<Environment>();
    cloned::<Rejection>();
    cloned::<Route>();
    cloned::<HttpTransport<u8>>();
    cloned::<ReqwestTransport>();
    cloned::<TokenDigest>();
    cloned::<VerifiedDevice>();
    cloned::<VerifyError>();
    cloned::<CachedVerdict>();
    cloned::<Tiered<Arc<MemoryCache>, Arc<MemoryCache>>>();
    shared::<CacheError>();
    shared::<Event<'static>>();
    shared::<MemoryCache>();
    shared::<MemoryReplayGuard>();
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
