//! A protected server with hyper and no framework: `cargo run --example hyper --features testing`.
//!
//! `GET /` answers the verified device as JSON, `GET /health` answers anybody. It takes the variables of the
//! axum example but for `ROUTING` and `ENFORCEMENT`.

mod shared;

use std::{convert::Infallible, pin::pin, process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request};
use http_body_util::Full;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde_json::json;
use shared::Apple;
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    AppleClient, BoxError, DeviceCheckLayer, Environment, ResponseBody, Route, VerifiedDevice,
};

#[tokio::main]
async fn main() -> ExitCode {
    shared::run(serve()).await
}

async fn serve() -> Result<(), BoxError> {
    let apple = Apple::from_env().await?;
    apple.check(Environment::Production).await?;
    let listener = shared::listen().await?;
    let address = listener.local_addr()?;
    shared::announce(address, &apple.curl_hints(address, Environment::Production));
    serve_on(listener, apple.client.clone(), shared::ctrl_c()).await;
    Ok(())
}

/// Serves until `stop` ends, and then until the requests under way are answered, for a few seconds at most.
pub(crate) async fn serve_on(
    listener: tokio::net::TcpListener,
    apple: AppleClient,
    stop: impl Future<Output = ()>,
) {
    let app = TowerToHyperService::new(app(apple));
    let server = auto::Builder::new(TokioExecutor::new());
    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Such as too many open files: gives the others time to close some.
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let connection = server.serve_connection(TokioIo::new(stream), app.clone()).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("connection: {error}");
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(Duration::from_secs(10), connections.shutdown()).await;
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
