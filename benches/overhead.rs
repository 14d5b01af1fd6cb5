//! What the layer adds to a request: `cargo bench --bench overhead`.
//!
//! Every row is measured in the same process, in turns, and the best of several rounds counts, so that the
//! ratios hold on a noisy machine even where the nanoseconds do not. Requests are made outside of the time
//! that is taken, with a header value that shares its buffer, as an HTTP server makes it.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

mod baseline;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    time::{Duration, Instant},
};

use baseline::{Afternoon, TOKEN_HEADER, Verify};
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Request, Response, request};
use http_body_util::Empty;
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    DeviceCheckLayer, DeviceToken, DeviceVerifier, Environment, Route, Verdict, VerifiedDevice, VerifyError,
    testing::tokens,
};

const BATCH: usize = 2_000;
const ROUNDS: usize = 60;

/// Believes or refuses everything, without waiting.
#[derive(Clone, Copy)]
struct Instantly(Verdict);

impl DeviceVerifier for Instantly {
    async fn verify(&self, _: &DeviceToken, _: Environment) -> Result<Verdict, VerifyError> {
        Ok(self.0)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

impl Verify for Instantly {
    async fn verify(&self, _: HeaderValue) -> Result<bool, ()> {
        Ok(self.0 == Verdict::Genuine)
    }
}

type Bare = fn(Request<()>) -> Ready<Result<Response<Empty<Bytes>>, Infallible>>;

fn bare(request: Request<()>) -> Ready<Result<Response<Empty<Bytes>>, Infallible>> {
    black_box(request.extensions().get::<VerifiedDevice>());
    ready(Ok(Response::new(Empty::new())))
}

fn header_values(count: usize) -> Vec<HeaderValue> {
    (0..count).map(|_| HeaderValue::from_maybe_shared(Bytes::from(tokens::realistic())).unwrap()).collect()
}

/// One row of the table.
struct Row {
    name: &'static str,
    tokens: Vec<HeaderValue>,
    run: Box<dyn FnMut(Request<()>) -> bool>,
    best: Duration,
}

impl Row {
    fn new<S, B>(name: &'static str, tokens: Vec<HeaderValue>, mut service: S) -> Self
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible> + 'static,
    {
        let run = move |request| {
            let call = service.call(request);
            let response = call.now_or_never().unwrap().unwrap();
            black_box(response).status().is_success()
        };
        Self { name, tokens, run: Box::new(run), best: Duration::MAX }
    }

    fn round(&mut self) {
        let mut requests = Vec::with_capacity(BATCH);
        for index in 0..BATCH {
            // A clone made here shares the buffer from the start, as a server's header values do.
            let token = self.tokens[index % self.tokens.len()].clone();
            requests.push(Request::builder().header(TOKEN_HEADER, token).body(()).unwrap());
        }
        let started = Instant::now();
        for request in requests {
            black_box((self.run)(request));
        }
        self.best = self.best.min(started.elapsed());
    }

    fn nanoseconds(&self) -> f64 {
        self.best.as_nanos() as f64 / BATCH as f64
    }
}

fn main() {
    // tokio's clock and moka's timeout want a runtime around them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();

    let genuine = || DeviceCheckLayer::new(Instantly(Verdict::Genuine));
    let refused = || DeviceCheckLayer::new(Instantly(Verdict::Refused));
    let one = header_values(1);
    let bare_service = || service_fn(bare as Bare);
    let exempt = |_: &request::Parts| Route::Exempt;
    let uncached = genuine().without_cache();

    let mut rows = [
        Row::new("bare service", one.clone(), bare_service()),
        Row::new("exempt", one.clone(), genuine().with_routing(exempt).layer(bare_service())),
        Row::new("hit", one.clone(), genuine().layer(bare_service())),
        Row::new(
            "hit, afternoon layer",
            one.clone(),
            Afternoon::new(bare_service(), Instantly(Verdict::Genuine)),
        ),
        Row::new("refused, cached", one.clone(), refused().layer(bare_service())),
        Row::new(
            "refused, cached, afternoon layer",
            one.clone(),
            Afternoon::new(bare_service(), Instantly(Verdict::Refused)),
        ),
        Row::new("miss, instant verifier", one, uncached.layer(bare_service())),
    ];
    for _ in 0..ROUNDS {
        rows.iter_mut().for_each(Row::round);
    }

    let bare = rows[0].nanoseconds();
    let afternoon = rows[3].nanoseconds() - bare;
    println!("2,952-character tokens, best of {ROUNDS} rounds of {BATCH} requests\n");
    println!("{:<34} {:>10} {:>12} {:>22}", "", "ns/request", "over bare", "of the afternoon hit's");
    for row in &rows {
        let over = row.nanoseconds() - bare;
        println!("{:<34} {:>10.0} {:>12.0} {:>22.2}", row.name, row.nanoseconds(), over, over / afternoon);
    }
}
