//! A provider's 403: about the key, which is the operator's business, or about the request, which is the app's.

use axum::{http::StatusCode, response::IntoResponse};
use serde_json::{Value, json};

use super::{ANTHROPIC_KEY, Gateway, KEY, code, operator::usage, provider};

const GOOGLE_KEY: &str = "AIzaSyA1bC2dE3fG4hI5jK6lM7nO8pQ9rS0tU1v";

fn openai(code: &str) -> Value {
    json!({ "error": { "message": "…", "type": "invalid_request_error", "param": null, "code": code } })
}

fn anthropic(kind: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": "…" } })
}

fn google(reason: &str) -> Value {
    let info = json!({ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason });
    json!({ "error": { "code": 403, "status": "PERMISSION_DENIED", "message": "…", "details": [info] } })
}

fn google_says(message: &str) -> Value {
    json!({ "error": { "code": 403, "status": "PERMISSION_DENIED", "message": message } })
}

/// A gateway whose provider answers every request with 403 and this body.
async fn forbidding(name: &str, body: String) -> Gateway {
    let (url, _) = provider(move |_| {
        let body = body.clone();
        async { (StatusCode::FORBIDDEN, [("content-type", "application/json")], body).into_response() }
    })
    .await;
    let key = match name {
        "openai" => KEY,
        "anthropic" => ANTHROPIC_KEY,
        _ => GOOGLE_KEY,
    };
    Gateway::of(name, key, &url).await
}

#[tokio::test]
async fn w12_a_403_about_something_else_than_the_key_is_the_providers_own_answer() {
    let file = "You do not have permission to access the File abc or it may not exist.";
    for (name, body) in [
        // A model that the account may not use, and a place where nobody may.
        ("openai", openai("model_not_found").to_string()),
        ("openai", openai("unsupported_country_region_territory").to_string()),
        ("anthropic", anthropic("permission_error").to_string()),
        ("google", google_says(file).to_string()),
        ("google", google("CLOUD_RESOURCE_DENIED").to_string()),
        ("google", json!([google_says(file)]).to_string()),
        // Text of the client's that the provider quotes.
        ("google", google_says("Unknown name \"API_KEY_INVALID\": API key not valid").to_string()),
        ("openai", json!({ "error": "invalid_api_key" }).to_string()),
        ("openai", "<html>Forbidden</html>".to_owned()),
        ("openai", String::new()),
    ] {
        let gateway = forbidding(name, body.clone()).await;
        let response = gateway.post(&format!("/v1/{name}/app/files/abc")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{body}");
        assert!(!response.headers().contains_key("x-devicecheck-code"), "{body}");
        assert_eq!(response.text().await.unwrap(), body);
        assert_eq!(usage(&gateway).await["refused_by_provider"], json!([]), "{body}");
        assert_eq!(gateway.apple.calls(), 1, "{body}");
    }
    // The key in it is the gateway's business all the same.
    let body = json!({ "error": { "message": format!("The key {KEY} may not use this model") } });
    let gateway = forbidding("openai", body.to_string()).await;
    let response = gateway.post("/v1/openai/app/files/abc").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(code(response).await, "provider_error");
    assert_eq!(usage(&gateway).await["refused_by_provider"], json!([]));
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn w12_a_403_about_the_key_or_its_account_is_a_refusal_of_the_key() {
    for (name, body) in [
        ("openai", openai("invalid_api_key")),
        ("openai", openai("account_deactivated")),
        ("anthropic", anthropic("authentication_error")),
        ("google", google("API_KEY_INVALID")),
        ("google", google("API_KEY_SERVICE_BLOCKED")),
        ("google", google("API_KEY_IP_ADDRESS_BLOCKED")),
        ("google", google("SERVICE_DISABLED")),
        ("google", google("CONSUMER_SUSPENDED")),
        ("google", json!([google("BILLING_DISABLED")])),
        ("google", google_says("API key not valid. Please pass a valid API key.")),
        ("google", google_says("Your API key was reported as leaked. Please use another API key.")),
        ("google", google_says("Your project has been denied access. Please contact support.")),
    ] {
        let gateway = forbidding(name, body.to_string()).await;
        let response = gateway.post(&format!("/v1/{name}/app/files/abc")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{body}");
        assert_eq!(code(response).await, "key_refused_by_provider", "{body}");
        let refused = usage(&gateway).await["refused_by_provider"].clone();
        assert_eq!((&refused[0]["status"], &refused[0]["count"]), (&json!(403), &json!(1)), "{body}");
        assert_eq!(gateway.apple.calls(), 1, "{body}");
    }
}
