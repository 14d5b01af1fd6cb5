//! Requests for another protocol on the connection, which the gateway does not speak.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::{CHAT, Gateway, ai_gateway::Limits, ok, provider, status};

#[tokio::test]
async fn w07_an_upgrade_is_refused_before_anyone_is_asked() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13";
    for (name, method, path, headers) in [
        ("WebSocket", "GET", CHAT, format!("upgrade: websocket\r\nconnection: Upgrade\r\n{key}")),
        ("in another case", "GET", CHAT, "UPGRADE: WebSocket\r\nConnection: keep-alive, UPGRADE".to_owned()),
        ("without the key", "GET", CHAT, "upgrade: websocket\r\nconnection: upgrade".to_owned()),
        ("without `Connection`", "GET", CHAT, "upgrade: websocket\r\nconnection: close".to_owned()),
        ("without `Upgrade`", "GET", CHAT, format!("connection: upgrade, close\r\n{key}")),
        ("with neither", "GET", CHAT, format!("connection: close\r\n{key}")),
        ("of a POST", "POST", CHAT, "upgrade: websocket\r\nconnection: upgrade, close".to_owned()),
        ("HTTP/2", "GET", CHAT, "upgrade: h2c\r\nconnection: upgrade, close".to_owned()),
        ("an invention", "GET", CHAT, "upgrade: tomorrow/1\r\nconnection: upgrade, close".to_owned()),
        ("a list", "GET", CHAT, "upgrade: h2c, websocket\r\nconnection: upgrade, close".to_owned()),
        ("a tunnel", "CONNECT", "api.openai.com:443", "connection: close".to_owned()),
    ] {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\nauthorization: Bearer {}\r\n\r\n",
            gateway.credential()
        );
        let answer = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            // The server may keep the connection open, so the answer ends with its body.
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let host = gateway.url.trim_start_matches("http://");
            let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            let (mut answer, mut piece) = (String::new(), [0; 4096]);
            while !answer.ends_with('}') {
                match stream.read(&mut piece).await.unwrap() {
                    0 => break,
                    length => answer.push_str(std::str::from_utf8(&piece[..length]).unwrap()),
                }
                if answer.ends_with("\r\n\r\n") && answer.contains("content-length: 0") {
                    break;
                }
            }
            answer
        })
        .await
        .unwrap_or_default();
        assert_eq!(status(&answer), "501", "{name}: {answer}");
        assert!(answer.contains("\"upgrade_not_supported\""), "{name}: {answer}");
        assert!(!answer.to_lowercase().contains("upgrade:"), "{name}: {answer}");
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(gateway.apple.calls(), 0);
}

/// HTTP/2 has a path in such a request, and the protocol in a field of its own.
#[tokio::test]
async fn w07_an_extended_connect_is_refused_too() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for path in [CHAT, "/v1/openai/app/realtime?model=m", "/health", "/nowhere"] {
        let mut request = Request::builder().method(Method::CONNECT).uri(format!("https://x{path}"));
        request = request.header("authorization", format!("Bearer {}", gateway.credential()));
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        let response = gateway.app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("upgrade_not_supported"), "{path}");
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(gateway.apple.calls(), 0);
}
