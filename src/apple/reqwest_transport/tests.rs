use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Answers one connection with these bytes, and if `endless` with further ones until the client hangs up.
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
    const TOO_LONG: &str = match str::from_utf8(&[b'x'; LongestAnswer::DEFAULT.0 + 1]) {
        Ok(text) => text,
        Err(_) => panic!("it is ASCII"),
    };
    type Case = (&'static str, &'static [u8], bool, Option<(u16, &'static str)>);
    let cases: &[Case] = &[
        ("a short one", b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nabc", false, Some((400, "abc"))),
        (
            "a redirect is not followed",
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            false,
            Some((302, "")),
        ),
        // It is not read to its end. One byte too many tells that it is too long.
        ("an endless one", b"HTTP/1.1 200 OK\r\n\r\n", true, Some((200, TOO_LONG))),
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

#[tokio::test]
async fn what_an_http2_server_turns_away_is_told_apart() {
    type TurnAway = fn(h2::server::SendResponse<Bytes>, &mut h2::server::Connection<TcpStream, Bytes>);
    let cases: &[(&str, bool, TurnAway)] = &[
        ("a refused stream", true, |mut respond, _| respond.send_reset(h2::Reason::REFUSED_STREAM)),
        ("a stream that was begun", false, |mut respond, _| respond.send_reset(h2::Reason::INTERNAL_ERROR)),
        ("a shutdown that comes after it", false, |_, connection| {
            connection.abrupt_shutdown(h2::Reason::NO_ERROR);
        }),
        ("a connection that breaks", false, |_, connection| {
            connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR);
        }),
    ];
    for (name, expected, refuse) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let refuse = *refuse;
        let server = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let mut requests = 0;
            while let Some(Ok((_, respond))) = connection.accept().await {
                requests += 1;
                refuse(respond, &mut connection);
            }
            requests
        });
        let mut transport = ReqwestTransport::http2_prior_knowledge().unwrap();
        let error = transport.call(Request::post(url).body(Bytes::new()).unwrap()).await.unwrap_err();
        assert_eq!((error.is_turned_away(), error.is_connect()), (*expected, false), "{name}: {error:?}");
        drop(transport);
        assert_eq!(server.await.unwrap(), 1, "{name}: sending it again is the client's to decide");
    }
}

#[tokio::test]
async fn a_request_that_comes_after_an_http2_shutdown_is_turned_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.read_exact(&mut [0; 24]).await.unwrap();
        loop {
            let mut head = [0; 9];
            socket.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            socket.read_exact(&mut vec![0; length as usize]).await.unwrap();
            let is_headers = head[3] == 1;
            if is_headers {
                break;
            }
        }
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        let goaway_from_the_first_stream_on = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
        socket.write_all(&[&settings[..], goaway_from_the_first_stream_on].concat()).await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let mut transport = ReqwestTransport::http2_prior_knowledge().unwrap();
    let error = transport.call(Request::post(url).body(Bytes::new()).unwrap()).await.unwrap_err();
    assert!(error.is_turned_away(), "{error:?}");
}

#[tokio::test]
async fn urls_are_what_the_request_says() {
    for target in ["/0?q", "/A", "/", "/%2F"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{target}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = socket.read(&mut head).await.unwrap();
            head.truncate(length);
            String::from_utf8(head).unwrap()
        });
        assert!(get(&url).await.is_err(), "there is no answer");
        let head = server.await.unwrap();
        assert!(head.starts_with(&format!("POST {target} HTTP/1.1\r\n")), "{target}: {head}");
    }
    assert!(get("/v1").await.is_err(), "no host");
}
