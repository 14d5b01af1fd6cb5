//! The proxy: one request to the provider for each that was given its key.

use std::{error::Error, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http_body_util::LengthLimitError;
use tower_devicecheck::{BoxError, split_key::ApiKey};
use tower_http::timeout::{TimeoutBody, TimeoutError};

use super::{Limits, body::Upload, headers, problem::Problem, target::Target};

/// Sends requests to providers.
#[derive(Clone)]
pub(crate) struct Proxy {
    https: reqwest::Client,
    /// Knows no proxy: `http` is for the loopback interface, and through `HTTP_PROXY` the key would leave it.
    http: reqwest::Client,
    limits: Limits,
}

impl Proxy {
    pub(crate) fn new(limits: Limits) -> Result<Self, BoxError> {
        let builder = || {
            reqwest::Client::builder()
                // The client shall see what the provider says, and the key goes nowhere else.
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(Duration::from_secs(10))
                // The buffers of a connection that is kept hold the last request, key included.
                .pool_max_idle_per_host(limits.idle_connections)
        };
        Ok(Self { https: builder().build()?, http: builder().no_proxy().build()?, limits })
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
        drop(key);
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
        let body = TimeoutBody::new(self.limits.idle, body);
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = headers::to_client(&head.headers);
        Ok(response)
    }
}

/// The handler of all routes to providers.
pub(crate) async fn forward(State(proxy): State<Proxy>, request: Request) -> Response {
    proxy.send(request).await.unwrap_or_else(IntoResponse::into_response)
}

/// Whose fault it is that there is no response.
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
