//! Sessions for services that are not this server: the same claims as a JSON Web Token, and the public keys.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::{Arc, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower_service::Service;

use crate::gate::answer;
use crate::gate::body::ResponseBody;
use crate::gate::routing::Environment;
use crate::gate::{decision::Rejected, error::VerifyError};
use crate::runtime::{Instant, read, write};
use crate::session::claims::{BoughtWith, Claims, NO_SUBJECT, SessionId, from_hex, to_hex};
use crate::session::error::SessionError;
use crate::session::jwt_key::JwtKey;
use crate::session::recent::Recent;
use crate::session::sessions::Sessions;

/// The time for which a token that was verified is remembered, at least, unless more come.
const PERIOD: Duration = Duration::from_secs(30 * 60);
const CAPACITY: usize = 50_000;
/// Tokens of this module have about 600 characters, more with a long issuer or audience.
const LONGEST: usize = 4_096;

/// Sessions as JSON Web Tokens, for gateways and back ends that are not this server (feature `jwt`).
///
/// A token has the header `{"alg":"EdDSA","typ":"dc-session+jwt","kid":"…"}`, or `ES256` by the kind of the key, and these
/// claims:
///
/// | claim | value |
/// |---|---|
/// | `iss`, `aud` | as given to [`new`](Self::new) |
/// | `sub` | the App ID |
/// | `tenant` | the tenant, unless its name is empty |
/// | `iat`, `exp` | Unix seconds |
/// | `jti` | the session's id, 32 hexadecimal digits |
/// | `env` | `production` or `development` |
/// | `evidence` | what the session was bought with: [`BoughtWith::as_str`] |
/// | `dev` | the subject, 32 hexadecimal digits; absent if there is none |
/// | `once` | `true` for limited use, otherwise absent |
/// | `bound` | the first half of the SHA-256 of the header value to which the session is bound, in hexadecimal digits; otherwise absent |
///
/// [`Exchange::with_jwt`](crate::session::Exchange::with_jwt) sells such tokens, [`Jwks`] publishes the keys, and
/// [`SessionProof::with_jwt`](crate::session::SessionProof::with_jwt) accepts the tokens on this server, too.
///
/// # Rotation
///
/// All keys are published, and the first one signs. Publish a new key an hour before it signs, because others keep the
/// published keys for that long. Leave an old key in the list until its last token is over.
///
/// # Clone
///
/// Clones share the keys, and the memory of verified tokens.
#[derive(Clone)]
pub struct Jwts {
    issuer: Arc<str>,
    audience: Arc<[String]>,
    /// The tenant, and the App ID.
    owner: (Arc<str>, Arc<str>),
    keys: Arc<RwLock<Vec<JwtKey>>>,
    verified: Arc<Recent<[u8; 32], Claims>>,
}

impl Jwts {
    /// Makes the tokens of an app. `issuer` is the URL of this server, `audience` names the services that shall accept
    /// the tokens, and tenant and App ID are those of `sessions`. The first of `keys` signs. This server accepts only
    /// tokens of this issuer, tenant and App ID, and for any audience.
    ///
    /// Give each tenant an audience of its own, because other services may not look at `tenant`.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no key, or no audience.
    pub fn new(
        issuer: &str,
        audience: impl IntoIterator<Item = String>,
        sessions: &Sessions,
        keys: Vec<JwtKey>,
    ) -> Result<Self, SessionError> {
        let audience: Arc<[String]> = audience.into_iter().collect();
        if audience.is_empty() {
            return Err(SessionError::new("sessions as JWT need an audience"));
        }
        let own = Self {
            issuer: issuer.into(),
            audience,
            owner: sessions.owner(),
            keys: Arc::default(),
            verified: Arc::new(Recent::new(PERIOD, CAPACITY)),
        };
        own.replace_keys(keys).map(|()| own)
    }

    /// Takes other keys, in all clones. Tokens of a key that is gone are refused from then on.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no key, and keeps the old ones.
    pub fn replace_keys(&self, keys: Vec<JwtKey>) -> Result<(), SessionError> {
        if keys.is_empty() {
            return Err(SessionError::new("sessions as JWT need a key"));
        }
        let mut current = write(&self.keys);
        *current = keys;
        // Under the lock, so that no token of an old key is remembered afterwards.
        self.verified.clear();
        Ok(())
    }

    /// Checks that the tokens are those of this tenant and App ID.
    pub(super) fn check_owner(&self, sessions: &Sessions) -> Result<(), Rejected> {
        if self.owner == sessions.owner() {
            return Ok(());
        }
        Err(VerifyError::misconfigured("sessions as JWT are those of another tenant or App ID").into())
    }

    pub(super) fn mint(&self, claims: &Claims) -> Result<String, SessionError> {
        let digits = |bytes: &[u8; 16]| String::from_utf8_lossy(&to_hex(bytes)).into_owned();
        let (tenant, app_id) = &self.owner;
        let mut payload = json!({
            "iss": &*self.issuer,
            "aud": &*self.audience,
            "sub": &**app_id,
            "iat": claims.issued,
            "exp": claims.expires,
            "jti": claims.id.to_string(),
            "env": claims.environment.as_str(),
            "evidence": claims.bought_with.as_str(),
        });
        if !tenant.is_empty() {
            payload["tenant"] = (**tenant).into();
        }
        if claims.subject != NO_SUBJECT {
            payload["dev"] = digits(&claims.subject).into();
        }
        if claims.is_limited_use {
            payload["once"] = true.into();
        }
        if let Some(binding) = &claims.binding {
            payload["bound"] = digits(binding).into();
        }
        let keys = read(&self.keys);
        let key = keys.first().ok_or(SessionError::new("sessions as JWT need a key"))?;
        let mut text = format!("{}.{}", key.header(), URL_SAFE_NO_PAD.encode(payload.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(text.as_bytes())?);
        text.push('.');
        text.push_str(&signature);
        Ok(text)
    }

    /// The claims of a token that one of the keys has signed.
    ///
    /// The header is not parsed: it must be the one header of a known key, so no token chooses its algorithm. The
    /// signature is checked once, and remembered by the SHA-256 of the whole text.
    pub(super) fn claims(&self, text: &[u8], now: Instant) -> Option<Claims> {
        if text.len() > LONGEST {
            return None;
        }
        let digest = Sha256::digest(text).into();
        if let Some(claims) = self.verified.get(&digest) {
            return Some(claims);
        }
        let text = std::str::from_utf8(text).ok()?;
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let keys = read(&self.keys);
        let key = keys.iter().find(|key| key.header() == header)?;
        if !key.has_signed(signed.as_bytes(), &signature) {
            return None;
        }
        let claims = self.read(&serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?)?;
        self.verified.insert(digest, claims, now);
        Some(claims)
    }

    fn read(&self, payload: &Value) -> Option<Claims> {
        let text = |name: &str| payload.get(name).and_then(Value::as_str);
        let seconds = |name: &str| u32::try_from(payload.get(name)?.as_u64()?).ok();
        let digits = |name: &str| match payload.get(name) {
            Some(value) => value.as_str().and_then(from_hex::<16>).map(Some),
            None => Some(None),
        };
        let (tenant, app_id) = &self.owner;
        let is_ours = text("iss") == Some(&*self.issuer)
            && text("sub") == Some(&**app_id)
            && text("tenant").unwrap_or_default() == &**tenant;
        is_ours.then_some(())?;
        Some(Claims {
            is_limited_use: payload.get("once").is_some(),
            environment: match text("env")? {
                "production" => Environment::Production,
                "development" => Environment::Development,
                _ => return None,
            },
            bought_with: BoughtWith::from_word(text("evidence")?)?,
            issued: seconds("iat")?,
            expires: seconds("exp")?,
            id: SessionId::from(from_hex::<16>(text("jti")?)?),
            subject: digits("dev")?.unwrap_or(NO_SUBJECT),
            binding: digits("bound")?,
        })
    }
}

impl fmt::Debug for Jwts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwts")
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("owner", &self.owner)
            .field("keys", &*read(&self.keys))
            .finish_non_exhaustive()
    }
}

/// A tower service that publishes the keys of [`Jwts`] as a JSON Web Key Set. Mount it at `/.well-known/jwks.json`, open to
/// everybody.
///
/// It answers a `GET` with `Cache-Control: public, max-age=3600, stale-if-error=86400`.
#[derive(Clone, Debug)]
#[must_use]
pub struct Jwks {
    jwts: Jwts,
}

impl Jwks {
    /// Makes the service.
    pub const fn new(jwts: Jwts) -> Self {
        Self { jwts }
    }

    fn answer(&self, method: &Method) -> Response<ResponseBody<String>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return answer::wrong_method("GET, HEAD");
        }
        let keys = read(&self.jwts.keys);
        let keys: Vec<_> = keys.iter().map(JwtKey::jwk).collect();
        let body = if *method == Method::GET {
            format!(r#"{{"keys":[{}]}}"#, keys.join(","))
        } else {
            String::new()
        };
        let mut response = Response::new(ResponseBody::inner(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600, stale-if-error=86400"));
        response
    }
}

impl<B> Service<Request<B>> for Jwks {
    type Response = Response<ResponseBody<String>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(request.method())))
    }
}
