//! The layer: how keys are found and opened.

use std::{fmt, sync::Arc};

use http::{HeaderName, request};
use tower_layer::Layer;

use crate::{
    gate::rejection::ProblemDetails,
    split_key::{
        audit::{
            observer::{SplitKeyObserver, TracingSplitKeyObserver},
            suspicion::{Suspicion, Watch},
        },
        parts::ServerPart,
        provider::Providers,
        rejection::SplitKeyRejectionResponse,
        sealed,
        service::SplitKey,
        store::{ErasedSplitKeyStore, SplitKeyStore},
    },
};

/// Gives requests from verified devices the API key of which they bring a part.
///
/// See the [module's docs](crate::split_key) for an example. Clones, and all services made by them, count
/// suspicious uses together. A clone that is changed by a `with_*` method counts for itself.
#[derive(Clone)]
#[must_use]
pub struct SplitKeyLayer {
    keys: Arc<Keys>,
}

/// What all services of one layer share.
pub(super) struct Keys {
    pub(super) config: Config,
    pub(super) watch: Watch,
    /// A server part that nothing opens.
    pub(super) decoy: ServerPart,
}

#[derive(Clone)]
pub(super) struct Config {
    pub(super) store: Arc<dyn ErasedSplitKeyStore>,
    pub(super) providers: Arc<Providers>,
    pub(super) key_headers: Vec<HeaderName>,
    pub(super) project: Option<Arc<dyn ProjectSource>>,
    pub(super) allow_unverified: bool,
    pub(super) forward_credentials: bool,
    pub(super) rejection_response: Arc<dyn SplitKeyRejectionResponse>,
    pub(super) observer: Arc<dyn SplitKeyObserver>,
}

/// Finds the project of a request; a name for the closures that do.
pub(super) trait ProjectSource: Fn(&request::Parts) -> Option<String> + Send + Sync {}

impl<F: Fn(&request::Parts) -> Option<String> + Send + Sync> ProjectSource for F {}

impl SplitKeyLayer {
    /// A layer that looks keys up in `store`, and has every default of the other methods.
    pub fn new(store: impl SplitKeyStore) -> Self {
        let config = Config {
            store: Arc::new(store),
            providers: Arc::default(),
            key_headers: vec![HeaderName::from_static("x-ai-key")],
            project: None,
            allow_unverified: false,
            forward_credentials: false,
            rejection_response: Arc::new(ProblemDetails),
            observer: Arc::new(TracingSplitKeyObserver),
        };
        Self::from_parts(config, Suspicion::new())
    }

    fn from_parts(config: Config, suspicion: Suspicion) -> Self {
        Self { keys: Arc::new(Keys { config, watch: Watch::new(suspicion), decoy: sealed::decoy() }) }
    }

    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.keys.config.clone();
        change(&mut config);
        Self::from_parts(config, self.keys.watch.rules().clone())
    }

    /// Knows these providers, whose formats the keys of version 1 must have. Default:
    /// [`Providers::default`]. A key of another provider may have any format.
    pub fn with_providers(self, providers: Providers) -> Self {
        self.configure(|config| config.providers = Arc::new(providers))
    }

    /// Looks for the client part in one more header. Default: `x-ai-key`, and after it the header
    /// `Authorization` with the scheme `Bearer`, without the device token that the gate has taken out of it.
    ///
    /// All headers that are there must hold the same client part. Beside one of these headers, an
    /// `Authorization` that holds no client part is somebody else's, and left alone.
    pub fn add_key_header(self, name: HeaderName) -> Self {
        self.configure(|config| config.key_headers.push(name))
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
        self.configure(|config| config.project = Some(Arc::new(project)))
    }

    /// Gives keys to whoever brings a client part, from a genuine device or not: then a client part that was
    /// read out of an app is as good as the API key. Default: `false`.
    ///
    /// For tests, and for a roll-out with [`Enforcement::Monitor`](crate::Enforcement::Monitor).
    pub fn with_dangerous_unverified_devices(self, allow: bool) -> Self {
        self.configure(|config| config.allow_unverified = allow)
    }

    /// Leaves the client part and the project id in the request that the inner service gets, marked
    /// sensitive. Default: `false`, they are removed.
    pub fn with_forwarded_credentials(self, forward: bool) -> Self {
        self.configure(|config| config.forward_credentials = forward)
    }

    /// What counts as suspicious, and whether it is blocked. Default: [`Suspicion::new`].
    pub fn with_suspicion(self, suspicion: Suspicion) -> Self {
        Self::from_parts(self.keys.config.clone(), suspicion)
    }

    /// Answers requests that are not given a key. Default: [`ProblemDetails`].
    pub fn with_rejection_response(self, response: impl SplitKeyRejectionResponse) -> Self {
        self.configure(|config| config.rejection_response = Arc::new(response))
    }

    /// Is told about the use of keys. Default: [`TracingSplitKeyObserver`], which this replaces.
    pub fn with_observer(self, observer: impl SplitKeyObserver) -> Self {
        self.configure(|config| config.observer = Arc::new(observer))
    }
}

impl<S> Layer<S> for SplitKeyLayer {
    type Service = SplitKey<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SplitKey::new(inner, Arc::clone(&self.keys))
    }
}

impl fmt::Debug for SplitKeyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt(f)
    }
}

impl fmt::Debug for Keys {
    // Plug-ins are anything, closures too; they are not asked to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        f.debug_struct("SplitKeyLayer")
            .field("providers", &config.providers)
            .field("key_headers", &config.key_headers)
            .field("project", &config.project.is_some())
            .field("allow_unverified", &config.allow_unverified)
            .field("forward_credentials", &config.forward_credentials)
            .field("suspicion", &self.watch)
            .finish_non_exhaustive()
    }
}
