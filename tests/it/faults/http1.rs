//! Faults as HTTP/1.1 carries them.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};
use tokio_rustls::server::TlsStream;

use crate::faults::{
    fault::{After, Announced, Answer, End, Fault},
    injector::{Shared, busy, until_closed},
};

type Socket = TlsStream<TcpStream>;

/// The length of a long body.
pub(super) const FLOOD: usize = 100 * 1024 * 1024;

/// Serves a connection. Returns how it is to end.
pub(super) async fn serve(mut socket: Socket, shared: &Shared) -> Option<End> {
    let mut idle = shared.idle();
    let mut text = Vec::new();
    loop {
        let request = tokio::select! {
            request = read(&mut socket, &mut text) => request?,
            _ = idle.changed() => {
                let end = *idle.borrow();
                shared.ended_idle();
                return end;
            }
        };
        match shared.arrived() {
            Fault::Ends(after, end) => {
                let _ = socket.write_all(part(after)).await;
                let _ = socket.flush().await;
                return Some(end);
            }
            Fault::Silent(after) => {
                let _ = socket.write_all(part(after)).await;
                until_closed(socket).await;
                return None;
            }
            Fault::Trickles(after) => {
                let _ = socket.write_all(part(after)).await;
                while socket.write_all(b"a").await.is_ok() {
                    sleep(Duration::from_secs(1)).await;
                }
                return None;
            }
            Fault::Answer(answer) => socket.write_all(&whole(&answer)).await.ok()?,
            Fault::Busy(status, time) => socket.write_all(&whole(&busy(status, time))).await.ok()?,
            Fault::Twice(first, second) => {
                socket.write_all(&[whole(&first), whole(&second)].concat()).await.ok()?;
            }
            Fault::Raw(bytes) => socket.write_all(bytes).await.ok()?,
            Fault::Flood(status, announced) => {
                flood(&mut socket, shared, status, announced).await?;
                return Some(End::Close);
            }
            _ => {
                let (head, body) = shared.answer(request).await.into_parts();
                let headers =
                    head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec()));
                let head = head_of(head.status.as_u16(), headers, Some(body.len()));
                socket.write_all(&[&head[..], &body].concat()).await.ok()?;
            }
        }
        socket.flush().await.ok()?;
    }
}

async fn read(socket: &mut Socket, text: &mut Vec<u8>) -> Option<Request<Bytes>> {
    let end = loop {
        if let Some(end) = text.windows(4).position(|part| part == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(text).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(text.drain(..end).collect()).unwrap();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut request = Request::post(path);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    let length: usize = request.headers_ref()?["content-length"].to_str().unwrap().parse().unwrap();
    while text.len() < length {
        if socket.read_buf(text).await.ok()? == 0 {
            return None;
        }
    }
    Some(request.body(text.drain(..length).collect::<Vec<_>>().into()).unwrap())
}

const fn part(after: After) -> &'static [u8] {
    match after {
        After::Nothing => b"",
        After::HalfHead => b"HTTP/1.1 200 OK\r\ncontent-le",
        After::Head => b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n",
        After::HalfBody => b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\nhalf",
    }
}

fn head_of<'a>(
    status: u16,
    headers: impl Iterator<Item = (&'a str, Vec<u8>)>,
    length: Option<usize>,
) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n").into_bytes();
    for (name, value) in headers {
        head.extend([name.as_bytes(), b": ", &value, b"\r\n"].concat());
    }
    if let Some(length) = length {
        head.extend(format!("content-length: {length}\r\n").into_bytes());
    }
    head.extend(b"\r\n");
    head
}

fn whole(answer: &Answer) -> Vec<u8> {
    if matches!(answer.status, 204 | 304) {
        // These have no body, and so no length.
        return head_of(answer.status, answer.headers.iter().cloned(), None);
    }
    let head = head_of(answer.status, answer.headers.iter().cloned(), Some(answer.body.len()));
    [&head[..], &answer.body].concat()
}

/// `None` if the client closed the connection before the end.
async fn flood(socket: &mut Socket, shared: &Shared, status: u16, announced: Announced) -> Option<()> {
    let length = (announced == Announced::Right).then_some(FLOOD);
    socket.write_all(&head_of(status, std::iter::empty(), length)).await.ok()?;
    let piece = [b'x'; 64 * 1024];
    for _ in 0..FLOOD / piece.len() {
        socket.write_all(&piece).await.ok()?;
        shared.sent.fetch_add(piece.len(), SeqCst);
    }
    socket.flush().await.ok()
}

/// The parts of an answer for HTTP/2.
pub(super) fn response(answer: &Answer) -> (Response<()>, Bytes) {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, &value[..]);
    }
    (response.body(()).unwrap(), answer.body.clone())
}
