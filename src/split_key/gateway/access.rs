//! The access log: one line for each request, and the id by which the client can name it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::{
    Arc, LazyLock, OnceLock,
    atomic::{AtomicU16, AtomicU64, Ordering},
};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use uuid::Uuid;

use crate::runtime::Instant;
use crate::split_key::api_key::ApiKey;
use crate::split_key::metadata::SplitId;
use crate::split_key::usage::stated::TokenUsage;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-gateway-request-id");
const CODE: HeaderName = HeaderName::from_static("x-devicecheck-code");

/// A tower layer that logs each request below `/v1/`, and gives it an id.
///
/// It belongs outside of [`GatewayLayer`](crate::split_key::gateway::GatewayLayer). Nobody can guess the id. The client gets
/// it in the response header `X-Gateway-Request-Id`. The provider's own id stays in the header that SDKs read. The
/// client's own header of that name is ignored.
///
/// The line is a `tracing` event at level info under the target `tower_devicecheck::access`, when the request is over:
/// when the response's last byte has passed, or the client has left. It has these fields:
///
/// | field | value |
/// |---|---|
/// | `request_id` | the id |
/// | `method`, `status` | of the request, and of the response; no status if the client left before it |
/// | `code` | of a refusal, as in the header `X-DeviceCheck-Code` |
/// | `provider` | the provider that the path names |
/// | `project`, `split` | of a request that got its key |
/// | `model`, `input_tokens`, `output_tokens` | as the provider states them; see [`MeteredBody`](crate::split_key::MeteredBody) |
/// | `duration_ms` | milliseconds from the request's head to its end |
/// | `bytes_in`, `bytes_out` | the data that were read from the client's body, and passed of the response's |
///
/// No field holds a key, a part of one, a token, a path or a query.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
#[non_exhaustive]
pub struct AccessLogLayer {}

impl AccessLogLayer {
    /// Makes the layer.
    pub const fn new() -> Self {
        Self {}
    }
}

impl<S> Layer<S> for AccessLogLayer {
    type Service = AccessLog<S>;

    fn layer(&self, inner: S) -> AccessLog<S> {
        AccessLog { inner }
    }
}

/// The service of an [`AccessLogLayer`].
#[derive(Clone, Debug)]
pub struct AccessLog<S> {
    inner: S,
}

/// An extension of a logged request: the line that is to be written when the last clone is gone.
#[derive(Clone)]
pub(super) struct Access(Arc<Line>);

struct Line {
    id: String,
    method: http::Method,
    began: Instant,
    status: AtomicU16,
    code: OnceLock<String>,
    provider: OnceLock<Box<str>>,
    key: OnceLock<(Box<str>, SplitId)>,
    usage: OnceLock<TokenUsage>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Two random seeds of this process, each hashed with the number of the request. Nobody can guess the next id, and the
/// system is asked for randomness once.
fn new_id() -> String {
    static SEEDS: LazyLock<[Uuid; 2]> = LazyLock::new(|| [Uuid::new_v4(), Uuid::new_v4()]);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let half = |seed: Uuid| {
        let mut hasher = DefaultHasher::new();
        (seed, number).hash(&mut hasher);
        hasher.finish()
    };
    let [first, second] = SEEDS.map(half);
    Uuid::from_u64_pair(first, second).simple().to_string()
}

impl Access {
    fn new(method: &http::Method) -> Self {
        Self(Arc::new(Line {
            id: new_id(),
            method: method.clone(),
            began: Instant::now(),
            status: AtomicU16::new(0),
            code: OnceLock::new(),
            provider: OnceLock::new(),
            key: OnceLock::new(),
            usage: OnceLock::new(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }))
    }

    pub(super) fn set_provider(&self, name: &str) {
        self.0.provider.get_or_init(|| name.into());
    }

    pub(super) fn set_key(&self, key: &ApiKey) {
        self.0.key.get_or_init(|| (key.project().into(), key.metadata().split()));
    }

    pub(super) fn set_usage(&self, usage: TokenUsage) {
        self.0.usage.get_or_init(|| usage);
    }

    fn answered<B>(&self, response: &mut Response<B>) {
        self.0.status.store(response.status().as_u16(), Ordering::Relaxed);
        let headers: &mut HeaderMap = response.headers_mut();
        if let Some(code) = headers.get(CODE).and_then(|code| code.to_str().ok()) {
            self.0.code.get_or_init(|| code.to_owned());
        }
        if let Ok(id) = HeaderValue::from_str(&self.0.id) {
            headers.insert(REQUEST_ID, id);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let status = Some(self.status.load(Ordering::Relaxed)).filter(|status| *status > 0);
        let usage = self.usage.get();
        tracing::info!(
            target: "tower_devicecheck::access",
            request_id = &*self.id,
            method = self.method.as_str(),
            status,
            code = self.code.get(),
            provider = self.provider.get().map(|name| &**name),
            project = self.key.get().map(|(project, _)| &**project),
            split = self.key.get().map(|(_, split)| tracing::field::display(*split)),
            model = usage.and_then(|usage| usage.model.as_deref()),
            input_tokens = usage.and_then(|usage| usage.input),
            output_tokens = usage.and_then(|usage| usage.output),
            duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes_in = self.bytes_in.load(Ordering::Relaxed),
            bytes_out = self.bytes_out.load(Ordering::Relaxed),
            "request"
        );
    }
}

impl<S, B, R> Service<Request<B>> for AccessLog<S>
where
    S: Service<Request<LoggedBody<B>>, Response = Response<R>>,
{
    type Response = Response<LoggedBody<R>>;
    type Error = S::Error;
    type Future = AccessLogFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let is_logged = request.uri().path().starts_with("/v1/");
        let access = is_logged.then(|| Access::new(request.method()));
        if let Some(access) = &access {
            request.extensions_mut().insert(access.clone());
        }
        let request = request.map(|body| LoggedBody { body, is_request: true, access: access.clone() });
        AccessLogFuture { future: self.inner.call(request), access }
    }
}

pin_project! {
    /// The future of an [`AccessLog`].
    pub struct AccessLogFuture<F> {
        #[pin]
        future: F,
        access: Option<Access>,
    }
}

impl<F, R, E> Future for AccessLogFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<LoggedBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let access = this.access.take();
        if let Some(access) = &access {
            access.answered(&mut response);
        }
        Poll::Ready(Ok(response.map(|body| LoggedBody { body, is_request: false, access })))
    }
}

pin_project! {
    /// A body whose length the access log has.
    pub struct LoggedBody<B> {
        // Dropped before the line.
        #[pin]
        body: B,
        is_request: bool,
        access: Option<Access>,
    }
}

impl<B: Body<Data = Bytes>> Body for LoggedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if let (Some(access), Some(Ok(frame))) = (this.access, &frame)
            && let Some(data) = frame.data_ref()
        {
            let bytes = if *this.is_request { &access.0.bytes_in } else { &access.0.bytes_out };
            bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Default> Default for LoggedBody<B> {
    fn default() -> Self {
        Self { body: B::default(), is_request: false, access: None }
    }
}

impl<F> std::fmt::Debug for AccessLogFuture<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLogFuture").finish_non_exhaustive()
    }
}

impl<B> std::fmt::Debug for LoggedBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedBody").finish_non_exhaustive()
    }
}
