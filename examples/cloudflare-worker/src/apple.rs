//! The client that asks Apple: the host's `fetch`.

use axum::{body::Bytes, http::Request};
use http_body_util::{BodyExt, Full};
use tower_devicecheck::{BoxError, TransportError};
use worker::{
    AbortController, Error, Fetch, Headers, HttpResponse, Method, RequestInit, RequestRedirect,
    js_sys::Uint8Array, send::SendFuture,
};

/// Sends a request, for [`HttpTransport`](tower_devicecheck::HttpTransport).
pub(crate) fn send(
    request: Request<Full<Bytes>>,
) -> SendFuture<impl Future<Output = Result<HttpResponse, BoxError>>> {
    // JavaScript's values are not `Send`, and the library's futures must be. A Worker has one thread.
    SendFuture::new(async {
        fetch(request).await.map_err(|error| TransportError::other(error.to_string()).into())
    })
}

async fn fetch(request: Request<Full<Bytes>>) -> Result<HttpResponse, Error> {
    let (head, body) = request.into_parts();
    let headers = Headers::new();
    for (name, value) in &head.headers {
        headers.set(name.as_str(), value.to_str().map_err(|error| Error::RustError(error.to_string()))?)?;
    }
    let Ok(body) = body.collect().await;
    let mut init = RequestInit::new();
    init.with_method(Method::from(head.method.to_string()))
        .with_headers(headers)
        .with_body(Some(Uint8Array::from(&*body.to_bytes()).into()))
        // The credentials must not follow a redirect to another host.
        .with_redirect(RequestRedirect::Manual);
    let request = worker::Request::new_with_init(&head.uri.to_string(), &init)?;
    let mut abort = AbortOnDrop(Some(AbortController::default()));
    let signal = abort.0.as_ref().map(AbortController::signal).unwrap_or_else(worker::AbortSignal::abort);
    let response = Fetch::Request(request).send_with_signal(&signal).await;
    abort.0 = None;
    response?.try_into()
}

/// Ends a request whose answer nobody waits for any more: a Worker may have few connections open.
struct AbortOnDrop(Option<AbortController>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(controller) = self.0.take() {
            controller.abort();
        }
    }
}
