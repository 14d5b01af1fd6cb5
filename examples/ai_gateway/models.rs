//! `GET /v1/{provider}/models` for clients without a credential, as Proxed answers it: the list of the operator's.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderName, Method, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tower_devicecheck::split_key::gateway::Target;

/// The models of each provider that has a list.
pub(crate) type Models = Arc<BTreeMap<String, Vec<String>>>;

/// Answers requests for a list of models that have no credential. All others go on: with a credential, the provider's own
/// list is the answer.
pub(crate) async fn public(
    State((models, key_headers)): State<(Models, Arc<[HeaderName]>)>,
    request: Request,
    next: Next,
) -> Response {
    let target = request.extensions().get::<Target>().filter(|_| request.method() == Method::GET);
    let listed = target.and_then(|target| models.get(target.provider().name()));
    let clients = ["x-ai-key", "x-device-token", "x-apple-device-token", "x-proxed-test-key"];
    let has_credential = request.headers().contains_key(AUTHORIZATION)
        || clients.iter().any(|name| request.headers().contains_key(*name))
        || key_headers.iter().any(|name| request.headers().contains_key(name));
    match listed.filter(|_| !has_credential) {
        Some(models) => Json(list(models)).into_response(),
        None => next.run(request).await,
    }
}

/// One list for all SDKs: OpenAI's and Anthropic's read `data`, and Google's `models`.
fn list(ids: &[String]) -> Value {
    let data: Vec<_> = ids
        .iter()
        .map(|id| json!({ "id": id, "object": "model", "type": "model", "display_name": id, "created": 0, "owned_by": "" }))
        .collect();
    let models: Vec<_> =
        ids.iter().map(|id| json!({ "name": format!("models/{id}"), "displayName": id })).collect();
    json!({ "object": "list", "has_more": false, "data": data, "models": models })
}
