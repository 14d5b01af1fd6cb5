//! Tests of whole objects: those of real devices, changed ones, and some that are made here.

mod arbitrary;
mod made;
mod mutations;
mod shapes;
mod vectors;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use web_time::{SystemTime, UNIX_EPOCH};

use crate::Environment;
use crate::app_attest::{
    Anchors, AppId, Assertion, AssertionExpected, Attestation, AttestationExpected, KeyId, ObjectError,
    PublicKey, Receipt, ReceiptExpected,
};

/// Objects of real devices. The file names the source and the licence of each.
fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/app-attest.json")).unwrap()
}

const BOTH: &[Environment] = &[Environment::Production, Environment::Development];

/// 2030-06-01.
const YEAR_2030: u64 = 1_906_502_400;

/// An attestation, and what it must match.
#[derive(Clone)]
struct Attested {
    name: String,
    object: Vec<u8>,
    key_id: KeyId,
    client_data_hash: Vec<u8>,
    app_id: AppId,
    at: u64,
}

impl Attested {
    fn all() -> Vec<Self> {
        let read = |vector: &Value| Self {
            name: text(vector, "id"),
            object: bytes(vector, "attestation_object_base64"),
            key_id: text(vector, "key_id_base64").parse().unwrap(),
            client_data_hash: bytes(vector, "client_data_hash_base64"),
            app_id: text(vector, "app_id").parse().unwrap(),
            at: vector["verify_at_unix"].as_u64().unwrap(),
        };
        vectors()["attestations"].as_array().unwrap().iter().map(read).collect()
    }

    fn verify(&self) -> Result<Attestation, ObjectError> {
        self.verify_by(None, BOTH, &Anchors::apple())
    }

    fn verify_by(
        &self,
        max_age: Option<Duration>,
        environments: &[Environment],
        anchors: &Anchors,
    ) -> Result<Attestation, ObjectError> {
        let expected = AttestationExpected {
            key_id: &self.key_id,
            client_data_hash: &self.client_data_hash,
            app_ids: std::slice::from_ref(&self.app_id),
            environments,
            now: time(self.at),
            max_age,
        };
        Attestation::verify(&self.object, &expected, anchors)
    }
}

/// An assertion, and what it must match.
#[derive(Clone)]
struct Asserted {
    name: String,
    object: Vec<u8>,
    public_key: PublicKey,
    client_data_hash: Vec<u8>,
    app_id: AppId,
}

impl Asserted {
    fn all() -> Vec<Self> {
        let read = |vector: &Value| Self {
            name: text(vector, "id"),
            object: bytes(vector, "assertion_object_base64"),
            public_key: key_of_pem(&text(vector, "public_key_spki_pem")),
            client_data_hash: bytes(vector, "client_data_hash_base64"),
            app_id: text(vector, "app_id").parse().unwrap(),
        };
        vectors()["assertions"].as_array().unwrap().iter().map(read).collect()
    }

    fn verify(&self) -> Result<Assertion, ObjectError> {
        let expected = AssertionExpected {
            public_key: &self.public_key,
            client_data_hash: &self.client_data_hash,
            app_id: &self.app_id,
        };
        Assertion::verify(&self.object, &expected)
    }
}

/// A receipt, and what it must match.
#[derive(Clone)]
struct Received {
    name: String,
    object: Vec<u8>,
    app_id: AppId,
    at: SystemTime,
}

impl Received {
    fn all() -> Vec<Self> {
        let read = |vector: &Value| {
            let at = crate::app_attest::date::receipt_date(text(vector, "verify_at").as_bytes()).unwrap();
            Self {
                name: text(vector, "id"),
                object: bytes(vector, "receipt_base64"),
                app_id: text(vector, "app_id").parse().unwrap(),
                at: UNIX_EPOCH + at,
            }
        };
        vectors()["receipts"].as_array().unwrap().iter().map(read).collect()
    }

    fn verify(&self) -> Result<Receipt, ObjectError> {
        self.verify_for(None)
    }

    fn verify_for(&self, public_key: Option<&PublicKey>) -> Result<Receipt, ObjectError> {
        let expected = ReceiptExpected { app_id: &self.app_id, public_key, now: self.at };
        Receipt::verify(&self.object, &expected, &Anchors::apple())
    }
}

fn time(unix: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix)
}

fn text(vector: &Value, name: &str) -> String {
    vector[name].as_str().unwrap().to_owned()
}

fn bytes(vector: &Value, name: &str) -> Vec<u8> {
    STANDARD.decode(text(vector, name)).unwrap()
}

fn der_of_pem(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(body).unwrap()
}

/// The point at the end of a public key in PEM.
fn key_of_pem(pem: &str) -> PublicKey {
    let der = der_of_pem(pem);
    PublicKey::from_bytes(&der[der.len() - 65..]).unwrap()
}
