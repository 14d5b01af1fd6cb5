//! Apple's checks and answers, as far as they are known.
//!
//! The rules follow Apple's documentation and answers seen in practice, not this crate's client, so that each checks
//! the other.

use std::{borrow::Cow, collections::HashMap, time::Duration};

#[cfg(feature = "app-attest")]
use base64::engine::general_purpose::STANDARD;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, StatusCode, header::AUTHORIZATION, request};
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
#[cfg(feature = "app-attest")]
use web_time::UNIX_EPOCH;

use crate::gate::routing::Environment;
use crate::runtime::{Instant, date};
#[cfg(feature = "app-attest")]
use crate::testing::app_attest::FakeAttestCa;
use crate::testing::endpoint::Endpoint;

/// The lifetime that Apple documents for the provider tokens of its push service, which have the same form.
const PROVIDER_TOKEN_LIFETIME: u64 = 60 * 60;
/// The time for which a device token is genuine. Apple documents no number. Seen in practice: tokens in use for some
/// 13 seconds, and a report of less than 30.
const TOKEN_LIFETIME: Duration = Duration::from_secs(2 * 60);
/// The tolerance for a time stamp, in milliseconds. Apple documents none; with one day, a time in seconds instead of
/// milliseconds fails.
const TIMESTAMP_SKEW: u64 = 24 * 60 * 60 * 1000;

/// An error's status and Apple's text.
type ErrorAnswer = (StatusCode, &'static str);

// Texts seen in practice.
const BAD_DEVICE_TOKEN: ErrorAnswer =
    (StatusCode::BAD_REQUEST, "Missing or incorrectly formatted device token payload");
const BAD_BITS: ErrorAnswer = (StatusCode::BAD_REQUEST, "Missing or incorrectly formatted bits");
const BAD_TIMESTAMP: ErrorAnswer = (StatusCode::BAD_REQUEST, "Missing or incorrectly formatted time stamp");
const BAD_PROVIDER_TOKEN: ErrorAnswer =
    (StatusCode::BAD_REQUEST, "Missing or badly formatted authorization token");
const UNKNOWN_PROVIDER_TOKEN: ErrorAnswer =
    (StatusCode::UNAUTHORIZED, "Unable to verify authorization token");
const METHOD_NOT_ALLOWED: ErrorAnswer = (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
// Apple documents this text; it was not seen in practice.
const BAD_PAYLOAD: ErrorAnswer = (StatusCode::BAD_REQUEST, "Bad Payload");
// Apple documents these two for receipts.
#[cfg(feature = "app-attest")]
const INCORRECT_ENVIRONMENT: ErrorAnswer = (StatusCode::BAD_REQUEST, "Incorrect Environment");
const NO_DATA: ErrorAnswer = (StatusCode::NOT_FOUND, "No Data Found");
// This text is neither documented nor seen.
const NOT_FOUND: ErrorAnswer = (StatusCode::NOT_FOUND, "Not Found");

/// The text seen in practice. Apple documents `Bit State Not Found`.
const NEVER_SET: &str = "Failed to find bit state";

/// The SHA-256 of a token, which suffices to recognize the token.
pub(super) type Fingerprint = [u8; 32];

/// Apple's knowledge about one team.
pub(super) struct Apple {
    team_id: Box<str>,
    keys: HashMap<Box<str>, VerifyingKey>,
    /// The issue times of provider tokens with a valid signature, in seconds since the Unix epoch. They are cached
    /// because verifying a signature takes milliseconds in debug builds.
    believed: HashMap<Fingerprint, u64>,
    device_tokens: HashMap<Fingerprint, (FakeDevice, Environment, Instant)>,
    bits: HashMap<FakeDevice, BitState>,
    /// The number of numbered devices.
    devices: u64,
    /// The seconds by which Apple's clock is ahead.
    pub(super) clock_ahead: i64,
    pub(super) token_lifetime: Duration,
    /// The signer of receipts, and the risk metric in newer ones.
    #[cfg(feature = "app-attest")]
    pub(super) receipts: Option<(FakeAttestCa, u32)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum FakeDevice {
    Numbered(u64),
    Named(Box<str>),
}

#[derive(Clone, Copy)]
struct BitState {
    bits: [bool; 2],
    /// Seconds since the Unix epoch.
    updated_at: u64,
}

impl Apple {
    pub(super) fn new(team_id: &str) -> Self {
        Self {
            team_id: team_id.into(),
            keys: HashMap::new(),
            believed: HashMap::new(),
            device_tokens: HashMap::new(),
            bits: HashMap::new(),
            devices: 0,
            clock_ahead: 0,
            token_lifetime: TOKEN_LIFETIME,
            #[cfg(feature = "app-attest")]
            receipts: None,
        }
    }

    pub(super) fn accept_key(&mut self, key_id: &str, key: VerifyingKey) {
        self.keys.insert(key_id.into(), key);
        self.believed.clear();
    }

    pub(super) fn revoke_key(&mut self, key_id: &str) {
        self.keys.remove(key_id);
        self.believed.clear();
    }

    pub(super) fn new_device(&mut self) -> FakeDevice {
        self.devices += 1;
        FakeDevice::Numbered(self.devices)
    }

    pub(super) fn know(&mut self, token: &str, device: FakeDevice, environment: Environment) {
        self.device_tokens.insert(fingerprint(token), (device, environment, Instant::now()));
    }

    pub(super) fn forget(&mut self, token: &str) {
        self.device_tokens.remove(&fingerprint(token));
    }

    pub(super) fn forget_device(&mut self, device: &FakeDevice) {
        self.device_tokens.retain(|_, (theirs, ..)| theirs != device);
    }

    pub(super) fn bits(&self, token: &str) -> Option<[bool; 2]> {
        let (device, ..) = self.device_tokens.get(&fingerprint(token))?;
        self.bits.get(device).map(|bits| bits.bits)
    }

    /// Apple's clock, as the time since the Unix epoch. `now` is the machine's clock.
    pub(super) const fn clock(&self, now: Duration) -> Duration {
        let shift = Duration::from_secs(self.clock_ahead.unsigned_abs());
        if self.clock_ahead < 0 { now.saturating_sub(shift) } else { now.saturating_add(shift) }
    }

    /// Apple's answer to a call. `now` is the time on Apple's clock.
    pub(super) fn answer(
        &mut self,
        environment: Environment,
        head: &request::Parts,
        body: &[u8],
        now: Duration,
    ) -> (StatusCode, Bytes) {
        match self.try_answer(environment, head, body, now) {
            Ok(Cow::Borrowed(text)) => (StatusCode::OK, Bytes::from_static(text.as_bytes())),
            Ok(Cow::Owned(text)) => (StatusCode::OK, text.into()),
            Err((status, text)) => (status, Bytes::from_static(text.as_bytes())),
        }
    }

    fn try_answer(
        &mut self,
        environment: Environment,
        head: &request::Parts,
        body: &[u8],
        now: Duration,
    ) -> Result<Cow<'static, str>, ErrorAnswer> {
        let endpoint = Endpoint::from_path(head.uri.path()).ok_or(NOT_FOUND)?;
        if head.method != Method::POST {
            return Err(METHOD_NOT_ALLOWED);
        }
        // Seen in practice: Apple checks the provider token first, even if the device token is bad, too.
        self.check_provider_token(head, now.as_secs())?;

        if endpoint == Endpoint::AttestationData {
            return self.newer_receipt(environment, body, now);
        }
        let body: Map<String, Value> = serde_json::from_slice(body).map_err(|_| BAD_PAYLOAD)?;
        text(&body, "transaction_id").ok_or(BAD_PAYLOAD)?;
        let token = text(&body, "device_token").ok_or(BAD_DEVICE_TOKEN)?;
        check_timestamp(body.get("timestamp"), now).ok_or(BAD_TIMESTAMP)?;
        let update = match endpoint {
            Endpoint::UpdateBits => Some(update_of(&body).ok_or(BAD_BITS)?),
            _ => None,
        };
        let device = match self.device_tokens.get(&fingerprint(token)) {
            Some((device, theirs, made))
                if *theirs == environment && made.elapsed() < self.token_lifetime =>
            {
                device.clone()
            }
            _ => return Err(BAD_DEVICE_TOKEN),
        };
        Ok(match (endpoint, update) {
            (Endpoint::QueryBits, _) => self.bits.get(&device).map_or(NEVER_SET.into(), |bits| {
                let [bit0, bit1] = bits.bits;
                let (year, month, _) = date(bits.updated_at / (24 * 60 * 60));
                let month = format!("{year:04}-{month:02}");
                json!({ "bit0": bit0, "bit1": bit1, "last_update_time": month }).to_string().into()
            }),
            (_, Some(update)) => {
                let updated_at = now.as_secs();
                let stored = self.bits.entry(device).or_insert(BitState { bits: [false; 2], updated_at });
                for (stored, new) in stored.bits.iter_mut().zip(update) {
                    *stored = new.unwrap_or(*stored);
                }
                stored.updated_at = updated_at;
                "".into()
            }
            (_, None) => "".into(),
        })
    }

    #[cfg(feature = "app-attest")]
    fn newer_receipt(
        &self,
        environment: Environment,
        body: &[u8],
        now: Duration,
    ) -> Result<Cow<'static, str>, ErrorAnswer> {
        let (ca, metric) = self.receipts.as_ref().ok_or(NO_DATA)?;
        let receipt = STANDARD.decode(body).map_err(|_| BAD_PAYLOAD)?;
        if ca.environment_of(&receipt).ok_or(BAD_PAYLOAD)? != environment {
            return Err(INCORRECT_ENVIRONMENT);
        }
        let newer = ca.refreshed(&receipt, UNIX_EPOCH + now, *metric).ok_or(BAD_PAYLOAD)?;
        Ok(STANDARD.encode(newer).into())
    }

    #[cfg(not(feature = "app-attest"))]
    const fn newer_receipt(
        &self,
        _: Environment,
        _: &[u8],
        _: Duration,
    ) -> Result<Cow<'static, str>, ErrorAnswer> {
        Err(NO_DATA)
    }

    fn check_provider_token(&mut self, head: &request::Parts, now: u64) -> Result<(), ErrorAnswer> {
        let token = provider_token(head).ok_or(BAD_PROVIDER_TOKEN)?;
        let fingerprint = fingerprint(token);
        let issued_at = match self.believed.get(&fingerprint) {
            Some(issued_at) => *issued_at,
            None => {
                let issued_at = self.verify_provider_token(token)?;
                self.believed.insert(fingerprint, issued_at);
                issued_at
            }
        };
        let earliest = now.saturating_sub(PROVIDER_TOKEN_LIFETIME);
        if (earliest..=now).contains(&issued_at) { Ok(()) } else { Err(UNKNOWN_PROVIDER_TOKEN) }
    }

    /// Returns the issue time of a provider token, if everything else is valid.
    fn verify_provider_token(&self, token: &str) -> Result<u64, ErrorAnswer> {
        let (signed, signature) = token.rsplit_once('.').ok_or(BAD_PROVIDER_TOKEN)?;
        let (header, claims) = signed.split_once('.').ok_or(BAD_PROVIDER_TOKEN)?;
        let header = jwt_part(header).ok_or(BAD_PROVIDER_TOKEN)?;
        let claims = jwt_part(claims).ok_or(BAD_PROVIDER_TOKEN)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| BAD_PROVIDER_TOKEN)?;
        if text(&header, "alg") != Some("ES256") {
            return Err(BAD_PROVIDER_TOKEN);
        }
        let key_id = text(&header, "kid").ok_or(BAD_PROVIDER_TOKEN)?;

        // A signature in DER has another length and fails here.
        let signature = Signature::from_slice(&signature).map_err(|_| UNKNOWN_PROVIDER_TOKEN)?;
        let key = self.keys.get(key_id).ok_or(UNKNOWN_PROVIDER_TOKEN)?;
        key.verify(signed.as_bytes(), &signature).map_err(|_| UNKNOWN_PROVIDER_TOKEN)?;
        if text(&claims, "iss") != Some(&*self.team_id) {
            return Err(UNKNOWN_PROVIDER_TOKEN);
        }
        claims.get("iat").and_then(Value::as_u64).ok_or(UNKNOWN_PROVIDER_TOKEN)
    }
}

pub(super) fn provider_token(head: &request::Parts) -> Option<&str> {
    let value = head.headers.get(AUTHORIZATION)?.to_str().ok()?;
    match value.split_once(' ') {
        Some((scheme, token)) => scheme.eq_ignore_ascii_case("bearer").then_some(token),
        // Apple documents this form for receipts. Other programs send the word `Bearer` there, too.
        None => (Endpoint::from_path(head.uri.path()) == Some(Endpoint::AttestationData)).then_some(value),
    }
}

fn jwt_part(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str().filter(|text| !text.is_empty())
}

fn check_timestamp(timestamp: Option<&Value>, now: Duration) -> Option<()> {
    let timestamp = timestamp?.as_u64()?;
    let now = u64::try_from(now.as_millis()).ok()?;
    (timestamp.abs_diff(now) <= TIMESTAMP_SKEW).then_some(())
}

/// The new bits, if there is at least one and each is a boolean.
fn update_of(body: &Map<String, Value>) -> Option<[Option<bool>; 2]> {
    let bit = |name| match body.get(name) {
        None => Some(None),
        Some(value) => value.as_bool().map(Some),
    };
    let update = [bit("bit0")?, bit("bit1")?];
    update.iter().any(Option::is_some).then_some(update)
}

pub(super) fn fingerprint(text: &str) -> Fingerprint {
    Sha256::digest(text).into()
}
