//! Requests with sessions and assertions.

use std::time::SystemTime;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use http::Method;
use reqwest::RequestBuilder;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tower_devicecheck::{
    Environment,
    app_attest::ClientFacts,
    testing::app_attest::{Shape, VirtualDevice},
};

use super::{
    clients::{Clients, text_of},
    random::Random,
    servers::{APP_ID, SESSION_LIFE},
    tally::Claim,
};
use crate::support::TOKEN_HEADER;

const SESSION: &str = "x-device-session";
const MOST_SESSIONS: usize = 50;
const MOST_DEVICES: usize = 24;

/// Buys a session with a new token.
async fn buy(clients: &Clients, path: &str) -> Option<String> {
    let token = clients.genuine();
    let request = clients.post(path).header(TOKEN_HEADER, &token);
    let (answer, body) = clients.send("session, bought", Claim::Genuine, request).await;
    if answer.is_admitted() {
        // The second one is refused, or remembered evidence buys none.
        let request = clients.post(path).header(TOKEN_HEADER, &token);
        clients.send("session, bought twice", Claim::Forged, request).await;
    }
    clients.retire(token);
    answer.is_admitted().then(|| text_of(&body, "session"))
}

fn with_session(clients: &Clients, session: &str) -> RequestBuilder {
    clients.http.get(format!("{}/member", clients.servers.http)).header(SESSION, session)
}

pub(super) async fn session(clients: &Clients, random: &mut Random) {
    let session = Clients::any(&clients.sessions, random).filter(|_| !random.one_in(8));
    let session = match session {
        Some(session) => session,
        None => {
            let Some(session) = buy(clients, "/session").await else { return };
            let mut old = clients.old_sessions.lock().unwrap();
            old.push_back((session.clone(), Instant::now()));
            while old.len() > 10 * MOST_SESSIONS {
                old.pop_front();
            }
            drop(old);
            // Tokens of devices are retired there, and a session is no token: to forget it does no harm.
            clients.keep(&clients.sessions, session.clone(), MOST_SESSIONS);
            session
        }
    };
    clients.send("session", Claim::Genuine, with_session(clients, &session)).await;
    let mut forged = session;
    let place = 10 + random.below(100);
    let other = if &forged[place..=place] == "A" { "B" } else { "A" };
    forged.replace_range(place..=place, other);
    clients.send("session, forged", Claim::Forged, with_session(clients, &forged)).await;
}

/// A session whose life is over.
pub(super) async fn old_session(clients: &Clients) {
    let old = {
        let mut old = clients.old_sessions.lock().unwrap();
        let is_over = old.front().is_some_and(|(_, at)| at.elapsed() > SESSION_LIFE + SESSION_LIFE / 20);
        if is_over { old.pop_front() } else { None }
    };
    let Some((session, _)) = old else { return };
    clients.send("session, expired", Claim::Forged, with_session(clients, &session)).await;
}

/// A session for one request, and its copies.
pub(super) async fn limited_session(clients: &Clients, random: &mut Random) {
    let Some(session) = buy(clients, "/session/once").await else { return };
    let kind = "session with limited use";
    let (claim, copies) = if random.one_in(3) { (Claim::Open, 3) } else { (Claim::Genuine, 1) };
    let answers =
        join_all((0..copies).map(|_| clients.send(kind, claim, with_session(clients, &session)))).await;
    if answers.iter().any(|(answer, _)| answer.is_admitted()) {
        clients.send("session, used twice", Claim::Forged, with_session(clients, &session)).await;
    }
}

async fn challenge(clients: &Clients, path: &str) -> Option<String> {
    let (answer, body) = clients.send("challenge", Claim::Genuine, clients.post(path)).await;
    answer.is_admitted().then(|| text_of(&body, "challenge"))
}

/// Attests the key of a new device.
pub(super) async fn attest(clients: &Clients) -> Option<VirtualDevice> {
    let device = clients.servers.ca.device(APP_ID, Shape::Ios27, Environment::Production);
    let challenge = challenge(clients, "/challenge").await?;
    let attestation = device.attest(&Sha256::digest(&challenge), SystemTime::now());
    let body = json!({
        "key_id": device.key_id(), "challenge": challenge, "attestation": STANDARD.encode(attestation),
    });
    let request = clients.post("/attest").body(body.to_string());
    let (answer, _) = clients.send("attestation", Claim::Genuine, request).await;
    answer.is_admitted().then_some(device)
}

/// A request that the device has signed, for a body that may be another one.
fn signed(clients: &Clients, device: &VirtualDevice, challenge: &str, body: &'static str) -> RequestBuilder {
    let digest = Sha256::digest("amount=1").into();
    let text = ClientFacts::new(&Method::POST, "/pay", challenge, Some(&digest)).text();
    clients
        .post("/pay")
        .header("x-app-attest-challenge", challenge)
        .header("x-app-attest-key-id", device.key_id())
        .header("x-app-attest-assertion", STANDARD.encode(device.assert(&Sha256::digest(text))))
        .body(body)
}

pub(super) async fn assertion(clients: &Clients, random: &mut Random) {
    // The device is taken out, as its requests come one after the other.
    let device = {
        let mut devices = clients.devices.lock().unwrap();
        let place = if devices.is_empty() { None } else { Some(random.below(devices.len())) };
        place.filter(|_| !random.one_in(20)).map(|place| devices.swap_remove(place))
    };
    let device = match device {
        Some(device) => device,
        None => {
            let Some(device) = attest(clients).await else { return };
            device
        }
    };
    if let Some(challenge) = challenge(clients, "/challenge/assertion").await {
        show(clients, &device, &challenge, random).await;
    }
    let mut devices = clients.devices.lock().unwrap();
    devices.push(device);
    devices.truncate(MOST_DEVICES);
}

async fn show(clients: &Clients, device: &VirtualDevice, challenge: &str, random: &mut Random) {
    if random.one_in(4) {
        let request = signed(clients, device, challenge, "amount=2");
        clients.send("assertion, another body", Claim::Forged, request).await;
        return;
    }
    let request = signed(clients, device, challenge, "amount=1");
    let copy = || request.try_clone().unwrap();
    let (kind, claim, count) = if random.one_in(3) {
        ("assertion, copied", Claim::Open, 3)
    } else {
        ("assertion", Claim::Genuine, 1)
    };
    let answers = join_all((0..count).map(|_| clients.send(kind, claim, copy()))).await;
    if answers.iter().any(|(answer, _)| answer.is_admitted()) {
        clients.send("assertion, replayed", Claim::Forged, copy()).await;
    }
}
