//! The keys that their provider refuses, which only the operator can mend.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower_devicecheck::split_key::{ApiKey, SplitId};

/// How long a key must be without a refusal before its next success ends the incident. Some refusals are of one
/// call only, and each must not be an incident of its own.
const CALM: Duration = Duration::from_secs(60);

/// The keys that were refused, and have not worked since. There are no more of them than splits in the store.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<(String, SplitId), Incident>>);

struct Incident {
    provider: String,
    status: StatusCode,
    since: SystemTime,
    count: u64,
    last: Instant,
}

impl Refusals {
    /// Notes a refusal. The first one of an incident is an error in the log.
    pub(crate) fn refused(&self, key: &ApiKey, status: StatusCode) {
        let mut incidents = self.lock();
        let incident =
            incidents.entry((key.project().to_owned(), key.metadata().split())).or_insert_with(|| {
                tracing::error!(
                    project = key.project(),
                    split = %key.metadata().split(),
                    provider = key.provider(),
                    status = status.as_u16(),
                    "the provider refuses the API key: apps get 502 until it is replaced"
                );
                let provider = key.provider().to_owned();
                Incident { provider, status, since: SystemTime::now(), count: 0, last: Instant::now() }
            });
        (incident.status, incident.last) = (status, Instant::now());
        incident.count += 1;
    }

    /// Notes a success, which may be the end of an incident.
    pub(crate) fn accepted(&self, key: &ApiKey) {
        let mut incidents = self.lock();
        // Nearly always.
        if incidents.is_empty() {
            return;
        }
        let split = (key.project().to_owned(), key.metadata().split());
        if incidents.get(&split).is_some_and(|incident| incident.last.elapsed() >= CALM) {
            let refused = incidents.remove(&split).map(|incident| incident.count);
            tracing::info!(
                project = key.project(),
                split = %key.metadata().split(),
                provider = key.provider(),
                refused,
                "the provider accepts the API key again"
            );
        }
    }

    /// A list for `GET /usage`.
    pub(crate) fn to_json(&self) -> Value {
        let incidents = self.lock();
        let entries = incidents.iter().map(|((project, split), incident)| {
            let since = incident.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            json!({
                "project": project, "split": split.to_string(), "provider": incident.provider,
                "status": incident.status.as_u16(), "since": since, "count": incident.count,
            })
        });
        entries.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, SplitId), Incident>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error of the provider's says that it does not take the key. Google says so with a 400.
pub(crate) fn is_refusal(status: StatusCode, body: &[u8]) -> bool {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => true,
        StatusCode::BAD_REQUEST => {
            let answer: Value = serde_json::from_slice(body).unwrap_or_default();
            // A call that streams gets a list.
            let details = &answer.get(0).unwrap_or(&answer)["error"]["details"];
            details.as_array().into_iter().flatten().any(|detail| detail["reason"] == "API_KEY_INVALID")
        }
        _ => false,
    }
}
