//! A slow Apple, a gate, and a slow service behind it.

use std::{fmt::Debug, sync::Arc};

use futures::future::join_all;
use http::StatusCode;
use tower::{Layer, layer::util::Stack};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, Environment, Event, Observer, Outcome, cache::MemoryCache,
    testing::FakeApple,
};

use super::{Slow, SlowService, rest, slow_transport};
use crate::support::{App, Counter, get, keep_events_enabled};

/// The calls to Apple that may be in flight, and those that may wait.
pub(super) const SLOTS: usize = 2;
pub(super) const WAITING: usize = 1;

/// Makes each inner service slow.
#[derive(Clone, Debug)]
pub(super) struct SlowLayer;

impl<S> Layer<S> for SlowLayer {
    type Service = SlowService<S>;

    fn layer(&self, inner: S) -> SlowService<S> {
        SlowService::new(inner)
    }
}

/// Counts the requests that the gate admits.
#[derive(Clone, Default)]
pub(super) struct Admitted(pub(super) Counter);

impl Observer for Admitted {
    fn decision(&self, event: &Event<'_>) {
        if matches!(event.outcome(), Outcome::Verified(_)) {
            self.0.add();
        }
    }
}

pub(super) struct World {
    pub(super) fake: FakeApple,
    pub(super) client: AppleClient,
    pub(super) cache: Arc<MemoryCache>,
    pub(super) layer: DeviceCheckLayer,
    pub(super) app: App,
    pub(super) admitted: Counter,
}

/// A fake Apple behind a slow transport, and a client with few slots.
pub(super) fn slow_apple() -> (FakeApple, AppleClient) {
    let fake = FakeApple::new();
    let client = slow_client(&fake);
    (fake, client)
}

pub(super) fn slow_client(fake: &FakeApple) -> AppleClient {
    keep_events_enabled();
    AppleClient::builder(fake.credentials())
        .transport(slow_transport(fake.transport()))
        .in_flight_limit(SLOTS)
        .waiting_limit(WAITING)
        .build()
        .unwrap()
}

/// The same layer around services that are slow.
pub(super) fn slow<L>(layer: L) -> Stack<SlowLayer, L> {
    Stack::new(SlowLayer, layer)
}

impl World {
    /// A world with a slow cache, and a layer that is changed so.
    pub(super) fn new(change: impl FnOnce(DeviceCheckLayer) -> DeviceCheckLayer) -> Self {
        let (fake, client) = slow_apple();
        let admitted = Admitted::default();
        let cache = Arc::new(MemoryCache::new());
        let layer = DeviceCheckLayer::new(client.clone())
            .with_cache(Slow(Arc::clone(&cache)))
            .with_observer(admitted.clone());
        let layer = change(layer);
        Self { app: App::new(&slow(layer.clone())), fake, client, cache, layer, admitted: admitted.0 }
    }

    pub(super) fn genuine(&self) -> String {
        self.fake.genuine_token(Environment::Production)
    }

    pub(super) fn calls(&self) -> usize {
        self.fake.calls()
    }

    pub(super) async fn status(&self, token: &str) -> StatusCode {
        self.app.send(get(token)).await.status()
    }

    /// All slots and all places in the queue serve requests, and nothing is left of those that have ended.
    pub(super) async fn is_whole(&self, at: &impl Debug) {
        rest().await;
        let layer = format!("{:?}", self.layer);
        assert!(layer.contains("checks_in_flight: 0"), "{at:?}: {layer}");
        let calls = self.calls();
        let tokens: Vec<_> = (0..SLOTS + WAITING).map(|_| self.genuine()).collect();
        let statuses = join_all(tokens.iter().map(|token| self.status(token))).await;
        assert_eq!(statuses, [StatusCode::OK; SLOTS + WAITING], "{at:?}");
        rest().await;
        assert_eq!(self.calls() - calls, SLOTS + WAITING, "{at:?}");
        assert!(format!("{:?}", self.layer).contains("checks_in_flight: 0"), "{at:?}");
    }
}
