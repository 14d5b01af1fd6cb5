//! A protected gRPC server with tonic: `cargo run --example tonic --features testing`.
//!
//! The service is `examples/tonic/greeter.proto`. With a URL and a device token, the same program is a client:
//! `cargo run --example tonic --features testing -- http://127.0.0.1:3000 TOKEN`.
//!
//! It takes the variables of the axum example but for `ROUTING` and `ENFORCEMENT`.

mod shared;

/// Made from `tonic/greeter.proto` and checked in, so that nobody needs a compiler for it.
#[allow(
    unreachable_pub,
    clippy::pedantic,
    clippy::exhaustive_structs,
    clippy::must_use_candidate,
    clippy::needless_pass_by_value,
    clippy::return_self_not_must_use,
    clippy::use_self,
    missing_docs,
    reason = "generated"
)]
pub(crate) mod greeter {
    include!("tonic/greeter.rs");
}

use std::{env, net::SocketAddr, process::ExitCode};

use greeter::{
    GreetReply, GreetRequest,
    greeter_client::GreeterClient,
    greeter_server::{Greeter, GreeterServer},
};
use shared::{Apple, Server};
use tonic::{Request, Response, Status, service::Routes};
use tower::Layer;
use tower_devicecheck::{AppleClient, BoxError, DeviceCheck, DeviceCheckLayer, Environment, VerifiedDevice};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &*arguments {
        [] => shared::run(serve()),
        [url, token] => shared::run(call(url, token)),
        _ => shared::run(async { Err("usage: tonic [URL TOKEN]".into()) }),
    }
}

async fn serve() -> Result<(), BoxError> {
    let apple = Apple::from_env().await?;
    apple.check(Environment::Production).await?;
    let server = Server::from_env().await?;
    let address = server.address()?;
    let hints = apple.orders().map(|orders| hints(orders, address)).unwrap_or_default();
    shared::announce(address, &hints);
    // tonic's own server would wait for slow clients for ever. On the other hand, it keeps the deadline that a client
    // announces in `grpc-timeout`, and this one does not.
    server.run(app(apple.client.clone())).await;
    Ok(())
}

/// The whole server but for its socket.
pub(crate) fn app(apple: AppleClient) -> DeviceCheck<Routes> {
    // tonic does not look at a request's method: to it a CORS preflight is a call like any other.
    let gate = DeviceCheckLayer::new(apple).with_exempt_preflights(false);
    gate.layer(Routes::new(service()))
}

/// The service alone, which expects the layer around it.
pub(crate) fn service() -> GreeterServer<impl Greeter> {
    GreeterServer::new(Greetings)
}

struct Greetings;

#[tonic::async_trait]
impl Greeter for Greetings {
    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetReply>, Status> {
        // Missing only if somebody takes the layer away.
        let device = request
            .extensions()
            .get::<VerifiedDevice>()
            .cloned()
            .ok_or_else(|| Status::internal("the server did not check the device"))?;
        let name = request.into_inner().name;
        let name = if name.is_empty() { "stranger" } else { &name };
        Ok(Response::new(GreetReply {
            message: format!("Hello, {name}!"),
            environment: device.environment().to_string(),
            evidence: device.evidence().to_string(),
            digest: device.digest().to_string(),
        }))
    }
}

async fn call(url: &str, token: &str) -> Result<(), BoxError> {
    let reply = greet(url.to_owned(), Some(token)).await??;
    shared::print(&format!(
        "{} (environment {}, evidence {})",
        reply.message, reply.environment, reply.evidence
    ));
    Ok(())
}

/// The client: one call, with the device token in the metadata.
///
/// # Errors
///
/// The outer one if there is no connection, the inner one if the server refuses.
pub(crate) async fn greet(url: String, token: Option<&str>) -> Result<Result<GreetReply, Status>, BoxError> {
    let mut client = GreeterClient::connect(url).await?;
    let mut request = Request::new(GreetRequest::default());
    if let Some(token) = token {
        let mut token: tonic::metadata::MetadataValue<_> = token.parse()?;
        token.set_sensitive(true);
        request.metadata_mut().insert("x-apple-device-token", token);
    }
    Ok(client.greet(request).await.map(Response::into_inner))
}

/// How to try the server. curl speaks no gRPC, but it can send the five bytes that frame an empty message and
/// show the status, which is in the headers or, after a reply, in the trailers.
pub(crate) fn hints(orders: &str, address: SocketAddr) -> String {
    let url = shared::local_url(address);
    let authority = url.trim_start_matches("http://");
    let call = |token: &str| {
        format!(
            "printf '\\0\\0\\0\\0\\0' | curl -s --http2-prior-knowledge -H 'Content-Type: application/grpc' \
             -H \"X-Apple-Device-Token: $(curl -s {orders}/fake/{token})\" --data-binary @- -D - -o /dev/null \
             {url}/greeter.Greeter/Greet"
        )
    };
    format!(
        "{}\n\n# with a new genuine token, grpc-status 0 (OK):\n{}\n\n\
         # with a forged one, grpc-status 16 (UNAUTHENTICATED):\n{}\n\n\
         # by a client of its own:\n\
         cargo run --example tonic --features testing -- {url} \"$(curl -s {orders}/fake/token)\"\n\
         grpcurl -plaintext -import-path examples/tonic -proto greeter.proto \
         -H \"X-Apple-Device-Token: $(curl -s {orders}/fake/token)\" {authority} greeter.Greeter/Greet\n",
        shared::apple::NO_CREDENTIALS,
        call("token"),
        call("forged"),
    )
}
