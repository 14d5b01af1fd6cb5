//! The tools that the tests share: an Apple in the same process, and a service that tells what it saw.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    path::PathBuf,
    pin::pin,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::poll_immediate;
use http::{Request, Response, StatusCode, request};
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, DeviceOutcome, DeviceVerifier, Environment, Evidence, Rejection,
    ResponseBody, TokenQuestion, Verdict, VerifiedDevice, VerifyError, testing::FakeApple,
};

use crate::captured::{self, Tee};

pub(crate) const TOKEN_HEADER: &str = "x-apple-device-token";

/// A fake Apple, and a client that asks it without a socket.
#[derive(Clone)]
pub(crate) struct Apple {
    pub(crate) fake: FakeApple,
    pub(crate) client: AppleClient,
}

impl Apple {
    pub(crate) fn new() -> Self {
        keep_events_enabled();
        let fake = FakeApple::new();
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
        captured::secret(&fake.private_key().to_pem());
        captured::shown(&(&fake, &client, fake.credentials()));
        Self { fake, client }
    }

    pub(crate) fn layer(&self) -> DeviceCheckLayer {
        DeviceCheckLayer::new(self.client.clone())
    }

    pub(crate) fn genuine(&self) -> String {
        self.fake.genuine_token(Environment::Production)
    }

    pub(crate) fn calls(&self) -> usize {
        self.fake.calls()
    }
}

/// The inner service of most tests: answers 200 and keeps the head of every request that it sees.
#[derive(Clone, Default)]
pub(crate) struct Inner {
    seen: Arc<Mutex<Vec<request::Parts>>>,
}

impl Inner {
    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> request::Parts {
        self.seen.lock().unwrap().last().expect("the inner service was called").clone()
    }
}

impl Service<Request<Full<Bytes>>> for Inner {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let head = request.into_parts().0;
        captured::shown(&head.extensions.get::<VerifiedDevice>());
        captured::shown(&head.extensions.get::<DeviceOutcome>());
        self.seen.lock().unwrap().push(head);
        std::future::ready(Ok(Response::new(Empty::new())))
    }
}

/// A layer around an [`Inner`], and what there is to ask about it.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) inner: Inner,
    service: BoxCloneSyncService<Request<Full<Bytes>>, Response<Bytes>, Infallible>,
}

impl App {
    pub(crate) fn new<L>(layer: &L) -> Self
    where
        L: Layer<Inner> + std::fmt::Debug,
        L::Service: Service<
                Request<Full<Bytes>>,
                Response = Response<ResponseBody<Empty<Bytes>>>,
                Error = Infallible,
                Future: Send,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        captured::shown(layer);
        let inner = Inner::default();
        let service =
            layer.layer(inner.clone()).and_then(|response: Response<ResponseBody<Empty<Bytes>>>| async {
                let (head, body) = response.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                Ok(Response::from_parts(head, body))
            });
        Self { inner, service: BoxCloneSyncService::new(service) }
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let response = self.service.clone().oneshot(request).await.unwrap();
        captured::shown(&response);
        response
    }

    pub(crate) async fn get(&self, token: &str) -> Response<Bytes> {
        self.send(get(token)).await
    }

    pub(crate) async fn status(&self, token: &str) -> StatusCode {
        self.get(token).await.status()
    }

    /// The evidence with which the last request reached the inner service.
    pub(crate) fn evidence(&self) -> Evidence {
        self.device().evidence().clone()
    }

    pub(crate) fn device(&self) -> VerifiedDevice {
        self.inner.last().extensions.get::<VerifiedDevice>().expect("a verified device").clone()
    }
}

pub(crate) fn get(token: &str) -> Request<Full<Bytes>> {
    Request::builder().header(TOKEN_HEADER, token).body(Full::default()).unwrap()
}

pub(crate) fn plain() -> Request<Full<Bytes>> {
    Request::new(Full::default())
}

pub(crate) fn rejection(response: &Response<Bytes>) -> Rejection {
    *response.extensions().get::<Rejection>().expect("a rejection")
}

/// A paused clock that moves only by `advance`, so that deadlines mean nothing to a busy machine. Otherwise tokio moves
/// a paused clock whenever there is nothing to do, though a socket may be about to answer.
///
/// The sockets beside it need `set_nodelay`. Without it, the kernel may keep a small write back until the peer's delayed
/// acknowledgement, for 40 ms of real time, in which this clock moves by seconds.
pub(crate) struct StandingClock {
    /// While there is blocking work, tokio leaves the clock alone.
    _working: mpsc::Sender<()>,
    /// Both ends of a connection.
    loopback: tokio::sync::Mutex<[TcpStream; 2]>,
}

impl StandingClock {
    /// Stops the clock of this runtime, which is paused.
    pub(crate) fn new() -> Self {
        let (working, work) = mpsc::channel();
        tokio::task::spawn_blocking(move || work.recv());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let loopback = [near, listener.accept().unwrap().0].map(|end| {
            end.set_nonblocking(true).unwrap();
            end.set_nodelay(true).unwrap();
            TcpStream::from_std(end).unwrap()
        });
        Self { _working: working, loopback: loopback.into() }
    }

    /// Moves the clock, and lets the sockets of this runtime catch up.
    pub(crate) async fn advance(&self, time: Duration) {
        tokio::time::advance(time).await;
        // Each of them looks at the sockets. An exchange over HTTP/2 takes about six.
        let [near, far] = &mut *self.loopback.lock().await;
        for _ in 0..24 {
            // On a busy machine, a thread of the kernel delivers what was sent, in order. This byte comes after it.
            near.write_u8(0).await.unwrap();
            far.read_u8().await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    /// Moves the clock in steps of this time until the future is done.
    pub(crate) async fn until<F: Future>(&self, step: Duration, future: F) -> F::Output {
        let mut future = pin!(future);
        for _ in 0..10_000 {
            if let Some(output) = poll_immediate(&mut future).await {
                return output;
            }
            self.advance(step).await;
        }
        panic!("not done after 10,000 steps of {step:?}")
    }
}

/// Counts.
#[derive(Clone, Default)]
pub(crate) struct Counter(Arc<AtomicUsize>);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A verifier that gives one verdict, without waiting, and counts.
#[derive(Clone)]
pub(crate) struct Stub {
    verdict: Verdict,
    asked: Counter,
}

impl Stub {
    pub(crate) fn genuine(asked: &Counter) -> Self {
        Self { verdict: Verdict::Genuine, asked: asked.clone() }
    }
}

impl DeviceVerifier for Stub {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.asked.add();
        Ok(self.verdict)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

/// The program of an example, built as the tests are: `cargo test --test it` builds no examples, and one that was
/// built earlier may be out of date.
pub(crate) fn example(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let tests = std::env::current_exe().unwrap();
    // target/<profile>/deps/<this>
    let folder = tests.ancestors().nth(2).unwrap();
    let mut built = BUILT.lock().unwrap();
    if !built.contains(name) {
        let profile = folder.file_name().filter(|name| *name != "debug").unwrap_or("dev".as_ref());
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--example", name]).arg("--profile").arg(profile);
        cargo.arg("--target-dir").arg(folder.parent().unwrap());
        // In the published package no `dev-dependencies` turn them on.
        cargo.args(["--features", "app-attest,axum,gateway,session,testing"]);
        cargo.args(cfg!(feature = "redis").then_some("--features=redis"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        let done = cargo.status().is_ok_and(|status| status.success());
        assert!(done, "run this first: {cargo:?}");
        built.insert(name.to_owned());
    }
    folder.join("examples").join(name)
}

/// Keeps a subscriber alive that is interested in every event and hears none.
///
/// `tracing` remembers for each event whether any subscriber wants it, and can miss one that comes at the same
/// moment on another thread. With this one it never remembers that none does.
pub(crate) fn keep_events_enabled() {
    static INTERESTED: std::sync::OnceLock<tracing::Dispatch> = std::sync::OnceLock::new();
    INTERESTED.get_or_init(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        let dispatch = tracing::Dispatch::new(subscriber.with_writer(Tee::new(None)).finish());
        if captured::is_on() {
            tracing::dispatcher::set_global_default(dispatch.clone()).expect("the only global one");
        }
        dispatch
    });
}

/// Everything that `tracing` says, as text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Listens on this thread, until the guard is dropped.
    pub(crate) fn listen(&self, level: tracing::Level) -> tracing::subscriber::DefaultGuard {
        keep_events_enabled();
        let tee = Tee::new(Some((self.clone(), level)));
        let subscriber = tracing_subscriber::fmt().with_max_level(tee.level()).with_ansi(false);
        tracing::subscriber::set_default(subscriber.with_writer(tee).finish())
    }

    /// The text since the last call.
    pub(crate) fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

/// A server that speaks TLS with a certificate of its own authority, whose root it returns in PEM, and answers 200. It
/// keeps the heads that it reads.
pub(crate) async fn behind_a_private_authority() -> (String, String, Arc<Mutex<Vec<String>>>) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio_rustls::{TlsAcceptor, rustls};

    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let pem = root.self_signed(&root_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (acceptor, note) = (acceptor.clone(), Arc::clone(&note));
            tokio::spawn(async move {
                let Ok(mut socket) = acceptor.accept(socket).await else { return };
                let mut head = [0; 8192];
                let length = socket.read(&mut head).await.unwrap_or_default();
                note.lock().unwrap().push(String::from_utf8_lossy(&head[..length]).into_owned());
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            });
        }
    });
    (url, pem, seen)
}
