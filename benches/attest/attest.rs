//! App Attest: the cost of an object over the bare signature checks in it.
//!
//! `cargo bench -p tower-devicecheck-attest-bench` for aws-lc. For pure Rust add
//! `--no-default-features --features rust-crypto`.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::{
    hint::black_box,
    time::{Duration, Instant, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use tower_devicecheck::{
    Environment,
    app_attest::{Anchors, Assertion, AssertionExpected, Attestation, AttestationExpected, PublicKey},
};

/// Rounds, taken in turns; the best one counts.
const ROUNDS: usize = 600;
const TIMES: u32 = 2;

fn main() {
    let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors/app-attest.json")).unwrap();
    let text = |vector: &Value, name: &str| vector[name].as_str().unwrap().to_owned();
    let bytes = |vector: &Value, name: &str| STANDARD.decode(text(vector, name)).unwrap();

    let vector = &vectors["assertions"][0];
    let object = bytes(vector, "assertion_object_base64");
    let hash = bytes(vector, "client_data_hash_base64");
    let pem = text(vector, "public_key_spki_pem");
    let spki =
        STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
    let public_key = PublicKey::from_bytes(&spki[spki.len() - 65..]).unwrap();
    let app_id = text(vector, "app_id").parse().unwrap();
    let expected = AssertionExpected { public_key: &public_key, client_data_hash: &hash, app_id: &app_id };
    let assertion = || drop(Assertion::verify(black_box(&object), &expected).unwrap());

    let vector = &vectors["attestations"][5];
    let attested = bytes(vector, "attestation_object_base64");
    let hash = bytes(vector, "client_data_hash_base64");
    let expected = AttestationExpected {
        key_id: &text(vector, "key_id_base64").parse().unwrap(),
        client_data_hash: &hash,
        app_ids: &[text(vector, "app_id").parse().unwrap()],
        environments: &[Environment::Production],
        now: UNIX_EPOCH + Duration::from_secs(vector["verify_at_unix"].as_u64().unwrap()),
        max_age: None,
    };
    let anchors = Anchors::apple();
    let attestation = || drop(Attestation::verify(black_box(&attested), &expected, &anchors).unwrap());

    // Messages as long as those that certificates and receipts hold.
    let p256 = bare::p256(&[7; 1_200]);
    let p384 = bare::p384(&[7; 700]);
    let p384_with_sha256 = bare::p384_with_sha256(&[7; 700]);
    let short = bare::p256(&[7; 32]);
    let bare_assertion = || short();
    // The receipt: its signature, its signer's certificate (P-256), that one's issuer (P-384). The leaf, its issuer.
    let bare_attestation = || {
        p256();
        p256();
        p384();
        p384();
        p384_with_sha256();
    };
    let best = best(&[&assertion, &bare_assertion, &attestation, &bare_attestation]);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!("| back end: {} | whole, µs | bare signature checks, µs | ratio | at most |", bare::NAME);
    println!("|---|---:|---:|---:|---:|");
    for (name, whole, checks, bound) in
        [("assertion", best[0], best[1], 1.25), ("attestation with its receipt", best[2], best[3], 1.5)]
    {
        let ratio = micros(whole) / micros(checks);
        println!("| {name} | {:.1} | {:.1} | {ratio:.2} | {bound} |", micros(whole), micros(checks));
    }
}

/// The best time of each of these, per call.
fn best(calls: &[&dyn Fn()]) -> Vec<Duration> {
    let mut best = vec![Duration::MAX; calls.len()];
    for _ in 0..ROUNDS {
        for (best, call) in best.iter_mut().zip(calls) {
            let begin = Instant::now();
            for _ in 0..TIMES {
                call();
            }
            *best = (*best).min(begin.elapsed() / TIMES);
        }
    }
    best
}

#[cfg(feature = "aws-lc-rs")]
mod bare {
    use std::hint::black_box;

    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA256_ASN1,
            ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
            EcdsaVerificationAlgorithm, KeyPair, UnparsedPublicKey,
        },
    };

    pub(super) const NAME: &str = "aws-lc";

    pub(super) fn p256(message: &[u8]) -> impl Fn() + use<> {
        check(message, &ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P256_SHA256_ASN1, true)
    }

    pub(super) fn p384(message: &[u8]) -> impl Fn() + use<> {
        check(message, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1, true)
    }

    /// aws-lc does not sign in this way. A check that fails costs the same.
    pub(super) fn p384_with_sha256(message: &[u8]) -> impl Fn() + use<> {
        check(message, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P384_SHA256_ASN1, false)
    }

    fn check(
        message: &[u8],
        signing: &'static EcdsaSigningAlgorithm,
        verification: &'static EcdsaVerificationAlgorithm,
        is_valid: bool,
    ) -> impl Fn() + use<> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref()).unwrap();
        let (message, point) = (message.to_vec(), key.public_key().as_ref().to_vec());
        let signature = key.sign(&random, &message).unwrap();
        move || {
            let key = UnparsedPublicKey::new(verification, black_box(&point));
            assert_eq!(key.verify(&message, signature.as_ref()).is_ok(), is_valid);
        }
    }
}

#[cfg(not(feature = "aws-lc-rs"))]
mod bare {
    use std::hint::black_box;

    use p256::ecdsa::signature::{Signer, Verifier};

    pub(super) const NAME: &str = "pure Rust";

    pub(super) fn p256(message: &[u8]) -> impl Fn() + use<> {
        use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let signature: Signature = key.sign(message);
        let (message, signature) = (message.to_vec(), signature.to_der());
        let point = key.verifying_key().to_encoded_point(false);
        move || {
            let key = VerifyingKey::from_sec1_bytes(black_box(point.as_bytes())).unwrap();
            key.verify(&message, &Signature::from_der(signature.as_bytes()).unwrap()).unwrap();
        }
    }

    pub(super) fn p384(message: &[u8]) -> impl Fn() + use<> {
        use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
        let key = SigningKey::from_slice(&[7; 48]).unwrap();
        let signature: Signature = key.sign(message);
        let (message, signature) = (message.to_vec(), signature.to_der());
        let point = key.verifying_key().to_encoded_point(false);
        move || {
            let key = VerifyingKey::from_sec1_bytes(black_box(point.as_bytes())).unwrap();
            key.verify(&message, &Signature::from_der(signature.as_bytes()).unwrap()).unwrap();
        }
    }

    /// The shorter hash changes nothing that can be measured.
    pub(super) fn p384_with_sha256(message: &[u8]) -> impl Fn() + use<> {
        p384(message)
    }
}
