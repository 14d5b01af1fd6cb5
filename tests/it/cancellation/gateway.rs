//! The gateway: the provider is asked once for each request, and left when the client leaves.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::{
    HeaderToken,
    split_key::{
        Limits, MemorySplitKeyStore, Provider, Providers, SplitId, SplitKeyLayer, SplitKeyRecord,
        SplitKeyStore, SplitKeyStoreError, Splitter, UsageLog,
        gateway::{Forward, GatewayLayer, PassedBody, Target},
    },
};

use super::{Slow, SlowService, explore, rest, slowly, world::World};
use crate::support::Counter;

const KEY: &str = "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9";
const ANSWER: [&str; 2] =
    [r#"{"model":"m","choices":[],"#, r#""usage":{"prompt_tokens":2,"completion_tokens":3}}"#];

impl<S: SplitKeyStore> SplitKeyStore for Slow<S> {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        slowly(self.0.get(project, split)).await
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        slowly(self.0.put(records)).await
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        slowly(self.0.list()).await
    }
}

/// A request that the provider has open, until this is dropped.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(open))
    }
}

impl std::ops::Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type LateBody = UnsyncBoxBody<Bytes, io::Error>;

/// A body whose pieces come late. It holds `kept` until it is dropped.
fn late(pieces: &'static [&'static str], kept: impl Send + 'static) -> LateBody {
    let pieces = futures::stream::unfold((pieces.iter(), kept), async |(mut pieces, kept)| {
        let piece = slowly(async { pieces.next() }).await?;
        Some((Ok(Frame::data(Bytes::from_static(piece.as_bytes()))), (pieces, kept)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[tokio::test(start_paused = true)]
async fn a_request() {
    explores("a request through the gateway", 55, StatusCode::OK).await;
}

/// An error of the provider's is read before it is passed on.
#[tokio::test(start_paused = true)]
async fn an_error_of_the_providers() {
    explores("an error of the provider's", 55, StatusCode::TOO_MANY_REQUESTS).await;
}

async fn explores(path: &'static str, least: usize, provider_says: StatusCode) {
    explore(path, least, async |at| {
        let world = World::new(|layer| {
            layer.with_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
        });
        let providers = Providers::none()
            .with(Provider::openai().with_base_url("https://provider.example/base/v1").unwrap());
        let keys = Arc::new(MemorySplitKeyStore::new());
        let splitter = Splitter::new().with_providers(providers.clone());
        let split = splitter.issue(&keys, "app", "openai", KEY, Limits::none()).await.unwrap();
        let usage = UsageLog::new();
        let (asked, open) = (Counter::default(), Arc::new(AtomicUsize::new(0)));
        let (count, opened) = (asked.clone(), Arc::clone(&open));
        let provider = service_fn(move |request: Request<PassedBody<LateBody>>| {
            let (count, open) = (count.clone(), Open::new(&opened));
            async move {
                assert!(request.headers()["authorization"].to_str().unwrap().ends_with(KEY));
                let body = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, "{}  ");
                count.add();
                let mut response = Response::new(late(&ANSWER, open));
                *response.status_mut() = provider_says;
                response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
                Ok::<_, io::Error>(response)
            }
        });
        let project =
            |head: &http::request::Parts| head.extensions.get::<Target>()?.project().map(str::to_owned);
        let gateway = ServiceBuilder::new()
            .layer(GatewayLayer::new(providers.clone()))
            .layer(&world.layer)
            .layer(SplitKeyLayer::new(Slow(keys)).with_providers(providers).with_project(project))
            .service(Forward::new(SlowService::new(provider)).with_usage(usage.clone()));
        let token = world.genuine();
        let send = async || {
            let request = Request::post("/v1/openai/app/chat/completions")
                .header("x-ai-key", split.client_part().expose())
                .header("x-device-token", &token)
                .header(CONTENT_TYPE, "application/json")
                .body(late(&["{}", "  "], ()))
                .unwrap();
            let response: Result<_, Infallible> = gateway.clone().oneshot(request).await;
            let (head, body) = response.unwrap().into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).map_err(|_| "cut short");
            (head.status, body)
        };
        let whole = (provider_says, Ok(Bytes::from(ANSWER.concat())));
        let done = at.of(send()).await;
        assert!(done.as_ref().is_none_or(|answer| *answer == whole), "{at:?}: {done:?}");
        assert_eq!(open.load(Ordering::SeqCst), 0, "{at:?}: the provider is not left");
        assert!(asked.get() <= 1, "{at:?}");
        assert_eq!(send().await, whole, "{at:?}");
        rest().await;
        let asked = asked.get();
        assert!((1..=2).contains(&asked) && open.load(Ordering::SeqCst) == 0, "{at:?}");
        assert_eq!(world.calls(), 1, "{at:?}");
        // An answer that began to pass counts, whole or not, and none counts twice.
        let report = usage.report().await.unwrap();
        let counted: u64 =
            report.entries.iter().flat_map(|entry| &entry.models).map(|model| model.requests).sum();
        let complete = 1 + u64::from(done.is_some());
        assert!((complete..=asked as u64).contains(&counted), "{at:?}: {counted}");
        done.is_some()
    })
    .await;
}
