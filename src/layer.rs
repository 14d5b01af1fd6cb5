//! The layer: how a check is put together.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderName;
use tower_layer::Layer;

use crate::{
    device_check::cache::{CachedVerdict, ErasedCache, VerdictCache},
    device_check::debug_token::DebugTokens,
    device_check::erased::ErasedVerifier,
    device_check::pipeline::Answer,
    device_check::single_flight::SingleFlight,
    device_check::token_source::{HeaderToken, TokenSource},
    device_check::verifier::{DeviceVerifier, VerifyError},
    gate::credential::TokenDigest,
    gate::decision::Verdict,
    gate::observer::{Observer, TracingObserver},
    gate::rejection::{ProblemDetails, RejectionResponse},
    gate::routing::{Environment, Route, RoutingPolicy},
    gate::service::DeviceCheck,
    replay::{ErasedReplayGuard, ReplayGuard},
    runtime::SystemTime,
};

/// What happens to a request that is rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Enforcement {
    /// It is answered and does not reach the inner service. The default.
    #[default]
    Enforce,
    /// It reaches the inner service all the same. Every request that is not exempt carries a
    /// [`DeviceOutcome`](crate::DeviceOutcome). For a roll-out: nothing is protected.
    ///
    /// A request still waits for the check, during an outage of Apple's for all of its deadline.
    Monitor,
}

/// Lets only requests from genuine devices through to the inner service.
///
/// See the [crate's docs](crate) for an example.
///
/// # Clone
///
/// Clones, and all services made by them, share one cache and ask once for the same token at the same time.
/// A clone that is changed by a `with_*` method shares the cache, unless that was changed, and asks for
/// itself.
#[derive(Clone)]
#[must_use]
pub struct DeviceCheckLayer {
    gate: Arc<Gate>,
}

/// What all services of one layer share.
pub(crate) struct Gate {
    pub(crate) config: Config,
    pub(crate) flights: SingleFlight<(Environment, TokenDigest), Result<Answer, VerifyError>>,
}

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) verifier: Arc<dyn ErasedVerifier>,
    pub(crate) routing: Arc<dyn RoutingPolicy>,
    pub(crate) exempt_preflights: bool,
    pub(crate) token_sources: Vec<Arc<dyn TokenSource>>,
    pub(crate) debug_tokens: Option<Arc<DebugTokens>>,
    pub(crate) memory: Memory,
    pub(crate) retry_window: Duration,
    pub(crate) idempotency_header: HeaderName,
    genuine_time_to_live: Duration,
    refused_time_to_live: Duration,
    pub(crate) enforcement: Enforcement,
    pub(crate) forward_credentials: bool,
    pub(crate) rejection_response: Arc<dyn RejectionResponse>,
    pub(crate) observer: Arc<dyn Observer>,
}

/// What is remembered of tokens. A verdict that is remembered admits the next request with the same token,
/// which is what single use forbids: there is one or the other.
#[derive(Clone)]
pub(crate) enum Memory {
    Nothing,
    Cache(Arc<dyn ErasedCache>),
    SingleUse(Arc<dyn ErasedReplayGuard>),
}

impl Memory {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Cache(_) => "verdicts",
            Self::SingleUse(_) => "single use",
        }
    }
}

impl Config {
    pub(crate) const fn time_to_live(&self, verdict: Verdict) -> Duration {
        match verdict {
            Verdict::Genuine => self.genuine_time_to_live,
            Verdict::Refused => self.refused_time_to_live,
        }
    }

    /// Whether a verdict from the cache is good by this layer's own time to live. A layer with a longer one may
    /// have put it there.
    pub(crate) fn is_fresh(&self, cached: &CachedVerdict) -> bool {
        let time_to_live = self.time_to_live(cached.verdict());
        // Where the wall clock was put back, only the cache's own time counts.
        let age = SystemTime::now().duration_since(cached.checked_at()).unwrap_or_default();
        age < time_to_live
    }
}

impl DeviceCheckLayer {
    /// A layer that asks `verifier`, usually an `AppleClient`, and has every default of the `with_*`
    /// methods.
    pub fn new(verifier: impl DeviceVerifier) -> Self {
        Self::from_config(Config {
            verifier: Arc::new(verifier),
            routing: Arc::new(Route::Production),
            exempt_preflights: true,
            token_sources: vec![Arc::new(HeaderToken::default())],
            debug_tokens: None,
            #[cfg(feature = "memory-cache")]
            memory: Memory::Cache(Arc::new(crate::cache::MemoryCache::new())),
            #[cfg(not(feature = "memory-cache"))]
            memory: Memory::Nothing,
            retry_window: Duration::ZERO,
            idempotency_header: HeaderName::from_static("idempotency-key"),
            genuine_time_to_live: Duration::from_secs(5 * 60),
            refused_time_to_live: Duration::from_secs(30),
            enforcement: Enforcement::Enforce,
            forward_credentials: false,
            rejection_response: Arc::new(ProblemDetails),
            observer: Arc::new(TracingObserver),
        })
    }

    fn from_config(config: Config) -> Self {
        Self { gate: Arc::new(Gate { config, flights: SingleFlight::new() }) }
    }

    /// What is under way for the old configuration must not answer for the new one, hence a new gate.
    fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.gate.config.clone();
        change(&mut config);
        Self::from_config(config)
    }

    /// Decides for each request which of Apple's servers is asked, if any. Default: [`Route::Production`].
    ///
    /// True CORS preflights are exempt whatever the policy says; see
    /// [`with_exempt_preflights`](Self::with_exempt_preflights).
    pub fn with_routing(self, policy: impl RoutingPolicy) -> Self {
        self.configure(|config| config.routing = Arc::new(policy))
    }

    /// Whether true CORS preflights are exempt: `OPTIONS` with `Origin` and `Access-Control-Request-Method`,
    /// and nothing that announces a body. Default: `true`.
    ///
    /// Anyone can send one. **Turn this off in front of services that do not look at the method, such as
    /// tonic's**: to them a preflight is a call like any other.
    pub fn with_exempt_preflights(self, exempt: bool) -> Self {
        self.configure(|config| config.exempt_preflights = exempt)
    }

    /// Finds the token in a request, in the place of all sources so far. Default: [`HeaderToken`] for
    /// `X-Apple-Device-Token`.
    pub fn with_token_source(self, source: impl TokenSource) -> Self {
        self.configure(|config| config.token_sources = vec![Arc::new(source)])
    }

    /// Looks for the token in one more place. A request in which two sources find different tokens is
    /// [malformed](crate::Rejection::MalformedToken).
    pub fn add_token_source(self, source: impl TokenSource) -> Self {
        self.configure(|config| config.token_sources.push(Arc::new(source)))
    }

    /// Admits requests with one of these secrets instead of a device token. Default: none.
    pub fn with_debug_tokens(self, tokens: DebugTokens) -> Self {
        self.configure(|config| config.debug_tokens = Some(Arc::new(tokens)))
    }

    /// Remembers verdicts, in the place of [single use](Self::with_single_use). Default: a `MemoryCache` of
    /// the layer's own where the feature `memory-cache` is on, nothing otherwise.
    pub fn with_cache(self, cache: impl VerdictCache) -> Self {
        self.configure(|config| config.memory = Memory::Cache(Arc::new(cache)))
    }

    /// Remembers neither verdicts nor tokens: asks Apple about every request, but once for requests with the
    /// same token at the same time.
    pub fn without_cache(self) -> Self {
        self.configure(|config| config.memory = Memory::Nothing)
    }

    /// Lets each token admit one request: the next one with it is a
    /// [`ReusedToken`](crate::Rejection::ReusedToken), and Apple is not asked. See [the module's
    /// docs](crate::replay).
    ///
    /// This takes the place of the cache, and [`with_cache`](Self::with_cache) and
    /// [`without_cache`](Self::without_cache) take the place of this: a verdict that is remembered admits a
    /// second request, which is what a guard is there to refuse. Routes that need one and routes that need
    /// the other get a layer each.
    pub fn with_single_use(self, guard: impl ReplayGuard) -> Self {
        self.configure(|config| config.memory = Memory::SingleUse(Arc::new(guard)))
    }

    /// For how long after a token was spent *one* more request with it is let through if both hold the same
    /// idempotency key. Matters to [single use](Self::with_single_use) only. Default: zero, none is.
    ///
    /// Whoever has captured a request has the key, too.
    pub fn with_retry_window(self, window: Duration) -> Self {
        self.configure(|config| config.retry_window = window)
    }

    /// The header in which a client sends the idempotency key. Default: `Idempotency-Key`.
    ///
    /// It is left in the request. One that is empty or repeated counts as none.
    pub fn with_idempotency_header(self, name: HeaderName) -> Self {
        self.configure(|config| config.idempotency_header = name)
    }

    /// For how long a verdict is remembered, counted from the start of the check. Zero: not at all. Older
    /// verdicts in a shared cache do not count, whoever put them there.
    /// Default: 5 minutes for [`Verdict::Genuine`], 30 seconds for [`Verdict::Refused`].
    ///
    /// While a genuine verdict is remembered, whoever has captured the token can use it.
    pub fn with_time_to_live(self, verdict: Verdict, time_to_live: Duration) -> Self {
        self.configure(|config| match verdict {
            Verdict::Genuine => config.genuine_time_to_live = time_to_live,
            Verdict::Refused => config.refused_time_to_live = time_to_live,
        })
    }

    /// Whether rejected requests are kept from the inner service. Default: [`Enforcement::Enforce`].
    pub fn with_enforcement(self, enforcement: Enforcement) -> Self {
        self.configure(|config| config.enforcement = enforcement)
    }

    /// Leaves the headers of the device token and debug token in the request that the inner service gets, marked
    /// sensitive. Default: `false`, they are removed.
    ///
    /// Exempt requests are not searched for credentials and keep whatever they hold.
    pub fn with_forwarded_credentials(self, forward: bool) -> Self {
        self.configure(|config| config.forward_credentials = forward)
    }

    /// Answers rejected requests. Default: [`ProblemDetails`].
    pub fn with_rejection_response(self, response: impl RejectionResponse) -> Self {
        self.configure(|config| config.rejection_response = Arc::new(response))
    }

    /// Is told about decisions. Default: [`TracingObserver`], which this replaces.
    pub fn with_observer(self, observer: impl Observer) -> Self {
        self.configure(|config| config.observer = Arc::new(observer))
    }
}

impl<S> Layer<S> for DeviceCheckLayer {
    type Service = DeviceCheck<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeviceCheck::new(inner, Arc::clone(&self.gate))
    }
}

impl fmt::Debug for DeviceCheckLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gate.fmt(f)
    }
}

impl fmt::Debug for Gate {
    // Plug-ins are anything, closures too; they are not asked to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        f.debug_struct("DeviceCheckLayer")
            .field("scope", &config.verifier.scope())
            .field("token_sources", &config.token_sources.len())
            .field("debug_tokens", &config.debug_tokens)
            .field("remembers", &config.memory.as_str())
            .field("genuine_time_to_live", &config.genuine_time_to_live)
            .field("refused_time_to_live", &config.refused_time_to_live)
            .field("enforcement", &config.enforcement)
            .field("forward_credentials", &config.forward_credentials)
            .finish_non_exhaustive()
    }
}
