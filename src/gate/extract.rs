//! Extractors and responses for axum.

use std::{borrow::Cow, convert::Infallible, error::Error};

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Request, StatusCode, request};

use crate::gate::decision::{DeviceOutcome, VerifiedDevice};
use crate::gate::error::{VerifyError, impl_error};
use crate::gate::observer::{Chain, TARGET};
use crate::gate::rejection::{ProblemDetails, Rejection, RejectionResponse};

/// Feature `axum`. Extracts the verified device. Responds with status 500 if no
/// [`DeviceCheckLayer`](crate::DeviceCheckLayer) has checked the request: there is no layer, or the route is exempt.
///
/// Under [`Monitor`](crate::Enforcement::Monitor), the layer lets every request through. This extractor then rejects
/// the requests that the layer would have rejected, with the same status. Under [`Shadow`](crate::Enforcement::Shadow),
/// it responds with status 500 to the requests whose check has not ended. Handlers that must work without a device take
/// an `Option`.
impl<S: Sync> FromRequestParts<S> for VerifiedDevice {
    type Rejection = MissingDevice;

    async fn from_request_parts(head: &mut request::Parts, _: &S) -> Result<Self, MissingDevice> {
        head.extensions.get().cloned().ok_or_else(|| MissingDevice {
            monitored: match head.extensions.get() {
                Some(DeviceOutcome::Rejected(rejection)) => Some(*rejection),
                _ => None,
            },
            is_shadowed: matches!(head.extensions.get(), Some(DeviceOutcome::Unknown)),
        })
    }
}

/// Feature `axum`. Extracts the verified device, or `None` if the route is exempt, or if the layer only monitors and
/// would have rejected the request.
impl<S: Sync> OptionalFromRequestParts<S> for VerifiedDevice {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut request::Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(head.extensions.get().cloned())
    }
}

/// The error of a handler that takes a [`VerifiedDevice`] from a request without one.
#[derive(Clone, Copy, Debug)]
pub struct MissingDevice {
    monitored: Option<Rejection>,
    /// Whether the outcome of the check is unknown.
    is_shadowed: bool,
}

impl MissingDevice {
    /// The rejection that a monitoring layer did not enforce; `None` if no layer has checked the request.
    #[must_use]
    pub const fn monitored(&self) -> Option<Rejection> {
        self.monitored
    }
}

impl_error!(
    MissingDevice,
    |error| None,
    "no verified device in the request: {}",
    match error.monitored {
        Some(rejection) => Cow::Owned(format!(
            "in monitor mode `DeviceCheckLayer` let it through ({}), and the handler takes a `VerifiedDevice`, not an \
             `Option`",
            rejection.code()
        )),
        None if error.is_shadowed => Cow::Borrowed(
            "in shadow mode the handler runs before the check has ended, and takes a `VerifiedDevice`, not an `Option`"
        ),
        None => Cow::Borrowed("is `DeviceCheckLayer` enabled, and the route not exempt?"),
    }
);

impl IntoResponse for MissingDevice {
    fn into_response(self) -> Response {
        match self.monitored {
            Some(rejection) => {
                tracing::event!(target: TARGET, tracing::Level::WARN, "{self}");
                answer(rejection, |_| rejection.monitored())
            }
            None => {
                tracing::event!(target: TARGET, tracing::Level::ERROR, "{self}");
                (StatusCode::INTERNAL_SERVER_ERROR, "the server did not check the device").into_response()
            }
        }
    }
}

/// Feature `axum`. Responds with problem details, the layer's default answer to a client that speaks plain HTTP. For
/// gRPC use [`ProblemDetails`], which gets the request.
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        answer(self, |head| ProblemDetails.response(&self, head))
    }
}

/// Feature `axum`. Responds with the [`Rejection`] of the error. The error and its causes are logged as a warning,
/// because the response does not contain them.
impl IntoResponse for VerifyError {
    fn into_response(self) -> Response {
        warn(&self);
        Rejection::from(&self).into_response()
    }
}

/// Makes the response as for a request without headers, with the rejection in the response's extensions, as in the
/// layers' responses.
pub(crate) fn answer<R: Clone + Send + Sync + 'static>(
    rejection: R,
    respond: impl FnOnce(&request::Parts) -> http::Response<Bytes>,
) -> Response {
    let (head, ()) = Request::new(()).into_parts();
    let mut response = respond(&head).map(Into::into);
    response.extensions_mut().insert(rejection);
    response
}

pub(crate) fn warn(error: &(dyn Error + 'static)) {
    tracing::event!(target: TARGET, tracing::Level::WARN, error = %Chain(error), "no answer for a handler");
}
