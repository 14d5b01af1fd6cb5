//! The extension point for proofs.

use std::fmt;

use futures_util::future::BoxFuture;
use http::{HeaderMap, request};

use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::enforcement::Enforcement;
use crate::gate::evidence::Evidence;
use crate::gate::routing::{Environment, Route};
use crate::gate::tenant::name::TenantName;
use crate::runtime::{SystemTime, Timestamp};

/// A way for a request to show that it comes from a genuine device.
///
/// A gate looks at its proofs in order. The first proof that is present in a request decides: a rejection never falls
/// through to another proof.
///
/// The check with device tokens is a proof. The proof in this example trusts another server that has a key:
///
/// ```
/// use http::request;
/// use tower_devicecheck::{
///     DeviceCheckLayer, DeviceVerifier, Evidence, Facts, LayerError, MalformedToken, Proof, Rejection, Step,
///     TokenDigest,
/// };
///
/// /// `X-Key`, which holds one of these keys.
/// struct KeyedHeader(Vec<TokenDigest>);
///
/// impl Proof for KeyedHeader {
///     fn scheme(&self) -> &'static str {
///         "Key"
///     }
///
///     fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
///         let Some(key) = head.headers.remove("x-key") else { return Step::absent() };
///         // The key itself is never compared, so the time tells nothing about it.
///         let digest = TokenDigest::of(key.as_bytes());
///         if self.0.contains(&digest) {
///             Step::verified(facts.verified(Evidence::fresh("Key", "key"), digest))
///         } else {
///             Step::rejected(Rejection::from(MalformedToken::NotCanonical))
///         }
///     }
///
///     fn strip(&self, head: &mut request::Parts) {
///         head.headers.remove("x-key");
///     }
/// }
///
/// # fn layer(apple: impl DeviceVerifier) -> Result<DeviceCheckLayer, LayerError> {
/// let keys = vec![TokenDigest::of(b"9a1f0f66-5f0b-4d0c-8f3b-0c5d6a0d2c11")];
/// DeviceCheckLayer::new(apple).add_proof_before(KeyedHeader(keys))
/// # }
/// ```
///
/// The future of [`Step::ask`] outlives the call to [`judge`](Self::judge): keep the state that it needs in an
/// [`Arc`](std::sync::Arc).
#[diagnostic::on_unimplemented(note = "implement `scheme`, `judge` and `strip`")]
pub trait Proof: Send + Sync + 'static {
    /// The proof's name, an authentication scheme (RFC 9110): letters, digits and hyphens.
    ///
    /// A 401 to a request without any credential names the scheme in `WWW-Authenticate`.
    fn scheme(&self) -> &'static str;

    /// Takes the credential out of the head of a request and judges it. This method must not block or panic: the gate
    /// catches panics of the future of [`Step::ask`], but not of `judge`.
    ///
    /// A proof that answers [`Step::absent`] must leave the head untouched. An incomplete credential is not absent but
    /// [malformed](crate::Rejection::MalformedToken).
    ///
    /// The gate calls this once for each request that is not exempt, unless an earlier proof has decided.
    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step;

    /// Takes the credential out of the head of a request without judging it, because an earlier proof has decided.
    ///
    /// A layer that [forwards credentials](crate::DeviceCheckLayer::with_forwarded_credentials) also uses this method
    /// to find the credentials: the gate calls it on a copy of the head, before [`judge`](Self::judge).
    fn strip(&self, head: &mut request::Parts);

    /// Headers for the response to an admitted request. Default: none.
    ///
    /// The gate calls this on every proof of the layer for each admitted request, no matter which proof decided. It
    /// calls it before the inner service runs, and appends the headers to the inner service's response. A `Cache-Control`
    /// replaces that of the response. A proof that
    /// issues something should do so on [fresh](Evidence::is_fresh) evidence only; otherwise every remembered admission
    /// would issue something, too.
    ///
    /// `facts` holds the time of this call. It is later than the time of [`judge`](Self::judge) if a proof had to ask.
    fn admitted(&self, device: &VerifiedDevice, facts: &Facts) -> Option<HeaderMap> {
        let _ = (device, facts);
        None
    }

    /// Whether the proof may answer [`Step::needs_body`]. Default: `false`.
    ///
    /// Only a layer that [reads bodies](crate::DeviceCheckLayer::with_bodies) accepts such a proof.
    fn reads_body(&self) -> bool {
        false
    }
}

/// The gate's facts about the request that is judged.
#[derive(Clone, Debug)]
pub struct Facts {
    route: Route,
    enforcement: Enforcement,
    now: Timestamp,
    tenant: Option<TenantName>,
    /// The place of the proof that judges, in the order of the layer.
    proof: usize,
    /// Whether the body has been read for this proof.
    has_body: bool,
}

impl Facts {
    pub(crate) const fn new(route: Route, enforcement: Enforcement, now: Timestamp) -> Self {
        Self { route, enforcement, now, tenant: None, proof: 0, has_body: false }
    }

    pub(super) const fn proof(&self) -> usize {
        self.proof
    }

    pub(super) const fn set_proof(&mut self, proof: usize) {
        self.proof = proof;
    }

    pub(super) const fn has_body(&self) -> bool {
        self.has_body
    }

    pub(super) fn of_body(self) -> Self {
        Self { has_body: true, ..self }
    }

    pub(super) fn of_tenant(self, tenant: Option<TenantName>) -> Self {
        Self { tenant, ..self }
    }

    /// The tenant whose gate judges the request; `None` in a layer without [tenants](crate::tenant). A proof must keep
    /// everything that it remembers or sells apart by this name.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantName> {
        self.tenant.as_ref()
    }

    /// The environments that the route admits, at least one, in the order to try them.
    #[must_use]
    pub const fn environments(&self) -> &'static [Environment] {
        self.route.environments()
    }

    /// The time at which the request arrived.
    #[must_use]
    pub const fn now(&self) -> SystemTime {
        self.now.wall
    }

    pub(super) const fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    pub(crate) const fn moment(&self) -> Timestamp {
        self.now
    }

    /// The same facts with the current time.
    pub(super) fn renewed(&self) -> Self {
        Self { now: Timestamp::now(), ..self.clone() }
    }

    /// The first environment that the route admits.
    pub(crate) fn environment(&self) -> Environment {
        self.environments().first().copied().unwrap_or(Environment::Production)
    }

    /// Makes a verified device, verified now, in the first environment that the route admits.
    #[must_use]
    pub fn verified(&self, evidence: Evidence, digest: TokenDigest) -> VerifiedDevice {
        VerifiedDevice::new(digest, self.environment(), evidence, self.now())
    }
}

/// A proof's answer about one request.
#[must_use]
pub struct Step {
    pub(super) next: Next,
    /// The SHA-256 that the body of a verified request must have. Boxed, because few steps have one.
    pub(super) promised: Option<Box<[u8; 32]>>,
}

#[allow(clippy::large_enum_variant, reason = "a box would cost each remembered verdict an allocation")]
pub(super) enum Next {
    Absent,
    Decided(Result<VerifiedDevice, Rejected>),
    Ask(BoxFuture<'static, Step>),
    NeedsBody(usize, Box<dyn FnOnce([u8; 32]) -> Step + Send>),
}

impl Step {
    const fn of(next: Next) -> Self {
        Self { next, promised: None }
    }

    /// The request does not have this credential. The gate looks at the next proof.
    pub const fn absent() -> Self {
        Self::of(Next::Absent)
    }

    /// The request comes from this device.
    pub const fn verified(device: VerifiedDevice) -> Self {
        Self::of(Next::Decided(Ok(device)))
    }

    /// The request comes from this device, if its body has this SHA-256, which the head of the request has promised. The
    /// inner service gets the body while it comes, without a limit. If the digest is another one, the body ends in an
    /// error, [`OtherDigest`](crate::GateBodyError::OtherDigest), before its last chunk.
    ///
    /// Only a proof whose [`reads_body`](Proof::reads_body) is true may answer this, and not after
    /// [`needs_body`](Self::needs_body). A layer that only monitors does not check the body.
    ///
    /// # Danger
    ///
    /// The inner service runs before the body was checked. It must undo what it has done if the body ends in an error.
    pub fn verified_by_promise(device: VerifiedDevice, digest: [u8; 32]) -> Self {
        Self { promised: Some(Box::new(digest)), ..Self::verified(device) }
    }

    /// The request is rejected: with a [`Rejection`](crate::Rejection), or with a [`VerifyError`](crate::VerifyError)
    /// if the proof reached no verdict.
    pub fn rejected(rejected: impl Into<Rejected>) -> Self {
        Self::of(Next::Decided(Err(rejected.into())))
    }

    /// The proof needs a future, for example to ask another server. The output of the future replaces this step. It
    /// cannot be [`absent`](Self::absent).
    ///
    /// The gate drops the future when the client disconnects, and at the layer's
    /// [deadline](crate::DeviceCheckLayer::with_deadline). At the deadline, and after a panic in the future, the
    /// request is rejected as [`Unavailable`](crate::Rejection::Unavailable).
    pub fn ask(answer: impl Future<Output = Self> + Send + 'static) -> Self {
        Self::of(Next::Ask(Box::pin(answer)))
    }

    /// The proof needs the SHA-256 of the request body, of at most `limit` bytes. `then` gets the digest. The digest
    /// does not cover trailers.
    ///
    /// Only a proof whose [`reads_body`](Proof::reads_body) is true may answer this, and only once for each request.
    pub fn needs_body(limit: usize, then: impl FnOnce([u8; 32]) -> Self + Send + 'static) -> Self {
        Self::of(Next::NeedsBody(limit, Box::new(then)))
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.next {
            Next::Absent => f.write_str("Absent"),
            Next::Decided(decision) => f.debug_tuple("Decided").field(decision).finish(),
            Next::Ask(_) => f.write_str("Ask(..)"),
            Next::NeedsBody(limit, _) => f.debug_tuple("NeedsBody").field(limit).finish_non_exhaustive(),
        }
    }
}
