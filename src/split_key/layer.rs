//! The layer: how keys are found and opened.

use std::sync::Arc;

use http::{HeaderName, request};
use tower_layer::Layer;

use crate::gate::{rejection::ProblemDetails, service::Gated};
use crate::split_key::audit::observer::{SplitKeyObserver, TracingSplitKeyObserver};
use crate::split_key::audit::suspicion::{Suspicion, Watch};
use crate::split_key::service::{KeyGate, SplitKey, SplitKeySettings};
use crate::split_key::{
    provider::Providers, rejection::SplitKeyRejectionResponse, sealed, store::SplitKeyStore,
};

/// Gives a request from a verified device the API key, if the request brings the client part of it.
///
/// See the [module's docs](crate::split_key) for an example. Clones, and all services made by them, count
/// suspicious uses together. A clone that is changed by a `with_*` method counts for itself.
#[derive(Clone, Debug)]
#[must_use]
pub struct SplitKeyLayer {
    gate: Arc<KeyGate>,
}

impl SplitKeyLayer {
    /// A layer that looks keys up in `store`, and has every default of the other methods.
    pub fn new(store: impl SplitKeyStore) -> Self {
        let settings = SplitKeySettings {
            store: Arc::new(store),
            providers: Arc::default(),
            key_headers: vec![HeaderName::from_static("x-ai-key")],
            project: None,
            allow_unverified: false,
            forward_credentials: false,
            rejection_response: Arc::new(ProblemDetails),
            observer: Arc::new(TracingSplitKeyObserver),
        };
        Self::from_parts(settings, Suspicion::new())
    }

    fn from_parts(settings: SplitKeySettings, suspicion: Suspicion) -> Self {
        Self { gate: Arc::new(KeyGate { settings, watch: Watch::new(suspicion), decoy: sealed::decoy() }) }
    }

    fn configure(self, change: impl FnOnce(&mut SplitKeySettings)) -> Self {
        let mut settings = self.gate.settings.clone();
        change(&mut settings);
        Self::from_parts(settings, self.gate.watch.rules().clone())
    }

    /// Knows these providers, whose formats the keys of version 1 must have. Default:
    /// [`Providers::default`]. A key of another provider may have any format.
    pub fn with_providers(self, providers: Providers) -> Self {
        self.configure(|settings| settings.providers = Arc::new(providers))
    }

    /// Looks for the client part in one more header. Default: `x-ai-key`, and after it the header
    /// `Authorization` with the scheme `Bearer`, without the device token that the gate has taken out of it.
    ///
    /// All headers that are there must hold the same client part. Beside one of these headers, an
    /// `Authorization` that holds no client part is somebody else's, and left alone.
    pub fn add_key_header(self, name: HeaderName) -> Self {
        self.configure(|settings| settings.key_headers.push(name))
    }

    /// Finds the project of a request elsewhere than in the header `x-project-id`, such as in its path.
    /// Default: nowhere else. Where both name a project, it must be the same.
    ///
    /// ```
    /// use http::request;
    /// # use tower_devicecheck::split_key::{MemorySplitKeyStore, SplitKeyLayer};
    /// # let layer = SplitKeyLayer::new(MemorySplitKeyStore::new());
    ///
    /// // /v1/openai/{project}/...
    /// let layer = layer.with_project(|head: &request::Parts| {
    ///     head.uri.path().split('/').nth(3).map(ToOwned::to_owned)
    /// });
    /// ```
    pub fn with_project(
        self,
        project: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.configure(|settings| settings.project = Some(Arc::new(project)))
    }

    /// Gives keys to requests without a verified device, too. Default: `false`.
    ///
    /// For tests, and for a roll-out with [`Enforcement::Monitor`](crate::Enforcement::Monitor).
    ///
    /// # Danger
    ///
    /// A client part that was read out of an app is as good as the API key.
    pub fn with_dangerous_unverified_devices(self, allow: bool) -> Self {
        self.configure(|settings| settings.allow_unverified = allow)
    }

    /// Leaves the client part and the project id in the request that the inner service gets, marked
    /// sensitive. Default: `false`, they are removed.
    ///
    /// # Danger
    ///
    /// The inner service may log the client part or send it on.
    pub fn with_forwarded_credentials(self, forward: bool) -> Self {
        self.configure(|settings| settings.forward_credentials = forward)
    }

    /// Sets the rules for suspicious uses, and whether they are blocked. Default: [`Suspicion::new`].
    pub fn with_suspicion(self, suspicion: Suspicion) -> Self {
        Self::from_parts(self.gate.settings.clone(), suspicion)
    }

    /// Answers requests that are not given a key. Default: [`ProblemDetails`].
    pub fn with_rejection_response(self, response: impl SplitKeyRejectionResponse) -> Self {
        self.configure(|settings| settings.rejection_response = Arc::new(response))
    }

    /// Is told about the use of keys. Default: [`TracingSplitKeyObserver`], which this replaces.
    pub fn with_observer(self, observer: impl SplitKeyObserver) -> Self {
        self.configure(|settings| settings.observer = Arc::new(observer))
    }
}

impl<S> Layer<S> for SplitKeyLayer {
    type Service = SplitKey<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated::new(inner, Arc::clone(&self.gate))
    }
}
