//! Answers that the server gives by itself, in the shape that the SDK of the request's provider reads.

use std::error::Error;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, request};

use crate::gate::rejection::{HttpProblemDetails, Rejection, RejectionResponse};
use crate::split_key::gateway::error_shape::ErrorShape;
use crate::split_key::gateway::rejection::GatewayRejection;
use crate::split_key::gateway::target::Target;
use crate::split_key::rejection::{SplitKeyRejection, SplitKeyRejectionResponse};

/// Responds to a rejected request in the [shape](ErrorShape) of the provider to which it was to go, with the status and
/// the code of the rejection. For layers inside of [`GatewayLayer`](crate::split_key::gateway::GatewayLayer). Elsewhere
/// it responds as [`HttpProblemDetails`].
///
/// ```
/// use tower_devicecheck::{DeviceCheckLayer, DeviceVerifier, split_key::gateway::ProviderErrors};
///
/// # fn gate(apple: impl DeviceVerifier) -> DeviceCheckLayer {
/// DeviceCheckLayer::new(apple).with_rejection_response(ProviderErrors)
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct ProviderErrors;

impl RejectionResponse for ProviderErrors {
    fn response(&self, rejection: &Rejection, head: &request::Parts) -> Response<Bytes> {
        let response = RejectionResponse::response(&HttpProblemDetails, rejection, head);
        shaped(response, shape(head), rejection.code(), rejection)
    }
}

impl SplitKeyRejectionResponse for ProviderErrors {
    fn response(&self, rejection: &SplitKeyRejection, head: &request::Parts) -> Response<Bytes> {
        let response = SplitKeyRejectionResponse::response(&HttpProblemDetails, rejection, head);
        shaped(response, shape(head), rejection.code(), rejection)
    }
}

/// The gateway's own answer, with the rejection in the extensions.
pub(super) fn respond(rejection: GatewayRejection, shape: Option<ErrorShape>) -> Response<Bytes> {
    let mut response = shaped(rejection.row().problem(), shape, rejection.code(), &rejection);
    response.extensions_mut().insert(rejection);
    response
}

fn shape(head: &request::Parts) -> Option<ErrorShape> {
    head.extensions.get::<Target>().map(Target::error_shape)
}

/// Rewrites problem details, unless there is no shape.
fn shaped(
    mut response: Response<Bytes>,
    shape: Option<ErrorShape>,
    code: &str,
    title: &dyn Error,
) -> Response<Bytes> {
    if let Some(shape) = shape {
        let error = shape.error(response.status(), code, &title.to_string());
        *response.body_mut() = error.to_string().into();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}
