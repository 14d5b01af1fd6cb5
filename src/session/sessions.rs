//! The sessions of one app: issued, and checked.

use std::{
    fmt,
    sync::{Arc, RwLock},
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use subtle::ConstantTimeEq;

use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::error::VerifyError;
use crate::gate::rejection::{MalformedToken, Rejection};
use crate::gate::routing::Environment;
use crate::gate::tenant::name::TenantName;
#[cfg(feature = "redis")]
use crate::redis::Redis;
use crate::runtime::{Instant, SystemTime, read, write};
use crate::session::claims::{Claims, SessionId, shortened, subject_bytes};
use crate::session::error::SessionError;
use crate::session::evidence::purchase;
use crate::session::key::{SessionKey, fill};
use crate::session::recent::Recent;
use crate::session::revocation::Revocations;
use crate::session::revoked::{CLOCK_SKEW, unix_seconds};
use crate::session::ring::KeyRing;
#[cfg(feature = "redis")]
use crate::session::shared_revocations::{Link, WithoutRedis};
use crate::session::token::{Token, mint};
#[cfg(all(feature = "app-attest", feature = "_apple"))]
use crate::{
    meter::{SESSIONS, label},
    runtime::wall_clock,
};

/// The longest life of a session, and the longest grace.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The life of a session that admits one request only.
const LIMITED_USE_LIFETIME: u32 = 5 * 60;

/// The sessions of one app: its keys, the life of a session, and what is revoked.
///
/// [`Exchange`](crate::session::Exchange) and [`SessionProof`](crate::session::SessionProof) take a clone of this. See
/// [the module's docs](crate::session) for an example.
///
/// # Clone
///
/// Clones share keys and revocations, also after a `with_*` method has changed one of them.
#[derive(Clone)]
pub struct Sessions {
    tenant: Arc<str>,
    app_id: Arc<str>,
    scope: Arc<str>,
    /// The first one signs.
    keys: Arc<RwLock<Vec<SessionKey>>>,
    lifetime: Duration,
    binding: Option<HeaderName>,
    pub(super) revocations: Revocations,
    /// The tokens that bought a session at an exchange.
    buyers: Arc<Recent<TokenDigest, ()>>,
}

/// A new session, for its client.
pub(super) struct Issued {
    pub(super) claims: Claims,
    /// In seconds.
    pub(super) lifetime: u32,
}

/// A session that counts.
pub(super) struct Accepted {
    pub(super) claims: Claims,
    /// Whether it is over, and counts by grace.
    pub(super) is_degraded: bool,
}

/// The circumstances of a check.
pub(super) struct Circumstances<'a, G> {
    pub(super) headers: &'a HeaderMap,
    /// The environments that the route admits.
    pub(super) environments: &'a [Environment],
    pub(super) now: SystemTime,
    /// Whether a session of this environment counts that has been over for so many seconds.
    pub(super) grace: G,
}

impl Sessions {
    /// Makes the sessions of an app. `tenant` is the operator's own name for whom the app belongs to, and may be empty. In
    /// the gate of a [tenant](crate::tenant), it must be the tenant's name, or every session is
    /// [`Misconfigured`](Rejection::Misconfigured).
    /// `app_id` is the App ID: the team id, a dot and the bundle id. Both are part of the keys, so that a session of one
    /// app or tenant is nothing to another. All servers of an app must name them alike.
    ///
    /// # Errors
    ///
    /// Returns an error if a name holds a zero character, or if no key can be derived.
    pub fn new(tenant: &str, app_id: &str, ring: &KeyRing) -> Result<Self, SessionError> {
        if tenant.contains('\0') || app_id.contains('\0') {
            return Err(SessionError::new("the name of a tenant or an app holds a zero character"));
        }
        let scope = SessionId::from(shortened([tenant, app_id].join("\0").as_bytes()));
        Ok(Self {
            tenant: tenant.into(),
            app_id: app_id.into(),
            scope: format!("session:{scope}").into(),
            keys: Arc::new(RwLock::new(derived(ring, tenant, app_id)?)),
            lifetime: DEFAULT_LIFETIME,
            binding: None,
            revocations: Revocations::new(),
            buyers: Arc::new(Recent::buyers()),
        })
    }

    /// Sets the life of a session, from 1 minute to 24 hours. Default: 1 hour. A session with limited use lives for 5
    /// minutes.
    ///
    /// Sessions with a longer life are refused, so a shorter setting also ends the sessions that were issued under the
    /// longer one. Before a longer setting issues sessions anywhere, every server must have it.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.clamp(Duration::from_secs(60), LONGEST);
        self
    }

    /// Binds sessions to the value of a header, such as `Authorization`: a session counts only beside the same value,
    /// so a session that was stolen without the user's login is worth nothing. Sessions that are not bound are refused,
    /// and a purchase without the header, with an empty one or with several, is rejected as
    /// [`MalformedToken`](crate::Rejection::MalformedToken). Default: sessions are not bound.
    ///
    /// A client must send the same bytes. When the user's login is renewed, it buys a new session. A bound session is
    /// never [handed out](crate::session::SessionProof::with_hand_out).
    #[must_use]
    pub fn with_binding(mut self, header: HeaderName) -> Self {
        self.binding = Some(header);
        self
    }

    /// Takes another key ring, in all clones, from the next request on. Keys that are no longer in the ring are
    /// forgotten, and their sessions refused.
    ///
    /// # Errors
    ///
    /// Returns an error if no key can be derived. The old keys then stay.
    pub fn replace_keys(&self, ring: &KeyRing) -> Result<(), SessionError> {
        let keys = derived(ring, &self.tenant, &self.app_id)?;
        *write(&self.keys) = keys;
        Ok(())
    }

    /// The revocations, which all clones share.
    #[must_use]
    pub const fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Shares what is revoked with all servers that use this Redis, with the same prefix, tenant and app. Each looks every
    /// 2 seconds, so that a revocation counts everywhere within 10 seconds, usually within 2. `without_redis` says what
    /// becomes of sessions while Redis does not answer for longer than 10 seconds.
    ///
    /// A revocation that Redis did not take, or has lost in a restart, is given to it again by any server that knows it.
    /// Waits for the first look, at most for the [deadline](crate::Redis::with_deadline) of a command, 1 second by
    /// default. Call it once, at the start; clones that were made before do not share.
    #[cfg(feature = "redis")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
    #[must_use]
    pub async fn share_revocations(mut self, redis: Redis, without_redis: WithoutRedis) -> Self {
        let state = &self.revocations.state;
        self.revocations.link = Some(Link::start(redis, &self.scope, without_redis, state).await);
        self
    }

    /// Whether this process is informed enough to accept sessions.
    pub(super) fn check_freshness(&self, now: Instant) -> Result<(), Rejected> {
        #[cfg(feature = "redis")]
        if let Some(link) = &self.revocations.link {
            return link.check_freshness(now);
        }
        let _ = now;
        Ok(())
    }

    /// The tenant, and the App ID.
    #[cfg(feature = "jwt")]
    pub(super) fn owner(&self) -> (Arc<str>, Arc<str>) {
        (Arc::clone(&self.tenant), Arc::clone(&self.app_id))
    }

    /// A name for this tenant and app in stores.
    pub(super) const fn scope(&self) -> &Arc<str> {
        &self.scope
    }

    pub(super) const fn is_bound(&self) -> bool {
        self.binding.is_some()
    }

    /// The hash of the header value to which sessions are bound.
    fn binding(&self, headers: &HeaderMap) -> Result<Option<[u8; 16]>, MalformedToken> {
        let Some(name) = &self.binding else { return Ok(None) };
        let mut values = headers.get_all(name).iter();
        match (values.next().filter(|value| !value.is_empty()), values.next()) {
            (Some(value), None) => Ok(Some(shortened(value.as_bytes()))),
            (_, Some(_)) => Err(MalformedToken::Repeated),
            _ => Err(MalformedToken::Incomplete),
        }
    }

    /// Sells a session to a device. `headers` are those of the request.
    pub(super) fn issue(
        &self,
        device: &VerifiedDevice,
        headers: &HeaderMap,
        is_limited_use: bool,
        now: SystemTime,
    ) -> Result<Issued, Rejected> {
        let Some(bought_with) = purchase(device.evidence()) else {
            // A session buys no session. A remembered verdict says that this token has bought one already, or may have.
            return Err(reused("no fresh evidence to buy a session"));
        };
        let now = unix_seconds(now);
        let revoked = &self.revocations.state;
        let subject = subject_bytes(device.subject());
        if revoked.is_subject_denied(&subject, now) {
            return Err(denied("the subject is revoked"));
        }
        if device.marks().is_some_and(|marks| marks.is_left_to_handler()) {
            // A session has no marks, by which a handler could decide.
            return Err(denied("the policy about marks has not admitted the device"));
        }
        let binding = self.binding(headers).map_err(Rejection::from)?;
        let lifetime = if is_limited_use {
            LIMITED_USE_LIFETIME
        } else {
            u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
        };
        let mut id = [0; 16];
        fill(&mut id).map_err(VerifyError::unavailable)?;
        // All sessions may have been revoked within this second, or by a server whose clock is ahead.
        let issued = now.max(revoked.issued_before().min(now.saturating_add(CLOCK_SKEW)));
        let claims = Claims {
            is_limited_use,
            environment: device.environment(),
            bought_with,
            issued,
            expires: issued.saturating_add(lifetime),
            id: id.into(),
            subject,
            binding,
        };
        Ok(Issued { claims, lifetime })
    }

    /// Of the requests that waited for one answer of Apple together, one buys a session.
    pub(super) fn check_buyer(&self, device: &VerifiedDevice, now: Instant) -> Result<(), Rejected> {
        if !device.evidence().is_fresh() || self.buyers.insert(device.digest(), (), now) {
            return Ok(());
        }
        Err(reused("the token has bought a session"))
    }

    /// Sells a session with an attestation. Returns its text, and its seconds. The challenge of an attestation counts once,
    /// so there is no need to know the buyers.
    #[cfg(all(feature = "app-attest", feature = "_apple"))]
    pub(crate) fn sell_for_attestation(
        &self,
        device: &VerifiedDevice,
        headers: &HeaderMap,
    ) -> Result<(String, u32), Rejected> {
        self.check_tenant(device.tenant())?;
        let issued = self.issue(device, headers, false, wall_clock())?;
        let text = self.mint(&issued.claims)?;
        SESSIONS.add([label("bought_with", issued.claims.bought_with.as_str()), label("by", "attestation")]);
        Ok((text, issued.lifetime))
    }

    /// Writes the text of a session.
    pub(super) fn mint(&self, claims: &Claims) -> Result<String, Rejected> {
        let keys = read(&self.keys);
        let key = keys.first().ok_or_else(|| VerifyError::misconfigured("sessions without a key"))?;
        Ok(mint(claims, key))
    }

    /// Reads the text of a session that one of the keys has signed.
    pub(super) fn claims(&self, text: &[u8]) -> Result<Claims, Rejected> {
        let token = Token::parse(text).ok_or_else(|| refused("not a session"))?;
        {
            let keys = read(&self.keys);
            let key = keys.iter().find(|key| key.number() == token.key_number());
            let key = key.ok_or_else(|| refused("unknown key of a session"))?;
            if !token.is_signed_by(key) {
                return Err(refused("forged session"));
            }
        }
        token.claims().ok_or_else(|| refused("a session of a later version"))
    }

    /// Checks the claims of a session in its circumstances.
    pub(super) fn check<G>(
        &self,
        claims: Claims,
        circumstances: &Circumstances<'_, G>,
    ) -> Result<Accepted, Rejected>
    where
        G: Fn(Environment, u32) -> bool,
    {
        self.check_claims(&claims, circumstances)
            .map(|is_degraded| Accepted { claims, is_degraded })
            .map_err(|rejected| rejected.with_environment(claims.environment).with_digest(claims.id.digest()))
    }

    fn check_claims<G>(&self, claims: &Claims, circumstances: &Circumstances<'_, G>) -> Result<bool, Rejected>
    where
        G: Fn(Environment, u32) -> bool,
    {
        let now = unix_seconds(circumstances.now);
        let late = now.checked_sub(claims.expires);
        if claims.issued > now.saturating_add(CLOCK_SKEW) {
            return Err(refused("a session from the future"));
        }
        // Without limited use: a guard may have forgotten a session whose time is over.
        let has_grace = |late| !claims.is_limited_use && (circumstances.grace)(claims.environment, late);
        if late.is_some_and(|late| !has_grace(late)) {
            return Err(Rejection::ExpiredSession.into());
        }
        let lifetime = claims.expires.checked_sub(claims.issued);
        if lifetime.is_none_or(|lifetime| u64::from(lifetime) > self.lifetime.as_secs().max(300)) {
            return Err(refused("a session with a longer life than is configured"));
        }
        if !circumstances.environments.contains(&claims.environment) {
            return Err(refused("a session of another environment"));
        }
        if self.revocations.state.is_subject_denied(&claims.subject, now) {
            return Err(denied("the subject of a session is revoked"));
        }
        if self.revocations.state.is_revoked(claims, now) {
            return Err(refused("a revoked session"));
        }
        if !self.is_beside_its_binding(claims, circumstances.headers) {
            return Err(refused("a session bound to another header value, or not bound"));
        }
        Ok(late.is_some())
    }

    fn is_beside_its_binding(&self, claims: &Claims, headers: &HeaderMap) -> bool {
        match (self.binding(headers), claims.binding) {
            (Ok(None), None) => true,
            (Ok(Some(shown)), Some(bound)) => shown.ct_eq(&bound).into(),
            _ => false,
        }
    }
}

impl Sessions {
    /// Checks that these are the sessions of the tenant whose gate judges the request, if the layer has tenants.
    pub(super) fn check_tenant(&self, tenant: Option<&TenantName>) -> Result<(), Rejected> {
        if tenant.is_none_or(|tenant| tenant.as_str() == &*self.tenant) {
            return Ok(());
        }
        Err(VerifyError::misconfigured("the sessions in the gate of a tenant are those of another one")
            .into())
    }
}

fn derived(ring: &KeyRing, tenant: &str, app_id: &str) -> Result<Vec<SessionKey>, SessionError> {
    ring.keys().map(|master| SessionKey::derive(master, tenant, app_id)).collect()
}

fn reused(reason: &'static str) -> Rejected {
    Rejected::from(Rejection::ReusedToken).with_reason(reason)
}

fn denied(reason: &'static str) -> Rejected {
    Rejected::from(Rejection::Denied).with_reason(reason)
}

pub(super) fn refused(reason: &'static str) -> Rejected {
    Rejected::from(Rejection::RefusedToken).with_reason(reason)
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = read(&self.keys).iter().map(|key| format!("{:08x}", key.number())).collect();
        f.debug_struct("Sessions")
            .field("tenant", &self.tenant)
            .field("app_id", &self.app_id)
            .field("keys", &keys)
            .field("lifetime", &self.lifetime)
            .field("binding", &self.binding)
            .field("revocations", &self.revocations)
            .finish()
    }
}
