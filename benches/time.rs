//! Time by criterion, with its statistics: `cargo bench -p tower-devicecheck-benches --bench time`.
//!
//! For a closer look at one of the rows. To compare, use `overhead`, which takes turns.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod baseline;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;

use std::{convert::Infallible, hint::black_box};

use common::{afternoon, bare_service, fresh_token, ours, request};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures::FutureExt;
use http::{HeaderValue, Request, Response, request};
use tower::{Layer, Service};
use tower_devicecheck::{Route, Verdict};

fn requests(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let token = fresh_token();
    let known = || token.clone();
    let layer = || ours(Verdict::Genuine);
    let exempt = layer().with_routing(|_: &request::Parts| Route::Exempt);
    time(criterion, "bare", bare_service(), known);
    time(criterion, "exempt", exempt.layer(bare_service()), known);
    time(criterion, "hit/ours", layer().layer(bare_service()), known);
    time(criterion, "hit/afternoon", afternoon(Verdict::Genuine), known);
    time(criterion, "refused/ours", ours(Verdict::Refused).layer(bare_service()), known);
    time(criterion, "refused/afternoon", afternoon(Verdict::Refused), known);
    time(criterion, "miss/ours", layer().layer(bare_service()), fresh_token);
    time(criterion, "miss/afternoon", afternoon(Verdict::Genuine), fresh_token);
}

fn time<S, B>(criterion: &mut Criterion, name: &str, mut service: S, token: impl Fn() -> HeaderValue)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    criterion.bench_function(name, |bencher| {
        bencher.iter_batched(
            || request(token()),
            |request| black_box(service.call(request).now_or_never()),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, requests);
criterion_main!(benches);
