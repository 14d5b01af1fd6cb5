//! The fake Apple as a server on the loopback interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_LENGTH};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::gate::routing::Environment;
use crate::testing::{fake_apple::FakeApple, state::Played};

/// The longest body that is read, in bytes: longer than that of any call to Apple. A longer body counts as empty.
const MAX_REQUEST_BODY: usize = 64 * 1024;
/// The number of bytes that a cut-short reply announces but does not send.
const MISSING: usize = 64;

/// A [`FakeApple`] that listens on two ports of the loopback interface, one for each environment; made by
/// [`FakeApple::serve`].
///
/// The server speaks HTTP/1.1, and HTTP/2 with prior knowledge, without TLS. Dropping it stops it and cuts
/// its connections.
#[derive(Debug)]
pub struct FakeAppleServer {
    apple: FakeApple,
    production: Port,
    development: Port,
    connections: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Port {
    address: SocketAddr,
    environment: Environment,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// Dropping this stops the task.
    stop: oneshot::Sender<()>,
    /// Sending on this lets the task end with its last connection.
    drain: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl FakeApple {
    /// Serves this fake on two free ports of 127.0.0.1. Must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns an error if no port can be bound.
    pub async fn serve(&self) -> io::Result<FakeAppleServer> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        self.serve_on(any, any).await
    }

    /// Serves this fake on the two given addresses. Port 0 means a free port. Must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns an error if an address cannot be bound.
    pub async fn serve_on(
        &self,
        production: SocketAddr,
        development: SocketAddr,
    ) -> io::Result<FakeAppleServer> {
        let port = |address, environment| Port { address, environment, running: None };
        let mut server = FakeAppleServer {
            apple: self.clone(),
            production: port(production, Environment::Production),
            development: port(development, Environment::Development),
            connections: Arc::default(),
        };
        server.restart().await?;
        Ok(server)
    }
}

impl FakeAppleServer {
    /// The fake Apple behind this server.
    #[must_use]
    pub const fn apple(&self) -> &FakeApple {
        &self.apple
    }

    /// The base URL for an environment, without a trailing slash, such as `http://127.0.0.1:50123`.
    #[must_use]
    pub fn url(&self, environment: Environment) -> String {
        format!("http://{}", self.address(environment))
    }

    /// The address for an environment.
    #[must_use]
    pub const fn address(&self, environment: Environment) -> SocketAddr {
        match environment {
            Environment::Production => self.production.address,
            Environment::Development => self.development.address,
        }
    }

    /// The number of connections that both ports have accepted since the server was made.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Cuts all connections and closes both ports. New connections are refused until [`restart`](Self::restart). Does
    /// nothing if the server is stopped.
    ///
    /// If the returned future is dropped, the server still stops.
    pub async fn stop(&mut self) {
        let running = [self.production.running.take(), self.development.running.take()];
        for Running { stop, task, .. } in running.into_iter().flatten() {
            drop(stop);
            // The task fails only if the runtime shuts down, which stops it, too.
            let _ = task.await;
        }
    }

    /// Closes both ports, lets the connections answer the requests that are under way, and ends with the last
    /// connection. It may never end: a client may keep back a part of its request, and a [`Reply::hang`] has no end.
    /// Does nothing on a server that is stopped.
    ///
    /// If the returned future is dropped, the ports stay closed, and [`stop`](Self::stop) cuts the remaining
    /// connections.
    ///
    /// [`Reply::hang`]: crate::testing::Reply::hang
    pub async fn drain(&mut self) {
        let mut ports = [&mut self.production, &mut self.development];
        for running in ports.iter().filter_map(|port| port.running.as_ref()) {
            // Nobody receives this if the task has ended.
            let _ = running.drain.send(());
        }
        for port in &mut ports {
            if let Some(running) = &mut port.running {
                // The task fails only if the runtime shuts down, which stops it, too.
                let _ = (&mut running.task).await;
            }
            port.running = None;
        }
    }

    /// Listens on the same two ports again. Does nothing if the server is running.
    ///
    /// # Errors
    ///
    /// Returns an error if another process has taken a port meanwhile.
    pub async fn restart(&mut self) -> io::Result<()> {
        for port in [&mut self.production, &mut self.development] {
            if port.running.is_none() {
                let listener = TcpListener::bind(port.address).await?;
                port.address = listener.local_addr()?;
                let (stop, stopped) = oneshot::channel();
                let apple = self.apple.clone();
                let connections = Arc::clone(&self.connections);
                let (drain, draining) = watch::channel(());
                let stops = (stopped, draining);
                let task = tokio::spawn(listen(listener, apple, port.environment, connections, stops));
                port.running = Some(Running { stop, drain, task });
            }
        }
        Ok(())
    }
}

async fn listen(
    listener: TcpListener,
    apple: FakeApple,
    environment: Environment,
    count: Arc<AtomicUsize>,
    (mut stopped, mut draining): (oneshot::Receiver<()>, watch::Receiver<()>),
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = &mut stopped => {
                connections.abort_all();
                break;
            }
            _ = draining.changed() => break,
            accepted = listener.accept() => accepted,
        };
        // Forgets the connections that are over.
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                count.fetch_add(1, Relaxed);
                // Sends small answers without delay. If the socket cannot do this, it still works.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, apple.clone(), environment, draining.clone()));
            }
            // An error such as too many open files: waiting gives other tasks time to close some.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    drop(listener);
    while !connections.is_empty() {
        tokio::select! {
            _ = &mut stopped, if !stopped.is_terminated() => connections.abort_all(),
            _ = connections.join_next() => {}
        }
    }
}

async fn serve(
    stream: TcpStream,
    apple: FakeApple,
    environment: Environment,
    mut draining: watch::Receiver<()>,
) -> io::Result<()> {
    let stream = stream.into_std()?;
    // Another handle of the same socket. The socket stays open until both handles are dropped.
    let socket = TcpStream::from_std(stream.try_clone()?)?;
    let plug = Arc::new(Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (apple, plug) = (apple.clone(), Arc::clone(&plug));
        async move { answer(&apple, environment, request, &plug).await }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(server.serve_connection(TokioIo::new(TcpStream::from_std(stream)?), service));
    let mut drains = false;
    let reset = loop {
        tokio::select! {
            // The client notices an error by itself.
            _ = connection.as_mut() => break false,
            () = plug.notified() => break true,
            _ = draining.changed(), if !drains => {
                drains = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if reset {
        // Closing without time to linger is a reset. If this fails, the client sees an early end.
        #[allow(deprecated, reason = "its successor needs a newer tokio; only blocks if not zero")]
        socket.set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

async fn answer(
    apple: &FakeApple,
    environment: Environment,
    request: Request<Incoming>,
    plug: &Notify,
) -> Result<Response<ReplyBody>, hyper::Error> {
    let (head, body) = request.into_parts();
    let reply = apple.arrive(environment, &head);
    let body = match Limited::new(body, MAX_REQUEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => return Err(*error),
            Err(_too_long) => Bytes::new(),
        },
    };
    match apple.play(reply, environment, &head, &body).await {
        // A scripted length may be wrong, but hyper asserts that a known length is right.
        Played::Whole(response) if response.headers().contains_key(CONTENT_LENGTH) => {
            Ok(response.map(|data| ReplyBody::new(data, End::AsAnnounced)))
        }
        Played::Whole(response) => Ok(response.map(|data| ReplyBody::new(data, End::Known))),
        Played::CutShort(response) => {
            let announced = response.body().len() + MISSING;
            let mut response = response.map(|data| ReplyBody::new(data, End::CutAfterFlush));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(announced));
            Ok(response)
        }
        Played::Reset => {
            plug.notify_one();
            std::future::pending().await
        }
    }
}

/// The body of a reply. If it is cut short, it ends in an error, and hyper ends the connection or stream.
struct ReplyBody {
    data: Bytes,
    end: End,
}

enum End {
    /// The body ends with the data.
    Known,
    /// The body ends with the data, and a header announces the length.
    AsAnnounced,
    /// The body ends in an error once the data was sent: hyper flushes when a body is pending.
    CutAfterFlush,
    /// The body ends in an error at once.
    CutNow,
}

impl ReplyBody {
    const fn new(data: Bytes, end: End) -> Self {
        Self { data, end }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.data)))));
        }
        match self.end {
            End::Known | End::AsAnnounced => Poll::Ready(None),
            End::CutAfterFlush => {
                self.end = End::CutNow;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            End::CutNow => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && matches!(self.end, End::Known)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.end {
            End::Known => http_body::SizeHint::with_exact(self.data.len() as u64),
            _ => http_body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests;
