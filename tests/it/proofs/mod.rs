//! Proofs that others bring, beside the check with device tokens.

mod asking;
mod bodies;
mod body_faults;
mod credentials;
mod devices;
mod frameworks;
mod paths;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, Service, ServiceExt};
use tower_devicecheck::{
    DeviceCheckLayer, Evidence, Facts, MalformedToken, Proof, ReadBodies, Rejection, ResponseBody, Step,
    TokenDigest, VerifiedDevice,
};

use crate::support::{Apple, Counter};

type Judge = Box<dyn Fn(HeaderValue, &Facts) -> Step + Send + Sync>;
type Admitted = Box<dyn Fn(&VerifiedDevice, &Facts) -> Option<HeaderMap> + Send + Sync>;

/// A proof that is made up by closures: it judges the value of one header, and may add headers to responses.
struct Made {
    scheme: &'static str,
    header: HeaderName,
    judge: Judge,
    admitted: Admitted,
    reads_body: bool,
}

impl Made {
    fn new(
        scheme: &'static str,
        header: &'static str,
        judge: impl Fn(HeaderValue, &Facts) -> Step + Send + Sync + 'static,
    ) -> Self {
        let header = HeaderName::from_static(header);
        Self { scheme, header, judge: Box::new(judge), admitted: Box::new(|_, _| None), reads_body: false }
    }

    fn reading(self) -> Self {
        Self { reads_body: true, ..self }
    }

    fn admitting(
        self,
        admitted: impl Fn(&VerifiedDevice, &Facts) -> Option<HeaderMap> + Send + Sync + 'static,
    ) -> Self {
        Self { admitted: Box::new(admitted), ..self }
    }
}

impl Proof for Made {
    fn scheme(&self) -> &'static str {
        self.scheme
    }

    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
        let repeated = head.headers.get_all(&self.header).iter().nth(1).is_some();
        match head.headers.remove(&self.header) {
            None => Step::absent(),
            Some(_) if repeated => Step::rejected(Rejection::from(MalformedToken::Repeated)),
            Some(value) => (self.judge)(value, facts),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        head.headers.remove(&self.header);
    }

    fn admitted(&self, device: &VerifiedDevice, facts: &Facts) -> Option<HeaderMap> {
        (self.admitted)(device, facts)
    }

    fn reads_body(&self) -> bool {
        self.reads_body
    }
}

/// The header `X-Key` holds the word `good`.
fn key() -> Made {
    Made::new("Key", "x-key", |key, facts| keyed(&key, facts))
}

fn keyed(key: &HeaderValue, facts: &Facts) -> Step {
    if key == "good" {
        Step::verified(facts.verified(Evidence::fresh("Key", "key"), TokenDigest::of(key.as_bytes())))
    } else {
        Step::rejected(Rejection::RefusedToken)
    }
}

/// The header `X-Digest` holds SHA-256 of the body, in hexadecimal.
fn digest(limit: usize) -> Made {
    Made::new("Digest", "x-digest", move |value, facts| digested(limit, value, facts)).reading()
}

fn digested(limit: usize, value: HeaderValue, facts: &Facts) -> Step {
    let facts = facts.clone();
    Step::needs_body(limit, move |digest| {
        let digest = TokenDigest::from(digest);
        if value == digest.to_string() {
            Step::verified(facts.verified(Evidence::fresh("Digest", "body"), digest))
        } else {
            Step::rejected(Rejection::RefusedToken)
        }
    })
}

/// The value of `X-Digest` for a body.
fn hex(body: &[u8]) -> String {
    TokenDigest::of(body).to_string()
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

type Piece = Result<Frame<Bytes>, &'static str>;

fn data(bytes: impl Into<Bytes>) -> Piece {
    Ok(Frame::data(bytes.into()))
}

fn trailers() -> Piece {
    Ok(Frame::trailers(headers(&[("x-trailer", "kept")])))
}

/// A request body that counts how often it is polled and how often it is dropped.
struct Pieces {
    stream: Pin<Box<dyn Stream<Item = Piece> + Send>>,
    hint: SizeHint,
    polls: Counter,
    drops: Counter,
}

impl Pieces {
    fn new(stream: impl Stream<Item = Piece> + Send + 'static) -> Self {
        let (polls, drops) = Default::default();
        Self { stream: Box::pin(stream), hint: SizeHint::new(), polls, drops }
    }

    fn of(pieces: impl IntoIterator<Item = Piece, IntoIter: Send + 'static>) -> Self {
        Self::new(stream::iter(pieces))
    }

    /// One piece, of an announced length.
    fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        Self::of([data(bytes)]).announcing(length)
    }

    fn announcing(mut self, length: u64) -> Self {
        self.hint = SizeHint::with_exact(length);
        self
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.polls.add();
        let piece = self.stream.poll_next_unpin(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&piece, self.hint.exact()) {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.hint.set_exact(left.saturating_sub(length));
        }
        piece
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.drops.add();
    }
}

/// A request as the inner service saw it, its body read to the end.
#[derive(Clone, Debug)]
struct Seen {
    head: request::Parts,
    /// Before anything was read.
    hint: SizeHint,
    ended: bool,
    bytes: Vec<u8>,
    frames: usize,
    trailers: Option<HeaderMap>,
    error: Option<String>,
    /// After everything was read.
    last_hint: SizeHint,
    last_ended: bool,
}

/// The inner service: reads bodies, answers 200 and keeps what it saw.
#[derive(Clone, Default)]
struct Reader(Arc<Mutex<Vec<Seen>>>);

impl Reader {
    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn last(&self) -> Seen {
        self.0.lock().unwrap().last().expect("the inner service was called").clone()
    }
}

impl<B> Service<Request<B>> for Reader
where
    B: Body<Data = Bytes, Error: ToString + Send> + Send + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let all = Arc::clone(&self.0);
        async move {
            let (head, body) = request.into_parts();
            let mut body = Box::pin(body);
            let (hint, ended) = (body.size_hint(), body.is_end_stream());
            let (mut bytes, mut frames, mut trailers, mut error) = (Vec::new(), 0, None, None);
            while let Some(frame) = body.frame().await {
                frames += 1;
                match frame.map(Frame::into_data) {
                    Ok(Ok(data)) => bytes.extend_from_slice(&data),
                    Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                    Err(reason) => error = Some(reason.to_string()),
                }
            }
            let (last_hint, last_ended) = (body.size_hint(), body.is_end_stream());
            let seen = Seen { head, hint, ended, bytes, frames, trailers, error, last_hint, last_ended };
            all.lock().unwrap().push(seen);
            Ok(Response::new(Empty::new()))
        }
        .boxed()
    }
}

/// A layer that reads bodies, around a [`Reader`].
struct BodyApp {
    apple: Apple,
    layer: DeviceCheckLayer<ReadBodies>,
    reader: Reader,
}

impl BodyApp {
    /// With the proof [`digest`], whose limit is larger than the layer's.
    fn new(bounds: ReadBodies) -> Self {
        Self::with(bounds, digest(usize::MAX))
    }

    fn with(bounds: ReadBodies, proof: impl Proof) -> Self {
        let apple = Apple::new();
        let layer = apple.layer().with_bodies(bounds).add_proof_before(proof).unwrap();
        Self { apple, layer, reader: Reader::default() }
    }

    fn monitoring(self) -> Self {
        Self { layer: self.layer.with_enforcement(tower_devicecheck::Enforcement::Monitor), ..self }
    }

    async fn send(&self, request: Request<Pieces>) -> Response<ResponseBody<Empty<Bytes>>> {
        self.layer.layer(self.reader.clone()).oneshot(request).await.unwrap()
    }

    /// Sends a body with the digest of `expected`.
    async fn post(&self, expected: &[u8], body: Pieces) -> u16 {
        self.send(post(&hex(expected), body)).await.status().as_u16()
    }
}

fn post(digest: &str, body: Pieces) -> Request<Pieces> {
    Request::post("/").header("x-digest", digest).body(body).unwrap()
}
