//! The layer: puts a gate and its proofs together, and is the only place that knows all proofs by name.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use http::{Extensions, HeaderName, Uri};
use tower_layer::Layer;

use crate::apple::token::Verdict;
use crate::device_check::cache::{NoCache, VerdictCache};
use crate::device_check::limit::Limiter;
use crate::device_check::settings::{Reuse, Settings};
use crate::device_check::{
    debug_token::DebugTokens, proof::DeviceTokenProof, token_source::TokenSource, verifier::DeviceVerifier,
};
use crate::gate::gate_body::{BodyMode, HeadOnly, ReadBodies};
use crate::gate::{
    DeviceCheck, Gate, decision::Enforcement, observer::Observer, proof::Proof, rejection::RejectionResponse,
    routing::RoutingPolicy, service::Gated,
};
use crate::replay::ReplayGuard;

/// Lets only requests from genuine devices through to the inner service.
///
/// See the [crate's docs](crate) for an example. With [`ReadBodies`] as `M`, the layer has proofs that need the
/// body of a request.
///
/// # Clone
///
/// Clones, and all services made by them, share one cache and ask once for the same token at the same time.
/// A clone that is changed by a `with_*` method shares the cache, unless that was changed. It asks for itself if
/// the change is about device tokens.
#[derive(Clone)]
#[must_use]
pub struct DeviceCheckLayer<M = HeadOnly> {
    gate: Arc<Gate<M>>,
    tokens: DeviceTokenProof,
    /// The place of the check with device tokens among the gate's proofs.
    place: usize,
}

impl DeviceCheckLayer {
    /// A layer that asks `verifier`, usually an `AppleClient`, and has every default of the `with_*`
    /// methods.
    pub fn new(verifier: impl DeviceVerifier) -> Self {
        let tokens = DeviceTokenProof::new(Settings::new(verifier));
        Self { gate: Arc::new(Gate::new(Arc::new(tokens.clone()))), tokens, place: 0 }
    }

    /// Reads the bodies of requests, within these bounds, for proofs that need them. The inner service then
    /// takes requests with a [`GateBody`](crate::GateBody).
    pub fn with_bodies(self, bounds: ReadBodies) -> DeviceCheckLayer<ReadBodies> {
        let Self { gate, tokens, place } = self;
        DeviceCheckLayer { gate: Arc::new((*gate).clone().with_mode(bounds)), tokens, place }
    }
}

impl<M: BodyMode> DeviceCheckLayer<M> {
    fn with_gate(self, change: impl FnOnce(&mut Gate<M>)) -> Self {
        let mut gate = Arc::unwrap_or_clone(self.gate);
        change(&mut gate);
        Self { gate: Arc::new(gate), ..self }
    }

    /// A check that is under way for the old settings must not answer for the new ones, hence a new proof.
    fn with_settings(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.tokens.settings().clone();
        change(&mut settings);
        let tokens = DeviceTokenProof::new(settings);
        let (place, proof) = (self.place, Arc::new(tokens.clone()));
        Self { tokens, ..self }.with_gate(|gate| gate.proofs[place] = proof)
    }

    /// Looks at `proof` before the check with device tokens, and after the proofs that were added before it so
    /// far. The first proof that is present in a request decides about it.
    ///
    /// # Errors
    ///
    /// If the proof [needs bodies](Proof::reads_body) and the layer does not [read them](Self::with_bodies).
    pub fn add_proof_before(self, proof: impl Proof) -> Result<Self, LayerError> {
        let place = self.place;
        Ok(Self { place: place + 1, ..self.add_proof(place, proof)? })
    }

    /// Looks at `proof` after all proofs so far.
    ///
    /// # Errors
    ///
    /// As for [`add_proof_before`](Self::add_proof_before).
    pub fn add_proof_after(self, proof: impl Proof) -> Result<Self, LayerError> {
        let place = self.gate.proofs.len();
        self.add_proof(place, proof)
    }

    fn add_proof(self, place: usize, proof: impl Proof) -> Result<Self, LayerError> {
        if proof.reads_body() && !M::READS {
            return Err(LayerError { scheme: proof.scheme() });
        }
        Ok(self.with_gate(|gate| gate.proofs.insert(place, Arc::new(proof))))
    }

    /// Sets the policy that decides for each request which of Apple's servers is asked, if any. Default:
    /// [`Route::Production`](crate::Route::Production).
    ///
    /// True CORS preflights are exempt whatever the policy says; see
    /// [`with_exempt_preflights`](Self::with_exempt_preflights).
    pub fn with_routing(self, policy: impl RoutingPolicy) -> Self {
        self.with_gate(|gate| gate.routing = Arc::new(policy))
    }

    /// Exempts true CORS preflights, from this layer and from a `SplitKeyLayer` inside of it. Default: `true`.
    ///
    /// A true one is an `OPTIONS` request over HTTP/1 with one `Origin` and one `Access-Control-Request-Method`, no
    /// credentials, nothing that announces a body, and no other header that browsers never send with it. Over HTTP/2
    /// and 3 a body need not be announced: there no preflight is exempt by itself, lest its body reach the inner
    /// service. **Put the CORS layer outside of this one**, where it answers them all; or exempt `OPTIONS` by the
    /// [policy](Self::with_routing) if everything inside looks at the method.
    ///
    /// # Danger
    ///
    /// Anyone can send a preflight. **Turn this off in front of services that do not look at the method, such
    /// as tonic's**: to them a preflight is a call like any other.
    pub fn with_exempt_preflights(self, exempt: bool) -> Self {
        self.with_gate(|gate| gate.exempt_preflights = exempt)
    }

    /// Finds the URI that the client sent, in the extensions of a request whose path a router has shortened. The
    /// routing policy and the proofs see that URI; the inner service sees the shortened one. Default: the
    /// request's own URI.
    ///
    /// A parameter that a proof takes from the query is taken from both URIs. Without this, a copy that a router
    /// keeps still has it.
    ///
    /// ```
    /// use axum::extract::OriginalUri;
    /// use http::Extensions;
    /// # fn layer(layer: tower_devicecheck::DeviceCheckLayer) -> tower_devicecheck::DeviceCheckLayer {
    ///
    /// // Inside of axum's `Router::nest`.
    /// layer.with_original_uri(|extensions: &mut Extensions| {
    ///     extensions.get_mut::<OriginalUri>().map(|uri| &mut uri.0)
    /// })
    /// # }
    /// ```
    pub fn with_original_uri(
        self,
        find: impl Fn(&mut Extensions) -> Option<&mut Uri> + Send + Sync + 'static,
    ) -> Self {
        self.with_gate(|gate| gate.original_uri = Some(Arc::new(find)))
    }

    /// Sets the one source of device tokens. Default: [`HeaderToken`](crate::HeaderToken) for
    /// `X-Apple-Device-Token`.
    pub fn with_token_source(self, source: impl TokenSource) -> Self {
        self.with_settings(|settings| settings.token_sources = vec![Arc::new(source)])
    }

    /// Adds a source of device tokens. A request in which two sources find different tokens is
    /// [malformed](crate::Rejection::MalformedToken).
    pub fn add_token_source(self, source: impl TokenSource) -> Self {
        self.with_settings(|settings| settings.token_sources.push(Arc::new(source)))
    }

    /// Admits requests with one of these secrets instead of a device token. Default: none.
    ///
    /// # Danger
    ///
    /// A client that knows a secret needs no device. Each admission is logged at level warn.
    pub fn with_debug_tokens(self, tokens: DebugTokens) -> Self {
        self.with_settings(|settings| settings.debug_tokens = Some(Arc::new(tokens)))
    }

    /// Remembers verdicts in this cache. It replaces [single use](Self::with_single_use). Default: a
    /// `MemoryCache` of the layer's own with the feature `memory-cache`, otherwise no cache.
    pub fn with_cache(self, cache: impl VerdictCache) -> Self {
        self.with_settings(|settings| settings.reuse = Reuse::Cached(Arc::new(cache)))
    }

    /// Remembers neither verdicts nor tokens. The layer asks Apple about every request, but only once for
    /// requests with the same token at the same time.
    pub fn without_cache(self) -> Self {
        self.with_settings(|settings| settings.reuse = Reuse::Cached(Arc::new(NoCache)))
    }

    /// Lets each token admit one request. The next request with it is a
    /// [`ReusedToken`](crate::Rejection::ReusedToken), and Apple is not asked. See [the module's
    /// docs](crate::replay).
    ///
    /// A guard and a cache exclude each other, because a remembered verdict admits the second request that the
    /// guard refuses: of the calls to this, [`with_cache`](Self::with_cache) and
    /// [`without_cache`](Self::without_cache), the last one counts. Give routes with different needs a layer each.
    pub fn with_single_use(self, guard: impl ReplayGuard) -> Self {
        self.with_settings(|settings| settings.reuse = Reuse::Once(Arc::new(guard)))
    }

    /// Lets *one* more request with a spent token through, for this long after the token was spent, if both
    /// requests hold the same idempotency key. Matters to [single use](Self::with_single_use) only. Default:
    /// zero, no second request is let through.
    ///
    /// # Danger
    ///
    /// An attacker who has captured a request has its idempotency key as well, and can replay it once.
    pub fn with_retry_window(self, window: Duration) -> Self {
        self.with_settings(|settings| settings.retry_window = window)
    }

    /// Names the header in which a client sends the idempotency key. Default: `Idempotency-Key`.
    ///
    /// The header stays in the request. An empty or repeated one does not count.
    pub fn with_idempotency_header(self, name: HeaderName) -> Self {
        self.with_settings(|settings| settings.idempotency_header = name)
    }

    /// Asks `limiter` about each request with a device token that this process does not remember, before the shared
    /// cache and Apple are asked. A request over the limit is a
    /// [`LimitExceeded`](crate::Rejection::LimitExceeded). Default: no limit. See [the module's docs](crate::limit).
    ///
    /// With [`Enforcement::Monitor`] the request goes on to the inner service; Apple is not asked about it either.
    pub fn with_limiter(self, limiter: impl Limiter) -> Self {
        self.with_settings(|settings| settings.limiter = Some(Arc::new(limiter)))
    }

    /// Sets the time for which a verdict is remembered, counted from the start of the check. Zero: not at all.
    /// Older verdicts in a shared cache do not count, even if another layer put them there. Default: 5 minutes
    /// for [`Verdict::Genuine`], 30 seconds for [`Verdict::Refused`].
    ///
    /// # Danger
    ///
    /// An attacker who has captured a token can use it for as long as its genuine verdict is remembered.
    pub fn with_time_to_live(self, verdict: Verdict, time_to_live: Duration) -> Self {
        self.with_settings(|settings| match verdict {
            Verdict::Genuine => settings.genuine_time_to_live = time_to_live,
            Verdict::Refused => settings.refused_time_to_live = time_to_live,
        })
    }

    /// Keeps rejected requests from the inner service, or only reports them. Default: [`Enforcement::Enforce`].
    ///
    /// # Danger
    ///
    /// [`Enforcement::Monitor`] protects nothing.
    pub fn with_enforcement(self, enforcement: Enforcement) -> Self {
        self.with_gate(|gate| gate.enforcement = enforcement)
    }

    /// Leaves the credentials of all proofs in the request that the inner service gets, its headers marked
    /// sensitive. Default: `false`, the layer removes them.
    ///
    /// The layer does not search exempt requests for credentials. A `SplitKeyLayer` inside of this one finds its client
    /// part in front of a forwarded device token.
    ///
    /// # Danger
    ///
    /// The inner service, and every server that it passes the request on to, can replay a credential.
    pub fn with_forwarded_credentials(self, forward: bool) -> Self {
        self.with_gate(|gate| gate.forward_credentials = forward)
    }

    /// Sets how long a request waits for what a proof asks, such as Apple's answer. Default: 30 seconds, more than
    /// an `AppleClient` takes. A request without an answer by then is [`Unavailable`](crate::Rejection::Unavailable).
    ///
    /// It keeps a verifier that does not end, or asks through the very layer that it serves, from holding requests for
    /// ever. Holds inside of a tokio runtime, with the feature `tokio`.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.with_gate(|gate| gate.deadline = deadline)
    }

    /// Makes the responses to rejected requests. Default: [`ProblemDetails`](crate::ProblemDetails).
    pub fn with_rejection_response(self, response: impl RejectionResponse) -> Self {
        self.with_gate(|gate| gate.rejection_response = Arc::new(response))
    }

    /// Sets the observer, which hears of every decision. Default: [`TracingObserver`](crate::TracingObserver),
    /// which this replaces.
    pub fn with_observer(self, observer: impl Observer) -> Self {
        let observer: Arc<dyn Observer> = Arc::new(observer);
        self.with_settings(|settings| settings.observer = Arc::clone(&observer))
            .with_gate(|gate| gate.observer = observer)
    }
}

impl<S, M> Layer<S> for DeviceCheckLayer<M> {
    type Service = DeviceCheck<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated::new(inner, Arc::clone(&self.gate))
    }
}

impl<M: fmt::Debug> fmt::Debug for DeviceCheckLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCheckLayer").field("gate", &self.gate).field("tokens", &self.tokens).finish()
    }
}

/// The error of a layer that does not read bodies and is given a proof that needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerError {
    scheme: &'static str,
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme;
        write!(
            f,
            "the proof `{scheme}` needs bodies: call `DeviceCheckLayer::with_bodies` before it is added"
        )
    }
}

impl Error for LayerError {}

#[cfg(feature = "memory-cache")]
#[cfg(test)]
mod tests;
