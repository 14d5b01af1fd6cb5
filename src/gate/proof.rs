//! The seam: one way for a request to show that it comes from a genuine device.

use std::fmt;

use futures_util::future::BoxFuture;
use http::{HeaderMap, request};

use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Evidence, Rejected, VerifiedDevice};
use crate::gate::routing::{Environment, Route};
use crate::runtime::{SystemTime, Timestamp};

/// One way for a request to show that it comes from a genuine device.
///
/// A gate looks at its proofs in order. The first one that is present in a request decides about it: a
/// rejection never falls through to another proof.
///
/// The check with device tokens is one of them. This one trusts another server, which has a key:
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
/// A proof that asks outlives the call to [`judge`](Self::judge): keep the part that asks in an [`Arc`](std::sync::Arc).
#[diagnostic::on_unimplemented(note = "implement `scheme`, `judge` and `strip`")]
pub trait Proof: Send + Sync + 'static {
    /// The proof's name, an authentication scheme (RFC 9110): letters, digits and hyphens.
    ///
    /// A 401 without any credential names it in `WWW-Authenticate`.
    fn scheme(&self) -> &'static str;

    /// Takes the credential out of the head of a request and judges it. Must not block, and must not panic: the gate
    /// catches the panics of what is asked, not of this.
    ///
    /// [`Step::absent`] leaves the head untouched. A part of a credential without the rest is not absent, it is
    /// [malformed](crate::Rejection::MalformedToken).
    ///
    /// Called once for each request that is not exempt, unless a proof before this one decided.
    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step;

    /// Takes the credential out of the head of a request without looking at it: a proof before this one decided.
    ///
    /// In a layer that [forwards credentials](crate::DeviceCheckLayer::with_forwarded_credentials), it also tells
    /// which they are: the gate calls it on a copy, before [`judge`](Self::judge).
    fn strip(&self, head: &mut request::Parts);

    /// Headers for the response to an admitted request. Default: none.
    ///
    /// The gate calls it on every proof of an admitted request, whichever proof decided, before the inner
    /// service runs, and appends the headers to those of the inner service's response. A proof that mints
    /// something does so on [fresh](Evidence::is_fresh) evidence only, or each remembered admission pays for it.
    ///
    /// `facts` holds the time of this call, which is later than that of [`judge`](Self::judge) if a proof asked.
    fn admitted(&self, device: &VerifiedDevice, facts: &Facts) -> Option<HeaderMap> {
        let _ = (device, facts);
        None
    }

    /// Whether the proof may answer [`Step::needs_body`]. Default: `false`.
    ///
    /// Only a layer that [reads bodies](crate::DeviceCheckLayer::with_bodies) takes a proof that does.
    fn reads_body(&self) -> bool {
        false
    }
}

/// The gate's view of a request that is judged.
#[derive(Clone, Debug)]
pub struct Facts {
    route: Route,
    now: Timestamp,
}

impl Facts {
    pub(crate) const fn new(route: Route, now: Timestamp) -> Self {
        Self { route, now }
    }

    /// The environments that the route admits, in the order in which they are to be tried. There is at least one.
    #[must_use]
    pub const fn environments(&self) -> &'static [Environment] {
        self.route.environments()
    }

    /// The time at which the request came.
    #[must_use]
    pub const fn now(&self) -> SystemTime {
        self.now.wall
    }

    pub(crate) const fn moment(&self) -> Timestamp {
        self.now
    }

    /// The same facts about the same request, now.
    pub(super) fn renewed(&self) -> Self {
        Self { now: Timestamp::now(), ..self.clone() }
    }

    /// The first environment that the route admits.
    pub(crate) fn environment(&self) -> Environment {
        self.environments().first().copied().unwrap_or(Environment::Production)
    }

    /// A verified device: in the first environment that the route admits, verified now.
    #[must_use]
    pub fn verified(&self, evidence: Evidence, digest: TokenDigest) -> VerifiedDevice {
        VerifiedDevice::new(digest, self.environment(), evidence, self.now())
    }
}

/// A proof's answer about one request.
#[must_use]
pub struct Step(pub(super) Next);

pub(super) enum Next {
    Absent,
    Decided(Result<VerifiedDevice, Rejected>),
    Ask(BoxFuture<'static, Step>),
    NeedsBody(usize, Box<dyn FnOnce([u8; 32]) -> Step + Send>),
}

impl Step {
    /// The request does not show this credential: the next proof is looked at.
    pub const fn absent() -> Self {
        Self(Next::Absent)
    }

    /// The request comes from this device.
    pub const fn verified(device: VerifiedDevice) -> Self {
        Self(Next::Decided(Ok(device)))
    }

    /// The request is rejected: by a [`Rejection`](crate::Rejection), or for a [`VerifyError`](crate::VerifyError)
    /// where the proof could not tell.
    pub fn rejected(rejected: impl Into<Rejected>) -> Self {
        Self(Next::Decided(Err(rejected.into())))
    }

    /// The proof must ask somebody. The step at the end of the future takes this one's place; it cannot be
    /// [`absent`](Self::absent).
    ///
    /// The future is dropped when the client goes away, and at the gate's
    /// [deadline](crate::DeviceCheckLayer::with_deadline): the request is then
    /// [`Unavailable`](crate::Rejection::Unavailable), as after a panic in the future.
    pub fn ask(answer: impl Future<Output = Self> + Send + 'static) -> Self {
        Self(Next::Ask(Box::pin(answer)))
    }

    /// The proof needs SHA-256 of the request's body, of at most `limit` bytes. `then` gets the digest. Trailers are no
    /// part of it.
    ///
    /// Only a proof that [says so](Proof::reads_body) may answer this, and only once for each request.
    pub fn needs_body(limit: usize, then: impl FnOnce([u8; 32]) -> Self + Send + 'static) -> Self {
        Self(Next::NeedsBody(limit, Box::new(then)))
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Next::Absent => f.write_str("Absent"),
            Next::Decided(decision) => f.debug_tuple("Decided").field(decision).finish(),
            Next::Ask(_) => f.write_str("Ask(..)"),
            Next::NeedsBody(limit, _) => f.debug_tuple("NeedsBody").field(limit).finish_non_exhaustive(),
        }
    }
}
