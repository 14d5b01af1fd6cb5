//! The provider token: the JWT that authenticates this server to Apple. This module also decides when to renew it.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::HeaderValue;
use sha2::{Digest, Sha256};
use tracing::{Level, event};
use zeroize::Zeroizing;

use crate::BoxError;
use crate::apple::es256::SigningKey;
use crate::gate::{credential::BEARER, error::impl_error, observer::TARGET};
use crate::meter::{PROVIDER_TOKENS, label};
use crate::quote::shown_id;
use crate::runtime::{SystemTime, Timestamp, lock, since_epoch};
use crate::sync::{Arc, Mutex, Weak};
use crate::wipe::{self, wiping_the_stack};

/// The age at which Apple refuses a token, as documented for APNs, to which DeviceCheck refers.
pub(super) const PROVIDER_TOKEN_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The age at which a token is renewed.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(40 * 60);
/// The shortest time between two renewals. Apple documents for APNs that it may answer 429 to more frequent ones.
const RENEW_AT_MOST_EVERY: Duration = Duration::from_secs(20 * 60);
/// The age up to which a token stays in use if renewal fails.
const USABLE_FOR: Duration = Duration::from_secs(55 * 60);
/// The time by which `iat` is backdated, so that a fast clock does not put it in Apple's future. Apple counts it as
/// part of a token's age.
pub(super) const BACKDATING: Duration = Duration::from_secs(60);
/// The most by which a token's issue time may lie ahead of now. Beyond it, the wall clock is assumed to have been set
/// back.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// A private key with its team id and key id.
pub(super) struct Signer {
    team_id: Box<str>,
    key_id: Box<str>,
    key: SigningKey,
    #[cfg(test)]
    is_broken: bool,
}

impl Signer {
    /// Makes a signer. The ids must need no escaping in JSON.
    pub(super) fn new(team_id: &str, key_id: &str, pkcs8_der: &[u8]) -> Result<Self, SignError> {
        let key = SigningKey::from_pkcs8(pkcs8_der).map_err(SignError::new)?;
        Ok(Self {
            team_id: team_id.into(),
            key_id: key_id.into(),
            key,
            #[cfg(test)]
            is_broken: false,
        })
    }

    pub(super) fn team_id(&self) -> &str {
        &self.team_id
    }

    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Signs a JWT and returns it after `Bearer `. Dropping the last clone wipes its memory. `issued_at` is in seconds
    /// since the Unix epoch.
    pub(super) fn sign(&self, issued_at: u64) -> Result<Bytes, SignError> {
        #[cfg(test)]
        if self.is_broken {
            return Err(SignError::new("a test says so"));
        }
        let header = format!(r#"{{"alg":"ES256","kid":"{}","typ":"JWT"}}"#, self.key_id);
        let claims = format!(r#"{{"iss":"{}","iat":{issued_at}}}"#, self.team_id);
        let mut bearer = Zeroizing::new(String::with_capacity(512));
        bearer.push_str(BEARER);
        BASE64_URL_SAFE_NO_PAD.encode_string(header, &mut bearer);
        bearer.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(claims, &mut bearer);
        let signature = self.key.sign(&bearer.as_bytes()[BEARER.len()..]).map_err(SignError::new)?;
        bearer.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut bearer);
        Ok(Bytes::from_owner(bearer))
    }
}

/// A header value that is marked sensitive, and shares the memory of the text.
fn sensitive(text: Bytes) -> Result<HeaderValue, SignError> {
    let mut value = HeaderValue::from_maybe_shared(text).map_err(SignError::new)?;
    value.set_sensitive(true);
    Ok(value)
}

/// An error from signing a provider token.
#[derive(Debug)]
pub(super) struct SignError {
    source: BoxError,
}

impl SignError {
    fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into() }
    }
}

impl_error!(SignError, |error| Some(&*error.source), "the provider token could not be signed");

/// A provider token. Cloning is cheap.
#[derive(Clone)]
pub(super) struct ProviderToken(Arc<Issued>);

struct Issued {
    header: HeaderValue,
    bare_header: HeaderValue,
    /// The claim `iat`, in seconds since the Unix epoch.
    issued_at: u64,
    at: Timestamp,
    /// Whether this token replaced one that Apple had refused.
    forced: bool,
}

impl ProviderToken {
    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> HeaderValue {
        self.0.header.clone()
    }

    /// The same without the word `Bearer`.
    pub(super) fn bare_header(&self) -> HeaderValue {
        self.0.bare_header.clone()
    }
}

/// The one provider token of a key. Signing takes a fraction of a millisecond and happens under the lock, so any number
/// of waiting requests cause only one signature.
pub(super) struct ProviderTokens {
    signer: Signer,
    current: Mutex<Option<ProviderToken>>,
}

/// The provider tokens of this process by team id, key id and key. An entry lives as long as credentials use it.
static KNOWN: Mutex<BTreeMap<[u8; 32], Weak<ProviderTokens>>> = Mutex::new(BTreeMap::new());

impl ProviderTokens {
    pub(super) const fn new(signer: Signer) -> Self {
        Self { signer, current: Mutex::new(None) }
    }

    /// Returns the provider tokens that credentials with the same ids and key already use, or new ones.
    pub(super) fn shared(signer: Signer, pkcs8_der: &[u8]) -> Arc<Self> {
        let mut hash = Sha256::new();
        for part in [signer.team_id().as_bytes(), signer.key_id().as_bytes(), private_number(pkcs8_der)] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let mut known = lock(&KNOWN);
        known.retain(|_, tokens| tokens.strong_count() > 0);
        let place = known.entry(hash.finalize().into()).or_default();
        place.upgrade().unwrap_or_else(|| {
            let tokens = Arc::new(Self::new(signer));
            *place = Arc::downgrade(&tokens);
            tokens
        })
    }

    pub(super) const fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Returns the token to use now. Signs a new one if renewal is due.
    pub(super) fn token(&self, now: Timestamp) -> Result<ProviderToken, SignError> {
        let mut current = lock(&self.current);
        self.current_or_new(&mut current, now)
    }

    /// Returns the token to use after Apple has refused `refused`, or `None` if it is too early to sign another one.
    pub(super) fn replace(
        &self,
        refused: &ProviderToken,
        now: Timestamp,
    ) -> Result<Option<ProviderToken>, SignError> {
        let mut current = lock(&self.current);
        match &*current {
            Some(token) if Arc::ptr_eq(&token.0, &refused.0) => {
                if !may_force(&token.0, now) {
                    return Ok(None);
                }
                self.sign(&mut current, now, true).map(Some)
            }
            // Another request has already replaced it, or the key was rotated.
            _ => self.current_or_new(&mut current, now).map(Some),
        }
    }

    fn current_or_new(
        &self,
        current: &mut Option<ProviderToken>,
        now: Timestamp,
    ) -> Result<ProviderToken, SignError> {
        let Some(token) = current.clone() else {
            return self.sign(current, now, false);
        };
        if !is_due(&token.0, now) {
            return Ok(token);
        }
        match self.sign(current, now, false) {
            Err(error) if age(&token.0, now) < USABLE_FOR => {
                event!(
                    target: TARGET,
                    Level::WARN,
                    key_id = shown_id(self.signer.key_id()),
                    error = %error.source,
                    "the provider token could not be renewed: keeping the old one"
                );
                Ok(token)
            }
            signed => signed,
        }
    }

    fn sign(
        &self,
        current: &mut Option<ProviderToken>,
        now: Timestamp,
        forced: bool,
    ) -> Result<ProviderToken, SignError> {
        let previous = current.as_ref().map(|token| token.0.issued_at);
        let issued_at = issued_at(now.wall, previous);
        let bearer = wiping_the_stack::<{ wipe::SIGNATURE }, _>(|| self.signer.sign(issued_at))?;
        let (header, bare_header) = (sensitive(bearer.clone())?, sensitive(bearer.slice(BEARER.len()..))?);
        event!(target: TARGET, Level::DEBUG, key_id = shown_id(self.signer.key_id()), forced, "provider token signed");
        PROVIDER_TOKENS.add([label("forced", if forced { "true" } else { "false" })]);
        let token = ProviderToken(Arc::new(Issued { header, bare_header, issued_at, at: now, forced }));
        *current = Some(token.clone());
        Ok(token)
    }
}

/// The private number within the DER. PKCS#8 can wrap the same key in more than one way, so the whole DER cannot
/// identify a key.
fn private_number(pkcs8_der: &[u8]) -> &[u8] {
    // Version 1, and an octet string of 32 bytes.
    const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
    let start = pkcs8_der.windows(BEFORE.len()).position(|window| window == BEFORE);
    start.and_then(|start| pkcs8_der.get(start + BEFORE.len()..)?.get(..32)).unwrap_or(pkcs8_der)
}

/// The `iat` of a token signed now: slightly in the past, and never that of the previous token. Signatures may be
/// deterministic, so two tokens with the same `iat` could be equal, although Apple has refused the first one.
fn issued_at(now: SystemTime, previous: Option<u64>) -> u64 {
    let earliest = since_epoch(now).saturating_sub(BACKDATING).as_secs();
    match previous {
        Some(previous) if (earliest..earliest + BACKDATING.as_secs()).contains(&previous) => previous + 1,
        _ => earliest,
    }
}

/// The age of the token by the monotonic clock. Changes of the wall clock do not affect it.
fn age(issued: &Issued, now: Timestamp) -> Duration {
    now.monotonic.saturating_duration_since(issued.at.monotonic)
}

/// Whether the token is too old, or from the future, by the wall clock, which resembles Apple's. This happens when the
/// wall clock is set, or when the machine sleeps, because the monotonic clock may stop meanwhile.
fn is_stale_by_wall(issued: &Issued, now: Timestamp) -> bool {
    match now.wall.duration_since(issued.at.wall) {
        Ok(age) => age >= RENEW_AFTER,
        Err(_) => issued.at.wall.duration_since(now.wall).is_ok_and(|ahead| ahead > CLOCK_TOLERANCE),
    }
}

/// Whether to renew a token that Apple has not refused.
fn is_due(issued: &Issued, now: Timestamp) -> bool {
    let age = age(issued, now);
    age >= RENEW_AFTER || (age >= RENEW_AT_MOST_EVERY && is_stale_by_wall(issued, now))
}

/// Whether to replace a token that Apple has refused. A token that replaced a refused one stays in use for
/// [`RENEW_AT_MOST_EVERY`], unless the wall clock explains the refusal.
fn may_force(issued: &Issued, now: Timestamp) -> bool {
    !issued.forced || age(issued, now) >= RENEW_AT_MOST_EVERY || is_stale_by_wall(issued, now)
}

#[cfg(test)]
mod tests;
