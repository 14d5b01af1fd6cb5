//! The record of a split key in a key store.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use http::method::InvalidMethod;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use web_time::UNIX_EPOCH;

use crate::runtime::{SystemTime, millis, since_epoch};
use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::limits::Limits;
use crate::split_key::metadata::{Metadata, SplitId};
use crate::split_key::parts::{ServerPart, is_visible};

/// The longest project id, in characters.
pub(super) const MAX_PROJECT_LENGTH: usize = 128;

/// Whether a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitKeyState {
    /// The key may be used.
    Active,
    /// The key may be used until a given time, while clients move to another split.
    #[non_exhaustive]
    Retiring {
        /// The time from which the key may not be used.
        until: SystemTime,
    },
    /// The key may never be used again.
    Revoked,
}

/// The server's record of one split key: the server part, the key's state and limits, but not the key itself.
///
/// `Debug` shows everything except the server part. `Serialize` writes the whole record, in the format of
/// `FileSplitKeyStore`. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct SplitKeyRecord {
    project: Arc<str>,
    provider: Arc<str>,
    metadata: Metadata,
    server_part: ServerPart,
    state: SplitKeyState,
    limits: Arc<Limits>,
    revision: u64,
}

impl SplitKeyRecord {
    /// Makes an active record without limits, of a key that has already been split. To split a key, use a
    /// [`Splitter`](crate::split_key::Splitter).
    ///
    /// # Errors
    ///
    /// Returns [`InvalidProject`](SplitKeyErrorKind::InvalidProject) unless the project id has 1 to 128 visible ASCII
    /// characters.
    pub fn new(
        project: &str,
        provider: &str,
        metadata: Metadata,
        server_part: ServerPart,
    ) -> Result<Self, SplitKeyError> {
        Ok(Self {
            project: project_id(project)?,
            provider: provider.into(),
            metadata,
            server_part,
            state: SplitKeyState::Active,
            limits: Arc::default(),
            revision: 0,
        })
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Arc::new(limits);
        self
    }

    /// Makes the next revision of the record, in this state.
    /// [`SplitKeyStore::put`](crate::split_key::SplitKeyStore::put) accepts it if the store still has the current
    /// revision.
    #[must_use]
    pub fn changed_to(&self, state: SplitKeyState) -> Self {
        Self { state, revision: self.revision.saturating_add(1), ..self.clone() }
    }

    /// The project to which the key belongs.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    pub(super) const fn shared_project(&self) -> &Arc<str> {
        &self.project
    }

    /// The name of the provider to which the key may be sent.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    pub(super) const fn shared_provider(&self) -> &Arc<str> {
        &self.provider
    }

    /// Version, creation time and split id, as in the client part.
    #[must_use]
    pub const fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The name of the split within its project.
    #[must_use]
    pub const fn split(&self) -> SplitId {
        self.metadata.split()
    }

    /// The server's part of the key.
    #[must_use]
    pub const fn server_part(&self) -> &ServerPart {
        &self.server_part
    }

    /// Whether the key may be used.
    #[must_use]
    pub const fn state(&self) -> SplitKeyState {
        self.state
    }

    /// The limits on the use of the key.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn shared_limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits)
    }

    /// The number of changes to the record; zero for a new record.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }
}

/// Checks a project id.
pub(super) fn project_id(text: &str) -> Result<Arc<str>, SplitKeyError> {
    if text.is_empty() || text.len() > MAX_PROJECT_LENGTH || !is_visible(text) {
        return Err(SplitKeyErrorKind::InvalidProject.into());
    }
    Ok(text.into())
}

/// A record in JSON. An unknown field is an error: it may be a misspelt limit.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonRecord<'a> {
    #[serde(borrow)]
    project: Cow<'a, str>,
    #[serde(borrow)]
    provider: Cow<'a, str>,
    metadata: Cow<'a, str>,
    // The text is borrowed, so that no copy stays in memory.
    #[serde(borrow)]
    server_part: Cow<'a, str>,
    state: JsonState,
    #[serde(default)]
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allowed_paths: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allowed_methods: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum JsonState {
    Active,
    Retiring { until_ms: u64 },
    Revoked,
}

impl Serialize for SplitKeyRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let methods = self.limits.methods();
        let json = JsonRecord {
            project: Cow::Borrowed(&self.project),
            provider: Cow::Borrowed(&self.provider),
            metadata: Cow::Owned(self.metadata.to_string()),
            server_part: Cow::Borrowed(self.server_part.expose()),
            state: match self.state {
                SplitKeyState::Active => JsonState::Active,
                SplitKeyState::Retiring { until } => JsonState::Retiring { until_ms: to_millis(until) },
                SplitKeyState::Revoked => JsonState::Revoked,
            },
            revision: self.revision,
            allowed_paths: self.limits.paths().map(<[_]>::to_vec),
            allowed_methods: methods.map(|methods| methods.iter().map(ToString::to_string).collect()),
            expires_at_ms: self.limits.expires_at().map(to_millis),
        };
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SplitKeyRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = JsonRecord::deserialize(deserializer)?;
        let server_part = ServerPart::new(json.server_part.into_owned()).map_err(de::Error::custom)?;
        let metadata = json.metadata.parse().map_err(de::Error::custom)?;
        let record = Self::new(&json.project, &json.provider, metadata, server_part);
        let methods =
            json.allowed_methods.map(|methods| methods.iter().map(|method| method.parse()).collect());
        let limits = Limits {
            paths: json.allowed_paths,
            methods: methods
                .transpose()
                .map_err(|_: InvalidMethod| de::Error::custom("not an HTTP method"))?,
            expires_at: json.expires_at_ms.map(from_millis).transpose()?,
        };
        Ok(Self {
            state: match json.state {
                JsonState::Active => SplitKeyState::Active,
                JsonState::Retiring { until_ms } => SplitKeyState::Retiring { until: from_millis(until_ms)? },
                JsonState::Revoked => SplitKeyState::Revoked,
            },
            revision: json.revision,
            ..record.map_err(de::Error::custom)?.with_limits(limits)
        })
    }
}

fn to_millis(time: SystemTime) -> u64 {
    millis(since_epoch(time))
}

fn from_millis<E: de::Error>(millis: u64) -> Result<SystemTime, E> {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(millis))
        .ok_or_else(|| E::custom("a time beyond what the clock can express"))
}

/// `active`, `retiring` or `revoked`.
impl fmt::Display for SplitKeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Retiring { .. } => "retiring",
            Self::Revoked => "revoked",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split_key::{
        fixtures::{KEYS, split, splitter},
        metadata::Version,
    };

    #[test]
    fn records_in_json() {
        let (provider, key) = KEYS[0];
        let split = split(Version::Sealed, provider, key, 3);
        let later = UNIX_EPOCH + Duration::from_millis(1_795_302_000_123);
        let record = split
            .record()
            .clone()
            .with_limits(
                Limits::none().with_paths(["/v1/*"]).with_methods([http::Method::POST]).with_expiry(later),
            )
            .changed_to(SplitKeyState::Retiring { until: later });
        let json = serde_json::to_string(&record).unwrap();
        let read: SplitKeyRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(read.project(), "project");
        assert_eq!(read.metadata(), record.metadata());
        assert_eq!(read.state(), record.state());
        assert_eq!(read.limits(), record.limits());
        assert_eq!(read.revision(), 1);
        assert!(splitter(Version::Sealed).open(&read, split.client_part()).is_ok());

        let broken = [
            ("a slip of the pen", json.replace("allowed_paths", "allowed_path")),
            ("no project", json.replace(r#""project":"project""#, r#""project":"""#)),
            ("an unknown state", json.replace("retiring", "resting")),
            ("upper case metadata", json.replace("00000002", "0000000F")),
            ("no method", json.replace("POST", "P OST")),
            ("no server part", json.replace("server_part", "server_port")),
        ];
        for (name, text) in broken {
            assert_ne!(text, json, "{name}");
            assert!(serde_json::from_str::<SplitKeyRecord>(&text).is_err(), "{name}");
        }
    }
}
