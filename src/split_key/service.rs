//! The service: from the credentials in a request to its key.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderName, Request, Response, header::AUTHORIZATION, request};
use tower_service::Service;

use crate::{
    device_check::token_source::{after_scheme, is_bearer, take_only},
    gate::body::ResponseBody,
    gate::decision::VerifiedDevice,
    gate::future::{Admission, Decide},
    gate::routing::is_preflight,
    gate::service::put_back,
    runtime::Moment,
    split_key::{
        api_key::ApiKey,
        audit::event::{SplitKeyEvent, SplitKeyOutcome},
        cut,
        future::SplitKeyFuture,
        layer::Keys,
        limits::Limits,
        metadata::Version,
        parts::ClientPart,
        record::{SplitKeyState, project_id},
        sealed,
        splitter::open,
    },
};

const PROJECT: HeaderName = HeaderName::from_static("x-project-id");

/// Gives requests their API keys and passes them on to `S`.
///
/// See the [module's docs](crate::split_key) for an example. Errors are those of `S`, untouched.
#[derive(Clone)]
#[must_use]
pub struct SplitKey<S> {
    inner: S,
    keys: Arc<Keys>,
}

impl<S> SplitKey<S> {
    pub(super) const fn new(inner: S, keys: Arc<Keys>) -> Self {
        Self { inner, keys }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, to be changed.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service alone.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: fmt::Debug> fmt::Debug for SplitKey<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitKey").field("inner", &self.inner).field("keys", &self.keys).finish()
    }
}

impl<S, B, ResBody> Service<Request<B>> for SplitKey<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = SplitKeyFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        SplitKeyFuture::start(&mut self.inner, &self.keys, request)
    }
}

/// A client part that is to be looked up.
pub(super) struct Inquiry {
    client_part: ClientPart,
    event: SplitKeyEvent,
}

/// What came of looking it up.
pub(super) struct Opening {
    event: SplitKeyEvent,
    /// The key and its limits, where the outcome is that it was opened.
    key: Option<(ApiKey, Arc<Limits>)>,
}

/// What was found in a request.
struct Credentials {
    client_part: Result<Option<ClientPart>, Malformed>,
    project: Result<Option<Arc<str>>, Malformed>,
}

/// Not what it should be, or there more than once.
struct Malformed;

impl Keys {
    fn take_credentials(&self, head: &mut request::Parts) -> Credentials {
        let original = self.config.forward_credentials.then(|| head.headers.clone());
        let credentials =
            Credentials { client_part: self.take_client_part(head), project: self.take_project(head) };
        if let Some(original) = original {
            put_back(original, &mut head.headers);
        }
        credentials
    }

    fn take_client_part(&self, head: &mut request::Parts) -> Result<Option<ClientPart>, Malformed> {
        let mut found = Ok(None);
        // Every header is looked at, so that no client part stays behind.
        for name in &self.config.key_headers {
            let next = match take_only(&mut head.headers, name) {
                Ok(None) => continue,
                Ok(Some(value)) => client_part(value.as_bytes()),
                Err(_) => Err(Malformed),
            };
            found = agreed(found, next);
        }
        // Beside a header of its own, a bearer token may be anything.
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
        match self.config.project.as_ref().and_then(|project| project(head)) {
            Some(text) => agreed(found, project_id(&text).map_err(|_| Malformed)),
            None => found,
        }
    }
}

fn client_part(text: &[u8]) -> Result<ClientPart, Malformed> {
    let text = std::str::from_utf8(text.trim_ascii()).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

/// What is found in one place must be what is found in another.
fn agreed<T: PartialEq>(
    found: Result<Option<T>, Malformed>,
    next: Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    match (found?, next?) {
        (Some(found), next) if found != next => Err(Malformed),
        (_, next) => Ok(Some(next)),
    }
}

/// Asks the store and puts the key together.
async fn look_up(keys: Arc<Keys>, inquiry: Inquiry) -> Opening {
    let Inquiry { client_part, mut event } = inquiry;
    let project = event.project.clone().unwrap_or_default();
    let record = match keys.config.store.get(&project, client_part.metadata().split()).await {
        Ok(record) => record.filter(|record| record.project() == &*project),
        Err(error) => {
            event.outcome = SplitKeyOutcome::StoreFailed;
            event.error = Some(error);
            return Opening { event, key: None };
        }
    };
    let Some(record) = record else {
        // As much work as for a split that is there, so that the time does not tell.
        let _ = match client_part.metadata().version() {
            Version::Cut => cut::join(&keys.decoy, &client_part, None),
            Version::Sealed => sealed::open(&keys.decoy, &client_part, &project),
        };
        event.outcome = SplitKeyOutcome::Unknown;
        return Opening { event, key: None };
    };
    event.provider = Some(Arc::clone(record.shared_provider()));
    let opened = open(&keys.config.providers, &record, &client_part);
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
    Opening { event, key: key.map(|key| (key, record.shared_limits())) }
}

impl Decide for Keys {
    type Inquiry = Inquiry;
    type Decision = Opening;

    fn admit(&self, head: &mut request::Parts) -> Admission<Inquiry> {
        // Whoever put it here, it was not this layer.
        head.extensions.remove::<ApiKey>();
        let credentials = self.take_credentials(head);
        // It has no credentials, so it goes on without a key.
        if is_preflight(head) {
            return Admission::Admitted;
        }
        let device = head.extensions.get().map(VerifiedDevice::digest);
        let client_part = credentials.client_part;
        let mut event = SplitKeyEvent {
            project: credentials.project.as_ref().ok().cloned().flatten(),
            provider: None,
            metadata: client_part.as_ref().ok().and_then(Option::as_ref).map(ClientPart::metadata),
            device,
            outcome: SplitKeyOutcome::Missing,
            error: None,
            started: Moment::now(),
        };
        event.outcome = match (client_part, credentials.project) {
            _ if device.is_none() && !self.config.allow_unverified => SplitKeyOutcome::Unverified,
            (Err(Malformed), _) | (_, Err(Malformed)) => SplitKeyOutcome::Malformed,
            (Ok(None), _) | (_, Ok(None)) => SplitKeyOutcome::Missing,
            (Ok(Some(client_part)), Ok(Some(project))) => {
                let split = client_part.metadata().split();
                let now = event.started.monotonic;
                match self.watch.blocked(&project, split, now) {
                    None => return Admission::Unknown(Inquiry { client_part, event }),
                    Some(block) => {
                        event.provider = block.provider;
                        let retry_after = block.left;
                        SplitKeyOutcome::Blocked { retry_after }
                    }
                }
            }
        };
        match self.conclude(Opening { event, key: None }, head) {
            Some(response) => Admission::Rejected(response),
            // Does not occur: no outcome above admits a request.
            None => Admission::Admitted,
        }
    }

    fn resolve(self: Arc<Self>, inquiry: Inquiry) -> BoxFuture<'static, Opening> {
        Box::pin(look_up(self, inquiry))
    }

    /// Checks the limits, reports the use and carries the decision out on the request.
    fn conclude(&self, opening: Opening, head: &mut request::Parts) -> Option<Response<Bytes>> {
        let Opening { mut event, key } = opening;
        let key = key.and_then(|(key, limits)| {
            match limits.check(&head.method, head.uri.path(), event.started.wall) {
                Ok(()) => Some(key),
                Err(limit) => {
                    event.outcome = SplitKeyOutcome::LimitNotMet(limit);
                    None
                }
            }
        });
        self.config.observer.used(&event);
        for suspicious in self.watch.note(&event) {
            self.config.observer.suspicious(&suspicious);
        }
        if let Some(rejection) = event.outcome.rejection() {
            let mut response = self.config.rejection_response.response(&rejection, head);
            response.extensions_mut().insert(rejection);
            return Some(response);
        }
        if let Some(key) = key {
            head.extensions.insert(key);
        }
        None
    }
}

#[cfg(test)]
mod tests;
