//! The proof: an assertion in the headers of a request.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, request};

use crate::app_attest::app_id::AppId;
use crate::app_attest::assertion::{Assertion, AssertionExpected};
use crate::app_attest::attested_device::{AttestedDevice, EVIDENCE, SCHEME};
use crate::app_attest::client_data::{ClientData, ClientFacts};
use crate::app_attest::content_digest;
use crate::app_attest::freshness::{CHALLENGE, Fresh, Freshness, TIME};
use crate::app_attest::key_id::KeyId;
use crate::app_attest::keys::attested_key::AttestedKey;
use crate::app_attest::keys::counter::CounterRule;
use crate::app_attest::keys::store::{AttestKeyStore, ErasedAttestKeyStore};
use crate::app_attest::policy::{AttestPolicy, denied};
use crate::app_attest::refresh::{ReceiptKeeper, ReceiptStore};
use crate::app_attest::refusals::{no_answer, refused, rejected};
use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::headers::take_only;
use crate::gate::proof::{Facts, Proof, Step};
use crate::gate::rejection::{MalformedToken, Rejection};
use crate::gate::routing::Environment;
use crate::gate::tenant::name::TenantName;

const KEY_ID: HeaderName = HeaderName::from_static("x-app-attest-key-id");
const ASSERTION: HeaderName = HeaderName::from_static("x-app-attest-assertion");
/// The base64 of 4 KiB.
const LONGEST_ASSERTION: usize = 4 * 4096_usize.div_ceil(3);
const DEFAULT_BODY_LIMIT: usize = 1024 * 1024;

/// The proof that admits requests by an assertion of App Attest: a signature by a key that the device has
/// [attested](crate::app_attest::AttestEndpoint) before.
///
/// | header | value |
/// |---|---|
/// | `X-App-Attest-Key-Id` | the id of the key, 44 characters of base64, as `generateKey` gives it |
/// | `X-App-Attest-Assertion` | the assertion in base64, 180 to 400 characters |
/// | `X-App-Attest-Challenge`, `X-App-Attest-Time` or `X-Device-Session` | by the [`Freshness`] |
///
/// In gRPC, the headers are entries of the metadata. A request with some of them only is malformed.
///
/// The checks go in this order: the form; the freshness; the key, in the store; its revocation, its account and its app;
/// its environment, which the route must admit; the body, which is read only for a known key; a challenge, which is
/// reserved; the signature, with the RP ID; the policy; and the counter, in the store. An assertion is judged anew for
/// each request, and the answer is never shared.
///
/// | fault | rejection |
/// |---|---|
/// | some of the headers, one twice, or not base64 | [`MalformedToken`](crate::Rejection::MalformedToken) |
/// | the key is not stored | [`UnknownKey`](crate::Rejection::UnknownKey): the app attests a new key |
/// | signature, RP ID, environment, stale challenge or time | [`RefusedToken`](crate::Rejection::RefusedToken) |
/// | the counter or the challenge was used before | [`ReusedToken`](crate::Rejection::ReusedToken): the app signs again |
/// | policy, revoked key, denied account | [`Denied`](crate::Rejection::Denied) |
/// | the store, or the guard of the challenges, is down | [`Unavailable`](crate::Rejection::Unavailable) |
///
/// The device has the evidence `app-attest`, which is always fresh; the environment of the key; its
/// [subject](AttestedKey::subject); the SHA-256 of the key's id as its digest; and an [`AttestedDevice`].
///
/// ```
/// use tower_devicecheck::{AppleClient, DeviceCheckLayer, LayerError, ReadBodies};
/// use tower_devicecheck::app_attest::{AppAttestProof, AppId, Freshness, MemoryAttestKeyStore};
///
/// fn layer(
///     apple: AppleClient,
///     store: std::sync::Arc<MemoryAttestKeyStore>,
///     app_id: AppId,
/// ) -> Result<DeviceCheckLayer<ReadBodies>, LayerError> {
///     let proof = AppAttestProof::new(store, [app_id], Freshness::time());
///     DeviceCheckLayer::new(apple).with_bodies(ReadBodies::new()).add_proof_before(proof)
/// }
/// ```
///
/// # Cost
///
/// Two questions to the store, and one verification by P-256: about 60 µs of CPU with aws-lc and 330 µs in pure Rust, in
/// the task of the request, without a thread of its own. An attacker can cause it only with the id of a key that is
/// stored.
///
/// # Cancellation
///
/// If the client disconnects while the counter advances, the counter may be spent. The app signs again.
#[derive(Clone, Debug)]
#[must_use]
pub struct AppAttestProof {
    core: Arc<Core>,
}

#[derive(Clone)]
struct Core {
    store: Arc<dyn ErasedAttestKeyStore>,
    app_ids: Vec<AppId>,
    freshness: Freshness,
    client_data: ClientData,
    counter_rule: CounterRule,
    policy: AttestPolicy,
    body_limit: usize,
    receipts: Option<ReceiptKeeper>,
    streams_bodies: bool,
}

/// A credential of the right form, and the facts of its request.
struct Presented {
    key_id: KeyId,
    assertion: Vec<u8>,
    freshness: String,
    fresh: Fresh,
    method: Method,
    path_and_query: String,
    /// The SHA-256 of the body that the head promises, if bodies are streamed.
    promised: Option<[u8; 32]>,
    facts: Facts,
}

impl AppAttestProof {
    /// Makes the proof for these apps, with the defaults of all `with_*` methods.
    pub fn new(
        store: impl AttestKeyStore,
        app_ids: impl IntoIterator<Item = AppId>,
        freshness: Freshness,
    ) -> Self {
        Self {
            core: Arc::new(Core {
                store: Arc::new(store),
                app_ids: app_ids.into_iter().collect(),
                freshness,
                client_data: ClientData::request(),
                counter_rule: CounterRule::Strict,
                policy: AttestPolicy::new(),
                body_limit: DEFAULT_BODY_LIMIT,
                receipts: None,
                streams_bodies: false,
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Core)) -> Self {
        change(Arc::make_mut(&mut self.core));
        self
    }

    /// Sets the rule for what the app signs. Default: [`ClientData::request`], which needs a layer that [reads
    /// bodies](crate::DeviceCheckLayer::with_bodies).
    pub fn with_client_data(self, rule: ClientData) -> Self {
        self.with(|core| core.client_data = rule)
    }

    /// Sets the rule for counters. Default: [`CounterRule::Strict`].
    pub fn with_counter_rule(self, rule: CounterRule) -> Self {
        self.with(|core| core.counter_rule = rule)
    }

    /// Sets the policy about apps and accounts. Default: everything is admitted.
    pub fn with_policy(self, policy: AttestPolicy) -> Self {
        self.with(|core| core.policy = policy)
    }

    /// Sets the most bytes of a body that is hashed. Default: 1 MiB. The limit of
    /// [the layer](crate::ReadBodies::with_limit) counts as well. A longer body is [`TooLarge`](crate::Rejection::TooLarge).
    pub fn with_body_limit(self, bytes: usize) -> Self {
        self.with(|core| core.body_limit = bytes)
    }

    /// [Notes](ReceiptStore::touch) in this store that a key was seen: at most once per hour and key, after its request is
    /// admitted. The request waits for the store. If the store fails, that is logged. Default: none.
    pub fn with_receipts(self, store: impl ReceiptStore) -> Self {
        self.with(|core| core.receipts = Some(ReceiptKeeper::new(store)))
    }

    /// Sets whether bodies pass without being held, for large uploads: the client promises the SHA-256 of the body in
    /// `Content-Digest: sha-256=:<base64>:` (RFC 9530), the assertion signs it, and the
    /// [`GateBody`](crate::GateBody) ends in an error if the body is another one. No limit on bytes applies. A request
    /// without the header is malformed. Default: `false`, bodies are read before the inner service is called.
    ///
    /// # Danger
    ///
    /// The inner service runs before the body was checked, and must undo what it has done if the body ends in an error.
    pub fn with_streamed_bodies(self, streamed: bool) -> Self {
        self.with(|core| core.streams_bodies = streamed)
    }
}

impl Core {
    /// Takes the credential out of the head. `None` if no part of it is there.
    fn take(&self, head: &mut request::Parts, facts: &Facts) -> Result<Option<Presented>, Rejected> {
        if ![KEY_ID, ASSERTION, CHALLENGE, TIME].iter().any(|name| head.headers.contains_key(name)) {
            return Ok(None);
        }
        let mut taken = |name| take_only(&mut head.headers, &name);
        let parts = (taken(KEY_ID), taken(ASSERTION), taken(self.freshness.header()));
        self.strip(&mut head.headers);
        let malformed = Rejection::from;
        let (Some(key_id), Some(assertion), Some(freshness)) =
            (parts.0.map_err(malformed)?, parts.1.map_err(malformed)?, parts.2.map_err(malformed)?)
        else {
            return Err(malformed(MalformedToken::Incomplete).into());
        };
        let key_id: KeyId = text(&key_id)?.parse().map_err(|error| rejected(&error))?;
        let assertion = decoded(&assertion)?;
        let of_key = |rejected: Rejected| rejected.with_digest(digest(&key_id));
        let promised = (self.streams_bodies && self.client_data.needs_body())
            .then(|| content_digest::promised(&head.headers))
            .transpose()
            .map_err(malformed)?;
        let fresh = self.freshness.check(&freshness, head, facts).map_err(of_key)?;
        Ok(Some(Presented {
            key_id,
            assertion,
            freshness: text(&freshness)?.to_owned(),
            fresh,
            method: head.method.clone(),
            path_and_query: head.uri.path_and_query().map_or("", |uri| uri.as_str()).to_owned(),
            promised,
            facts: facts.clone(),
        }))
    }

    fn strip(&self, headers: &mut HeaderMap) {
        for name in [KEY_ID, ASSERTION, CHALLENGE, TIME, self.freshness.header()] {
            headers.remove(name);
        }
    }

    /// Finds the key, and then goes on, with the body if the rule needs it.
    async fn ask(self: Arc<Self>, presented: Presented) -> Step {
        let key = match self.find(&presented).await {
            Ok(key) => key,
            Err(rejected) => return Step::rejected(rejected.with_digest(digest(&presented.key_id))),
        };
        if !self.client_data.needs_body() || presented.promised.is_some() {
            let promised = presented.promised;
            return self.finish(presented, key, promised).await;
        }
        Step::needs_body(self.body_limit, move |body| Step::ask(self.finish(presented, key, Some(body))))
    }

    async fn find(&self, presented: &Presented) -> Result<AttestedKey, Rejected> {
        let found = self.store.find(presented.tenant(), &presented.key_id).await.map_err(no_answer)?;
        let key = found.ok_or(Rejection::UnknownKey)?;
        if key.revocation.is_some() {
            return Err(denied("the key is revoked").with_environment(key.environment));
        }
        self.policy.check_account(key.account.as_deref())?;
        #[cfg(feature = "session")]
        if let Fresh::Session(session) = &presented.fresh
            && !session.is_of(&key.subject())
        {
            return Err(refused("the session of another key"));
        }
        if !self.app_ids.contains(&key.app_id) {
            return Err(refused("the key is that of another app"));
        }
        if !presented.facts.environments().contains(&key.environment) {
            let reason = match key.environment {
                Environment::Development => {
                    "the key was attested for development, which the route does not admit"
                }
                Environment::Production => {
                    "the key was attested for production, which the route does not admit"
                }
            };
            return Err(refused(reason).with_environment(key.environment));
        }
        Ok(key)
    }

    async fn finish(self: Arc<Self>, presented: Presented, key: AttestedKey, body: Option<[u8; 32]>) -> Step {
        let check = self.check(&presented, &key, body.as_ref());
        let decision = match (&presented.fresh, self.freshness.challenges()) {
            (Fresh::Challenge(challenge), Some(challenges)) => {
                challenges.once(presented.tenant(), *challenge, check).await
            }
            _ => check.await,
        };
        match decision {
            Ok(device) => match presented.promised {
                Some(digest) => Step::verified_by_promise(device, digest),
                None => Step::verified(device),
            },
            Err(rejected) => Step::rejected(
                rejected.with_digest(digest(&presented.key_id)).with_environment(key.environment),
            ),
        }
    }

    /// Verifies the assertion, and advances the counter last, so that nobody else can spend it.
    async fn check(
        &self,
        presented: &Presented,
        key: &AttestedKey,
        body: Option<&[u8; 32]>,
    ) -> Result<VerifiedDevice, Rejected> {
        let facts =
            ClientFacts::new(&presented.method, &presented.path_and_query, &presented.freshness, body);
        let expected = AssertionExpected {
            public_key: &key.public_key,
            client_data_hash: &self.client_data.hash(&facts),
            app_id: &key.app_id,
        };
        let assertion =
            Assertion::verify(&presented.assertion, &expected).map_err(|error| rejected(&error))?;
        // A device does not lose its category; an update changes the build.
        let category = assertion.category().or(key.category);
        self.policy.check_app(category, assertion.bundle_version())?;
        let (rule, now) = (self.counter_rule, presented.facts.now());
        let advanced = self.store.advance(&key.tenant, &key.key_id, assertion.counter(), rule, now).await;
        if !advanced.map_err(no_answer)? {
            return Err(Rejected::from(Rejection::ReusedToken).with_reason("the counter was used before"));
        }
        if let Some(receipts) = &self.receipts {
            receipts.see(presented.facts.tenant(), key, now).await;
        }
        let device = AttestedDevice {
            key_id: key.key_id,
            app_id: key.app_id.clone(),
            category,
            bundle_version: assertion.bundle_version().cloned(),
            counter: assertion.counter(),
            account: key.account.clone(),
        };
        let verified = presented.facts.verified(EVIDENCE, digest(&key.key_id));
        Ok(verified
            .with_environment(key.environment)
            .with_subject(key.subject().into())
            .with_value(Arc::new(device)))
    }
}

impl Presented {
    fn tenant(&self) -> &str {
        self.facts.tenant().map_or("", TenantName::as_str)
    }
}

/// The digest of a device is that of its key's id.
pub(super) fn digest(key_id: &KeyId) -> TokenDigest {
    TokenDigest::of(key_id.as_bytes())
}

fn text(value: &HeaderValue) -> Result<&str, Rejected> {
    value.to_str().map_err(|_| Rejection::from(MalformedToken::NotCanonical).into())
}

fn decoded(assertion: &HeaderValue) -> Result<Vec<u8>, Rejected> {
    if assertion.len() > LONGEST_ASSERTION {
        return Err(Rejection::from(MalformedToken::TooLong).into());
    }
    if assertion.is_empty() {
        return Err(Rejection::from(MalformedToken::Empty).into());
    }
    STANDARD.decode(assertion).map_err(|_| Rejection::from(MalformedToken::NotCanonical).into())
}

impl Proof for AppAttestProof {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
        match self.core.take(head, facts) {
            Ok(Some(presented)) => Step::ask(Arc::clone(&self.core).ask(presented)),
            Ok(None) => Step::absent(),
            Err(rejected) => Step::rejected(rejected),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        self.core.strip(&mut head.headers);
    }

    fn reads_body(&self) -> bool {
        self.core.client_data.needs_body()
    }
}

impl std::fmt::Debug for Core {
    // A store need not implement `Debug`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("app_ids", &self.app_ids)
            .field("freshness", &self.freshness)
            .field("client_data", &self.client_data)
            .field("counter_rule", &self.counter_rule)
            .field("policy", &self.policy)
            .field("body_limit", &self.body_limit)
            .field("streams_bodies", &self.streams_bodies)
            .finish_non_exhaustive()
    }
}
