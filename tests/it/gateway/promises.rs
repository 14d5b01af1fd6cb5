//! Promises of Proxed's documentation, and paths that would lead around the gateway.

use axum::http::StatusCode;
use serde_json::Value;
use tower_devicecheck::split_key::{Limits as KeyLimits, MemorySplitKeyStore, Providers};

use super::{
    Gateway, KEY, TEST_KEY,
    ai_gateway::{Limits, providers},
    code, ok, provider,
};

#[tokio::test]
async fn a_client_part_in_the_bearer_token_counts_and_x_ai_key_beside_it_does_not() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for stale in ["an-old-part", "", "a.00000002000001a218d610e5bcdf000000000000"] {
        let response = gateway.post("/v1/openai/app/models").header("x-ai-key", stale).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{stale}");
    }
    // With a test key it is the other way round.
    let request = gateway.client.get(format!("{}/v1/openai/app/models", gateway.url));
    let request = request.header("x-proxed-test-key", TEST_KEY).header("x-ai-key", gateway.part());
    let response = request.header("authorization", "Bearer something.else").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|head| !head.headers.contains_key("x-ai-key")));
    assert!(seen.iter().all(|head| head.headers["authorization"] == format!("Bearer {KEY}")));
    assert_eq!(gateway.apple.calls(), 3);
}

#[tokio::test]
async fn no_path_leads_to_credentials_of_the_providers() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for path in [
        "realtime/client_secrets",
        "v1/realtime/client_secrets",
        "v2/realtime/sessions",
        "realtime/transcription_sessions",
        "chatkit/sessions",
        "chatkit/sessions/a/cancel",
        "auth_tokens",
        "v1alpha/auth_tokens",
        "authTokens",
        "authtokens:create",
        "organization/admin_api_keys",
        "Organization/projects/a/api_keys",
        "%6frganization/admin_api_keys",
        "organizations/api_keys",
        "keys",
        "keys/a",
        "auth/keys",
        "keys;x",
        "%20keys",
        "realtime/calls",
        "openai/v1/realtime/client_secrets",
        "api/v1/keys",
        "v1/v1/keys",
        "upload/v1alpha/auth_tokens",
        "realtimeapi/sessions",
    ] {
        for provider in ["openai", "anthropic", "google"] {
            let response = gateway.post(&format!("/v1/{provider}/app/{path}")).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
            assert_eq!(code_of(response).await, "credential_path", "{path}");
        }
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(gateway.apple.calls(), 0);
    // These only look like it.
    for path in ["files/keys", "keystrokes", "organization_of_text", "realtime/models", "chatkit/threads"] {
        let response = gateway.post(&format!("/v1/openai/app/{path}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(seen.lock().unwrap().len(), 5);
}

/// The code of an error in any provider's shape.
async fn code_of(response: reqwest::Response) -> String {
    let code = response.headers()["x-devicecheck-code"].to_str().unwrap().to_owned();
    let text = response.text().await.unwrap();
    assert!(text.contains(&code), "{text}");
    code
}

#[tokio::test]
async fn a_list_of_models_is_public_if_the_operator_says_so() {
    let (url, seen) = provider(ok).await;
    let file = format!(
        "[[provider]]\nname = \"openai\"\nbase_url = \"{url}/v1\"\nmodels = [\"gpt-5\", \"gpt-5-mini\"]\n"
    );
    let models = providers::models(&file).unwrap();
    let listed = providers::add(Providers::default(), &file).unwrap();
    let keys = MemorySplitKeyStore::new();
    let gateway =
        Gateway::put_together(("openai", KEY), listed, keys, KeyLimits::none(), |settings, gate| {
            settings.models = models;
            gate
        })
        .await;
    let list = format!("{}/v1/openai/app/models", gateway.url);
    let response = gateway.client.get(&list).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["data"][1]["id"], "gpt-5-mini");
    assert_eq!(answer["models"][0]["name"], "models/gpt-5");
    // The project may be in a header.
    let response = gateway.client.get(format!("{}/v1/openai/models", gateway.url));
    assert_eq!(response.header("x-project-id", "app").send().await.unwrap().status(), StatusCode::OK);
    assert!(seen.lock().unwrap().is_empty());
    // All that is not exactly this needs a credential, as before.
    for path in ["models/gpt-5", "chat/completions"] {
        let response =
            gateway.client.get(format!("{}/v1/openai/app/{path}", gateway.url)).send().await.unwrap();
        assert_eq!(code(response).await, "missing_token", "{path}");
    }
    assert_eq!(code(gateway.client.post(&list).send().await.unwrap()).await, "missing_token");
    let other = gateway.client.get(format!("{}/v1/google/app/models", gateway.url)).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::UNAUTHORIZED);
    let forged = gateway.client.get(&list).header("authorization", "Bearer a.b").send().await.unwrap();
    assert_eq!(forged.status(), StatusCode::UNAUTHORIZED);
    assert!(seen.lock().unwrap().is_empty());
    // With a credential it is the provider's own list.
    let token = gateway.apple.genuine();
    let bearer = format!("Bearer {}.{token}", gateway.part());
    let own = gateway.client.get(&list).header("authorization", bearer).send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap().len(), 1);
}
