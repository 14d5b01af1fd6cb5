//! A server that waits for no client for ever. It needs none of the other files: copy it for a server of your own.
//!
//! `axum::serve` and tonic's `Server` have no limit for the first byte of a connection and none for the time that a
//! shutdown takes.

use std::{
    error::Error,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tower::{Service, ServiceExt};

/// The times after which the server waits no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// For the head of a request: from the start of the connection or, if the connection is kept, from the last
    /// answer. With HTTP/2 a second one of the same length, for the answer to a ping.
    pub(crate) head: Duration,
    /// For a client that takes nothing of what waits for it. Without this, a client that stops reading would hold all that
    /// its answer comes from.
    pub(crate) write: Duration,
    /// For the requests that are under way at `stop`.
    pub(crate) shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            write: Duration::from_secs(60),
            shutdown: Duration::from_secs(25),
        }
    }
}

/// Serves HTTP/1.1 and HTTP/2 until `stop` ends. Then it closes idle connections, and waits for the others within
/// `limits.shutdown`.
pub(crate) async fn serve<S, B>(listener: TcpListener, app: S, limits: Limits, stop: impl Future<Output = ()>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    // A client that has gone, or that stops within a head, does not answer a ping.
    http.http2().timer(TokioTimer::new()).keep_alive_interval(limits.head).keep_alive_timeout(limits.head);
    let graceful = GracefulShutdown::new();
    // Dropping this cuts the connections.
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // An error such as too many open files: the other connections get time to end.
                    tracing::warn!("accept: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Small pieces of a stream must not wait for more of them. A socket that cannot do this works all the same.
        let _ = stream.set_nodelay(true);
        let arrival = Arc::new(Notify::new());
        let arrived = Arc::clone(&arrival);
        let app = app.clone().map_request(move |request| {
            arrived.notify_one();
            request
        });
        let stream = TokioIo::new(Written::new(stream, limits.write));
        let connection = http.serve_connection(stream, TowerToHyperService::new(app));
        let connection = graceful.watch(connection.into_owned());
        // hyper's own limit begins when the client has shown which version of HTTP it speaks, and knows HTTP/1 only.
        let silence = async move {
            if timeout(limits.head, arrival.notified()).await.is_ok() {
                std::future::pending().await
            }
        };
        connections.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!("connection: {error}");
                },
                () = silence => tracing::debug!("connection: no request came in time"),
            }
        });
    }
    drop(listener);
    if timeout(limits.shutdown, graceful.shutdown()).await.is_err() {
        tracing::warn!("{} connections are cut: they did not end in time", connections.len());
    }
}

/// A connection that fails if the other side takes nothing for too long of what is written.
pub(crate) struct Written<S> {
    stream: S,
    limit: Duration,
    // Only while there is something to write, and no room for it.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Written<S> {
    pub(crate) const fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, timer: None }
    }

    fn in_time<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Written<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Written<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.in_time(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.in_time(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
