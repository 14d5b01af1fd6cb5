//! Sessions as JSON Web Tokens. `.ci/jwt` has other libraries verify them.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use super::*;
use crate::replay::MemoryReplayGuard;

const REFUSED: Option<Rejection> = Some(Rejection::RefusedToken);

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

fn ed25519() -> JwtKey {
    let der = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    JwtKey::from_pem(&pem(der.as_ref())).unwrap()
}

fn p256() -> JwtKey {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    JwtKey::from_pem(&pem(der.as_ref())).unwrap()
}

fn jwts(keys: Vec<JwtKey>) -> Jwts {
    Jwts::new("https://api.example.com", ["photos".to_owned()], &sessions(), keys).unwrap()
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn the_layer_accepts_what_it_exports_and_nothing_else() {
    for (key, algorithm) in [(ed25519(), "EdDSA"), (p256(), "ES256")] {
        let (world, sessions) = (World::new(), sessions());
        let id = key.id().to_owned();
        let jwts = jwts(vec![key]);
        let exchange = Exchange::new(sessions.clone()).with_jwt(jwts.clone());
        let proof = SessionProof::new(sessions.clone()).with_jwt(jwts.clone());
        let (token, expires_in) = world.buy_with(&exchange, world.token()).await;
        assert_eq!(expires_in, HOUR);
        assert_eq!(part(&token, 0), json!({ "alg": algorithm, "typ": "dc-session+jwt", "kid": id }));
        let claims = part(&token, 1);
        let expected = json!({
            "iss": "https://api.example.com", "aud": ["photos"], "sub": APP_ID, "tenant": "acme", "iat": NOON, "exp": NOON + HOUR,
            "jti": claims["jti"], "env": "production", "evidence": "device-check",
        });
        assert_eq!(claims, expected);

        for round in ["verified", "remembered"] {
            let answer = world.ask(&proof, shown(&token)).await;
            assert_eq!(answer.device().evidence().to_string(), "session-device-check", "{round}");
            assert_eq!(Session::of(answer.device()).unwrap().id().to_string(), claims["jti"], "{round}");
        }
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let parts: Vec<_> = token.split('.').collect();
        let header = |alg: &str| encoded(&json!({ "alg": alg, "typ": "dc-session+jwt", "kid": id }));
        let mut longer = claims.clone();
        longer["exp"] = json!(NOON + 2 * HOUR);
        let other = jwts_of_another(&world, &sessions).await;
        let cases = [
            ("a changed claim", format!("{}.{}.{}", parts[0], encoded(&longer), parts[2])),
            ("no algorithm", format!("{}.{}.", header("none"), parts[1])),
            ("no algorithm, and the signature", format!("{}.{}.{}", header("none"), parts[1], parts[2])),
            ("another algorithm", format!("{}.{}.{}", header("HS256"), parts[1], parts[2])),
            ("no signature", format!("{}.{}.", parts[0], parts[1])),
            ("one part more", format!("{token}.")),
            ("another key", other),
            ("padding", format!("{token}=")),
            ("too long", format!("{token}{}", "A".repeat(4_096))),
        ];
        for (name, forged) in cases {
            assert_eq!(world.ask(&proof, shown(&forged)).await.rejection(), REFUSED, "{algorithm}: {name}");
        }
        let without = SessionProof::new(sessions.clone());
        assert_eq!(world.ask(&without, shown(&token)).await.rejection(), REFUSED, "a layer that takes none");
        // Its own form is taken beside it.
        let own = world.buy(&Exchange::new(sessions.clone())).await;
        assert_eq!(world.ask(&proof, shown(&own)).await.rejection(), None);

        // A remembered token is checked like any other session.
        let id: SessionId = claims["jti"].as_str().unwrap().parse().unwrap();
        sessions.revocations().revoke_session(id, at(NOON + HOUR)).await.unwrap();
        assert_eq!(world.ask(&proof, shown(&token)).await.rejection(), REFUSED, "revoked");
        let (token, _) = world.buy_with(&exchange, world.token()).await;
        assert_eq!(world.ask(&proof, shown(&token)).await.rejection(), None);
        after_noon(HOUR);
        assert_eq!(world.ask(&proof, shown(&token)).await.rejection(), Some(Rejection::ExpiredSession));
        after_noon(0);
        jwts.replace_keys(vec![ed25519()]).unwrap();
        assert_eq!(world.ask(&proof, shown(&token)).await.rejection(), REFUSED, "a key that is gone");
        assert_eq!(world.fake.calls(), 4);
    }
}

async fn jwts_of_another(world: &World, sessions: &Sessions) -> String {
    let exchange = Exchange::new(sessions.clone()).with_jwt(jwts(vec![p256()]));
    world.buy_with(&exchange, world.token()).await.0
}

#[tokio::test]
async fn tokens_of_one_key_are_kept_apart_by_tenant_and_app() {
    let der = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let pem = pem(der.as_ref());
    let world = World::new();
    after_noon(0);
    let owners =
        [("acme", APP_ID), ("", APP_ID), ("other", APP_ID), ("acme", "TEAM123456.com.example.other")];
    let owned: Vec<_> = owners
        .iter()
        .map(|(tenant, app_id)| {
            let sessions = Sessions::new(tenant, app_id, &KeyRing::new(master(1))).unwrap();
            let key = JwtKey::from_pem(&pem).unwrap();
            let jwts =
                Jwts::new("https://api.example.com", ["photos".to_owned()], &sessions, vec![key]).unwrap();
            (sessions, jwts)
        })
        .collect();
    for (seller, (sessions, jwts)) in owned.iter().enumerate() {
        let exchange = Exchange::new(sessions.clone());
        let token = world.buy(&exchange.clone().with_jwt(jwts.clone())).await;
        let own = world.buy(&exchange).await;
        for (taker, (sessions, jwts)) in owned.iter().enumerate() {
            let proof = SessionProof::new(sessions.clone()).with_jwt(jwts.clone());
            for text in [&token, &own] {
                let admits = world.ask(&proof, shown(text)).await.rejection().is_none();
                assert_eq!(admits, seller == taker, "{:?} at {:?}", owners[seller], owners[taker]);
            }
        }
    }
    assert_eq!(world.fake.calls(), 2 * owners.len());
}

#[tokio::test]
async fn limited_use_and_bindings_are_exported() {
    let (world, sessions) = (World::new(), sessions().with_binding(http::header::AUTHORIZATION));
    let jwts = jwts(vec![ed25519()]);
    let exchange = Exchange::new(sessions.clone()).with_limited_use(true).with_jwt(jwts.clone());
    let proof = SessionProof::new(sessions).with_limited_use(MemoryReplayGuard::new()).with_jwt(jwts);
    let (token, expires_in) =
        world.buy_with(&exchange, and(world.token(), "authorization", "Bearer alice")).await;
    assert_eq!(expires_in, 300);
    assert_eq!(part(&token, 1)["once"], true);
    assert_eq!(part(&token, 1)["bound"].as_str().unwrap().len(), 32);
    assert_eq!(world.ask(&proof, shown(&token)).await.rejection(), REFUSED);
    for rejection in [None, Some(Rejection::ReusedToken)] {
        let request = and(shown(&token), "authorization", "Bearer alice");
        assert_eq!(world.ask(&proof, request).await.rejection(), rejection);
    }
    assert_eq!(world.fake.calls(), 1);
}

#[tokio::test]
async fn the_published_keys() {
    let keys = [ed25519(), p256()];
    let ids: Vec<_> = keys.iter().map(|key| key.id().to_owned()).collect();
    let service = Jwks::new(jwts(keys.into()));
    let get =
        |method: &str| Request::builder().method(method).uri("/").body(Full::<Bytes>::default()).unwrap();
    let response = service.clone().oneshot(get("GET")).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/jwk-set+json");
    assert_eq!(response.headers()["cache-control"], "public, max-age=3600, stale-if-error=86400");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    for (index, (kty, alg, length)) in [("OKP", "EdDSA", 6), ("EC", "ES256", 7)].into_iter().enumerate() {
        let key = &body["keys"][index];
        assert_eq!((&key["kid"], &key["kty"], &key["alg"]), (&json!(ids[index]), &json!(kty), &json!(alg)));
        assert_eq!(key.as_object().unwrap().len(), length, "nothing but the public parts");
    }
    assert_eq!(service.oneshot(get("POST")).await.unwrap().status(), 405);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn a_token_that_was_changed_is_none(changes in proptest::collection::vec((0..1_000_usize, 0..=255_u8), 1..4)) {
        let jwts = jwts(vec![ed25519()]);
        let claims = crate::session::claims::Claims {
            is_limited_use: false,
            environment: Environment::Production,
            bought_with: BoughtWith::DeviceCheck,
            issued: NOON as u32,
            expires: NOON as u32 + 3_600,
            id: [7; 16].into(),
            subject: [0; 16],
            binding: None,
        };
        let minted = jwts.mint(&claims).unwrap();
        let mut text = minted.clone().into_bytes();
        for (place, byte) in changes {
            let place = place % text.len();
            text[place] = byte;
        }
        let now = crate::runtime::Instant::now();
        proptest::prop_assert_eq!(jwts.claims(&text, now).is_some(), text == minted.as_bytes());
        proptest::prop_assert_eq!(jwts.claims(minted.as_bytes(), now), Some(claims));
    }
}

#[test]
fn what_is_no_key_is_not_taken() {
    for text in [
        "",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----",
    ] {
        assert!(JwtKey::from_pem(text).is_err(), "{text}");
    }
    assert!(Jwts::new("i", [], &sessions(), vec![ed25519()]).is_err());
    assert!(Jwts::new("i", ["a".to_owned()], &sessions(), vec![]).is_err());
    let key = ed25519();
    assert_eq!(format!("{key:?}"), format!("JwtKey {{ id: {:?}, .. }}", key.id()));
}

/// An operator who gives the tokens of one tenant to another gets errors, and no token is sold or admitted.
#[tokio::test]
async fn tokens_of_another_owner_are_misconfigured() {
    let (world, sessions) = (World::new(), sessions());
    let jwts = jwts(vec![ed25519()]);
    let exchange = Exchange::new(sessions).with_jwt(jwts.clone());
    let (token, _) = world.buy_with(&exchange, world.token()).await;
    for (tenant, app_id) in [("other", APP_ID), ("acme", "TEAM123456.com.example.other")] {
        let other = Sessions::new(tenant, app_id, &KeyRing::new(master(1))).unwrap();
        let proof = SessionProof::new(other.clone()).with_jwt(jwts.clone());
        let answer = world.ask(&proof, shown(&token)).await;
        assert_eq!(answer.rejection(), Some(Rejection::Misconfigured), "{tenant} {app_id}");
        let response = world.exchange(&Exchange::new(other).with_jwt(jwts.clone()), world.token()).await;
        assert_eq!(response.status(), 500, "{tenant} {app_id}");
    }
    assert_eq!(world.fake.calls(), 3);
}
