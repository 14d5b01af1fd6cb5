//! Streams of an AI provider through the gateway: read to their end, or abandoned.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use reqwest::RequestBuilder;
use tokio::time::sleep;

use super::{
    clients::Clients,
    random::Random,
    tally::{Answer, Claim},
};

pub(super) const KEY: &str = "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9";
/// The pieces of a stream, which takes some 0.4 seconds.
const PIECES: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
const PIECE: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n";

/// The streams that the provider has not ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Open(Arc<AtomicUsize>);

impl Open {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

struct Opened(Open);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A provider that streams an answer to each request with the whole key.
pub(super) fn provider(open: Open) -> Router {
    let answer = async move |request: Request| -> Response {
        let key = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if key.and_then(|value| value.strip_prefix("Bearer ")) != Some(KEY) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        open.0.fetch_add(1, Ordering::SeqCst);
        let opened = Opened(open);
        let pieces = stream::unfold((0, opened), async |(sent, opened)| {
            if sent == PIECES {
                return None;
            }
            sleep(PAUSE).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(PIECE)), (sent + 1, opened)))
        });
        ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
    };
    Router::new().fallback(answer)
}

fn request(clients: &Clients, part: &str, token: &str) -> RequestBuilder {
    let request =
        clients.http.post(format!("{}/v1/openai/app/chat/completions", clients.servers.gateway.url));
    request.header("authorization", format!("Bearer {part}.{token}")).body("{\"stream\":true}")
}

pub(super) async fn any(clients: &Clients, random: &mut Random) {
    let token = clients.genuine();
    let part = &*clients.servers.gateway.part;
    match random.below(8) {
        0 => {
            let request = request(clients, part, &clients.servers.fake.forged_token());
            clients.send("stream, refused token", Claim::Forged, request).await;
        }
        1 => {
            // Another end of the same length, whose metadata are the same.
            let wrong = format!("{}{}", if part.starts_with('A') { "B" } else { "A" }, &part[1..]);
            clients.send("stream, wrong part", Claim::Forged, request(clients, &wrong, &token)).await;
        }
        2..4 => abandon(clients, request(clients, part, &token), random.below(PIECES)).await,
        _ => {
            let request = request(clients, part, &token);
            let (answer, body) = clients.send("stream", Claim::Genuine, request).await;
            if answer.is_admitted() && body.len() != PIECES * PIECE.len() {
                clients.tally.alarm.ring(format!("a stream ended after {} bytes", body.len()));
            }
        }
    }
    clients.retire(token);
}

/// Reads so many pieces, and leaves.
async fn abandon(clients: &Clients, request: RequestBuilder, pieces: usize) {
    let kind = "stream, abandoned";
    let sky = clients.sky.number();
    let answer = match request.send().await {
        Ok(mut response) => {
            for _ in 0..pieces {
                if !matches!(response.chunk().await, Ok(Some(_))) {
                    break;
                }
            }
            Answer::Status(response.status().as_u16())
        }
        Err(error) => Answer::Broken(format!("{error:?}")),
    };
    clients.tally.note(kind, Claim::Genuine, &answer, clients.sky.was_calm_since(sky));
}
