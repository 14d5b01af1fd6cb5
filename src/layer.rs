//! The layer builds a gate with its proofs. It is the only module that knows all proofs by name.

mod marks;
mod tenant;

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
    DeviceCheck, Gate, enforcement::EnforcementPolicy, observer::Observer, proof::Proof,
    rejection::RejectionResponse, routing::RoutingPolicy, service::Gated, shadow::ShadowChecks,
};
use crate::replay::ReplayGuard;
#[cfg(feature = "session")]
use crate::session::SessionProof;

/// A tower layer that lets only requests from genuine devices through to the inner service.
///
/// See the [crate's docs](crate) for an example. With [`ReadBodies`] as `M`, the layer may have proofs that need the
/// body of a request.
///
/// # Clone
///
/// Clones, and all services made by them, share one cache, and ask once for concurrent requests with the same token. A
/// clone that a `with_*` method has changed still shares the cache, unless the method sets the cache. If the method
/// sets something about device tokens, the clone no longer shares calls in flight.
#[derive(Clone)]
#[must_use]
pub struct DeviceCheckLayer<M = HeadOnly> {
    gate: Arc<Gate<M>>,
    tokens: DeviceTokenProof,
    /// The index of the check with device tokens among the gate's proofs.
    place: usize,
}

impl DeviceCheckLayer {
    /// Makes a layer that asks `verifier`, usually an `AppleClient`, with the defaults of all `with_*` methods.
    pub fn new(verifier: impl DeviceVerifier) -> Self {
        let tokens = DeviceTokenProof::new(Settings::new(verifier));
        Self { gate: Arc::new(Gate::new(Arc::new(tokens.clone()))), tokens, place: 0 }
    }

    /// Makes the layer read request bodies, within these bounds, for proofs that need them. The inner service then
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

    /// Makes a new proof, because a check in flight under the old settings must not answer for the new ones.
    fn with_settings(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.tokens.settings().clone();
        change(&mut settings);
        let tokens = DeviceTokenProof::new(settings);
        let (place, proof) = (self.place, Arc::new(tokens.clone()));
        Self { tokens, ..self }.with_gate(|gate| gate.proofs[place] = proof)
    }

    /// Adds a proof that the layer looks at before the check with device tokens, and after all proofs added by this
    /// method so far. The first proof that is present in a request decides.
    ///
    /// # Errors
    ///
    /// Returns an error if the proof [needs bodies](Proof::reads_body) and the layer does not [read
    /// them](Self::with_bodies).
    pub fn add_proof_before(self, proof: impl Proof) -> Result<Self, LayerError> {
        let place = self.place;
        Ok(Self { place: place + 1, ..self.add_proof(place, proof)? })
    }

    /// Adds a proof that the layer looks at after all proofs so far.
    ///
    /// # Errors
    ///
    /// The same as for [`add_proof_before`](Self::add_proof_before).
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

    /// Admits requests by a session, too. The layer looks at sessions before it looks at device tokens, and after all
    /// proofs [added before](Self::add_proof_before) so far. If a session and a device token come together, the session
    /// decides. Default: no sessions. See [the module's docs](crate::session).
    ///
    /// Leave it off the layer in front of an [`Exchange`](crate::session::Exchange).
    ///
    /// # Danger
    ///
    /// An attacker who has captured a session can use it until its end, 1 hour by default.
    #[cfg(feature = "session")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "session")))]
    pub fn with_sessions(self, proof: SessionProof) -> Self {
        let proof: Arc<dyn Proof> = Arc::new(proof);
        let known = self.gate.proofs.iter().position(|known| known.scheme() == proof.scheme());
        let place = self.place;
        match known {
            Some(known) => self.with_gate(|gate| gate.proofs[known] = proof),
            None => Self { place: place + 1, ..self.with_gate(|gate| gate.proofs.insert(place, proof)) },
        }
    }

    /// Sets the policy that chooses Apple's server for each request, or exempts the request. Default:
    /// [`Route::Production`](crate::Route::Production).
    ///
    /// The policy does not apply to true CORS preflights, which are exempt; see
    /// [`with_exempt_preflights`](Self::with_exempt_preflights).
    pub fn with_routing(self, policy: impl RoutingPolicy) -> Self {
        self.with_gate(|gate| gate.routing = Arc::new(policy))
    }

    /// Sets whether true CORS preflights are exempt, from this layer and from a `SplitKeyLayer` inside it. Default:
    /// `true`.
    ///
    /// A true preflight is an `OPTIONS` request over HTTP/1 with one `Origin` and one `Access-Control-Request-Method`,
    /// no credentials, nothing that announces a body, and no other header that browsers never send with a preflight.
    /// Over HTTP/2 and HTTP/3 a body need not be announced and could reach the inner service unchecked. The layer
    /// therefore exempts no preflight there. **Put the CORS layer outside this one**, where it answers all preflights.
    /// Alternatively, if everything inside looks at the method, exempt `OPTIONS` in the [policy](Self::with_routing).
    ///
    /// # Danger
    ///
    /// Anyone can send a preflight. **Turn this off in front of services that do not look at the method, such as
    /// tonic's**: they treat a preflight as an ordinary call.
    pub fn with_exempt_preflights(self, exempt: bool) -> Self {
        self.with_gate(|gate| gate.exempt_preflights = exempt)
    }

    /// Sets how to find the URI that the client sent, if a router has shortened the path of the request. `find` gets
    /// the extensions of the request. The routing policy and the proofs see the URI that it finds; the inner service
    /// sees the shortened one. Default: the request's own URI.
    ///
    /// If a proof removes a parameter from the query, the layer removes it from both URIs. Without this setting, a
    /// router's copy of the original URI keeps the parameter.
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

    /// Sets the source of device tokens, and replaces all others. Default: [`HeaderToken`](crate::HeaderToken) for
    /// `X-Apple-Device-Token`.
    pub fn with_token_source(self, source: impl TokenSource) -> Self {
        self.with_settings(|settings| settings.token_sources = vec![Arc::new(source)])
    }

    /// Adds a source of device tokens. If two sources find different tokens in a request, the request is rejected as
    /// [malformed](crate::Rejection::MalformedToken).
    pub fn add_token_source(self, source: impl TokenSource) -> Self {
        self.with_settings(|settings| settings.token_sources.push(Arc::new(source)))
    }

    /// Adds a verifier of another team, for an app that has moved from one team to another. The layer asks it about a
    /// token only after all verifiers before have refused the token, in all environments of the route; never after an
    /// error. [`Evidence::team`](crate::Evidence::team) tells the team that accepted the token.
    ///
    /// Everything that is remembered about a token (verdicts, single use) is remembered for the
    /// [scope](DeviceVerifier::scope) of the verifier that answered. Verifiers of one layer must therefore have different
    /// scopes. Bits belong to the team that accepted the token: see `AppleClient::has_admitted`.
    ///
    /// A token of the second team costs two calls, a refused token one call for each team. With single use, so does the
    /// reuse of a token of the second team, up to the call to that team. If Apple no longer accepts the
    /// credentials of a team, tokens of later teams are rejected as [`Misconfigured`](crate::Rejection::Misconfigured),
    /// too: then take the old team out.
    pub fn add_verifier(self, verifier: impl DeviceVerifier) -> Self {
        self.with_settings(|settings| settings.add_verifier(verifier))
    }

    /// Admits requests that hold one of these debug tokens instead of a device token. Default: none.
    ///
    /// # Danger
    ///
    /// A client that knows a debug token needs no device. The default observer logs each such admission at level warn.
    pub fn with_debug_tokens(self, tokens: DebugTokens) -> Self {
        self.with_settings(|settings| settings.debug_tokens = Some(Arc::new(tokens)))
    }

    /// Sets the cache of verdicts. The cache replaces [single use](Self::with_single_use). Default: the layer's own
    /// `MemoryCache` with the feature `memory-cache`, otherwise no cache.
    pub fn with_cache(self, cache: impl VerdictCache) -> Self {
        self.with_settings(|settings| settings.reuse = Reuse::Cached(Arc::new(cache)))
    }

    /// Turns off both the cache and single use. The layer asks Apple about every request, but only once for concurrent
    /// requests with the same token.
    pub fn without_cache(self) -> Self {
        self.with_settings(|settings| settings.reuse = Reuse::Cached(Arc::new(NoCache)))
    }

    /// Lets each token admit only one request. The layer rejects the next request with the token as a
    /// [`ReusedToken`](crate::Rejection::ReusedToken), without asking Apple. See [the module's docs](crate::replay).
    ///
    /// A guard and a cache exclude each other, because a cached verdict would admit the second request that the guard
    /// must refuse. If you call this method, [`with_cache`](Self::with_cache) or [`without_cache`](Self::without_cache)
    /// several times, the last call counts. Give routes with different needs separate layers.
    pub fn with_single_use(self, guard: impl ReplayGuard) -> Self {
        self.with_settings(|settings| settings.reuse = Reuse::Once(Arc::new(guard)))
    }

    /// Allows *one* retry of a request with a spent token, within this time after the token was spent, if both requests
    /// hold the same idempotency key. This setting matters only for [single use](Self::with_single_use). Default: zero,
    /// which allows no retry.
    ///
    /// # Danger
    ///
    /// An attacker who has captured a request also has its idempotency key, and can replay the request once.
    pub fn with_retry_window(self, window: Duration) -> Self {
        self.with_settings(|settings| settings.retry_window = window)
    }

    /// Sets the header in which a client sends the idempotency key. Default: `Idempotency-Key`.
    ///
    /// The header stays in the request. An empty or repeated header counts as absent.
    pub fn with_idempotency_header(self, name: HeaderName) -> Self {
        self.with_settings(|settings| settings.idempotency_header = name)
    }

    /// Sets the limiter. The layer asks it about each request with a device token that this process does not remember,
    /// before it asks the shared cache and Apple. A request over the limit is
    /// [`LimitExceeded`](crate::Rejection::LimitExceeded). Default: no limit. See [the module's docs](crate::limit).
    ///
    /// With [`Enforcement::Monitor`](crate::Enforcement::Monitor) such a request reaches the inner service, and the layer does not ask Apple about it.
    pub fn with_limiter(self, limiter: impl Limiter) -> Self {
        self.with_settings(|settings| settings.limiter = Some(Arc::new(limiter)))
    }

    /// Sets the time for which the layer remembers a verdict, counted from the start of the check. With zero, it does
    /// not remember the verdict. The layer ignores older verdicts in a shared cache, even if another layer stored them.
    /// Default: 5 minutes for [`Verdict::Genuine`], 30 seconds for [`Verdict::Refused`].
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

    /// Lets a genuine verdict that has expired count for this much longer, while the verifier
    /// [knows that Apple is down](crate::VerifyError::is_known_outage) and does not ask. The device has the evidence
    /// [`STALE`](crate::Evidence::STALE). Refused verdicts are never used so, and a layer with single use has no
    /// verdicts. With fleet-wide single flight, a returning token that has expired costs a call for each replica. The cache keeps genuine verdicts for this much longer. Default: zero, which uses none.
    ///
    /// # Danger
    ///
    /// During an outage, an attacker who has captured a token can use it for this much longer.
    pub fn with_stale_verdicts(self, time: Duration) -> Self {
        self.with_settings(|settings| settings.stale_time = time)
    }

    /// Sets the policy that chooses, for each request, whether a rejection keeps it from the inner service or is only
    /// reported: an [`Enforcement`](crate::Enforcement) for all requests, or a closure for each route. Default: [`Enforcement::Enforce`](crate::Enforcement::Enforce).
    ///
    /// # Danger
    ///
    /// Everything but [`Enforcement::Enforce`](crate::Enforcement::Enforce) protects nothing.
    pub fn with_enforcement(self, policy: impl EnforcementPolicy) -> Self {
        self.with_gate(|gate| gate.enforcement = Arc::new(policy))
    }

    /// Sets how many checks of [shadow mode](crate::Enforcement::Shadow) may be under way, in all clones of this layer and
    /// their services. Further requests are [left out](crate::Outcome::LeftOut). Default: 128, half of the calls that an
    /// `AppleClient` makes at a time, so that they cannot use up those of enforced routes.
    ///
    /// Each check under way holds a copy of the request's head and, while Apple hangs, a call to Apple.
    pub fn with_shadow_checks(self, limit: usize) -> Self {
        self.with_gate(|gate| gate.shadow_checks = Arc::new(ShadowChecks::new(limit)))
    }

    /// Sets whether the inner service gets the credentials of all proofs, in headers that are marked sensitive.
    /// Default: `false`, the layer removes them.
    ///
    /// The layer does not search exempt requests for credentials. A `SplitKeyLayer` inside this one also finds a client
    /// part that precedes a forwarded device token in the same header.
    ///
    /// # Danger
    ///
    /// The inner service, and every server to which it forwards the request, can replay a credential.
    pub fn with_forwarded_credentials(self, forward: bool) -> Self {
        self.with_gate(|gate| gate.forward_credentials = forward)
    }

    /// Sets the longest wait of a request for the future of a proof, such as a call to Apple. Default: 30 seconds, more
    /// than an `AppleClient` takes. After the deadline, the request is rejected as
    /// [`Unavailable`](crate::Rejection::Unavailable).
    ///
    /// Without the deadline, a verifier that never ends, or that asks through the very layer that it serves, would hold
    /// requests for ever. The deadline applies only inside a tokio runtime, with the feature `tokio`, and on
    /// `wasm32-unknown-unknown`.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.with_gate(|gate| gate.deadline = deadline)
    }

    /// Sets the responses to rejected requests. Default: [`ProblemDetails`](crate::ProblemDetails).
    pub fn with_rejection_response(self, response: impl RejectionResponse) -> Self {
        self.with_gate(|gate| gate.rejection_response = Arc::new(response))
    }

    /// Sets the observer of decisions, cache errors and outages. It replaces the default,
    /// [`TracingObserver`](crate::TracingObserver).
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

/// The error from adding a proof that needs bodies to a layer that does not read them.
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
