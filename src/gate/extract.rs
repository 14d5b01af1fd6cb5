//! Extractors for axum.

use std::{convert::Infallible, error::Error, fmt};

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request};

use crate::gate::{
    decision::{DeviceOutcome, VerifiedDevice},
    rejection::Rejection,
};

/// Feature `axum`. Rejects with status 500 if no [`DeviceCheckLayer`](crate::DeviceCheckLayer) has verified
/// the request: there is no layer, or the route is exempt.
///
/// Under [`Monitor`](crate::Enforcement::Monitor) the layer lets every request through, and this rejects those that the
/// layer would have rejected, with the same status. Handlers that shall work without a device take an `Option`.
impl<S: Sync> FromRequestParts<S> for VerifiedDevice {
    type Rejection = MissingDevice;

    async fn from_request_parts(head: &mut request::Parts, _: &S) -> Result<Self, MissingDevice> {
        head.extensions.get().cloned().ok_or_else(|| MissingDevice {
            monitored: match head.extensions.get() {
                Some(DeviceOutcome::Rejected(rejection)) => Some(*rejection),
                _ => None,
            },
        })
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
    monitored: Option<Rejection>,
}

impl MissingDevice {
    /// The rejection that a layer which only monitors has left out; `None` if no layer has looked at the request.
    #[must_use]
    pub const fn monitored(&self) -> Option<Rejection> {
        self.monitored
    }
}

impl fmt::Display for MissingDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.monitored {
            Some(rejection) => write!(
                f,
                "no verified device in the request: in monitor mode `DeviceCheckLayer` let it through ({}), and the \
                 handler takes a `VerifiedDevice`, not an `Option`",
                rejection.code(),
            ),
            None => f.write_str(
                "no verified device in the request: is `DeviceCheckLayer` enabled, and the route not exempt?",
            ),
        }
    }
}

impl Error for MissingDevice {}

impl IntoResponse for MissingDevice {
    fn into_response(self) -> Response {
        match self.monitored {
            Some(rejection) => {
                tracing::event!(target: crate::gate::observer::TARGET, tracing::Level::WARN, "{self}");
                let mut response = rejection.monitored().map(Body::from);
                response.extensions_mut().insert(rejection);
                response
            }
            None => {
                tracing::event!(target: crate::gate::observer::TARGET, tracing::Level::ERROR, "{self}");
                (StatusCode::INTERNAL_SERVER_ERROR, "the server did not check the device").into_response()
            }
        }
    }
}
