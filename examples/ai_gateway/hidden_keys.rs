//! Keys that hyper never sees.
//!
//! hyper keeps the head of the last request in a buffer, for as long as it keeps the connection. Therefore it gets heads
//! with a marker in the place of the key. The stream below hyper, and above TLS, writes the key where the marker is, from
//! the one copy that the request owns and wipes.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::http::{HeaderMap, HeaderValue, Uri};
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tower::{Service, ServiceExt};

/// The letters of a marker that are the same for this process, and those of its number.
const SAME: usize = 32;
const NUMBER: usize = 16;
const MARKER: usize = SAME + NUMBER;
/// Slices of a vectored write: more than hyper queues.
const SLICES: usize = 24;

/// The keys of requests that are on their way.
#[derive(Clone)]
pub(crate) struct HiddenKeys(Arc<Inner>);

struct Inner {
    /// 122 random bits, so that no client can write a marker.
    same: memchr::memmem::Finder<'static>,
    next: AtomicU64,
    keys: Mutex<HashMap<u64, HeaderValue>>,
}

impl Default for HiddenKeys {
    fn default() -> Self {
        let same = uuid::Uuid::new_v4().simple().to_string();
        let same = memchr::memmem::Finder::new(same.as_bytes()).into_owned();
        Self(Arc::new(Inner { same, next: AtomicU64::new(0), keys: Mutex::default() }))
    }
}

impl HiddenKeys {
    /// Puts markers in the place of all values that are marked sensitive. They stand for the values until the guard is
    /// dropped.
    pub(crate) fn hide(&self, headers: &mut HeaderMap) -> Hidden {
        let mut hidden = Hidden { keys: self.clone(), numbers: Vec::with_capacity(1) };
        for value in headers.values_mut().filter(|value| value.is_sensitive()) {
            let number = self.0.next.fetch_add(1, Ordering::Relaxed);
            let same = String::from_utf8_lossy(self.0.same.needle());
            // Hexadecimal digits are a header value; the default is never used.
            let mut marker = HeaderValue::try_from(format!("{same}{number:016x}"))
                .unwrap_or_else(|_| HeaderValue::from_static(""));
            marker.set_sensitive(true);
            self.lock().insert(number, std::mem::replace(value, marker));
            hidden.numbers.push(number);
        }
        hidden
    }

    /// A connector whose streams write the keys.
    pub(crate) fn reveal<C>(&self, connector: C) -> Revealing<C> {
        Revealing { connector: Arc::new(connector), keys: self.clone() }
    }

    /// The first marker in the text: where it begins, and what it stands for.
    fn find(&self, text: &[u8]) -> io::Result<Option<(usize, HeaderValue)>> {
        let Some(at) = self.0.same.find(text) else { return Ok(None) };
        let number = text.get(at + SAME..at + MARKER).and_then(|digits| std::str::from_utf8(digits).ok());
        let number = number.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        // The request is over, and its connection must not go on with a head that is none.
        let value = number.and_then(|number| self.lock().get(&number).cloned());
        value.map(|value| Some((at, value))).ok_or_else(|| io::Error::other("the request is over"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, HeaderValue>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys of one request. Dropping this forgets them.
pub(crate) struct Hidden {
    keys: HiddenKeys,
    numbers: Vec<u64>,
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for number in &self.numbers {
            self.keys.lock().remove(number);
        }
    }
}

/// See [`HiddenKeys::reveal`].
pub(crate) struct Revealing<C> {
    /// Cloned for a new connection only: the HTTP client clones all of its connector for each request.
    connector: Arc<C>,
    keys: HiddenKeys,
}

impl<C> Clone for Revealing<C> {
    fn clone(&self) -> Self {
        Self { connector: Arc::clone(&self.connector), keys: self.keys.clone() }
    }
}

impl<C> Service<Uri> for Revealing<C>
where
    C: Service<Uri, Future: Send> + Clone + Send + 'static,
{
    type Response = RevealingStream<C::Response>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Response, C::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let keys = self.keys.clone();
        let stream = |stream| RevealingStream { stream, keys, written: 0, is_deaf: false };
        self.connector.as_ref().clone().oneshot(uri).map_ok(stream).boxed()
    }
}

/// A stream that writes keys in the place of their markers.
pub(crate) struct RevealingStream<S> {
    stream: S,
    keys: HiddenKeys,
    /// The bytes of the key that are out, where the next text begins with its marker.
    written: usize,
    /// The other side takes no more: it may have answered early, and closed. hyper would end with the first write that
    /// fails, and not read that answer.
    is_deaf: bool,
}

impl<S: Write + Unpin> RevealingStream<S> {
    /// Writes slices, and returns how many bytes of them count as written. hyper has the whole head in one piece, and
    /// that is the first.
    fn poll_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut slices = slices.iter().filter(|slice| !slice.is_empty());
        let Some(first) = slices.next() else { return Poll::Ready(Ok(0)) };
        let all = first.len() + slices.clone().map(|slice| slice.len()).sum::<usize>();
        if self.is_deaf {
            return Poll::Ready(Ok(all));
        }
        let found = self.keys.find(first)?;
        loop {
            let (before, key, after) = match &found {
                Some((at, value)) => {
                    let key = value.as_bytes().get(self.written..).unwrap_or_default();
                    (&first[..*at], key, &first[at + MARKER..])
                }
                None => (&first[..], &[][..], &[][..]),
            };
            let pieces = [before, key, after].map(IoSlice::new);
            let mut out = [IoSlice::new(&[]); SLICES];
            let rest = slices.clone().map(|slice| IoSlice::new(slice));
            let count = out.iter_mut().zip(pieces.into_iter().chain(rest).filter(|slice| !slice.is_empty()));
            let count = count.map(|(out, slice)| *out = slice).count();
            let stream = Pin::new(&mut self.stream);
            let written = match (&out[..count], stream.is_write_vectored()) {
                ([one, ..], false) => ready!(stream.poll_write(cx, one)),
                (out, _) => ready!(stream.poll_write_vectored(cx, out)),
            };
            let written = match written {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(written) => written,
                Err(error) if is_hang_up(&error) => {
                    self.is_deaf = true;
                    return Poll::Ready(Ok(all));
                }
                Err(error) => return Poll::Ready(Err(error)),
            };
            if found.is_none() || written <= before.len() {
                return Poll::Ready(Ok(written));
            }
            let of_key = (written - before.len()).min(key.len());
            if of_key == key.len() {
                // The marker is done, and so much of what follows it.
                self.written = 0;
                return Poll::Ready(Ok(written - key.len() + MARKER));
            }
            self.written += of_key;
            if !before.is_empty() {
                return Poll::Ready(Ok(before.len()));
            }
            // A part of the key is no progress that hyper could know of.
        }
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: Write + Unpin> Write for RevealingStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, text: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_slices(cx, &[IoSlice::new(text)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_deaf {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            Err(error) if is_hang_up(&error) => {
                self.is_deaf = true;
                Poll::Ready(Ok(()))
            }
            flushed => Poll::Ready(flushed),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Read + Unpin> Read for RevealingStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Connection> Connection for RevealingStream<S> {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}
