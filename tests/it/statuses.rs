//! The form of an answer: gRPC, gRPC-Web, Connect, and what a browser or a proxy in front makes of it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use http::{
    HeaderName, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request,
};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::{
    MalformedToken, ProblemDetails, Rejection, RejectionResponse, VerifyError,
    split_key::{Limit, MemorySplitKeyStore, SplitKeyLayer, SplitKeyRejection, SplitKeyRejectionResponse},
    testing::Reply,
};

use crate::{
    examples::tonic_example,
    support::{App, Apple, TOKEN_HEADER},
};

fn head(method: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().method(method);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// The answers of both tables to a request with this head.
fn of_both_tables(head: &request::Parts) -> [Response<Bytes>; 2] {
    [
        RejectionResponse::response(&ProblemDetails, &Rejection::MissingToken, head),
        SplitKeyRejectionResponse::response(&ProblemDetails, &SplitKeyRejection::MissingKey, head),
    ]
}

#[test]
fn g01_an_answer_of_grpc_is_for_calls_of_grpc_only() {
    let grpc = |method, types: &[&str]| {
        let types: Vec<_> = types.iter().map(|value| ("content-type", *value)).collect();
        of_both_tables(&head(method, &types)).map(|response| {
            let is_grpc = response.headers().contains_key("grpc-status");
            assert_eq!(response.status().as_u16(), if is_grpc { 200 } else { 401 });
            is_grpc
        })
    };
    for real in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
        "application/grpc ; x=y",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpc-web-text+proto",
        "APPLICATION/gRPC",
    ] {
        assert_eq!(grpc("POST", &[real]), [true; 2], "{real}");
        for method in ["GET", "HEAD", "PUT", "OPTIONS", "post"] {
            assert_eq!(grpc(method, &[real]), [false; 2], "{method} {real}");
        }
        assert_eq!(grpc("POST", &[real, real]), [false; 2], "{real}, twice");
        assert_eq!(grpc("POST", &[real, "text/html"]), [false; 2], "{real}, and another");
    }
    for other in [
        "application/grpcfoo",
        "application/grpc-",
        "application/grpc-webby",
        "application/grpc-web-texts",
        "application/grpc-status",
        "application/grpc, text/html",
        "application/grp",
        "text/html;application/grpc",
        "",
    ] {
        assert_eq!(grpc("POST", &[other]), [false; 2], "{other:?}");
    }
}

/// Serves HTTP/1.1 and HTTP/2, and answers with what the body was.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
    url
}

/// A preflight with a body that its head does not announce.
fn smuggled(client: &reqwest::Client, url: &str) -> reqwest::RequestBuilder {
    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 5])));
    client
        .request(Method::OPTIONS, url)
        .header("origin", "https://example.com")
        .header("access-control-request-method", "POST")
        .body(reqwest::Body::wrap(StreamBody::new(futures::stream::iter([frame]))))
}

#[tokio::test]
async fn g04_no_body_comes_past_the_gate_with_a_preflight() {
    let apple = Apple::new();
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&bodies);
    let handler = any(move |request: axum::extract::Request| async move {
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        seen.lock().unwrap().extend_from_slice(&body.unwrap_or_default());
    });
    let keys = SplitKeyLayer::new(MemorySplitKeyStore::new());
    let url = serve(Router::new().route("/", handler).layer(keys).layer(apple.layer())).await;
    for builder in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
        let client = builder.no_proxy().build().unwrap();
        let response = smuggled(&client, &url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(*bodies.lock().unwrap(), [0; 0]);

    // tonic does not look at the method.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/greeter.Greeter/Greet", listener.local_addr().unwrap());
    let server = Server::builder().layer(apple.layer()).add_service(tonic_example::service());
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let response = smuggled(&client, &url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(apple.calls(), 0);
}

const PREFLIGHT: [(&str, &str); 2] =
    [("origin", "https://example.com"), ("access-control-request-method", "POST")];

#[tokio::test]
async fn g04_headers_that_no_browser_sends_with_a_preflight_make_it_none() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let status = async |more: &[(&str, &str)]| {
        let head = head("OPTIONS", &[&PREFLIGHT, more].concat());
        app.send(Request::from_parts(head, Full::default())).await.status()
    };
    let usual = [
        ("user-agent", "Safari"),
        ("accept", "*/*"),
        ("sec-fetch-mode", "cors"),
        ("connection", "keep-alive"),
    ];
    assert_eq!(status(&usual).await, StatusCode::OK);
    assert_eq!(status(&[("content-length", "0")]).await, StatusCode::OK);
    for (name, value) in [
        ("authorization", "Basic eDp5"),
        ("proxy-authorization", "Basic eDp5"),
        ("cookie", "a=b"),
        ("content-type", "text/plain"),
        ("content-length", "1"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-1/2"),
        ("transfer-encoding", "chunked"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("expect", "100-continue"),
        ("upgrade", "h2c"),
        ("x-http-method-override", "POST"),
        ("x-http-method", "POST"),
        ("x-method-override", "POST"),
        ("grpc-timeout", "1S"),
        (TOKEN_HEADER, "%"),
    ] {
        assert_eq!(status(&[(name, value)]).await, StatusCode::UNAUTHORIZED, "{name}");
    }
    let mut http2 = head("OPTIONS", &PREFLIGHT);
    http2.version = http::Version::HTTP_2;
    let response = app.send(Request::from_parts(http2, Full::default())).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "a body may follow");
    assert_eq!((apple.calls(), app.inner.calls()), (0, 2));
}

#[tokio::test]
async fn g04_one_switch_governs_the_gate_and_the_split_keys() {
    let apple = Apple::new();
    let keys = || SplitKeyLayer::new(MemorySplitKeyStore::new());
    let inner = || {
        service_fn(async |_: Request<Full<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        })
    };
    let preflight = || Request::from_parts(head("OPTIONS", &PREFLIGHT), Full::default());
    for (gate, status) in [(apple.layer(), 200), (apple.layer().with_exempt_preflights(false), 401)] {
        let service = ServiceBuilder::new().layer(gate).layer(keys()).service(inner());
        assert_eq!(service.oneshot(preflight()).await.unwrap().status().as_u16(), status);
    }
    // Nobody has looked at these.
    for (keys, status) in [(keys(), 500), (keys().with_dangerous_unverified_devices(true), 401)] {
        let service = keys.layer(inner());
        assert_eq!(service.oneshot(preflight()).await.unwrap().status().as_u16(), status);
    }
    assert_eq!(apple.calls(), 0);
}

#[test]
fn g07_connect_clients_get_errors_of_connect() {
    let unary =
        |content_type| head("POST", &[("connect-protocol-version", "1"), ("content-type", content_type)]);
    let error = |error: VerifyError| Rejection::from(&error);
    let get = |query: &str| {
        let uri = format!("/greeter.Greeter/Greet?{query}");
        Request::get(uri).body(()).unwrap().into_parts().0
    };
    let heads = [
        unary("application/proto"),
        unary("application/json"),
        unary("application/json; charset=utf-8"),
        get("connect=v1&encoding=json&message=%7B%7D"),
    ];
    for head in &heads {
        for (rejection, code, status) in [
            (Rejection::MissingToken, "unauthenticated", 401),
            (MalformedToken::Empty.into(), "unauthenticated", 401),
            (error(VerifyError::unavailable("x")), "unavailable", 503),
            (error(VerifyError::throttled(None, "x")), "unavailable", 503),
            (error(VerifyError::misconfigured("x")), "internal", 500),
            (Rejection::limit_exceeded(Duration::ZERO), "resource_exhausted", 429),
            (Rejection::TooLarge, "resource_exhausted", 429),
            (Rejection::IncompleteBody, "deadline_exceeded", 504),
        ] {
            let response = RejectionResponse::response(&ProblemDetails, &rejection, head);
            assert_eq!(response.status().as_u16(), status, "{rejection:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json", "{rejection:?}");
            let may_come_back = rejection.retry_after().is_some();
            assert_eq!(response.headers().contains_key(RETRY_AFTER), may_come_back, "{rejection:?}");
            let error: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(error["code"], code, "{rejection:?}");
            assert_eq!(error["message"], rejection.to_string(), "{rejection:?}");
        }
        let rejection = SplitKeyRejection::LimitNotMet(Limit::Path);
        let response = SplitKeyRejectionResponse::response(&ProblemDetails, &rejection, head);
        let error: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((response.status().as_u16(), &error["code"]), (403, &"permission_denied".into()));
    }
    for head in [
        head("POST", &[("content-type", "application/json")]),
        head("POST", &[("connect-protocol-version", "1"), ("content-type", "application/connect+json")]),
        head("PUT", &[("connect-protocol-version", "1"), ("content-type", "application/json")]),
        get("connect=v2"),
        get("a=connect=v1"),
    ] {
        for response in of_both_tables(&head) {
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json", "{head:?}");
        }
    }
}

#[tokio::test]
async fn g08_a_status_survives_a_layer_that_translates_grpc_web() {
    let apple = Apple::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/greeter.Greeter/Greet", listener.local_addr().unwrap());
    let server = Server::builder()
        .accept_http1(true)
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(apple.layer())
        .add_service(tonic_example::service());
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = async |content_type: &str, token: Option<String>| {
        let mut request = client.post(&url).header(CONTENT_TYPE, content_type);
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, token);
        }
        let body: &[u8] = if content_type.contains("text") { b"AAAAAAA=" } else { &[0; 5] };
        request.body(body).send().await.unwrap()
    };
    for content_type in ["application/grpc-web+proto", "application/grpc-web-text+proto"] {
        for (token, grpc, code) in
            [(None, "16", "missing_token"), (Some(apple.fake.forged_token()), "16", "refused_token")]
        {
            let response = call(content_type, token).await;
            assert_eq!(response.status(), StatusCode::OK, "{content_type}");
            assert_eq!(response.headers()["grpc-status"], grpc, "{content_type}");
            assert_eq!(response.headers()["x-devicecheck-code"], code, "{content_type}");
            assert!(response.headers().contains_key("grpc-message"), "{content_type}");
        }
        let response = call(content_type, Some(apple.genuine())).await;
        let body = response.bytes().await.unwrap();
        assert!(body.len() > 5, "{content_type}: the greeting");
    }
    assert_eq!(apple.calls(), 4);
}

#[test]
fn g10_every_answer_has_a_code_for_machines() {
    let code = HeaderName::from_static("x-devicecheck-code");
    let connect = [("connect-protocol-version", "1"), ("content-type", "application/json")];
    for head in [
        head("GET", &[]),
        head("POST", &[("content-type", "application/grpc")]),
        head("POST", &[("content-type", "application/grpc-web")]),
        head("POST", &connect),
    ] {
        for rejection in [
            Rejection::MissingToken,
            MalformedToken::Empty.into(),
            Rejection::RefusedToken,
            Rejection::ReusedToken,
            Rejection::limit_exceeded(Duration::ZERO),
        ] {
            let response = RejectionResponse::response(&ProblemDetails, &rejection, &head);
            assert_eq!(response.headers()[&code], rejection.code());
        }
        for rejection in [SplitKeyRejection::MissingKey, SplitKeyRejection::InvalidKey] {
            let response = SplitKeyRejectionResponse::response(&ProblemDetails, &rejection, &head);
            assert_eq!(response.headers()[&code], rejection.code());
        }
    }
}

#[tokio::test]
async fn g12_clients_do_not_come_back_together() {
    let seconds = async |reply: fn() -> Reply| {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        apple.fake.always(reply());
        let mut all = Vec::new();
        for _ in 0..40 {
            let response = app.get(&apple.genuine()).await;
            all.push(response.headers()[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap());
        }
        all.sort_unstable();
        all.dedup();
        (all[0], all[all.len() - 1], all.len())
    };
    let (soonest, latest, different) = seconds(|| Reply::status(500)).await;
    assert!(soonest >= 1 && latest <= 5 && different > 1, "{soonest} to {latest}");
    let (soonest, latest, different) = seconds(|| Reply::status(429).header("retry-after", "60")).await;
    assert!(soonest >= 60 && latest <= 300 && different > 1, "{soonest} to {latest}");
    let (soonest, latest, _) = seconds(|| Reply::status(429).header("retry-after", "31536000")).await;
    assert!(soonest >= 1 && latest <= 300, "{soonest} to {latest}");
}

#[tokio::test]
async fn g13_a_fallback_is_outside_of_a_route_layer() {
    let apple = Apple::new();
    let proxy = || async { "from behind" };
    let status = async |app: Router| {
        let request = Request::get("/anything").body(Body::empty()).unwrap();
        app.oneshot(request).await.unwrap().status().as_u16()
    };
    let known = || Router::new().route("/known", any(proxy));
    assert_eq!(status(known().fallback(proxy).route_layer(apple.layer())).await, 200, "wide open");
    assert_eq!(status(known().route_layer(apple.layer()).fallback(proxy)).await, 200, "wide open");
    assert_eq!(status(known().fallback(proxy).layer(apple.layer())).await, 401);
    let gated = Router::new().route("/{*path}", any(proxy)).route_layer(apple.layer());
    assert_eq!(status(gated).await, 401);
    let gated = any(proxy).layer(apple.layer());
    assert_eq!(status(known().route_layer(apple.layer()).fallback_service(gated)).await, 401);
    assert_eq!(apple.calls(), 0);
}
