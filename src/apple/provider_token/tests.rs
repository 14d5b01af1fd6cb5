use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use p256::ecdsa::{Signature, SigningKey, signature::Verifier};
use p256::pkcs8::EncodePrivateKey;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).unwrap()
}

fn tokens() -> ProviderTokens {
    let der = key().to_pkcs8_der().unwrap();
    ProviderTokens::new(Signer::new("TEAM123456", "KEY1234567", der.as_bytes()).unwrap())
}

fn later(moment: Timestamp, by: Duration) -> Timestamp {
    Timestamp { monotonic: moment.monotonic + by, wall: moment.wall + by }
}

#[test]
fn the_token_is_a_jwt_as_apple_wants_it() {
    let tokens = tokens();
    let value = tokens.signer().sign(1_700_000_000).unwrap();
    let jwt = std::str::from_utf8(&value).unwrap().strip_prefix("Bearer ").unwrap();
    let parts: Vec<&str> = jwt.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("{jwt}") };
    let text = |part| String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    assert_eq!(text(header), r#"{"alg":"ES256","kid":"KEY1234567","typ":"JWT"}"#);
    assert_eq!(text(claims), r#"{"iss":"TEAM123456","iat":1700000000}"#);
    assert_eq!(signature.len(), 86, "raw r and s, not DER");
    let signature = Signature::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    let message = format!("{header}.{claims}");
    assert!(key().verifying_key().verify(message.as_bytes(), &signature).is_ok());
}

#[test]
fn the_headers_are_sensitive_and_one_is_bare() {
    let token = tokens().token(Timestamp::now()).unwrap();
    let (header, bare) = (token.header(), token.bare_header());
    assert!(header.is_sensitive() && bare.is_sensitive());
    assert_eq!(header.to_str().unwrap().strip_prefix("Bearer "), Some(bare.to_str().unwrap()));
}

#[test]
fn a_key_without_its_public_half_signs_too() {
    let der = BASE64_STANDARD
        .decode(
            "MEECAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcEJzAlAgEBBCAHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==",
        )
        .unwrap();
    assert!(Signer::new("T", "K", &der).unwrap().sign(0).is_ok());
}

#[test]
fn no_two_tokens_in_a_row_are_the_same() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let cases: &[(&str, Option<u64>, u64)] = &[
        ("the first", None, 940),
        ("one of long ago", Some(5), 940),
        ("a second ago", Some(939), 940),
        ("in the same second", Some(940), 941),
        ("and again", Some(941), 942),
        ("never in the future", Some(1_000), 940),
        ("before the clock was put back", Some(5_000), 940),
    ];
    for (name, previous, expected) in cases {
        assert_eq!(issued_at(now, *previous), *expected, "{name}");
    }
    assert_eq!(issued_at(SystemTime::UNIX_EPOCH, None), 0);
}

#[test]
fn when_a_token_is_renewed() {
    let at = later(Timestamp::now(), HOUR);
    let minutes = |minutes: u32| MINUTE * minutes;
    let cases: &[(&str, bool, Timestamp, bool, bool)] = &[
        // name, forced, now, due, may be forced
        ("new", false, at, false, true),
        ("new, forced", true, at, false, false),
        ("nineteen minutes", false, later(at, minutes(19)), false, true),
        ("nineteen minutes, forced", true, later(at, minutes(19)), false, false),
        ("twenty minutes, forced", true, later(at, minutes(20)), false, true),
        ("thirty-nine minutes", false, later(at, minutes(39)), false, true),
        ("forty minutes", false, later(at, minutes(40)), true, true),
        ("forty minutes, forced", true, later(at, minutes(40)), true, true),
        (
            "wall clock put forward",
            false,
            Timestamp { wall: at.wall + HOUR, ..later(at, minutes(1)) },
            false,
            true,
        ),
        (
            "wall clock put forward, forced",
            true,
            Timestamp { wall: at.wall + HOUR, ..later(at, minutes(1)) },
            false,
            true,
        ),
        (
            "wall clock put forward, twenty minutes",
            false,
            Timestamp { wall: at.wall + HOUR, ..later(at, minutes(20)) },
            true,
            true,
        ),
        (
            "wall clock put back",
            true,
            Timestamp { wall: at.wall - HOUR, ..later(at, minutes(1)) },
            false,
            true,
        ),
        (
            "wall clock put back, twenty minutes",
            false,
            Timestamp { wall: at.wall - HOUR, ..later(at, minutes(20)) },
            true,
            true,
        ),
        (
            "wall clock put back a little",
            true,
            Timestamp { wall: at.wall - MINUTE, ..later(at, minutes(19)) },
            false,
            false,
        ),
        (
            "wall clock at the beginning of time",
            false,
            Timestamp { wall: SystemTime::UNIX_EPOCH, ..later(at, minutes(40)) },
            true,
            true,
        ),
        ("wall clock stands still", false, Timestamp { wall: at.wall, ..later(at, minutes(40)) }, true, true),
        (
            "monotonic clock goes back",
            true,
            Timestamp { monotonic: at.monotonic - HOUR, wall: at.wall },
            false,
            false,
        ),
    ];
    for (name, forced, now, due, may_be_forced) in cases {
        let header = HeaderValue::from_static("x");
        let issued = Issued { bare_header: header.clone(), header, issued_at: 0, at, forced: *forced };
        assert_eq!(is_due(&issued, *now), *due, "{name}");
        assert_eq!(may_force(&issued, *now), *may_be_forced, "{name}");
    }
}

#[test]
fn each_token_is_replaced_once_and_its_replacement_not_at_all_for_a_while() {
    let tokens = tokens();
    let now = Timestamp::now();
    let same = |a: &ProviderToken, b: &ProviderToken| Arc::ptr_eq(&a.0, &b.0);
    let first = tokens.token(now).unwrap();
    assert!(same(&first, &tokens.token(later(now, 39 * MINUTE)).unwrap()));

    let second = tokens.replace(&first, now).unwrap().unwrap();
    assert!(!same(&first, &second));
    assert!(
        same(&second, &tokens.replace(&first, now).unwrap().unwrap()),
        "another request had the first one refused: no further signature"
    );
    assert!(tokens.replace(&second, later(now, 19 * MINUTE)).unwrap().is_none());
    assert!(same(&second, &tokens.token(later(now, 39 * MINUTE)).unwrap()));

    let third = tokens.token(later(now, 40 * MINUTE)).unwrap();
    assert!(!same(&second, &third));
    let fourth = tokens.replace(&third, later(now, 41 * MINUTE)).unwrap().unwrap();
    assert!(tokens.replace(&fourth, later(now, 42 * MINUTE)).unwrap().is_none());
}

#[test]
fn a_token_that_cannot_be_renewed_stays_in_use_while_it_is_good() {
    let mut tokens = tokens();
    let now = Timestamp::now();
    let first = tokens.token(now).unwrap();
    tokens.signer.is_broken = true;
    let kept = tokens.token(later(now, 54 * MINUTE)).unwrap();
    assert!(Arc::ptr_eq(&first.0, &kept.0));
    assert!(tokens.token(later(now, 55 * MINUTE)).is_err());
    assert!(tokens.replace(&first, now).is_err());
}

#[test]
fn many_threads_cause_one_signature() {
    let tokens = tokens();
    let now = Timestamp::now();
    let all: Vec<ProviderToken> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(|| tokens.token(now).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|token| Arc::ptr_eq(&token.0, &all[0].0)));
}
