//! The layer that finds and opens keys.

use std::sync::Arc;

use http::{HeaderName, request};
use tower_layer::Layer;

use crate::gate::{rejection::ProblemDetails, service::Gated, tenant::name::TenantName};
use crate::split_key::audit::observer::{SplitKeyObserver, TracingSplitKeyObserver};
use crate::split_key::audit::suspicion::{Suspicion, Watch};
use crate::split_key::service::{KeyGate, SplitKey, SplitKeySettings};
use crate::split_key::{
    provider::Providers, rejection::SplitKeyRejectionResponse, revocations::Revocations, sealed,
    store::SplitKeyStore,
};

/// A tower layer that gives the API key to a request from a verified device, if the request holds the client part of
/// the key.
///
/// See the [module's docs](crate::split_key) for an example. Clones, and all services made by them, count suspicious
/// uses together. A clone that a `with_*` method has changed counts separately.
#[derive(Clone, Debug)]
#[must_use]
pub struct SplitKeyLayer {
    gate: Arc<KeyGate>,
}

impl SplitKeyLayer {
    /// Makes a layer that looks keys up in `store`, with the defaults of all other methods.
    pub fn new(store: impl SplitKeyStore) -> Self {
        let settings = SplitKeySettings {
            store: Arc::new(store),
            providers: Arc::default(),
            key_headers: vec![HeaderName::from_static("x-ai-key")],
            project: None,
            tenant_projects: None,
            allow_unverified: false,
            forward_credentials: false,
            rejection_response: Arc::new(ProblemDetails),
            observer: Arc::new(TracingSplitKeyObserver),
        };
        Self::from_parts(settings, Suspicion::new())
    }

    fn from_parts(settings: SplitKeySettings, suspicion: Suspicion) -> Self {
        let revocations = Arc::new(Revocations::new(Arc::clone(&settings.store)));
        let watch = Watch::new(suspicion);
        Self { gate: Arc::new(KeyGate { settings, watch, revocations, decoy: sealed::decoy() }) }
    }

    fn configure(self, change: impl FnOnce(&mut SplitKeySettings)) -> Self {
        let mut settings = self.gate.settings.clone();
        change(&mut settings);
        Self::from_parts(settings, self.gate.watch.rules().clone())
    }

    /// Sets the known providers. A version 1 key of a known provider must have the provider's format; a key of another
    /// provider may have any format. Default: [`Providers::default`].
    pub fn with_providers(self, providers: Providers) -> Self {
        self.configure(|settings| settings.providers = Arc::new(providers))
    }

    /// Adds a header in which the layer looks for the client part. Default: `x-ai-key`, and after it the header
    /// `Authorization` with the scheme `Bearer`, without the device token that the gate has taken out.
    ///
    /// If several of these headers are present, they must hold the same client part. If one of them is present, an
    /// `Authorization` header without a client part is not for this layer, and stays untouched.
    pub fn add_key_header(self, name: HeaderName) -> Self {
        self.configure(|settings| settings.key_headers.push(name))
    }

    /// Sets where else to find the project of a request, such as in its path, besides the header `x-project-id`.
    /// Default: nowhere else. If both name a project, it must be the same.
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

    /// Sets which projects' keys the devices of a [tenant](crate::tenant) may use. Default: those of the project that has
    /// the tenant's name. A device without a tenant may use those of every project, and so may a request without a device,
    /// where such requests [get keys](Self::with_dangerous_unverified_devices).
    ///
    /// A key of another tenant's project gets the same answer as an unknown one.
    pub fn with_tenant_projects(
        self,
        belongs: impl Fn(&TenantName, &str) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.configure(|settings| settings.tenant_projects = Some(Arc::new(belongs)))
    }

    /// Sets whether requests without a verified device also get keys. Default: `false`.
    ///
    /// This is for tests, and for a roll-out with [`Enforcement::Monitor`](crate::Enforcement::Monitor).
    ///
    /// # Danger
    ///
    /// A client part that was extracted from an app is then as good as the API key.
    pub fn with_dangerous_unverified_devices(self, allow: bool) -> Self {
        self.configure(|settings| settings.allow_unverified = allow)
    }

    /// Sets whether the inner service gets the client part and the project id, in headers that are marked sensitive.
    /// Default: `false`, the layer removes them.
    ///
    /// # Danger
    ///
    /// The inner service may log the client part or forward it.
    pub fn with_forwarded_credentials(self, forward: bool) -> Self {
        self.configure(|settings| settings.forward_credentials = forward)
    }

    /// Sets the rules for suspicious uses, and whether they block a split. Default: [`Suspicion::new`].
    pub fn with_suspicion(self, suspicion: Suspicion) -> Self {
        Self::from_parts(self.gate.settings.clone(), suspicion)
    }

    /// Sets the responses to requests that get no key. Default: [`ProblemDetails`].
    pub fn with_rejection_response(self, response: impl SplitKeyRejectionResponse) -> Self {
        self.configure(|settings| settings.rejection_response = Arc::new(response))
    }

    /// Sets the observer of the use of keys. It replaces the default, [`TracingSplitKeyObserver`].
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
