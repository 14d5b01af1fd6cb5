use std::error::Error;

use super::*;
use crate::testing::{
    script::Reply,
    tests::{body, provider_token},
};

/// Status and length of an answer.
type Seen = (u16, usize);

fn client(http2: bool) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy();
    let builder = if http2 { builder.http2_prior_knowledge() } else { builder };
    builder.build().unwrap()
}

/// A client's view of a call to a server.
async fn over_socket(
    client: &reqwest::Client,
    apple: &FakeApple,
    base: &str,
    token: &str,
) -> Result<Seen, reqwest::Error> {
    let response = client
        .post(format!("{base}/v1/validate_device_token"))
        .bearer_auth(provider_token(apple))
        .body(body(token).to_string())
        .send()
        .await?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await?.len()))
}

fn is_reset(error: &reqwest::Error) -> bool {
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
            return true;
        }
        next = error.source();
    }
    false
}

#[tokio::test]
async fn served_over_both_protocols() {
    for http2 in [false, true] {
        let apple = FakeApple::new();
        let server = apple.serve().await.unwrap();
        let (production, development) =
            (server.url(Environment::Production), server.url(Environment::Development));
        let token = apple.genuine_token(Environment::Development);
        let client = client(http2);
        let call = |base| over_socket(&client, &apple, base, &token);

        assert_eq!(call(&development).await.unwrap(), (200, 0), "HTTP/2: {http2}");
        assert_eq!(call(&production).await.unwrap(), (400, 53), "HTTP/2: {http2}");
        assert_eq!(call(&production).await.unwrap(), (400, 53), "HTTP/2: {http2}");
        assert_eq!(server.connections(), 2, "HTTP/2: {http2}");

        let cases: &[(&str, Reply, Option<Seen>)] = &[
            ("empty", Reply::status(503), Some((503, 0))),
            ("no content", Reply::status(204), Some((204, 0))),
            ("text", Reply::status(429).header("retry-after", "3").body("slow"), Some((429, 4))),
            ("big", Reply::oversized(3_000_000), Some((200, 3_000_000))),
            ("cut", Reply::status(400).body("Missing or inc").cut_short(), None),
            ("cut, nothing sent", Reply::normal().cut_short(), None),
            ("reset", Reply::reset(), None),
            ("reset, late", Reply::reset().delay(Duration::from_millis(1)), None),
            ("a header that lies", Reply::normal().body("x").header("content-length", "5"), None),
            (
                "a header that is right",
                Reply::normal().body("x").header("content-length", "1"),
                Some((200, 1)),
            ),
            ("well again", Reply::normal(), Some((200, 0))),
        ];
        for (name, reply, expected) in cases {
            apple.reset_counts();
            apple.script(reply.clone());
            let seen = call(&development).await;
            if name.starts_with("reset") {
                assert!(is_reset(seen.as_ref().unwrap_err()), "{name}, HTTP/2: {http2}, {seen:?}");
            }
            assert_eq!(seen.ok(), *expected, "{name}, HTTP/2: {http2}");
            assert_eq!(apple.calls(), 1, "{name}, HTTP/2: {http2}");
        }
    }
}

#[tokio::test]
async fn the_plug_can_be_pulled_and_put_back() {
    let apple = FakeApple::new();
    let token = apple.genuine_token(Environment::Production);
    let mut server = apple.serve().await.unwrap();
    let url = server.url(Environment::Production);
    let client = client(false);
    let call = || over_socket(&client, &apple, &url, &token);
    assert_eq!(call().await.unwrap().0, 200);

    // A call that waits for an answer is cut off.
    apple.script(Reply::hang());
    let cut = async {
        while apple.calls() < 2 {
            tokio::task::yield_now().await;
        }
        server.stop().await;
    };
    let (hanging, ()) = tokio::join!(call(), cut);
    assert!(hanging.is_err());
    assert!(call().await.unwrap_err().is_connect());
    server.stop().await;

    server.restart().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(server.url(Environment::Production), url);
    assert_eq!(call().await.unwrap().0, 200);

    let (production, development) =
        (server.address(Environment::Production), server.address(Environment::Development));
    server.stop().await;
    let server = apple.serve_on(production, development).await.unwrap();
    assert_eq!(call().await.unwrap().0, 200);
    drop(server);
}

#[tokio::test]
async fn a_drained_server_answers_the_calls_under_way() {
    let apple = FakeApple::new();
    let token = apple.genuine_token(Environment::Production);
    let mut server = apple.serve().await.unwrap();
    let url = server.url(Environment::Production);
    for http2 in [false, true] {
        let client = client(http2);
        let call = || over_socket(&client, &apple, &url, &token);
        let calls = apple.calls();
        apple.script(Reply::normal().delay(Duration::from_millis(200)));
        let drained = async {
            while apple.calls() == calls {
                tokio::task::yield_now().await;
            }
            server.drain().await;
        };
        let (answer, ()) = tokio::join!(call(), drained);
        assert_eq!(answer.unwrap().0, 200, "HTTP/2: {http2}");
        assert!(call().await.unwrap_err().is_connect(), "HTTP/2: {http2}");
        server.drain().await;
        server.restart().await.unwrap();

        // A call that is never answered is cut by `stop`.
        apple.script(Reply::hang());
        let cut = async {
            while apple.calls() == calls + 1 {
                tokio::task::yield_now().await;
            }
            let drained = tokio::time::timeout(Duration::from_millis(100), server.drain()).await;
            assert!(drained.is_err(), "HTTP/2: {http2}");
            server.stop().await;
        };
        let (hanging, ()) = tokio::join!(call(), cut);
        assert!(hanging.is_err(), "HTTP/2: {http2}");
        server.restart().await.unwrap();
    }
    assert_eq!(apple.calls(), 4);
}
