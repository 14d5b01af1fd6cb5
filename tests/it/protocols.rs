//! CORS, gRPC, and the frameworks that the layer is used with.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE,
    },
};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tonic::{
    Code,
    transport::{Server, server::TcpIncoming},
};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, Environment, Route, VerifiedDevice,
    testing::{FakeApple, Reply},
};
use tower_http::{
    cors::{Any, CorsLayer},
    trace::TraceLayer,
};

use crate::{
    examples::{serve, tonic_example},
    support::{App, Apple, StandingClock, TOKEN_HEADER, get as get_with},
};

/// A gRPC server on a socket, with a fake Apple in the process.
struct Grpc {
    fake: FakeApple,
    url: String,
}

/// Longer than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

impl Grpc {
    async fn new() -> Self {
        let fake = FakeApple::new();
        let client = AppleClient::builder(fake.credentials())
            .transport(fake.transport())
            .attempt_timeout(PATIENCE)
            .total_timeout(PATIENCE)
            .build()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        serve(listener, tonic_example::app(client));
        Self { fake, url }
    }

    async fn call(&self, token: Option<&str>) -> Code {
        let reply = tonic_example::greet(self.url.clone(), token).await.unwrap();
        reply.map_or_else(|status| status.code(), |_| Code::Ok)
    }
}

#[tokio::test]
async fn r22_a_tonic_client_sees_a_status_of_grpc() {
    let grpc = Grpc::new().await;
    let genuine = || Some(grpc.fake.genuine_token(Environment::Production));
    let unverifiable = || Reply::status(401).body("Unable to verify authorization token");
    let cases: Vec<(&str, Reply, Option<String>, Code, usize)> = vec![
        ("no token", Reply::normal(), None, Code::Unauthenticated, 0),
        ("garbage", Reply::normal(), Some("%".to_owned()), Code::Unauthenticated, 0),
        ("a forged token", Reply::normal(), Some(grpc.fake.forged_token()), Code::Unauthenticated, 1),
        ("a genuine token", Reply::normal(), genuine(), Code::Ok, 1),
        ("500", Reply::status(500), genuine(), Code::Unavailable, 1),
        ("429", Reply::status(429), genuine(), Code::Unavailable, 1),
        ("a broken connection", Reply::reset(), genuine(), Code::Unavailable, 1),
        ("our key is revoked", unverifiable(), genuine(), Code::Internal, 2),
        ("we are forbidden", Reply::status(403), genuine(), Code::Internal, 1),
    ];
    for (name, reply, token, code, calls) in cases {
        grpc.fake.always(reply);
        grpc.fake.reset_counts();
        assert_eq!(grpc.call(token.as_deref()).await, code, "{name}");
        assert_eq!(grpc.fake.calls(), calls, "{name}");
    }
    grpc.fake.clear();
    assert_eq!(grpc.call(genuine().as_deref()).await, Code::Ok, "Apple is back");
}

#[tokio::test(start_paused = true)]
async fn r22_a_tonic_client_is_not_left_waiting_for_apple() {
    let clock = StandingClock::new();
    let grpc = Grpc::new().await;
    grpc.fake.always(Reply::hang());
    let token = grpc.fake.genuine_token(Environment::Production);
    let wait = async {
        while grpc.fake.calls() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(PATIENCE).await;
        std::future::pending().await
    };
    let code = tokio::select! {
        code = grpc.call(Some(&token)) => code,
        () = wait => unreachable!("it has no end"),
    };
    assert_eq!(code, Code::Unavailable);
    assert_eq!(grpc.fake.calls(), 1);
}

#[tokio::test]
async fn r22_the_content_type_is_echoed_and_the_status_is_in_the_headers() {
    let grpc = Grpc::new().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for content_type in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
    ] {
        let response = client
            .post(format!("{}/greeter.Greeter/Greet", grpc.url))
            .header(CONTENT_TYPE, content_type)
            .body(vec![0; 5])
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{content_type}");
        let headers = response.headers();
        assert_eq!(headers[CONTENT_TYPE], content_type);
        assert_eq!(headers["grpc-status"], "16", "{content_type}");
        assert_eq!(headers["grpc-message"], "No device token", "{content_type}");
        assert!(!headers.contains_key(WWW_AUTHENTICATE), "{content_type}");
        assert!(response.bytes().await.unwrap().is_empty(), "{content_type}");
    }
    assert_eq!(grpc.fake.calls(), 0);
}

#[tokio::test]
async fn r23_only_a_true_preflight_passes() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let cases: &[(&str, Method, &[&str], u16)] = &[
        ("a true one", Method::OPTIONS, &["origin", "access-control-request-method"], 200),
        ("plain OPTIONS", Method::OPTIONS, &[], 401),
        ("OPTIONS with an origin", Method::OPTIONS, &["origin"], 401),
        ("OPTIONS with a method", Method::OPTIONS, &["access-control-request-method"], 401),
        ("not OPTIONS", Method::GET, &["origin", "access-control-request-method"], 401),
    ];
    for (name, method, headers, status) in cases {
        let mut request = Request::builder().method(method);
        for header in *headers {
            request = request.header(*header, "x");
        }
        let response = app.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status().as_u16(), *status, "{name}");
    }
    assert_eq!((apple.calls(), app.inner.calls()), (0, 1));
}

#[tokio::test]
async fn r23_a_forged_preflight_does_not_reach_a_tonic_method() {
    let grpc = Grpc::new().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for content_type in [None, Some("application/grpc")] {
        let mut request = client
            .request(Method::OPTIONS, format!("{}/greeter.Greeter/Greet", grpc.url))
            .header("origin", "https://example.com")
            .header("access-control-request-method", "POST")
            // A stream announces no length.
            .body(reqwest::Body::wrap(StreamBody::new(futures::stream::iter([Ok::<_, Infallible>(
                Frame::data(Bytes::from_static(&[0; 5])),
            )]))));
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let response = request.send().await.unwrap();
        let admitted = response.status() == StatusCode::OK
            && response.headers().get("grpc-status").is_none_or(|status| status == "0");
        assert!(!admitted, "{content_type:?}: {response:?}");
    }
    assert_eq!(grpc.fake.calls(), 0);
}

#[tokio::test]
async fn r23_with_a_cors_layer_outside_a_401_carries_cors_headers() {
    let apple = Apple::new();
    // The CORS layer answers preflights itself, with a body that it makes: hence `Default`.
    let service = ServiceBuilder::new()
        .layer(CorsLayer::new().allow_origin(Any).allow_methods(Any).allow_headers(Any))
        .layer(apple.layer())
        .service(service_fn(async |_: Request<Full<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
    let from_elsewhere = |mut request: Request<Full<Bytes>>| {
        request.headers_mut().insert(ORIGIN, "https://app.example".parse().unwrap());
        request
    };
    let mut preflight = Request::new(Full::default());
    *preflight.method_mut() = Method::OPTIONS;
    preflight.headers_mut().insert(ACCESS_CONTROL_REQUEST_METHOD, "GET".parse().unwrap());
    for (name, request, status) in [
        ("preflight", preflight, 200),
        ("no token", Request::new(Full::default()), 401),
        ("forged", get_with(&apple.fake.forged_token()), 401),
        ("genuine", get_with(&apple.genuine()), 200),
    ] {
        let response = service.clone().oneshot(from_elsewhere(request)).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}");
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*", "{name}");
    }
    assert_eq!(apple.calls(), 2);
}

async fn admitted(device: VerifiedDevice) -> String {
    device.evidence().to_string()
}

#[tokio::test]
async fn r24_with_route_layer_an_unknown_path_stays_404() {
    let apple = Apple::new();
    let routes = || Router::new().route("/known", get(admitted));
    let token = apple.genuine();
    let cases: &[(&str, Router, &str, bool, u16, usize)] = &[
        ("route_layer", routes().route_layer(apple.layer()), "/unknown", false, 404, 0),
        ("route_layer", routes().route_layer(apple.layer()), "/unknown", true, 404, 0),
        ("route_layer", routes().route_layer(apple.layer()), "/known", false, 401, 0),
        ("route_layer", routes().route_layer(apple.layer()), "/known", true, 200, 1),
        ("layer", routes().layer(apple.layer()), "/unknown", false, 401, 1),
        ("layer", routes().layer(apple.layer()), "/unknown", true, 404, 2),
    ];
    for (name, app, path, with_token, status, calls) in cases {
        let mut request = Request::builder().uri(*path);
        if *with_token {
            request = request.header(TOKEN_HEADER, &token);
        }
        let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), *status, "{name} {path} {with_token}");
        assert_eq!(apple.calls(), *calls, "{name} {path} {with_token}");
    }
}

/// The layer has no type parameters: it can be named where a user keeps it.
struct Gate(DeviceCheckLayer);

#[tokio::test]
async fn axum_extractors() {
    let apple = Apple::new();
    let maybe = async |device: Option<VerifiedDevice>| device.map_or("none", |_| "some");
    let routes = Router::new().route("/device", get(admitted)).route("/maybe", get(maybe));
    let exempt = |_: &http::request::Parts| Route::Exempt;
    let token = apple.genuine();
    let cases = [
        ("no layer", routes.clone(), "/device", StatusCode::INTERNAL_SERVER_ERROR, None),
        ("no layer", routes.clone(), "/maybe", StatusCode::OK, Some("none")),
        (
            "exempt",
            routes.clone().layer(apple.layer().with_routing(exempt)),
            "/maybe",
            StatusCode::OK,
            Some("none"),
        ),
        ("verified", routes.clone().layer(apple.layer()), "/device", StatusCode::OK, None),
        ("verified", routes.layer(apple.layer()), "/maybe", StatusCode::OK, Some("some")),
    ];
    for (name, app, path, status, body) in cases {
        let request = Request::builder().uri(path).header(TOKEN_HEADER, &token).body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{name} {path}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.is_none_or(|body| bytes == body), "{name} {path}: {bytes:?}");
    }
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn r25_under_axum() {
    let apple = Apple::new();
    let Gate(gate) = Gate(apple.layer());
    let app = Router::new()
        .route("/", get(admitted))
        .route("/if-any", get(async |device: Option<VerifiedDevice>| device.is_some().to_string()))
        .layer(gate)
        .layer(CorsLayer::permissive())
        .layer(TraceLayer::new_for_http());
    for (path, body) in [("/", "apple"), ("/if-any", "true")] {
        let request = Request::get(path).header(TOKEN_HEADER, apple.genuine()).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn r25_under_tonic() {
    let apple = Apple::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder()
        .layer(TraceLayer::new_for_grpc())
        .layer(apple.layer())
        .add_service(tonic_example::service())
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    let reply = tonic_example::greet(url, Some(&apple.genuine())).await.unwrap().unwrap();
    assert_eq!(reply.evidence, "apple");
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn r25_under_hyper() {
    let apple = Apple::new();
    let service = apple.layer().layer(service_fn(async |request: Request<Incoming>| {
        let device = request.extensions().get::<VerifiedDevice>().unwrap();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(device.evidence().to_string())))
    }));
    let (client, server) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(server), TowerToHyperService::new(service))
            .await
    });
    let (mut client, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    for (token, status, body) in [(None, 401, None), (Some(apple.genuine()), 200, Some("apple"))] {
        let mut request = Request::get("/").header("host", "here");
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, token);
        }
        let response = client.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let received = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.is_none_or(|body| received == body));
    }
    assert_eq!(apple.calls(), 1);
}
