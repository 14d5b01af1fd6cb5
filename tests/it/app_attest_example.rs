//! The example `app_attest`: its server and its fake device over sockets, as the printed commands use them.

use axum::Router;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tower_devicecheck::{Environment, app_attest::ChallengeKey};

use crate::examples::{serve, socket};
use crate::support::{Apple, TOKEN_HEADER};

#[path = "../../examples/app_attest.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
mod program;

/// The example, and the address at which its fake device takes orders.
struct World {
    apple: Apple,
    client: Client,
    server: String,
    device: String,
}

impl World {
    async fn new(change: impl FnOnce(&mut program::Settings)) -> Self {
        let apple = Apple::new();
        let mut settings = program::Settings::default();
        change(&mut settings);
        let fake = settings.fake_device().unwrap();
        settings.anchors = fake.anchors().unwrap();
        let parts = settings.parts_in_memory(&apple.client, ChallengeKey::random().unwrap());
        let client = Client::builder().no_proxy().build().unwrap();
        let server = listen(parts.app(apple.layer()).unwrap()).await;
        Self { apple, client, server, device: listen(fake.orders()).await }
    }

    /// Gives the fake device an order.
    async fn order(&self, path: &str, body: &str) -> String {
        let order = match path {
            "/fake/captured" => self.client.get(format!("{}{path}", self.device)),
            _ => self.client.post(format!("{}{path}", self.device)),
        };
        order.body(body.to_owned()).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    async fn challenge(&self, path: &str) -> String {
        let request = self.client.post(format!("{}{path}", self.server));
        request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    async fn attest(&self) -> (u16, Value) {
        let challenge = self.challenge("/challenge").await;
        let submission = self.order("/fake/attest", &challenge).await;
        answer(self.client.post(format!("{}/attest", self.server)).body(submission)).await
    }

    /// Sends `POST /pay` with these lines as its headers.
    async fn pay(&self, headers: &str, body: &str) -> (u16, Value) {
        let mut request = self.client.post(format!("{}/pay", self.server)).body(body.to_owned());
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        answer(request).await
    }

    /// The status and the code of the answer to a request that must be rejected.
    async fn rejected(&self, headers: &str, body: &str) -> (u16, String) {
        let (status, problem) = self.pay(headers, body).await;
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    }
}

async fn listen(app: Router) -> String {
    let (listener, address) = socket().await;
    serve(listener, app);
    format!("http://{address}")
}

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
}

fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn a_newcomer_attests_signs_replays_and_tampers() {
    let world = World::new(|_| ()).await;
    // Nobody knows the key before it is attested.
    let signed = world.order("/fake/assert", "amount=1").await;
    assert_eq!(world.rejected(&signed, "amount=1").await, code(401, "unknown_key"));

    let (status, attested) = world.attest().await;
    assert_eq!((status, attested["key_id"].as_str().unwrap().len()), (201, 44));

    let signed = world.order("/fake/assert", "amount=1").await;
    let (status, device) = world.pay(&signed, "amount=1").await;
    assert_eq!((status, device["subject"].as_str().unwrap().len()), (200, 32));
    assert_eq!(
        json!([device["evidence"], device["environment"], device["app_id"], device["counter"]]),
        json!(["app-attest", "production", "TEAM123456.com.example.app", 2])
    );
    assert_eq!(
        json!([device["category"], device["build"], device["limit"], device["body"]]),
        json!(["app_store", "1", 1000, "amount=1"])
    );

    let captured = world.order("/fake/captured", "").await;
    assert_eq!(captured, signed);
    assert_eq!(world.rejected(&captured, "amount=1").await, code(401, "reused_token"));
    let signed = world.order("/fake/assert", "amount=1").await;
    assert_eq!(world.rejected(&signed, "amount=2").await, code(401, "refused_token"));

    world.order("/fake/reinstall", "").await;
    let signed = world.order("/fake/assert", "amount=1").await;
    assert_eq!(world.rejected(&signed, "amount=1").await, code(401, "unknown_key"));
    assert_eq!(world.attest().await.0, 201);
    let signed = world.order("/fake/assert", "").await;
    assert_eq!(world.pay(&signed, "").await.0, 200);
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn a_device_token_is_the_fall_back_and_rubbish_is_none() {
    let world = World::new(|_| ()).await;
    let token = world.apple.genuine();
    let (status, device) = world.pay(&format!("{TOKEN_HEADER}: {token}"), "amount=1").await;
    assert_eq!((status, world.apple.calls()), (200, 1));
    assert_eq!(
        json!([device["evidence"], device["subject"], device["app_id"], device["limit"]]),
        json!(["apple", null, null, 10])
    );

    let rubbish = [
        ("".to_owned(), "missing_token"),
        ("x-app-attest-key-id: AAAA".to_owned(), "malformed_token"),
        (format!("x-app-attest-key-id: {}", "A".repeat(44)), "malformed_token"),
        ("x-app-attest-assertion: AAAA".to_owned(), "malformed_token"),
        // A wrong assertion is not mended by a device token.
        (format!("x-app-attest-time: 1\n{TOKEN_HEADER}: {token}"), "malformed_token"),
    ];
    for (headers, expected) in rubbish {
        assert_eq!(world.rejected(&headers, "amount=1").await, code(401, expected), "{headers}");
    }
    let attest = world.client.post(format!("{}/attest", world.server));
    assert_eq!(answer(attest.body("rubbish")).await.1["code"], "malformed_token");
    let order = world.client.post(format!("{}/fake/attest", world.device));
    assert_eq!(order.body("rubbish").send().await.unwrap().status().as_u16(), 400);
    let health = world.client.get(format!("{}/health", world.server)).send().await.unwrap();
    assert_eq!(health.text().await.unwrap(), "ok");
    assert_eq!(world.apple.calls(), 1);
}

#[tokio::test]
async fn a_challenge_in_place_of_the_time_counts_once() {
    let world = World::new(|settings| settings.is_by_challenge = true).await;
    assert_eq!(world.attest().await.0, 201);
    let by_time = world.order("/fake/assert", "amount=1").await;
    assert_eq!(world.rejected(&by_time, "amount=1").await, code(401, "malformed_token"));
    for expected in [200, 401] {
        let issued: Value = serde_json::from_str(&world.challenge("/challenge/assertion").await).unwrap();
        let path = format!("/fake/assert?challenge={}", issued["challenge"].as_str().unwrap());
        let signed = world.order(&path, "amount=1").await;
        let body = if expected == 200 { "amount=1" } else { "amount=2" };
        assert_eq!(world.pay(&signed, body).await.0, expected);
    }
    // A challenge to attest with is none to sign with.
    let issued: Value = serde_json::from_str(&world.challenge("/challenge").await).unwrap();
    let path = format!("/fake/assert?challenge={}", issued["challenge"].as_str().unwrap());
    let signed = world.order(&path, "amount=1").await;
    assert_eq!(world.rejected(&signed, "amount=1").await, code(401, "refused_token"));
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn a_development_device_is_admitted_where_the_operator_says_so() {
    let world = World::new(|settings| settings.environments = vec![Environment::Development]).await;
    assert_eq!(world.attest().await.0, 201);
    let signed = world.order("/fake/assert", "amount=1").await;
    assert_eq!(world.pay(&signed, "amount=1").await.1["environment"], "development");
    assert_eq!(world.apple.calls(), 0);
}
