//! The endpoint that takes attestations.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, request};
use http_body::Body;
use tower_service::Service;
use tracing::{info, warn};

use crate::app_attest::anchors::Anchors;
use crate::app_attest::app_id::AppId;
use crate::app_attest::attestation::{Attestation, AttestationExpected};
use crate::app_attest::attested_device::{AttestedDevice, EVIDENCE};
use crate::app_attest::challenge::{ChallengePurpose, Challenges};
use crate::app_attest::client_data::{ClientData, ClientFacts};
use crate::app_attest::key_id::KeyId;
use crate::app_attest::keys::attested_key::AttestedKey;
use crate::app_attest::keys::store::{AttestKeyStore, ErasedAttestKeyStore, Insertion};
use crate::app_attest::policy::{AttestPolicy, denied};
use crate::app_attest::proof::digest;
use crate::app_attest::refresh::{ReceiptKeeper, ReceiptStore};
use crate::app_attest::refusals::{no_answer, refused, rejected};
use crate::app_attest::submission::{Submission, read};
use crate::gate::answer::{self, Answer};
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::observer::{Chain, TARGET};
use crate::gate::routing::Environment;
use crate::gate::tenant::name::TenantName;
use crate::meter::{ATTESTATIONS, label};
use crate::runtime::{SystemTime, wall_clock};
#[cfg(feature = "session")]
use crate::session::Sessions;

/// A tower service that takes attestations, and stores the keys that they attest. It takes a `POST` with JSON of at most
/// 32 KiB, whatever its content type:
///
/// ```json
/// {"key_id":"2o0syRGn…=","challenge":"AQoLDA0K…","attestation":"o2NmbXRv…"}
/// ```
///
/// `key_id` is what `generateKey` gave, and `challenge` the text of a challenge for [attestations](ChallengePurpose).
/// `attestation` is what `attestKey` gave, in base64 with padding. Other members are ignored. The answer is JSON with
/// `Cache-Control: no-store`:
///
/// ```json
/// {"key_id":"2o0syRGn…="}
/// ```
///
/// With [sessions](Self::with_sessions), it also has the members of the answer of an
/// `Exchange`: `session`, `expires_in` and `refresh_in`.
///
/// | the request holds | answer |
/// |---|---|
/// | a genuine attestation of a new key | 201 |
/// | one of a key that is stored for the same account | 200; the counter of the key stays |
/// | JSON or base64 that cannot be read, or not all three members | 401, [`MalformedToken`](crate::Rejection::MalformedToken) |
/// | a stale challenge, another app or environment, a forgery, or the key of another account | 401, [`RefusedToken`](crate::Rejection::RefusedToken) |
/// | a challenge that was used | 401, [`ReusedToken`](crate::Rejection::ReusedToken) |
/// | a build or an account that the policy denies, or a revoked key | 403, [`Denied`](crate::Rejection::Denied) |
/// | a longer body | 413, [`TooLarge`](crate::Rejection::TooLarge) |
/// | a body that does not arrive within 10 seconds | 408, [`IncompleteBody`](crate::Rejection::IncompleteBody) |
/// | another method | 405 |
/// | anything, while the store or the guard is down | 503, [`Unavailable`](crate::Rejection::Unavailable) |
///
/// The checks go in this order: sizes, the challenge, which is reserved; the attestation, with its receipt if it has one;
/// the policy; and the store. The service logs why it refused, at level info. Nothing is asked of Apple.
///
/// A client sends the same key again only after a 503, with the same challenge. After any other refusal, it makes a new
/// key and asks for a new challenge.
///
/// # Cost
///
/// About 0.7 ms of CPU with aws-lc and 3 ms in pure Rust, in the task of the request. Limit how often a client may ask:
/// each request with a challenge costs that.
///
/// ```
/// use tower_devicecheck::app_attest::{AppId, AttestEndpoint, Challenges, MemoryAttestKeyStore};
///
/// fn endpoint(
///     store: std::sync::Arc<MemoryAttestKeyStore>,
///     app_id: AppId,
///     challenges: Challenges,
/// ) -> AttestEndpoint {
///     // The application's login has put the account into the extensions.
///     #[derive(Clone)]
///     struct Login(String);
///     AttestEndpoint::new(store, [app_id], challenges)
///         .with_account(|head| head.extensions.get::<Login>().map(|login| login.0.clone()))
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct AttestEndpoint {
    core: Arc<Core>,
}

#[derive(Clone)]
struct Core {
    store: Arc<dyn ErasedAttestKeyStore>,
    app_ids: Vec<AppId>,
    challenges: Challenges,
    tenant: Option<TenantName>,
    environments: Vec<Environment>,
    anchors: Anchors,
    max_age: Option<Duration>,
    client_data: ClientData,
    policy: AttestPolicy,
    account: Option<Arc<dyn FindAccount>>,
    receipts: Option<ReceiptKeeper>,
    #[cfg(feature = "session")]
    sessions: Option<Sessions>,
}

/// A name for closures that find the account of a request.
trait FindAccount: Fn(&request::Parts) -> Option<String> + Send + Sync {}

impl<F: Fn(&request::Parts) -> Option<String> + Send + Sync> FindAccount for F {}

impl AttestEndpoint {
    /// Makes the service for these apps, with the defaults of all `with_*` methods. `challenges` must be those of the
    /// [`ChallengeEndpoint`](crate::app_attest::ChallengeEndpoint).
    pub fn new(
        store: impl AttestKeyStore,
        app_ids: impl IntoIterator<Item = AppId>,
        challenges: Challenges,
    ) -> Self {
        Self {
            core: Arc::new(Core {
                store: Arc::new(store),
                app_ids: app_ids.into_iter().collect(),
                challenges,
                tenant: None,
                environments: vec![Environment::Production],
                anchors: Anchors::apple(),
                max_age: Some(AttestationExpected::MAX_AGE),
                client_data: ClientData::challenge_text(),
                policy: AttestPolicy::new(),
                account: None,
                receipts: None,
                #[cfg(feature = "session")]
                sessions: None,
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Core)) -> Self {
        change(Arc::make_mut(&mut self.core));
        self
    }

    /// Stores keys for this [tenant](crate::tenant). Each tenant has an endpoint of its own. Default: none.
    pub fn with_tenant(self, tenant: TenantName) -> Self {
        self.with(|core| core.tenant = Some(tenant))
    }

    /// Sets the environments that are admitted. Default: [`Environment::Production`].
    ///
    /// # Danger
    ///
    /// Anyone with a developer account of the team can attest for development, with any code.
    pub fn with_environments(self, environments: impl IntoIterator<Item = Environment>) -> Self {
        self.with(|core| core.environments = environments.into_iter().collect())
    }

    /// Sets the roots of trust. Default: Apple's.
    pub fn with_anchors(self, anchors: Anchors) -> Self {
        self.with(|core| core.anchors = anchors)
    }

    /// Sets the greatest age of an attestation, by the time at which Apple signed it. `None` leaves that to Apple's
    /// certificate. Default: 1 hour.
    pub fn with_max_age(self, max_age: Option<Duration>) -> Self {
        self.with(|core| core.max_age = max_age)
    }

    /// Sets the rule for the client data of attestations. Default: [`ClientData::challenge_text`].
    pub fn with_client_data(self, rule: ClientData) -> Self {
        self.with(|core| core.client_data = rule)
    }

    /// Sets the policy about apps and accounts. Default: everything is admitted.
    pub fn with_policy(self, policy: AttestPolicy) -> Self {
        self.with(|core| core.policy = policy)
    }

    /// Sets how to find the account of a request, from its head. The store keeps it with the key, and a key that is known
    /// for one account is refused for another. Default: no key has an account.
    ///
    /// The application must have checked the login of the request.
    pub fn with_account(
        self,
        find: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.with(|core| core.account = Some(Arc::new(find)))
    }

    /// Stores the receipt of each attestation, for a [`ReceiptRefresher`](crate::app_attest::ReceiptRefresher). If that
    /// fails, the key is attested all the same, and the failure is logged. Default: none.
    pub fn with_receipts(self, store: impl ReceiptStore) -> Self {
        self.with(|core| core.receipts = Some(ReceiptKeeper::new(store)))
    }

    /// Sells a session with each attestation. Default: none.
    #[cfg(feature = "session")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "session")))]
    pub fn with_sessions(self, sessions: Sessions) -> Self {
        self.with(|core| core.sessions = Some(sessions))
    }
}

impl Core {
    async fn answer<B>(self: Arc<Self>, head: request::Parts, body: B) -> Answer
    where
        B: Body<Data = Bytes>,
    {
        if head.method != Method::POST {
            return answer::wrong_method("POST");
        }
        let outcome = match read(body).await {
            Ok(body) => self.accept(&head, &body).await,
            Err(rejection) => Err(rejection.into()),
        };
        let result = outcome.as_ref().map_or_else(|rejected| rejected.rejection().code(), |_| "attested");
        ATTESTATIONS.add([label("result", result)]);
        match outcome {
            Ok((status, body)) => answer::json(status, body),
            Err(rejected) => {
                self.log(&rejected);
                answer::rejection(rejected.rejection(), &head)
            }
        }
    }

    fn log(&self, rejected: &Rejected) {
        let (code, reason) = (rejected.rejection().code(), rejected.reason());
        let tenant = self.tenant.as_ref().map(TenantName::as_str);
        if rejected.rejection().status().is_server_error() {
            let error = rejected.error().map(|error| tracing::field::display(Chain(error)));
            warn!(target: TARGET, code, reason, tenant, error, "no verdict about an attestation");
        } else {
            info!(target: TARGET, code, reason, tenant, "attestation rejected");
        }
    }

    fn tenant(&self) -> &str {
        self.tenant.as_ref().map_or("", TenantName::as_str)
    }

    async fn accept(&self, head: &request::Parts, body: &[u8]) -> Result<(StatusCode, String), Rejected> {
        let submission = Submission::parse(body)?;
        let now = wall_clock();
        let (tenant, text) = (self.tenant(), submission.challenge.as_bytes());
        let challenge = self.challenges.check(tenant, ChallengePurpose::Attestation, text, now)?;
        let account = self.account.as_ref().and_then(|find| find(head));
        self.policy.check_account(account.as_deref())?;
        let mut is_new = false;
        let check = self.check(head, &submission, account, now, &mut is_new);
        let device = self.challenges.once(tenant, challenge, check).await?;
        let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok((status, self.reply(&submission.key_id, &device, head)?))
    }

    async fn check(
        &self,
        head: &request::Parts,
        submission: &Submission,
        account: Option<String>,
        now: SystemTime,
        is_new: &mut bool,
    ) -> Result<VerifiedDevice, Rejected> {
        let path_and_query = head.uri.path_and_query().map_or("", |uri| uri.as_str());
        let facts = ClientFacts::new(&head.method, path_and_query, &submission.challenge, None);
        let expected = AttestationExpected {
            key_id: &submission.key_id,
            client_data_hash: &self.client_data.hash(&facts),
            app_ids: &self.app_ids,
            environments: &self.environments,
            now,
            max_age: self.max_age,
        };
        let attestation = Attestation::verify(&submission.attestation, &expected, &self.anchors)
            .map_err(|error| rejected(&error))?;
        self.policy.check_app(attestation.category(), attestation.bundle_version())?;
        let key = self.key(&attestation, account, now);
        let device = self.device(&key, now);
        match self.store.insert(key).await.map_err(no_answer)? {
            Insertion::New => *is_new = true,
            Insertion::Known => {}
            Insertion::OtherAccount => return Err(refused("the key is known for another account")),
            Insertion::Revoked => return Err(denied("the key is revoked")),
        }
        if let Some(receipts) = &self.receipts {
            receipts.keep(self.tenant.as_ref(), &attestation, now).await;
        }
        Ok(device)
    }

    fn key(&self, attestation: &Attestation, account: Option<String>, now: SystemTime) -> AttestedKey {
        let (app_id, environment) = (attestation.app_id().clone(), attestation.environment());
        let mut key = AttestedKey::new(self.tenant(), *attestation.public_key(), app_id, environment, now);
        key.attested_at = attestation.attested_at();
        key.account = account;
        key.category = attestation.category();
        key.bundle_version = attestation.bundle_version().cloned();
        key.platform = attestation.platform().map(str::to_owned);
        key.system_version = attestation.system_version().map(str::to_owned);
        key
    }

    fn device(&self, key: &AttestedKey, now: SystemTime) -> VerifiedDevice {
        let facts = AttestedDevice {
            key_id: key.key_id,
            app_id: key.app_id.clone(),
            category: key.category,
            bundle_version: key.bundle_version.clone(),
            counter: 0,
            account: key.account.clone(),
        };
        let mut device = VerifiedDevice::new(digest(&key.key_id), key.environment, EVIDENCE, now);
        if let Some(tenant) = &self.tenant {
            device.set_tenant(tenant);
        }
        device.with_subject(key.subject().into()).with_value(Arc::new(facts))
    }

    /// The JSON of the answer. Ids and sessions need no escapes.
    fn reply(
        &self,
        key_id: &KeyId,
        device: &VerifiedDevice,
        head: &request::Parts,
    ) -> Result<String, Rejected> {
        #[cfg(feature = "session")]
        if let Some(sessions) = &self.sessions {
            let (session, expires_in) = sessions.sell_for_attestation(device, &head.headers)?;
            let refresh_in = expires_in / 2;
            return Ok(format!(
                r#"{{"key_id":"{key_id}","session":"{session}","expires_in":{expires_in},"refresh_in":{refresh_in}}}"#
            ));
        }
        let _ = (device, head);
        Ok(format!(r#"{{"key_id":"{key_id}"}}"#))
    }
}

impl<B> Service<Request<B>> for AttestEndpoint
where
    B: Body<Data = Bytes, Error: Send> + Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let core = Arc::clone(&self.core);
        Box::pin(async move { Ok(core.answer(head, body).await) })
    }
}

impl fmt::Debug for Core {
    // A store need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("app_ids", &self.app_ids)
            .field("tenant", &self.tenant)
            .field("environments", &self.environments)
            .field("max_age", &self.max_age)
            .field("client_data", &self.client_data)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
