//! App Attest and sessions: sold with an attestation, and bound to assertions.

use tower_devicecheck::{
    VerifiedDevice,
    session::{KeyRing, MasterKey, SessionProof, Sessions},
};

use super::*;

const SESSION: &str = "x-device-session";

fn sessions() -> Sessions {
    Sessions::new("", APP_ID, &KeyRing::new(MasterKey::random().unwrap())).unwrap()
}

/// Attests a new key, and returns its device and the session that came with it.
async fn bought(world: &World, sessions: &Sessions) -> (VirtualDevice, String) {
    let device = world.device();
    let challenge = world.challenges.issue("", ChallengePurpose::Attestation).unwrap();
    let attestation = device.attest(&Sha256::digest(&challenge), SystemTime::now());
    let body = json!({
        "key_id": device.key_id(), "challenge": challenge, "attestation": STANDARD.encode(attestation),
    });
    let request = Request::post("/attest").body(Full::from(body.to_string())).unwrap();
    let endpoint = world.endpoint().with_sessions(sessions.clone());
    let response = whole(endpoint.oneshot(request).await.unwrap()).await.unwrap();
    assert_eq!(response.status(), 201);
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!((&answer["expires_in"], &answer["refresh_in"]), (&json!(3600), &json!(1800)));
    (device, answer["session"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_attestation_buys_a_session_with_the_subject_of_its_key() {
    let world = World::new();
    let sessions = sessions();
    let (device, session) = bought(&world, &sessions).await;
    let layer = world.apple.layer().with_sessions(SessionProof::new(sessions));
    let app = crate::support::App::new(&layer);
    let request = Request::get("/").header(SESSION, session).body(Full::default()).unwrap();
    assert_eq!(app.send(request).await.status(), 200);
    assert_eq!(app.evidence().basis(), "session-app-attest");
    assert_eq!(app.device().subject(), Some(&*world.store.key(&device).await.subject()));
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn sessions_of_another_tenant_are_a_mistake_of_the_server() {
    let world = World::new();
    let device = world.device();
    let endpoint = world.endpoint().with_tenant("shop".parse().unwrap()).with_sessions(sessions());
    let challenge = world.challenges.issue("shop", ChallengePurpose::Attestation).unwrap();
    let attestation = device.attest(&Sha256::digest(&challenge), SystemTime::now());
    let body = json!({
        "key_id": device.key_id(), "challenge": challenge, "attestation": STANDARD.encode(attestation),
    });
    let request = Request::post("/attest").body(Full::from(body.to_string())).unwrap();
    assert_eq!(endpoint.oneshot(request).await.unwrap().status(), 500);
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn an_assertion_over_a_session_admits_once_and_for_its_own_key_only() {
    let world = World::new();
    let sessions = sessions();
    let (device, session) = bought(&world, &sessions).await;
    let (other, of_other) = bought(&world, &sessions).await;
    let server = world.server(world.proof(Freshness::session(sessions.clone())));
    let captured = post(&device, (SESSION, &session));
    assert_eq!(server.code(captured.clone()).await, "ok");
    let (head, _) = server.last();
    assert!(!head.headers.contains_key(SESSION), "taken away");
    let verified = head.extensions.get::<VerifiedDevice>().unwrap();
    assert_eq!(verified.evidence().basis(), "app-attest");
    assert_eq!(server.code(captured).await, "reused_token");
    assert_eq!(server.code(post(&other, (SESSION, &of_other))).await, "ok");
    assert_eq!(server.code(post(&other, (SESSION, &session))).await, "refused_token");
    assert_eq!(world.reasons.last(), Some("the session of another key"));

    // Under the signature of one session, another one of the same key.
    let mut swapped = post(&device, (SESSION, &session));
    swapped.headers_mut().insert(SESSION, of_other.parse().unwrap());
    assert_eq!(server.code(swapped).await, "refused_token");
    let mut forged = session.clone();
    forged.replace_range(100..101, if &forged[100..101] == "A" { "B" } else { "A" });
    assert_eq!(server.code(post(&device, (SESSION, &forged))).await, "refused_token");
    // A session alone is no credential of this proof, and half of one beside the others.
    let alone = Request::get("/").header(SESSION, &session).body(Full::default()).unwrap();
    assert_eq!(server.code(alone).await, "missing_token");
    let mut without = post(&device, (SESSION, &session));
    without.headers_mut().remove(SESSION);
    assert_eq!(server.code(without).await, "malformed_token");
    let subject = world.store.key(&device).await.subject();
    let until = SystemTime::now() + std::time::Duration::from_secs(3600);
    sessions.revocations().revoke_subject(&subject, until).await.unwrap();
    assert_eq!(server.code(post(&device, (SESSION, &session))).await, "denied");
    assert_eq!(world.apple.calls(), 0);
}
