use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Answers one connection with these bytes, over and over until the client hangs up if `endless`.
async fn answer_with(bytes: &'static [u8], endless: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await;
        let _ = socket.write_all(bytes).await;
        while endless && socket.write_all(&[b'x'; 1024]).await.is_ok() {}
    });
    url
}

async fn get(url: &str) -> Result<Response<Bytes>, TransportError> {
    let mut transport = ReqwestTransport::new().unwrap();
    transport.call(Request::post(url).body(Bytes::new()).unwrap()).await
}

#[tokio::test]
async fn answers() {
    type Case = (&'static str, &'static [u8], bool, Option<(u16, &'static str)>);
    let cases: &[Case] = &[
        ("a short one", b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nabc", false, Some((400, "abc"))),
        (
            "a redirect is not followed",
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            false,
            Some((302, "")),
        ),
        ("an endless one", b"HTTP/1.1 200 OK\r\n\r\n", true, None),
        ("cut off", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", false, None),
        ("no HTTP", b"SSH-2.0-OpenSSH\r\n", false, None),
        ("nothing", b"", false, None),
    ];
    for (name, bytes, endless, expected) in cases {
        let url = answer_with(bytes, *endless).await;
        match (get(&url).await, expected) {
            (Ok(response), Some((status, body))) => {
                assert_eq!(response.status().as_u16(), *status, "{name}");
                assert_eq!(response.body(), body, "{name}");
            }
            (Err(error), None) => assert!(!error.is_connect(), "{name}: {error:?}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_refused_connection_is_told_apart_and_its_url_not_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = get(&format!("http://{address}/SECRET")).await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    assert!(!format!("{error:?}").contains("SECRET"));
}

#[test]
fn outside_of_a_runtime_it_fails_and_does_not_panic() {
    use futures_util::FutureExt;

    let result = get("http://127.0.0.1:1/").now_or_never().unwrap();
    assert!(!result.unwrap_err().is_connect());
}

#[tokio::test]
async fn prior_knowledge_speaks_http2_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let preface = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut preface = [0; 14];
        socket.read_exact(&mut preface).await.unwrap();
        preface
    });
    let mut transport = ReqwestTransport::http2_prior_knowledge().unwrap();
    let result = transport.call(Request::post(url).body(Bytes::new()).unwrap()).await;
    assert!(result.is_err());
    assert_eq!(&preface.await.unwrap(), b"PRI * HTTP/2.0");
}
