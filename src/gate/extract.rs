//! Extractors for axum.

use std::convert::Infallible;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::{StatusCode, request};

use crate::gate::{decision::VerifiedDevice, error::impl_error};

/// Feature `axum`. Rejects with status 500 if no [`DeviceCheckLayer`](crate::DeviceCheckLayer) has verified
/// the request: there is no layer, the route is exempt, or the layer only monitors and would have rejected the
/// request. Handlers that shall work under [`Monitor`](crate::Enforcement::Monitor) take an `Option`.
impl<S: Sync> FromRequestParts<S> for VerifiedDevice {
    type Rejection = MissingDevice;

    async fn from_request_parts(head: &mut request::Parts, _: &S) -> Result<Self, MissingDevice> {
        head.extensions.get().cloned().ok_or(MissingDevice { _private: () })
    }
}

/// Feature `axum`. `None` where the route is exempt, or the layer only monitors and would have rejected the
/// request.
impl<S: Sync> OptionalFromRequestParts<S> for VerifiedDevice {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut request::Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(head.extensions.get().cloned())
    }
}

/// A handler asked for a [`VerifiedDevice`] in a request that has none.
#[derive(Clone, Copy, Debug)]
pub struct MissingDevice {
    _private: (),
}

impl_error!(
    MissingDevice,
    |error| None,
    "no verified device in the request: is `DeviceCheckLayer` enabled, and the route not exempt?"
);

impl IntoResponse for MissingDevice {
    fn into_response(self) -> Response {
        tracing::event!(target: crate::gate::observer::TARGET, tracing::Level::ERROR, "{self}");
        (StatusCode::INTERNAL_SERVER_ERROR, "the server did not check the device").into_response()
    }
}
