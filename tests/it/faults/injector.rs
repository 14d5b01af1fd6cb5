//! A fake Apple behind TLS, and the fault that stands between it and the client.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tower_devicecheck::testing::FakeApple;

use crate::faults::{
    certificates::Certificates,
    fault::{Answer, End, Fault, Identity, Protocol, RetryAfter},
    http1, http2,
};

/// A server in Apple's place. It runs on a runtime of its own.
pub(super) struct Injector {
    pub(super) shared: Arc<Shared>,
    pub(super) address: SocketAddr,
    /// The port before it listens.
    closed: Mutex<Option<TcpSocket>>,
    runtime: tokio::runtime::Handle,
}

/// All connections share this.
pub(super) struct Shared {
    fake: Mutex<FakeApple>,
    protocol: Protocol,
    fault: Mutex<Fault>,
    once: AtomicBool,
    /// The requests that arrived.
    calls: AtomicUsize,
    connections: AtomicUsize,
    /// The bytes of long bodies that were sent.
    pub(super) sent: AtomicUsize,
    /// Changes when connections without a request are to end.
    idle: watch::Sender<Option<End>>,
    /// The connections that have ended so.
    ended: watch::Sender<usize>,
    /// The times that the fault has struck.
    pub(super) strikes: watch::Sender<usize>,
    acceptor: TlsAcceptor,
}

impl Injector {
    /// Takes a port, on which nobody listens yet.
    pub(super) fn start(runtime: &tokio::runtime::Handle, protocol: Protocol, identity: Identity) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let shared = Shared {
            fake: Mutex::new(FakeApple::new()),
            protocol,
            fault: Mutex::new(Fault::None),
            once: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            idle: watch::Sender::new(None),
            ended: watch::Sender::new(0),
            strikes: watch::Sender::new(0),
            acceptor: Certificates::get().acceptor(identity, protocol),
        };
        Self {
            address: socket.local_addr().unwrap(),
            shared: Arc::new(shared),
            closed: Mutex::new(Some(socket)),
            runtime: runtime.clone(),
        }
    }

    /// Listens, if the port is still closed.
    pub(super) fn open(&self) {
        let Some(socket) = self.closed.lock().unwrap().take() else { return };
        let _on_its_runtime = self.runtime.enter();
        let listener = socket.listen(64).unwrap();
        self.runtime.spawn(accept(listener, Arc::clone(&self.shared)));
    }

    /// Stands in front of this Apple.
    pub(super) fn guard(&self, fake: &FakeApple) {
        *self.shared.fake.lock().unwrap() = fake.clone();
    }

    pub(super) fn inject(&self, fault: Fault, once: bool) {
        self.shared.once.store(once, SeqCst);
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Ends the one connection, on which there is no request.
    pub(super) async fn end_idle(&self, end: Option<End>) {
        let mut ended = self.shared.ended.subscribe();
        self.shared.idle.send(end).unwrap();
        ended.changed().await.unwrap();
    }

    pub(super) fn calls(&self) -> usize {
        self.shared.calls.load(SeqCst)
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }
}

impl Shared {
    /// The fault that strikes here, if it is one that does.
    pub(super) fn strike(&self, is_here: impl Fn(&Fault) -> bool) -> Fault {
        let mut fault = self.fault.lock().unwrap();
        if matches!(*fault, Fault::None) || !is_here(&fault) {
            return Fault::None;
        }
        self.strikes.send_modify(|strikes| *strikes += 1);
        if self.once.load(SeqCst) { std::mem::replace(&mut fault, Fault::None) } else { fault.clone() }
    }

    /// A request has arrived. Returns its fault.
    pub(super) fn arrived(&self) -> Fault {
        self.calls.fetch_add(1, SeqCst);
        self.strike(|fault| !fault.is_of_connection() && !fault.is_of_names())
    }

    /// A request has arrived whose body is not read.
    pub(super) fn arrived_unread(&self) {
        self.calls.fetch_add(1, SeqCst);
    }

    /// The answer of a fake Apple without a fault.
    pub(super) async fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        let fake = self.fake.lock().unwrap().clone();
        fake.transport().oneshot(request).await.unwrap()
    }

    pub(super) fn idle(&self) -> watch::Receiver<Option<End>> {
        self.idle.subscribe()
    }

    pub(super) fn ended_idle(&self) {
        self.ended.send_modify(|ended| *ended += 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        shared.connections.fetch_add(1, SeqCst);
        tokio::spawn(serve(socket, Arc::clone(&shared)));
    }
}

async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    let fault = shared.strike(Fault::is_of_connection);
    let acceptor = match fault {
        Fault::EndsBeforeTls(end) => return finish(&socket, end),
        Fault::SilentBeforeTls => return until_closed(socket).await,
        Fault::PlainText => {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            return until_closed(socket).await;
        }
        Fault::Certificate(identity) => Certificates::get().acceptor(identity, shared.protocol),
        _ => shared.acceptor.clone(),
    };
    // Another handle of the same socket, to end it beneath TLS. The socket is open until both are dropped.
    let socket = socket.into_std().unwrap();
    let beneath = TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
    let Ok(socket) = acceptor.accept(TcpStream::from_std(socket).unwrap()).await else { return };
    let end = match (shared.protocol, fault) {
        (_, Fault::GoAwayUnread) => {
            http2::go_away_unread(socket, &shared).await;
            None
        }
        (Protocol::Http1, _) => http1::serve(socket, &shared).await,
        (Protocol::Http2, _) => http2::serve(socket, &shared).await,
    };
    if let Some(end) = end {
        finish(&beneath, end);
    }
}

fn finish(socket: &TcpStream, end: End) {
    if end == End::Reset {
        #[allow(deprecated, reason = "no time to linger, so it does not block")]
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Says nothing more.
pub(super) async fn until_closed(mut socket: impl AsyncRead + Unpin) {
    let mut rest = [0; 4096];
    while socket.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

/// An answer that wants Apple to be left alone.
pub(super) fn busy(status: u16, time: RetryAfter) -> Answer {
    let date = |time: SystemTime| vec![httpdate::fmt_http_date(time).into_bytes()];
    let values = match time {
        RetryAfter::Absent => Vec::new(),
        RetryAfter::Seconds(seconds) => vec![seconds.to_string().into_bytes()],
        RetryAfter::Date(seconds) => date(SystemTime::now() + Duration::from_secs(seconds)),
        RetryAfter::PastDate => date(SystemTime::UNIX_EPOCH),
        RetryAfter::Huge => vec![b"99999999999999999999999999".to_vec()],
        RetryAfter::Rubbish(value) => vec![value.to_vec()],
        RetryAfter::Repeated(first, second) => {
            vec![first.to_string().into_bytes(), second.to_string().into_bytes()]
        }
    };
    let headers = values.into_iter().map(|value| ("retry-after", value)).collect();
    Answer { status, headers, body: Bytes::from_static(b"Too Many Requests") }
}
