//! The proof: a session in a request's header, and the hand-out of sessions in responses.

use std::{fmt, future::ready, sync::Arc, time::Duration};

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, request};

use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::headers::take_only;
use crate::gate::proof::{Facts, Proof, Step};
use crate::gate::rejection::Rejection;
use crate::gate::routing::Environment;
use crate::meter::{SESSIONS, label};
use crate::replay::{Claim, ErasedReplayGuard, ReplayGuard, ReplayKey, admit_once, owner::Owner};
#[cfg(feature = "app-attest")]
use crate::session::claims::subject_bytes;
use crate::session::claims::{Claims, NO_SUBJECT, Session, time, to_hex};
use crate::session::evidence::{SCHEME, evidence};
#[cfg(feature = "jwt")]
use crate::session::jwt::Jwts;
use crate::session::recent::Recent;
use crate::session::sessions::{Accepted, Circumstances, LONGEST, Sessions, refused};

/// The header in which a client shows its session, and gets one.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-device-session");
/// The seconds that a session handed out in a response has left.
const EXPIRES_IN: HeaderName = HeaderName::from_static("x-device-session-expires-in");

/// The proof that admits requests by a session in the header `X-Device-Session`. Give it to
/// [`DeviceCheckLayer::with_sessions`](crate::DeviceCheckLayer::with_sessions).
///
/// A session is checked by arithmetic, without Apple. The check goes in this order: the form; the key; the
/// authenticator; the flags; the times; the environment, which the route must admit; revocations; the binding; and for
/// limited use, whether the session is spent. A session that is over is rejected as
/// [`ExpiredSession`](crate::Rejection::ExpiredSession), any other fault as
/// [`RefusedToken`](crate::Rejection::RefusedToken). In gRPC, the header is an entry of the metadata.
///
/// The device has the evidence `session-` and the [word](crate::session::BoughtWith::as_str) of what the session was
/// bought with, such as `session-device-check`; the environment and subject of the purchase; and the time of the
/// purchase as its [time of verification](crate::VerifiedDevice::verified_at). Its digest is the SHA-256 of the
/// session's id. [`Session::of`] has the rest.
#[derive(Clone)]
#[must_use]
pub struct SessionProof {
    sessions: Sessions,
    guard: Option<Arc<dyn ErasedReplayGuard>>,
    needs_limited_use: bool,
    /// The tokens and subjects that got a session.
    handed_out: Option<Arc<Recent<TokenDigest, ()>>>,
    grace: Option<Grace>,
    #[cfg(feature = "jwt")]
    jwts: Option<Jwts>,
}

#[derive(Clone)]
struct Grace {
    seconds: u32,
    is_down: Arc<dyn Fn(Environment) -> bool + Send + Sync>,
}

impl SessionProof {
    /// Makes the proof, with the defaults of all `with_*` methods.
    pub const fn new(sessions: Sessions) -> Self {
        Self {
            sessions,
            guard: None,
            needs_limited_use: false,
            handed_out: None,
            grace: None,
            #[cfg(feature = "jwt")]
            jwts: None,
        }
    }

    /// Admits sessions with limited use, each for one request. All replicas must share the guard, and it must remember
    /// for 6 minutes at least, as its default does: 5 of the session, and 1 by which clocks may differ. Without a guard, such sessions are refused. Default: none.
    ///
    /// While the guard fails, such requests are rejected as [`Unavailable`](crate::Rejection::Unavailable).
    pub fn with_limited_use(mut self, guard: impl ReplayGuard) -> Self {
        self.guard = Some(Arc::new(guard));
        self
    }

    /// Sets whether sessions without limited use are refused, for routes where a replay would do harm. Default: `false`.
    pub const fn requiring_limited_use(mut self, needed: bool) -> Self {
        self.needs_limited_use = needed;
        self
    }

    /// Sets whether the response to a request that was admitted on [fresh](crate::Evidence::is_fresh) evidence holds a
    /// session: in `X-Device-Session`, with its seconds in `X-Device-Session-Expires-In`, and with
    /// `Cache-Control: no-store`. A client so gets a session without a further call. Default: `false`.
    ///
    /// Of several requests with one token or subject, one response in a minute or two holds a session. Remembered
    /// verdicts, debug tokens and sessions get none, nor does any request if sessions are
    /// [bound](Sessions::with_binding).
    ///
    /// # Danger
    ///
    /// A shared cache that keeps responses in spite of `no-store` gives one device's session to others. Some obey another
    /// header of the response instead, such as `CDN-Cache-Control`, which this layer does not change.
    pub fn with_hand_out(mut self, hand_out: bool) -> Self {
        self.handed_out = hand_out.then(|| Arc::new(Recent::buyers()));
        self
    }

    /// Lets a session count for this much longer than to its end, at most 24 hours, while `is_down` says of its
    /// environment that Apple is known to be down, and clients can therefore buy no other. Such a device has evidence
    /// that begins with `degraded-session-`, and [`Session::is_degraded`] is true. A session with limited use has no
    /// grace. Default: none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_devicecheck::{AppleClient, Availability, session::{SessionProof, Sessions}};
    ///
    /// fn proof(sessions: Sessions, apple: AppleClient) -> SessionProof {
    ///     SessionProof::new(sessions).with_grace(Duration::from_secs(30 * 60), move |environment| {
    ///         apple.availability(environment) != Availability::Available
    ///     })
    /// }
    /// ```
    ///
    /// # Danger
    ///
    /// During an outage, an attacker who has captured a session can use it for this much longer.
    pub fn with_grace(
        mut self,
        time: Duration,
        is_down: impl Fn(Environment) -> bool + Send + Sync + 'static,
    ) -> Self {
        let seconds = u32::try_from(time.min(LONGEST).as_secs()).unwrap_or(u32::MAX);
        self.grace = Some(Grace { seconds, is_down: Arc::new(is_down) });
        self
    }

    /// Admits sessions that are JSON Web Tokens, too. If their tenant and App ID are not those of the sessions, they are
    /// [`Misconfigured`](crate::Rejection::Misconfigured). The signature of a token costs about 50 microseconds when the token
    /// first comes, and is remembered.
    ///
    /// # Danger
    ///
    /// A forged token of the right form costs as much each time, a hundred times more than a forged session.
    #[cfg(feature = "jwt")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "jwt")))]
    pub fn with_jwt(mut self, jwts: Jwts) -> Self {
        self.jwts = Some(jwts);
        self
    }

    fn claims(&self, text: &[u8], facts: &Facts) -> Result<Claims, Rejected> {
        // The text of a session has no dots.
        #[cfg(feature = "jwt")]
        if let Some(jwts) = self.jwts.as_ref().filter(|_| text.contains(&b'.')) {
            jwts.check_owner(&self.sessions)?;
            return jwts
                .claims(text, facts.moment().monotonic)
                .ok_or_else(|| refused("not a session as JWT"));
        }
        let _ = facts;
        self.sessions.claims(text)
    }

    fn check(&self, text: &[u8], head: &request::Parts, facts: &Facts) -> Result<Accepted, Rejected> {
        self.sessions.check_tenant(facts.tenant())?;
        let circumstances = Circumstances {
            headers: &head.headers,
            environments: facts.environments(),
            now: facts.now(),
            grace: |environment, late| {
                self.grace.as_ref().is_some_and(|grace| late < grace.seconds && (grace.is_down)(environment))
            },
        };
        let accepted = self.sessions.check(self.claims(text, facts)?, &circumstances)?;
        if self.needs_limited_use && !accepted.claims.is_limited_use {
            return Err(refused("a session without limited use"));
        }
        self.sessions.check_freshness(facts.moment().monotonic)?;
        Ok(accepted)
    }
}

/// A session beside the credential of another proof.
#[cfg(feature = "app-attest")]
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
pub(crate) struct Companion([u8; 16]);

#[cfg(feature = "app-attest")]
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
impl Companion {
    /// Whether the device with this subject bought the session, or one that has none.
    pub(crate) fn is_of(&self, subject: &str) -> bool {
        self.0 == NO_SUBJECT || self.0 == subject_bytes(Some(subject))
    }
}

#[cfg(feature = "app-attest")]
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
impl SessionProof {
    /// Checks a session that another proof wants beside its own credential.
    pub(crate) fn check_companion(
        &self,
        text: &[u8],
        head: &request::Parts,
        facts: &Facts,
    ) -> Result<Companion, Rejected> {
        let Accepted { claims, .. } = self.check(text, head, facts)?;
        if claims.is_limited_use {
            return Err(refused("a session with limited use"));
        }
        Ok(Companion(claims.subject))
    }
}

/// Admits the first request with a session of limited use.
async fn spend(guard: Arc<dyn ErasedReplayGuard>, scope: Arc<str>, device: VerifiedDevice) -> Step {
    let (digest, environment) = (device.digest(), device.environment());
    let claim = Claim::new(Owner::random());
    match admit_once(&guard, ReplayKey::new(&scope, digest), &claim, true, ready(Ok(device))).await {
        Ok(device) => Step::verified(device),
        Err(rejected) => Step::rejected(rejected.with_digest(digest).with_environment(environment)),
    }
}

fn device(accepted: &Accepted, facts: &Facts) -> VerifiedDevice {
    let Accepted { claims, is_degraded } = accepted;
    let device = facts
        .verified(evidence(claims.bought_with, *is_degraded), claims.id.digest())
        .with_environment(claims.environment)
        .with_verified_at(time(claims.issued))
        .with_bytes(Session::new(claims, *is_degraded).to_bytes());
    match claims.subject {
        NO_SUBJECT => device,
        subject => device.with_subject_digits(to_hex(&subject)),
    }
}

impl Proof for SessionProof {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
        let text = match take_only(&mut head.headers, &HEADER) {
            Ok(Some(text)) => text,
            Ok(None) => return Step::absent(),
            Err(reason) => return Step::rejected(Rejection::from(reason)),
        };
        match self.check(text.as_bytes(), head, facts) {
            Ok(accepted) if accepted.claims.is_limited_use => match &self.guard {
                Some(guard) => {
                    let scope = Arc::clone(self.sessions.scope());
                    Step::ask(spend(Arc::clone(guard), scope, device(&accepted, facts)))
                }
                None => Step::rejected(refused("a session with limited use, and no guard")),
            },
            Ok(accepted) => Step::verified(device(&accepted, facts)),
            Err(rejected) => Step::rejected(rejected),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        head.headers.remove(HEADER);
    }

    fn admitted(&self, device: &VerifiedDevice, facts: &Facts) -> Option<HeaderMap> {
        let handed_out = self.handed_out.as_ref()?;
        if !device.evidence().is_fresh() || self.sessions.is_bound() {
            return None;
        }
        self.sessions.check_tenant(facts.tenant()).ok()?;
        let issued = self.sessions.issue(device, &HeaderMap::new(), false, facts.now()).ok()?;
        let holder = device.subject().map_or(device.digest(), |subject| TokenDigest::of(subject.as_bytes()));
        if !handed_out.insert(holder, (), facts.moment().monotonic) {
            return None;
        }
        let text = self.sessions.mint(&issued.claims).ok()?;
        let mut text = HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?;
        text.set_sensitive(true);
        SESSIONS.add([label("bought_with", issued.claims.bought_with.as_str()), label("by", "hand_out")]);
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(HEADER, text);
        headers.insert(EXPIRES_IN, issued.lifetime.into());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(headers)
    }
}

impl fmt::Debug for SessionProof {
    // Plug-ins may be closures and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionProof")
            .field("sessions", &self.sessions)
            .field("limited_use", &self.guard.is_some())
            .field("needs_limited_use", &self.needs_limited_use)
            .field("hand_out", &self.handed_out.is_some())
            .field("grace", &self.grace.as_ref().map(|grace| grace.seconds))
            .finish()
    }
}
