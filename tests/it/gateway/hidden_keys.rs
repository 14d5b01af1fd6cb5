//! The stream that writes keys in the place of markers: whatever the stream below it takes at a time.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use axum::http::{HeaderMap, HeaderValue, Uri};
use hyper::rt::Write;
use tower::ServiceExt;

use super::ai_gateway::hidden_keys::{HiddenKeys, RevealingStream};

/// Takes so many bytes at a time, and nothing every other time.
#[derive(Clone)]
struct Narrow {
    taken: Arc<Mutex<Vec<u8>>>,
    width: usize,
    is_vectored: bool,
    is_tired: bool,
}

impl Write for Narrow {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, text: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(text)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        assert!(self.is_vectored || slices.len() == 1);
        self.is_tired = !self.is_tired;
        if self.is_tired {
            return Poll::Pending;
        }
        let text: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(self.width).collect();
        self.taken.lock().unwrap().extend_from_slice(&text);
        Poll::Ready(Ok(text.len()))
    }

    fn is_write_vectored(&self) -> bool {
        self.is_vectored
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn stream(keys: &HiddenKeys, below: Narrow) -> RevealingStream<Narrow> {
    let connector = tower::service_fn(move |_: Uri| {
        let below = below.clone();
        async { Ok::<_, io::Error>(below) }
    });
    keys.reveal(connector).oneshot(Uri::from_static("http://x")).await.unwrap()
}

/// As hyper does: offers what is left until all of it counts as written.
fn write_all(stream: &mut RevealingStream<Narrow>, pieces: &[&[u8]]) -> io::Result<()> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut done = 0;
    let all: usize = pieces.iter().map(|piece| piece.len()).sum();
    while done < all {
        let mut skip = done;
        let mut slices = Vec::new();
        for piece in pieces {
            let rest = &piece[skip.min(piece.len())..];
            skip -= skip.min(piece.len());
            slices.push(IoSlice::new(rest));
        }
        let written = match Write::is_write_vectored(stream) {
            true => Pin::new(&mut *stream).poll_write_vectored(&mut cx, &slices),
            false => {
                let first = slices.iter().find(|slice| !slice.is_empty()).unwrap();
                Pin::new(&mut *stream).poll_write(&mut cx, first)
            }
        };
        if let Poll::Ready(written) = written {
            done += written?;
        }
    }
    assert_eq!(done, all, "never more than was offered");
    Ok(())
}

const KEY: &str = "Bearer sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4c";

fn head(keys: &HiddenKeys, key: &str) -> (String, super::ai_gateway::hidden_keys::Hidden) {
    let mut headers = HeaderMap::new();
    let mut value = HeaderValue::try_from(key).unwrap();
    value.set_sensitive(true);
    headers.insert("authorization", value);
    headers.insert("accept", HeaderValue::from_static("*/*"));
    let hidden = keys.hide(&mut headers);
    let marker = headers["authorization"].to_str().unwrap();
    assert!(!marker.contains("sk-") && headers["authorization"].is_sensitive());
    assert_eq!(headers["accept"], "*/*");
    (format!("POST / HTTP/1.1\r\nauthorization: {marker}\r\naccept: */*\r\n\r\n"), hidden)
}

#[tokio::test]
async fn keys_come_out_whole_whatever_the_stream_takes_at_a_time() {
    let body = b"{\"a\":1}".as_slice();
    let keys = HiddenKeys::default();
    for key in [KEY, "k", &"long".repeat(300)] {
        for width in (1..140).chain([10_000]) {
            for is_vectored in [true, false] {
                let below = Narrow { taken: Arc::default(), width, is_vectored, is_tired: false };
                let mut stream = stream(&keys, below.clone()).await;
                let mut expected = String::new();
                // A connection that is kept.
                for _ in 0..2 {
                    let (text, _hidden) = head(&keys, key);
                    write_all(&mut stream, &[text.as_bytes(), body]).unwrap();
                    write_all(&mut stream, &[body, b"", body]).unwrap();
                    expected += &format!("POST / HTTP/1.1\r\nauthorization: {key}\r\naccept: */*\r\n\r\n");
                    expected += &"{\"a\":1}".repeat(3);
                }
                let taken = below.taken.lock().unwrap();
                assert_eq!(String::from_utf8_lossy(&taken), expected, "{width} {is_vectored}");
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_is_over_writes_neither_its_key_nor_its_marker() {
    let keys = HiddenKeys::default();
    let below = Narrow { taken: Arc::default(), width: 10_000, is_vectored: true, is_tired: false };
    let mut stream = stream(&keys, below.clone()).await;
    let (text, hidden) = head(&keys, KEY);
    drop(hidden);
    assert!(write_all(&mut stream, &[text.as_bytes()]).is_err());
    assert!(below.taken.lock().unwrap().is_empty());
}
