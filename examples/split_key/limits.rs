//! The options that limit a key. A limit that no request meets is a mistake, and is refused.

use std::time::{Duration, SystemTime};

use axum::http::Method;
use tower_devicecheck::{
    BoxError,
    split_key::{Limits, SplitKeyRecord},
};

/// The methods that the example `ai_gateway` forwards.
const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// The limits that the options ask for.
pub(crate) fn limits(
    paths: Vec<String>,
    methods: &[String],
    expires_in: Option<Duration>,
) -> Result<Limits, BoxError> {
    let mut limits = Limits::none();
    if !paths.is_empty() {
        limits = limits.with_paths(paths);
    }
    if !limits.are_possible() {
        return Err("--path: no request has such a path: it begins with `/`, and may end in `/*`".into());
    }
    if !methods.is_empty() {
        let known = |name: &String| METHODS.into_iter().find(|method| method.as_str() == name);
        let methods: Option<Vec<Method>> = methods.iter().map(known).collect();
        let names = METHODS.map(|method| method.to_string()).join(", ");
        limits = limits.with_methods(methods.ok_or(format!("--method: it is none of {names}"))?);
    }
    match expires_in {
        None => Ok(limits),
        Some(Duration::ZERO) => Err("--expires-in: the key would never work".into()),
        Some(after) => {
            let end = SystemTime::now().checked_add(after).ok_or("--expires-in: too long")?;
            Ok(limits.with_expiry(end))
        }
    }
}

/// The advice about paths that the gateway never has for this key. A server of the operator's own may have them.
pub(crate) fn warning(record: &SplitKeyRecord) -> Option<&'static str> {
    let paths = record.limits().paths()?;
    let is_strange = paths.iter().any(|path| !reaches(path, record.provider(), record.project()));
    is_strange.then_some(
        "a path in the limits is none that the gateway has for this key: its paths are /v1/<provider>/<path>, without \
         the project and the version",
    )
}

fn reaches(path: &str, provider: &str, project: &str) -> bool {
    let below = format!("/v1/{provider}/");
    if path.strip_suffix('*').is_some_and(|start| below.starts_with(start)) {
        return true;
    }
    let Some(rest) = path.strip_prefix(&below) else { return false };
    let first = rest.split('/').next().unwrap_or_default();
    let is_version =
        first.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    !first.is_empty() && first != project && !is_version
}
