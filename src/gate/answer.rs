//! The answers of the services that are mounted as endpoints.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode, request};

use crate::gate::body::ResponseBody;
use crate::gate::rejection::{ProblemDetails, Rejection, RejectionResponse};

pub(crate) type Answer = Response<ResponseBody<String>>;

pub(crate) fn json(status: StatusCode, body: String) -> Answer {
    let mut response = Response::new(ResponseBody::inner(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) fn wrong_method(allowed: &'static str) -> Answer {
    let mut response = Response::new(ResponseBody::default());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

pub(crate) fn rejection(rejection: Rejection, head: &request::Parts) -> Answer {
    let mut response = ProblemDetails.response(&rejection, head).map(ResponseBody::rejection);
    response.extensions_mut().insert(rejection);
    response
}
