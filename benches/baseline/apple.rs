//! How the afternoon layer asks Apple: reqwest, a body by serde, a provider token by jsonwebtoken that is kept
//! for 40 minutes, Apple's refusals told by their text.

use std::{
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD as STANDARD};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use uuid::Uuid;

use super::Verify;

pub(crate) struct AppleVerifier {
    client: reqwest::Client,
    url: String,
    team_id: String,
    key_id: String,
    key: EncodingKey,
    provider_token: Mutex<Option<(Instant, String)>>,
}

#[derive(Serialize)]
struct Question<'a> {
    device_token: &'a str,
    transaction_id: String,
    timestamp: u64,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: u64,
}

impl AppleVerifier {
    pub(crate) fn new(client: reqwest::Client, base: &str, team_id: &str, key_id: &str, pem: &str) -> Self {
        // Both of jsonwebtoken's backends are on among the tests.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let armoured: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        Self {
            client,
            url: format!("{base}/v1/validate_device_token"),
            team_id: team_id.to_owned(),
            key_id: key_id.to_owned(),
            key: EncodingKey::from_ec_der(&STANDARD.decode(armoured).unwrap()),
            provider_token: Mutex::new(None),
        }
    }

    fn provider_token(&self) -> String {
        let mut kept = self.provider_token.lock().unwrap();
        if let Some((signed_at, token)) = &*kept
            && signed_at.elapsed() < Duration::from_secs(40 * 60)
        {
            return token.clone();
        }
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        let claims = Claims { iss: &self.team_id, iat: now().as_secs() };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).unwrap();
        *kept = Some((Instant::now(), token.clone()));
        token
    }
}

impl Verify for AppleVerifier {
    async fn verify(&self, token: HeaderValue) -> Result<bool, ()> {
        let timestamp = u64::try_from(now().as_millis()).map_err(drop)?;
        let device_token = token.to_str().map_err(drop)?;
        let body = serde_json::to_vec(&Question {
            device_token,
            transaction_id: Uuid::new_v4().to_string(),
            timestamp,
        })
        .unwrap();
        let request = self
            .client
            .post(&self.url)
            .bearer_auth(self.provider_token())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let response = request.send().await.map_err(drop)?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::BAD_REQUEST => {
                let text = response.text().await.map_err(drop)?;
                if text.contains("device token") { Ok(false) } else { Err(()) }
            }
            _ => Err(()),
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}
