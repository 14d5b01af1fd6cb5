//! A protected server with hyper and no framework: `cargo run --example hyper --features testing`.
//!
//! The calls of hyper are in `shared/serve.rs`, which is the server of the other examples, too.
//!
//! `GET /` answers the verified device as JSON, `GET /health` answers anybody. It takes the variables of the
//! axum example but for `ROUTING` and `ENFORCEMENT`.

mod shared;

use std::{convert::Infallible, process::ExitCode};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request};
use http_body_util::Full;
use serde_json::json;
use shared::{Apple, Server};
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    AppleClient, BoxError, DeviceCheckLayer, Environment, ResponseBody, Route, VerifiedDevice,
};

fn main() -> ExitCode {
    shared::run(serve())
}

async fn serve() -> Result<(), BoxError> {
    let apple = Apple::from_env().await?;
    apple.check(Environment::Production).await?;
    let server = Server::from_env().await?;
    let address = server.address()?;
    shared::announce(address, &apple.curl_hints(address, Environment::Production));
    server.run(app(apple.client.clone())).await;
    Ok(())
}

/// The whole server but for its sockets: [`answer`] behind the layer.
pub(crate) fn app<B: Send + 'static>(
    apple: AppleClient,
) -> impl Service<
    Request<B>,
    Response = Response<ResponseBody<Full<Bytes>>>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ Send
+ 'static {
    DeviceCheckLayer::new(apple)
        .with_routing(|head: &request::Parts| match head.uri.path() {
            "/health" => Route::Exempt,
            _ => Route::Production,
        })
        .layer(service_fn(|request: Request<B>| {
            let response = answer(&request.into_parts().0);
            async { Ok(response) }
        }))
}

fn answer(head: &request::Parts) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let device = head.extensions.get::<VerifiedDevice>();
    match (&head.method, head.uri.path(), device) {
        (&Method::GET, "/health", _) => *response.body_mut() = Full::from("ok"),
        (&Method::GET, "/", Some(device)) => {
            let json = json!({
                "environment": device.environment().as_str(),
                "evidence": device.evidence().to_string(),
                "digest": device.digest().to_string(),
            });
            *response.body_mut() = Full::from(json.to_string());
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        (_, "/" | "/health", _) => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}
