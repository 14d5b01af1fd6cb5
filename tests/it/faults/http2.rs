//! Faults as HTTP/2 carries them.

use std::{
    future::{pending, poll_fn},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Connection, SendResponse},
};
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::sleep,
};
use tokio_rustls::server::TlsStream;

use crate::faults::{
    fault::{After, Announced, Answer, End, Fault},
    http1::{FLOOD, response},
    injector::{Shared, busy, until_closed},
};

/// An order of a request to its connection.
enum Order {
    End(End),
    GoAway(Reason),
    GoAwayAfterwards,
}

/// Serves a connection. Returns how it is to end.
pub(super) async fn serve(socket: TlsStream<TcpStream>, shared: &Arc<Shared>) -> Option<End> {
    let mut connection: Connection<_, Bytes> = h2::server::handshake(socket).await.ok()?;
    let mut idle = shared.idle();
    let (orders, mut ordered) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            request = connection.accept() => {
                let (request, respond) = request?.ok()?;
                tokio::spawn(exchange(request, respond, Arc::clone(shared), orders.clone()));
            }
            _ = idle.changed() => {
                let end = *idle.borrow();
                if end.is_none() {
                    connection.graceful_shutdown();
                }
                shared.ended_idle();
                if end.is_some() {
                    return end;
                }
            }
            order = ordered.recv() => match order? {
                Order::End(end) => return Some(end),
                Order::GoAway(reason) => connection.abrupt_shutdown(reason),
                Order::GoAwayAfterwards => connection.graceful_shutdown(),
            }
        }
    }
}

/// One request. `None` if the client has left it.
async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
) -> Option<()> {
    let (head, mut stream) = request.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece.ok()?;
        stream.flow_control().release_capacity(piece.len()).ok()?;
        body.extend_from_slice(&piece);
    }
    let request = Request::from_parts(head, body.into());
    match shared.arrived() {
        Fault::Ends(after, end) => {
            let _open = part(&mut respond, after);
            // The part that was sent goes out meanwhile.
            sleep(Duration::from_millis(50)).await;
            orders.send(Order::End(end)).ok()?;
            // The stream must not end before the connection.
            pending().await
        }
        Fault::Silent(after) => {
            let _open = part(&mut respond, after);
            pending().await
        }
        Fault::Trickles(after) => {
            let mut open = part(&mut respond, after)?;
            loop {
                sleep(Duration::from_secs(1)).await;
                open.send_data(Bytes::from_static(b"a"), false).ok()?;
            }
        }
        Fault::ResetStream(after, reason) => {
            let open = part(&mut respond, after);
            sleep(Duration::from_millis(50)).await;
            match open {
                Some(mut open) => open.send_reset(reason),
                None => respond.send_reset(reason),
            }
            Some(())
        }
        Fault::GoAway(reason) => {
            orders.send(Order::GoAway(reason)).ok()?;
            pending().await
        }
        Fault::GoAwayAfterwards => {
            orders.send(Order::GoAwayAfterwards).ok()?;
            sleep(Duration::from_millis(50)).await;
            normal(request, &mut respond, &shared).await
        }
        Fault::Answer(answer) => send(&mut respond, &answer),
        Fault::Busy(status, time) => send(&mut respond, &busy(status, time)),
        Fault::Flood(status, announced) => flood(&mut respond, &shared, status, announced).await,
        _ => normal(request, &mut respond, &shared).await,
    }
}

async fn normal(request: Request<Bytes>, respond: &mut SendResponse<Bytes>, shared: &Shared) -> Option<()> {
    let (head, body) = shared.answer(request).await.into_parts();
    respond.send_response(Response::from_parts(head, ()), false).ok()?.send_data(body, true).ok()
}

fn send(respond: &mut SendResponse<Bytes>, answer: &Answer) -> Option<()> {
    let (head, body) = response(answer);
    respond.send_response(head, false).ok()?.send_data(body, true).ok()
}

/// The beginning of an answer whose head announces 64 bytes. The stream is open until it is dropped.
fn part(respond: &mut SendResponse<Bytes>, after: After) -> Option<SendStream<Bytes>> {
    if matches!(after, After::Nothing | After::HalfHead) {
        return None;
    }
    let head = Response::builder().header("content-length", 64).body(()).unwrap();
    let mut open = respond.send_response(head, false).ok()?;
    if after == After::HalfBody {
        open.send_data(Bytes::from_static(b"half"), false).ok()?;
    }
    Some(open)
}

async fn flood(
    respond: &mut SendResponse<Bytes>,
    shared: &Shared,
    status: u16,
    announced: Announced,
) -> Option<()> {
    let mut head = Response::builder().status(status);
    if announced == Announced::Right {
        head = head.header("content-length", FLOOD);
    }
    let mut open = respond.send_response(head.body(()).unwrap(), false).ok()?;
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    for _ in 0..FLOOD / piece.len() {
        open.reserve_capacity(piece.len());
        let mut rest = piece.clone();
        while !rest.is_empty() {
            let room = poll_fn(|cx| open.poll_capacity(cx)).await?.ok()?;
            let part = rest.split_to(room.min(rest.len()));
            shared.sent.fetch_add(part.len(), SeqCst);
            open.send_data(part, false).ok()?;
        }
    }
    open.send_data(Bytes::new(), true).ok()
}

/// Reads the head of one request, and says that the connection takes none.
pub(super) async fn go_away_unread(mut socket: TlsStream<TcpStream>, shared: &Shared) {
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    const GO_AWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
    const HEADERS: u8 = 1;

    let mut preface = [0; 24];
    if socket.read_exact(&mut preface).await.is_err() {
        return;
    }
    loop {
        let mut head = [0; 9];
        if socket.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        if socket.read_exact(&mut vec![0; length as usize]).await.is_err() {
            return;
        }
        if head[3] == HEADERS {
            break;
        }
    }
    shared.arrived_unread();
    let _ = socket.write_all(&[SETTINGS, GO_AWAY].concat()).await;
    let _ = socket.flush().await;
    until_closed(socket).await;
}
