//! The proxy: one request to the provider for each that was given its key.

use std::{error::Error, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower_devicecheck::{BoxError, split_key::ApiKey};
use tower_http::timeout::{TimeoutBody, TimeoutError};

use super::{
    Limits,
    body::{Upload, without_trailers},
    headers,
    problem::Problem,
    refusals::{Refusals, is_refusal},
    target::Target,
};

/// The longest error of a provider's that is read. A longer one is replaced.
const MAX_ERROR: usize = 64 * 1024;

/// Sends requests to providers.
#[derive(Clone)]
pub(crate) struct Proxy {
    https: reqwest::Client,
    /// Knows no proxy: `http` is for the loopback interface, and through `HTTP_PROXY` the key would leave it.
    http: reqwest::Client,
    limits: Limits,
    refusals: Arc<Refusals>,
}

impl Proxy {
    pub(crate) fn new(limits: Limits, refusals: Arc<Refusals>) -> Result<Self, BoxError> {
        let builder = || {
            reqwest::Client::builder()
                // The client shall see what the provider says, and the key goes nowhere else.
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(Duration::from_secs(10))
                // The buffers of a connection that is kept hold the last request, key included.
                .pool_max_idle_per_host(limits.idle_connections)
        };
        Ok(Self { https: builder().build()?, http: builder().no_proxy().build()?, limits, refusals })
    }

    async fn send(&self, request: Request) -> Result<Response, Problem> {
        let (mut head, body) = request.into_parts();
        // Only a CORS preflight comes here without a key.
        let key = head.extensions.remove::<ApiKey>().ok_or(Problem::METHOD)?;
        let target = head.extensions.remove::<Target>().ok_or(Problem::UNKNOWN_PROVIDER)?;
        if key.provider() != target.provider.name() {
            return Err(Problem::WRONG_PROVIDER);
        }
        let client = if target.url.scheme() == "http" { &self.http } else { &self.https };
        let mut outgoing = reqwest::Request::new(head.method, target.url);
        *outgoing.headers_mut() = headers::to_provider(&head.headers);
        target.provider.authorize(outgoing.headers_mut(), &key);
        let upload = Upload::new(body, self.limits.body, self.limits.idle);
        *outgoing.body_mut() = Some(reqwest::Body::wrap(upload));

        let answer = tokio::time::timeout(self.limits.head, client.execute(outgoing));
        let answer = answer.await.map_err(|_| Problem::SILENT_PROVIDER)?.map_err(|error| {
            let problem = what_failed(&error);
            let error = error.without_url();
            tracing::warn!(provider = target.provider.name(), ?problem, ?error, "not forwarded");
            problem
        })?;
        let (head, body) = axum::http::Response::<reqwest::Body>::from(answer).into_parts();
        // Nobody asked for another protocol, and the client would take the rest of the connection to be one.
        if head.status.is_informational() {
            return Err(Problem::UNREACHABLE);
        }
        let body = TimeoutBody::new(self.limits.idle, body).map_frame(without_trailers);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = head.status;
        *response.headers_mut() = headers::to_client(&head.headers, &key);
        if head.status.is_client_error() || head.status.is_server_error() {
            let encoded = head.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
            return Ok(self.error(response, read_error(body).await.filter(|_| !encoded), &key));
        }
        if head.status.is_success() {
            self.refusals.accepted(&key);
        }
        *response.body_mut() = Body::new(body);
        Ok(response)
    }

    /// Puts a body into the provider's error: its own, if that could be read and does not quote the key. A
    /// refusal of the key is not the app's business, which would make new device tokens.
    fn error(&self, mut response: Response, body: Option<Bytes>, key: &ApiKey) -> Response {
        let status = response.status();
        let problem = if is_refusal(status, body.as_deref().unwrap_or_default()) {
            self.refusals.refused(key, status);
            // The SDKs repeat what has this status.
            let no_retry = (HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
            response.headers_mut().insert(no_retry.0, no_retry.1);
            Problem::KEY_REFUSED
        } else {
            match body {
                Some(body) if !headers::quotes(&body, key) => {
                    *response.body_mut() = body.into();
                    return response;
                }
                _ => Problem::unreadable(status),
            }
        };
        let (head, body) = problem.into_response().into_parts();
        *response.status_mut() = head.status;
        *response.body_mut() = body;
        for name in [CONTENT_ENCODING, CONTENT_LENGTH] {
            response.headers_mut().remove(name);
        }
        response.headers_mut().extend(head.headers);
        response
    }
}

/// The body of an error, if all of it comes, and it is not too long.
async fn read_error(body: impl HttpBody<Data = Bytes, Error: Into<BoxError>>) -> Option<Bytes> {
    Some(Limited::new(body, MAX_ERROR).collect().await.ok()?.to_bytes())
}

/// The handler of all routes to providers.
pub(crate) async fn forward(State(proxy): State<Proxy>, request: Request) -> Response {
    proxy.send(request).await.unwrap_or_else(IntoResponse::into_response)
}

/// The side at fault if there is no response.
fn what_failed(error: &reqwest::Error) -> Problem {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return Problem::TOO_LARGE;
        }
        if error.is::<TimeoutError>() {
            return Problem::SILENT_CLIENT;
        }
        cause = error.source();
    }
    if error.is_timeout() { Problem::SILENT_PROVIDER } else { Problem::UNREACHABLE }
}
