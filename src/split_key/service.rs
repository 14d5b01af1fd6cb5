//! The service: from the credentials in a request to its key.

use std::{fmt, sync::Arc};

use http::{HeaderName, header::AUTHORIZATION, request};

use crate::gate::future::{Decide, Progress};
use crate::gate::headers::{Forwarded, PutBack, after_scheme, is_bearer, take_only};
use crate::gate::preflight::{ExemptPreflight, is_preflight};
use crate::gate::{decision::VerifiedDevice, gate_body::HeadOnly, service::Gated, tenant::name::TenantName};
use crate::meter::{SPLIT_KEY_USES, label};
use crate::runtime::Timestamp;
use crate::split_key::audit::event::{SplitKeyEvent, SplitKeyOutcome};
use crate::split_key::audit::{observer::SplitKeyObserver, suspicion::Watch};
use crate::split_key::parts::{ClientPart, ServerPart};
use crate::split_key::record::{SplitKeyState, project_id};
use crate::split_key::{
    api_key::ApiKey, cut, limits::Limits, metadata::Version, provider::Providers,
    rejection::SplitKeyRejectionResponse, revocations::Revocations, sealed, splitter::open_record,
    store::ErasedSplitKeyStore,
};

const PROJECT: HeaderName = HeaderName::from_static("x-project-id");

/// A service that gives requests their API keys and passes them on to `S`.
///
/// See the [module's docs](crate::split_key) for an example. Errors are those of `S`, unchanged.
pub type SplitKey<S> = Gated<S, KeyGate>;

/// The rules by which a [`SplitKey`] gives out keys. A [`SplitKeyLayer`](crate::split_key::SplitKeyLayer) makes
/// them.
pub struct KeyGate {
    pub(super) settings: SplitKeySettings,
    pub(super) watch: Watch,
    pub(super) revocations: Arc<Revocations>,
    /// A server part that no client part opens.
    pub(super) decoy: ServerPart,
}

#[derive(Clone)]
pub(super) struct SplitKeySettings {
    pub(super) store: Arc<dyn ErasedSplitKeyStore>,
    pub(super) providers: Arc<Providers>,
    pub(super) key_headers: Vec<HeaderName>,
    pub(super) project: Option<Arc<dyn FindProject>>,
    pub(super) tenant_projects: Option<Arc<dyn TenantProjects>>,
    pub(super) allow_unverified: bool,
    pub(super) forward_credentials: bool,
    pub(super) rejection_response: Arc<dyn SplitKeyRejectionResponse>,
    pub(super) observer: Arc<dyn SplitKeyObserver>,
}

/// A name for closures that find the project of a request.
pub(super) trait FindProject: Fn(&request::Parts) -> Option<String> + Send + Sync {}

impl<F: Fn(&request::Parts) -> Option<String> + Send + Sync> FindProject for F {}

/// A name for closures that say whether a project belongs to a tenant.
pub(super) trait TenantProjects: Fn(&TenantName, &str) -> bool + Send + Sync {}

impl<F: Fn(&TenantName, &str) -> bool + Send + Sync> TenantProjects for F {}

/// The result of looking a client part up.
#[doc(hidden)]
#[allow(missing_debug_implementations, unnameable_types, reason = "hidden inside of the response future")]
pub struct Opening {
    gate: Arc<KeyGate>,
    event: SplitKeyEvent,
    key: Option<OpenedKey>,
}

/// An opened key and its limits.
type OpenedKey = (ApiKey, Arc<Limits>);

/// The credentials of one request.
struct ShownParts {
    client_part: Result<Option<ClientPart>, Malformed>,
    project: Result<Option<Arc<str>>, Malformed>,
}

/// A credential is malformed, or present more than once.
struct Malformed;

impl KeyGate {
    /// Asks the store and restores the key. Writes the outcome into the event.
    async fn look_up(
        &self,
        client_part: &ClientPart,
        is_served: bool,
        event: &mut SplitKeyEvent,
    ) -> Option<OpenedKey> {
        let project = event.project.clone().unwrap_or_default();
        let record = match self.settings.store.get(&project, client_part.metadata().split()).await {
            Ok(record) => record.filter(|record| is_served && record.project() == &*project),
            Err(error) => {
                event.outcome = SplitKeyOutcome::StoreFailed;
                event.error = Some(error);
                return None;
            }
        };
        let Some(record) = record else {
            // This does as much work as for an existing split, so that the timing reveals nothing.
            let _ = match client_part.metadata().version() {
                Version::Cut => cut::join(&self.decoy, client_part, None),
                Version::Sealed => sealed::open(&self.decoy, client_part, &project),
            };
            event.outcome = SplitKeyOutcome::Unknown;
            if !is_served {
                // The guesses of another tenant's device must not block the project's splits.
                event.project = None;
            }
            return None;
        };
        event.provider = Some(Arc::clone(record.shared_provider()));
        let opened = open_record(&self.settings.providers, &record, client_part);
        let (outcome, key) = match (opened, record.state()) {
            (Err(_), _) => (SplitKeyOutcome::Mismatch, None),
            (Ok(_), SplitKeyState::Revoked) => (SplitKeyOutcome::Revoked, None),
            (Ok(_), SplitKeyState::Retiring { until }) if event.started.wall >= until => {
                (SplitKeyOutcome::Retired, None)
            }
            (Ok(key), SplitKeyState::Retiring { .. }) => (SplitKeyOutcome::OpenedRetiring, Some(key)),
            (Ok(key), SplitKeyState::Active) => (SplitKeyOutcome::Opened, Some(key)),
        };
        event.outcome = outcome;
        Some((key?.with_revocations(&self.revocations), record.shared_limits()))
    }

    /// Whether devices of this tenant may use keys of this project.
    fn serves(&self, tenant: Option<&TenantName>, project: &str) -> bool {
        match (tenant, &self.settings.tenant_projects) {
            (None, _) => true,
            (Some(tenant), None) => tenant.as_str() == project,
            (Some(tenant), Some(belongs)) => belongs(tenant, project),
        }
    }

    fn take_credentials(&self, head: &mut request::Parts) -> ShownParts {
        // A device token that the gate forwards may follow a client part in the same header.
        let mut put_back = head.extensions.remove::<PutBack>();
        let take = |put_back: &mut Option<PutBack>, head: &mut request::Parts| {
            if let Some(put_back) = put_back {
                put_back.take_away(head);
            }
            ShownParts { client_part: self.take_client_part(head), project: self.take_project(head) }
        };
        let forwarded = self
            .settings
            .forward_credentials
            .then(|| Forwarded::of(head, |head| drop(take(&mut put_back.clone(), head))));
        let credentials = take(&mut put_back, head);
        match (forwarded, put_back) {
            (Some(forwarded), _) => {
                forwarded.put_back(head);
            }
            (None, Some(put_back)) => put_back.give_back(head),
            (None, None) => {}
        }
        credentials
    }

    fn take_client_part(&self, head: &mut request::Parts) -> Result<Option<ClientPart>, Malformed> {
        let mut found = Ok(None);
        // This reads every header, so that no client part stays in the request.
        for name in &self.settings.key_headers {
            let next = match take_only(&mut head.headers, name) {
                Ok(None) => continue,
                Ok(Some(value)) => client_part(value.as_bytes()),
                Err(_) => Err(Malformed),
            };
            found = agreed(found, next);
        }
        // If another header holds the client part, a bearer token may be anything.
        let found_elsewhere = !matches!(found, Ok(None));
        let is_ours =
            head.headers.get_all(AUTHORIZATION).iter().any(|value| {
                is_bearer(value) && (!found_elsewhere || client_part(after_scheme(value)).is_ok())
            });
        if is_ours {
            let next = match take_only(&mut head.headers, &AUTHORIZATION) {
                Ok(Some(value)) => client_part(after_scheme(&value)),
                _ => Err(Malformed),
            };
            found = agreed(found, next);
        }
        found
    }

    fn take_project(&self, head: &mut request::Parts) -> Result<Option<Arc<str>>, Malformed> {
        let mut found = Ok(None);
        if let Some(value) = take_only(&mut head.headers, &PROJECT).map_err(|_| Malformed)? {
            let text = value.to_str().map_err(|_| Malformed)?;
            found = Ok(Some(project_id(text).map_err(|_| Malformed)?));
        }
        match self.settings.project.as_ref().and_then(|project| project(head)) {
            Some(text) => agreed(found, project_id(&text).map_err(|_| Malformed)),
            None => found,
        }
    }
}

fn client_part(text: &[u8]) -> Result<ClientPart, Malformed> {
    let text = std::str::from_utf8(text.trim_ascii()).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

/// Two places of a request must agree.
fn agreed<T: PartialEq>(
    found: Result<Option<T>, Malformed>,
    next: Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    match (found?, next?) {
        (Some(found), next) if found != next => Err(Malformed),
        (_, next) => Ok(Some(next)),
    }
}

impl Decide for KeyGate {
    type Mode = HeadOnly;
    type Answer = Opening;

    fn admit(self: &Arc<Self>, head: &mut request::Parts) -> Progress<Self> {
        // A key that another layer has inserted does not count.
        head.extensions.remove::<ApiKey>();
        // The gate decides which requests are exempt, for this layer too.
        let is_exempt = head.extensions.get::<ExemptPreflight>().is_some() && is_preflight(head);
        let credentials = self.take_credentials(head);
        let verified = head.extensions.get::<VerifiedDevice>();
        let device = verified.map(VerifiedDevice::digest);
        let tenant = verified.and_then(VerifiedDevice::tenant).cloned();
        let client_part = credentials.client_part;
        if is_exempt && device.is_none() && matches!(client_part, Ok(None)) {
            return Progress::Forward(None);
        }
        let mut event = SplitKeyEvent {
            project: credentials.project.as_ref().ok().cloned().flatten(),
            provider: None,
            metadata: client_part.as_ref().ok().and_then(Option::as_ref).map(ClientPart::metadata),
            device,
            outcome: SplitKeyOutcome::Missing,
            error: None,
            started: Timestamp::now(),
        };
        event.outcome = match (client_part, credentials.project) {
            // The request is not a preflight, because it has a client part.
            _ if device.is_none() && is_exempt => SplitKeyOutcome::Malformed,
            _ if device.is_none() && !self.settings.allow_unverified => SplitKeyOutcome::Unverified,
            (Err(Malformed), _) | (_, Err(Malformed)) => SplitKeyOutcome::Malformed,
            (Ok(None), _) | (_, Ok(None)) => SplitKeyOutcome::Missing,
            (Ok(Some(client_part)), Ok(Some(project))) => {
                let split = client_part.metadata().split();
                let now = event.started.monotonic;
                let is_served = self.serves(tenant.as_ref(), &project);
                let block = self.watch.blocked(&project, split, now).filter(|_| is_served);
                match block {
                    None => {
                        let gate = Arc::clone(self);
                        return Progress::Wait(Box::pin(async move {
                            let key = gate.look_up(&client_part, is_served, &mut event).await;
                            Opening { gate, event, key }
                        }));
                    }
                    Some(block) => {
                        event.provider = block.provider;
                        let retry_after = block.left;
                        SplitKeyOutcome::Blocked { retry_after }
                    }
                }
            }
        };
        self.conclude(event, None, head)
    }

    fn answered(opening: Opening, head: &mut request::Parts) -> Progress<Self> {
        let Opening { gate, event, key } = opening;
        gate.conclude(event, key, head)
    }
}

impl KeyGate {
    /// Checks the limits, reports the use and carries the decision out on the request.
    fn conclude(
        &self,
        mut event: SplitKeyEvent,
        key: Option<OpenedKey>,
        head: &mut request::Parts,
    ) -> Progress<Self> {
        let key = key.and_then(|(key, limits)| {
            match limits.check(&head.method, head.uri.path(), event.started.wall) {
                Ok(()) => Some(key),
                Err(limit) => {
                    event.outcome = SplitKeyOutcome::LimitNotMet(limit);
                    None
                }
            }
        });
        SPLIT_KEY_USES.add_with(|| {
            // A client can send any project id. Only one that the store has becomes a label.
            let [project, provider] = match (&event.project, &event.provider) {
                (Some(project), Some(provider)) => [project.to_string(), provider.to_string()],
                _ => ["unknown".to_owned(), "unknown".to_owned()],
            };
            let outcome = label("outcome", event.outcome.as_str());
            [("project", project.into()), ("provider", provider.into()), outcome]
        });
        self.settings.observer.used(&event);
        for suspicious in self.watch.note(&event) {
            self.settings.observer.suspicious(&suspicious);
        }
        if let Some(rejection) = event.outcome.rejection() {
            let mut response = self.settings.rejection_response.response(&rejection, head);
            response.extensions_mut().insert(rejection);
            return Progress::Respond(Box::new(response));
        }
        if let Some(key) = key {
            head.extensions.insert(key);
        }
        Progress::Forward(None)
    }
}

impl fmt::Debug for KeyGate {
    // Plug-ins may be closures and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        f.debug_struct("KeyGate")
            .field("providers", &settings.providers)
            .field("key_headers", &settings.key_headers)
            .field("project", &settings.project.is_some())
            .field("allow_unverified", &settings.allow_unverified)
            .field("forward_credentials", &settings.forward_credentials)
            .field("suspicion", self.watch.rules())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
