//! The keys that their provider refuses, which only the operator can mend.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::runtime::{Timestamp, since_epoch};
use crate::split_key::{api_key::ApiKey, metadata::SplitId};

/// How long a key must be without a refusal before its next success ends the incident. Some refusals are of one
/// call only, and each must not be an incident of its own.
const CALM: Duration = Duration::from_secs(60);

/// Google's messages of a 403 without a reason, as users have met them. Only the beginning counts: further on, a message
/// may quote the client.
const MESSAGES: [&str; 3] =
    ["API key not valid", "Your API key was reported as leaked", "Your project has been denied access"];

/// The keys that their provider refuses, which only the operator can mend. There are no more of them than splits in the
/// store.
///
/// A key is in the list from its first refusal until it works and was not refused for a minute. Its first refusal is an
/// error in the log, and the end of the incident a line of its own.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<(String, SplitId), Incident>>);

#[derive(Debug)]
struct Incident {
    provider: String,
    status: StatusCode,
    since: Timestamp,
    last: Timestamp,
    count: u64,
}

impl Refusals {
    /// Makes an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that the provider refused a key with this status.
    pub fn refused(&self, key: &ApiKey, status: StatusCode) {
        let now = Timestamp::now();
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
                Incident { provider, status, since: now, last: now, count: 0 }
            });
        (incident.status, incident.last) = (status, now);
        incident.count += 1;
    }

    /// Notes that the provider accepted a key.
    pub fn accepted(&self, key: &ApiKey) {
        let mut incidents = self.lock();
        // Nearly always.
        if incidents.is_empty() {
            return;
        }
        let split = (key.project().to_owned(), key.metadata().split());
        if incidents.get(&split).is_some_and(|incident| incident.last.monotonic.elapsed() >= CALM) {
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

    /// A JSON array of objects with `project`, `split`, `provider`, `status`, `since` (seconds since 1970) and `count`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let incidents = self.lock();
        let entries = incidents.iter().map(|((project, split), incident)| {
            let since = since_epoch(incident.since.wall).as_secs();
            json!({
                "project": project, "split": split.to_string(), "provider": incident.provider,
                "status": incident.status.as_u16(), "since": since, "count": incident.count,
            })
        });
        Value::Array(entries.collect()).to_string()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, SplitId), Incident>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error of the provider's says that it does not take the key. A 401 says so by itself. A 403 is as often about
/// a file or a model that the key may not use, and a 400 about the request: there, the body has to name the key or its
/// account.
pub(super) fn is_refusal(status: StatusCode, body: &[u8]) -> bool {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => true,
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => {
            let answer: Value = serde_json::from_slice(body).unwrap_or_default();
            // A call to Google that streams gets a list.
            is_about_key(&answer.get(0).unwrap_or(&answer)["error"])
        }
        _ => false,
    }
}

fn is_about_key(error: &Value) -> bool {
    // OpenAI's codes, and Anthropic's type. Anthropic's `permission_error` is about one resource.
    let mut words = [&error["code"], &error["type"]].into_iter().filter_map(Value::as_str);
    let named = ["account_deactivated", "authentication_error", "invalid_api_key"];
    let details = error["details"].as_array().into_iter().flatten();
    let message = error["message"].as_str().unwrap_or_default();
    words.any(|word| named.contains(&word))
        || details.filter_map(|detail| detail["reason"].as_str()).any(is_reason)
        || (error["status"] == "PERMISSION_DENIED" && MESSAGES.iter().any(|start| message.starts_with(start)))
}

/// Google's list of reasons, `google.api.ErrorReason`: those about the key, and about the project that it belongs to.
fn is_reason(reason: &str) -> bool {
    reason.starts_with("API_KEY_")
        || ["BILLING_DISABLED", "CONSUMER_INVALID", "CONSUMER_SUSPENDED", "SERVICE_DISABLED"]
            .contains(&reason)
}
