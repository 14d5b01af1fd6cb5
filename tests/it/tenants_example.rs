//! The example `tenants`, over a socket, and its settings.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use http::{StatusCode, header::HOST};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tower_devicecheck::{
    Event, Observer, RolloutReport,
    session::{KeyRing, MasterKey, Sessions},
    testing::Endpoint,
};

use crate::{
    captured,
    examples::serve,
    support::{Apple, TOKEN_HEADER, example},
};

#[path = "../../examples/tenants.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
mod program;

/// The example, with an Apple for each tenant.
struct World {
    url: String,
    client: reqwest::Client,
    shop: Apple,
    club: Apple,
    of_club: Arc<RolloutReport>,
    /// Tenant and outcome of the club's requests.
    decisions: mpsc::UnboundedReceiver<(String, &'static str)>,
}

struct Decisions(mpsc::UnboundedSender<(String, &'static str)>);

impl Observer for Decisions {
    fn decision(&self, event: &Event<'_>) {
        let tenant = event.tenant().map(ToString::to_string).unwrap_or_default();
        let _ = self.0.send((tenant, event.outcome().as_str()));
    }
}

impl World {
    async fn new() -> Self {
        let (shop, club, of_club) = (Apple::new(), Apple::new(), Arc::new(RolloutReport::new()));
        let names = program::Names { shop: "shop.localhost".to_owned(), club: " club.localhost".to_owned() };
        let ring = KeyRing::new(MasterKey::new(1, [1; 32]));
        let settings = program::Shop {
            layer: shop.layer(),
            apple: shop.client.clone(),
            sessions: Sessions::new("shop", "TEAM123456.com.example.shop", &ring).unwrap(),
        };
        let (send, decisions) = mpsc::unbounded_channel();
        let layer = club.layer().with_observer((Arc::clone(&of_club), Decisions(send)));
        let app = program::app(&names.hosts().unwrap(), settings, layer).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        serve(listener, app);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, client, shop, club, of_club, decisions }
    }

    async fn send(&self, line: &str, header: (&str, &str)) -> (StatusCode, Value) {
        let mut words = line.split(' ');
        let [method, host, path] = [(); 3].map(|()| words.next().unwrap());
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        let response = request.header(HOST, host).header(header.0, header.1).send().await.unwrap();
        let (status, body) = (response.status(), response.text().await.unwrap());
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    async fn status(&self, line: &str, token: &str) -> u16 {
        self.send(line, (TOKEN_HEADER, token)).await.0.as_u16()
    }

    fn calls(&self) -> (usize, usize) {
        (self.shop.calls(), self.club.calls())
    }
}

#[tokio::test]
async fn each_host_has_its_gate_and_other_hosts_have_none() {
    let world = World::new().await;
    let (of_shop, of_club) = (world.shop.genuine(), world.club.genuine());
    let (status, device) = world.send("GET shop.localhost:80 /", (TOKEN_HEADER, &of_shop)).await;
    assert_eq!(
        (status, &device["tenant"], &device["evidence"]),
        (StatusCode::OK, &json!("shop"), &json!("apple"))
    );
    assert_eq!(world.status("GET shop.localhost /", &of_club).await, 401);
    assert_eq!(world.calls(), (2, 0));
    for line in [
        "GET nobody.localhost /",
        "GET localhost /",
        "GET www.shop.localhost /",
        "POST nobody.localhost /session",
        "POST nobody.localhost /block",
    ] {
        assert_eq!(world.status(line, &of_shop).await, 401, "{line}");
    }
    assert_eq!(world.status("GET nobody.localhost /health", "").await, 200);
    assert_eq!(world.status("GET nobody.localhost /elsewhere", "").await, 404);
    assert_eq!(world.calls(), (2, 0));
}

#[tokio::test]
async fn the_club_admits_everybody_and_reports() {
    let mut world = World::new().await;
    let tokens = [world.club.genuine(), world.club.fake.forged_token(), world.shop.genuine(), "%".to_owned()];
    for token in &tokens {
        let (status, device) = world.send("GET club.localhost /", (TOKEN_HEADER, token)).await;
        assert_eq!((status, &device["tenant"]), (StatusCode::OK, &json!(null)), "{token}");
    }
    // The checks run beside their requests.
    let mut reported = Vec::new();
    while reported.len() < tokens.len() {
        reported.push(world.decisions.recv().await.unwrap());
    }
    reported.sort_unstable();
    let expected = ["malformed_token", "refused_token", "refused_token", "verified"];
    assert_eq!(reported, expected.map(|outcome| ("club".to_owned(), outcome)));
    let report: Value = serde_json::from_str(&world.of_club.to_json()).unwrap();
    let counts = &report["monitor"];
    assert_eq!((&counts["checked"], &counts["rejected"]), (&json!(4), &json!(3)), "{report}");
    assert_eq!(world.calls(), (0, 3));
    // The shop's services are not the club's.
    for path in ["/session", "/block"] {
        assert_eq!(world.status(&format!("POST club.localhost {path}"), &tokens[0]).await, 404);
    }
    assert_eq!(world.calls().0, 0);
}

#[tokio::test]
async fn the_shop_sells_sessions_that_open_nothing_else() {
    let world = World::new().await;
    let token = world.shop.genuine();
    let (status, bought) = world.send("POST shop.localhost /session", (TOKEN_HEADER, &token)).await;
    assert_eq!(status, StatusCode::OK);
    let session = ("x-device-session", bought["session"].as_str().unwrap());
    captured::secret(session.1);
    let (status, device) = world.send("GET shop.localhost /", session).await;
    assert_eq!((status, &device["tenant"]), (StatusCode::OK, &json!("shop")));
    assert_eq!(device["evidence"], "session-device-check");
    for line in ["POST shop.localhost /session", "POST shop.localhost /block", "GET nobody.localhost /"] {
        assert_eq!(world.send(line, session).await.0, StatusCode::UNAUTHORIZED, "{line}");
    }
    let (_, device) = world.send("GET club.localhost /", session).await;
    assert_eq!(device["tenant"], json!(null));
    assert_eq!(world.calls(), (1, 0));
}

#[tokio::test]
async fn a_blocked_device_is_out_at_once() {
    let world = World::new().await;
    let token = world.shop.token_of("phone");
    assert_eq!(world.status("GET shop.localhost /", &token).await, 200);
    assert_eq!(world.status("POST shop.localhost /block", &token).await, 204);
    assert_eq!(world.status("GET shop.localhost /", &token).await, 403, "the same token");
    for line in ["GET shop.localhost /", "POST shop.localhost /session", "POST shop.localhost /block"] {
        assert_eq!(world.status(line, &world.shop.token_of("phone")).await, 403, "{line}");
    }
    assert_eq!(world.status("GET shop.localhost /", &world.shop.token_of("other phone")).await, 200);
    assert_eq!(world.shop.fake.calls_to(Endpoint::UpdateBits), 1);
    assert_eq!(world.calls(), (7, 0));
}

/// Runs a program that must fail, and looks at all that it prints.
pub(crate) fn refused(program: &str, variables: &[(&str, &str)], named: &str, secret: &str) {
    let mut process = Command::new(example(program));
    // The program cannot listen there, so that it ends also where it takes the value.
    process.env_clear().env("LISTEN", "nowhere").env("RUST_LOG", "debug").stdin(Stdio::null());
    let output = process.envs(variables.iter().copied()).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    captured::printed(&text);
    assert!(!output.status.success() && text.contains(named), "{variables:?}: {text}");
    assert!(!text.contains(secret), "{variables:?}: {text}");
}

#[test]
fn a_secret_in_the_wrong_variable_is_not_printed() {
    const SECRET: &str = "MARKERmarkerMARKERmarker";
    let (with_slash, with_space) = (format!("{SECRET}/"), format!("{SECRET} {SECRET}"));
    let club = [("CLUB_APPLE_JWT_ISS", "TEAM123456"), ("CLUB_APPLE_JWT_KID", "KEY1234567")];
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("SHOP_HOST", &with_slash)], "SHOP_HOST"),
        (&[("CLUB_HOST", &with_space)], "CLUB_HOST"),
        (&[("SHOP_APPLE_JWT_PRIVATE_KEY", SECRET)], "SHOP_APPLE_JWT_ISS"),
        (&[("CLUB_APPLE_JWT_ISS", SECRET)], "CLUB_APPLE_JWT_KID"),
        (&[club[0], club[1], ("CLUB_APPLE_JWT_PRIVATE_KEY", SECRET)], "CLUB_APPLE_JWT_"),
        (&[club[0], club[1], ("CLUB_APPLE_JWT_PRIVATE_KEY_FILE", SECRET)], "CLUB_APPLE_JWT_"),
        (&[("SESSION_KEYS", SECRET)], "SESSION_KEYS"),
        (&[("DEVICECHECK_PRODUCTION_URL", SECRET)], "SHOP_APPLE_JWT_ISS"),
    ];
    for (variables, named) in cases {
        refused("tenants", variables, named, SECRET);
    }
}
