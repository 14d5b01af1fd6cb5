//! Links in Anthropic's answers about batches, which would lead clients around the gateway with their credentials.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode, Uri};
use serde_json::Value;

use crate::split_key::gateway::error_shape::ErrorShape;
use crate::split_key::gateway::errors;
use crate::split_key::gateway::rejection::GatewayRejection;
use crate::split_key::gateway::target::Target;

/// The longest answer in which links are rewritten. A page of 1,000 batches has about half of it.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

/// The member with the link.
const LINK: &str = "results_url";

/// Whether the answer to this request may hold such links. The results themselves hold none, and may be long.
pub(super) fn hold_links(target: &Target) -> bool {
    let path = target.path().path().splitn(4, '/').nth(3).unwrap_or_default();
    let path = path.strip_prefix("v1/").unwrap_or(path);
    let rest = path.strip_prefix("messages/batches");
    target.error_shape() == ErrorShape::Anthropic
        && rest.is_some_and(|rest| (rest.is_empty() || rest.starts_with('/')) && !rest.ends_with("/results"))
}

/// An answer with links that lead through the gateway. One that could not be read is replaced.
pub(super) fn answer(
    status: StatusCode,
    mut headers: HeaderMap,
    body: Option<Bytes>,
    target: &Target,
) -> Response<Bytes> {
    let Some(body) = body.and_then(|body| relinked(body, target.provider().endpoint.root())) else {
        let rejection = GatewayRejection::ProviderError { status: StatusCode::BAD_GATEWAY };
        return errors::respond(rejection, Some(target.error_shape()));
    };
    headers.remove(CONTENT_LENGTH);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Makes each link a path, which SDKs append to the base URL that they were given: the gateway's. Returns `None` if the
/// answer is not JSON. `root` is the path of the provider's base URL.
fn relinked(answer: Bytes, root: &str) -> Option<Bytes> {
    let mut json: Value = serde_json::from_slice(&answer).ok()?;
    Some(if relink(&mut json, root) { json.to_string().into() } else { answer })
}

/// Returns whether there was a link.
fn relink(json: &mut Value, root: &str) -> bool {
    match json {
        Value::Object(members) => {
            let mut found = false;
            for (name, value) in members {
                match value {
                    Value::String(link) if name == LINK => {
                        *link = path_of(link, root);
                        found = true;
                    }
                    value => found |= relink(value, root),
                }
            }
            found
        }
        Value::Array(values) => values.iter_mut().fold(false, |found, value| relink(value, root) | found),
        _ => false,
    }
}

fn path_of(link: &str, root: &str) -> String {
    let Ok(link) = link.parse::<Uri>() else { return "/".to_owned() };
    let path = link.path_and_query().map_or("/", |path| path.as_str());
    path.strip_prefix(root).filter(|rest| rest.starts_with('/')).unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_become_paths() {
        let cases = [
            (
                r#"{"results_url":"https://api.example/v1/messages/batches/b/results"}"#,
                "",
                "/v1/messages/batches/b/results",
            ),
            (r#"{"results_url":"https://api.example/base/v1/x?y=1"}"#, "/base", "/v1/x?y=1"),
            (r#"{"results_url":"https://api.example/basement/x"}"#, "/base", "/basement/x"),
            (r#"{"results_url":"/v1/x"}"#, "", "/v1/x"),
            (r#"{"results_url":"no URL at all"}"#, "", "/"),
        ];
        for (json, root, expected) in cases {
            let relinked: Value = serde_json::from_slice(&relinked(json.into(), root).unwrap()).unwrap();
            assert_eq!(relinked["results_url"], expected, "{json}");
        }
        let list = r#"{"data": [{"results_url": "https://a/v1/b"}, {"results_url": null}], "n": 1.50}"#;
        let relinked_list: Value = serde_json::from_slice(&relinked(list.into(), "").unwrap()).unwrap();
        assert_eq!(relinked_list["data"][0]["results_url"], "/v1/b");
        // Without a link, the answer stays as it is.
        let untouched = r#"{"results_url": null,  "n": 1.50}"#;
        assert_eq!(relinked(untouched.into(), "").unwrap(), untouched);
        assert_eq!(relinked("not JSON".into(), ""), None);
    }
}
