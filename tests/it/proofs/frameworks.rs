//! A proof that needs bodies, in the servers that the layer is used with.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body, routing::post};
use bytes::Bytes;
use futures::stream;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::HttpService};
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tonic::{
    Code, Status,
    transport::{Server, server::TcpIncoming},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{DeviceCheckLayer, GateBody, ReadBodies, VerifiedDevice};

use super::{BodyApp, Pieces, data, digest, hex, trailers};
use crate::captured::Fails as _;
use crate::{
    examples::tonic_example::{
        self,
        greeter::{GreetReply, GreetRequest, greeter_client::GreeterClient},
    },
    support::Apple,
};

const LIMIT: usize = 100;

fn layer(apple: &Apple) -> DeviceCheckLayer<ReadBodies> {
    let bounds = ReadBodies::new().with_limit(LIMIT).with_deadline(Duration::from_secs(7));
    apple.layer().with_bodies(bounds).add_proof_before(digest(usize::MAX)).unwrap()
}

#[tokio::test]
async fn under_axum_handlers_read_the_body_that_was_checked() {
    let apple = Apple::new();
    let echo = async |device: VerifiedDevice, body: Bytes| {
        assert_eq!(device.digest().to_string(), hex(&body));
        body
    };
    let streamed = async |_: VerifiedDevice, body: Body| Body::new(body);
    let routes = || Router::new().route("/echo", post(echo)).route("/streamed", post(streamed));
    for (name, app) in [
        ("Router::layer", routes().layer(layer(&apple))),
        ("Router::route_layer", routes().route_layer(layer(&apple))),
        (
            "MethodRouter::layer",
            Router::new()
                .route("/echo", post(echo).layer(layer(&apple)))
                .route("/streamed", post(streamed).layer(layer(&apple))),
        ),
    ] {
        let pieces = |length| Pieces::of([data("bo"), data("dy"), data(vec![b'!'; length]), trailers()]);
        let whole = "x".repeat(LIMIT + 1);
        for (path, digest, body, status, answer) in [
            ("/echo", hex(b"body"), Body::from("body"), 200, "body"),
            ("/echo", hex(b"body!!"), Body::new(pieces(2)), 200, "body!!"),
            ("/streamed", hex(b"body!!"), Body::new(pieces(2)), 200, "body!!"),
            ("/echo", hex(b""), Body::empty(), 200, ""),
            ("/echo", hex(b"other"), Body::from("body"), 401, "refused_token"),
            ("/echo", hex(whole.as_bytes()), Body::from(whole.clone()), 413, "too_large"),
            ("/echo", hex(b"any"), Body::new(pieces(LIMIT)), 413, "too_large"),
            ("/echo", hex(b"any"), Body::new(Pieces::of([data("a"), Err("gone")])), 408, "incomplete_body"),
        ] {
            let request = Request::post(path).header("x-digest", digest).body(body).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{name} {path} {answer}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let text = std::str::from_utf8(&body).unwrap();
            assert!(
                if status == 200 { text == answer } else { text.contains(answer) },
                "{name} {path}: {text}"
            );
        }
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn under_tonic_a_method_gets_the_message_that_was_checked() {
    let apple = Apple::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder()
        .layer(layer(&apple).with_exempt_preflights(false))
        .add_service(tonic_example::service())
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    let client = GreeterClient::connect(url).await.unwrap();
    let greet = async |name: &str, digest: Option<String>| -> Result<GreetReply, Status> {
        let mut request = tonic::Request::new(GreetRequest { name: name.to_owned() });
        if let Some(digest) = digest {
            request.metadata_mut().insert("x-digest", digest.parse().unwrap());
        }
        client.clone().greet(request).await.map(tonic::Response::into_inner)
    };
    /// The message as it is framed: no compression, the length, and the field 1.
    fn framed(name: &str) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        [&[0, 0, 0, 0, length + 2, 10, length], name.as_bytes()].concat()
    }
    let reply = greet("Ann", Some(hex(&framed("Ann")))).await.unwrap();
    assert_eq!((&*reply.message, &*reply.evidence), ("Hello, Ann!", "body"));
    let long = "x".repeat(LIMIT);
    for (name, digest, code) in [
        ("Ann", None, Code::Unauthenticated),
        ("Ann", Some(hex(&framed("Bob"))), Code::Unauthenticated),
        (&*long, Some(hex(&framed(&long))), Code::ResourceExhausted),
    ] {
        assert_eq!(greet(name, digest).await.failure().code(), code, "{name}");
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_without_end_ends_with_a_status_of_grpc() {
    let app = BodyApp::new(ReadBodies::new());
    let mut request = super::post("any", Pieces::new(stream::pending()));
    request.headers_mut().insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
    let response = app.send(request).await;
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &"4".parse().unwrap())
    );
    assert_eq!((app.reader.calls(), app.apple.calls()), (0, 0));
}

/// Answers with the body and its trailer.
async fn echo(request: Request<GateBody<Incoming>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap();
    let trailer = body.trailers().and_then(|trailers| trailers.get("x-trailer")).cloned();
    let mut response = Response::new(Full::new(body.to_bytes()));
    if let Some(trailer) = trailer {
        response.headers_mut().insert("x-trailer", trailer);
    }
    Ok(response)
}

async fn serve<S>(service: S, stream: impl AsyncRead + AsyncWrite + Unpin + 'static)
where
    S: tower::Service<Request<Incoming>, Response: 'static, Error: 'static> + Clone + 'static,
    TowerToHyperService<S>: HttpService<
            Incoming,
            ResBody: http_body::Body<Data = Bytes, Error: std::fmt::Debug + Send + Sync + std::error::Error>,
            Error: std::error::Error + Send + Sync,
        >,
{
    let service = TowerToHyperService::new(service);
    // An error is that of a client who goes away.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// Sends the head and the body of a request, and reads all that the server says.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn under_hyper_over_a_socket() {
    let apple = Apple::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = layer(&apple).layer(service_fn(echo));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(service.clone(), stream));
        }
    });
    let digest = |body: &str| format!("X-Digest: {}\r\n", hex(body.as_bytes()));
    let (chunked, body) = ("Transfer-Encoding: chunked\r\n", "Content-Length: 4\r\n\r\nbody");
    let sixty = format!("3c\r\n{}\r\n", "x".repeat(60));
    let cases = [
        ("a length", digest("body") + body, "200 OK", "\r\n\r\nbody"),
        (
            "in chunks",
            digest("body") + chunked + "\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
            "200 OK",
            "\r\n\r\nbody",
        ),
        (
            "with a trailer",
            digest("body") + chunked + "Trailer: x-trailer\r\n\r\n4\r\nbody\r\n0\r\nx-trailer: kept\r\n\r\n",
            "200 OK",
            "x-trailer: kept",
        ),
        ("no body", digest("") + "\r\n", "200 OK", "content-length: 0"),
        (
            "a body that waits to be asked for",
            digest("body") + "Expect: 100-continue\r\n" + body,
            "100 Continue",
            "\r\n\r\nbody",
        ),
        ("another body", digest("other") + body, "401 Unauthorized", "refused_token"),
        ("no digest", body.to_owned(), "401 Unauthorized", "missing_token"),
        (
            "twice, in two cases",
            digest("body") + "x-dIGEST: none\r\n" + body,
            "401 Unauthorized",
            "more than once",
        ),
        // The server answers the following ones before the body is there.
        (
            "announced as too large",
            digest("") + "Content-Length: 101\r\n\r\n",
            "413 Payload Too Large",
            "too_large",
        ),
        (
            "announced as too large, and waits to be asked for",
            digest("") + "Expect: 100-continue\r\nContent-Length: 101\r\n\r\n",
            "413 Payload Too Large",
            "too_large",
        ),
        (
            "too large in chunks",
            digest("") + chunked + "\r\n" + &sixty + &sixty,
            "413 Payload Too Large",
            "too_large",
        ),
    ];
    for (name, request, status, part) in cases {
        let head = format!("POST / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{request}");
        let answer = exchange(TcpStream::connect(address).await.unwrap(), &head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
        assert!(answer.contains(part), "{name}: {answer}");
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn under_hyper_a_connection_lives_on_after_a_body_was_read() {
    let apple = Apple::new();
    let service = layer(&apple).layer(service_fn(echo));
    let (client, server) = tokio::io::duplex(4096);
    let post =
        |digest: &str, rest: &str| format!("POST / HTTP/1.1\r\nHost: here\r\nX-Digest: {digest}\r\n{rest}");
    let chunked = "Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\nx-trailer: kept\r\n\r\n";
    let length = "Content-Length: 3\r\n\r\none";
    let requests = [
        post(&hex(b"one"), &format!("Trailer: x-trailer\r\n{chunked}")),
        post(&hex(b"two"), length),
        post(&hex(b"one"), &format!("Connection: close\r\n{length}")),
    ]
    .concat();
    let (answers, ()) = futures::join!(exchange(client, &requests), serve(service, server));
    let statuses: Vec<_> =
        answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "401", "200"], "{answers}");
    assert_eq!(apple.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn under_hyper_a_client_that_falls_silent_is_told_so_by_the_deadline() {
    let apple = Apple::new();
    let service = layer(&apple).layer(service_fn(echo));
    let (client, server) = tokio::io::duplex(4096);
    let connection = serve(service, server);
    let started = Instant::now();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: here\r\nConnection: close\r\nX-Digest: {}\r\nContent-Length: 4\r\n\r\nbo",
        hex(b"body")
    );
    let (answer, ()) = futures::join!(exchange(client, &request), connection);
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout"), "{answer}");
    assert_eq!((started.elapsed(), apple.calls()), (Duration::from_secs(7), 0));
}
