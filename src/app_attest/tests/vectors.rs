//! Every object of a real device verifies at its time, and tells what its publisher found in it.

use std::time::Duration;

use super::*;
use crate::app_attest::ReceiptKind;

#[test]
fn attestations_of_real_devices_verify() {
    let vectors = vectors();
    for (vector, attested) in vectors["attestations"].as_array().unwrap().iter().zip(Attested::all()) {
        let name = &attested.name;
        let attestation = attested.verify().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(attestation.environment().as_str(), vector["environment"], "{name}");
        assert_eq!(attestation.app_id().as_str(), vector["app_id"], "{name}");
        assert_eq!(*attestation.public_key(), key_of_pem(&text(vector, "public_key_spki_pem")), "{name}");
        assert_eq!(attestation.public_key().key_id(), attested.key_id, "{name}");
        assert_eq!(*attestation.key_id(), attested.key_id, "{name}");
        assert_eq!((attestation.category(), attestation.bundle_version()), (None, None), "{name}");
        let receipt = attestation.receipt().unwrap();
        assert_eq!(receipt.as_bytes().len() as u64, vector["expected"]["receipt_len"], "{name}");
        // Apple signed both at the same time.
        let apart = receipt.creation().duration_since(attestation.attested_at()).unwrap();
        assert!(apart < Duration::from_secs(1), "{name}: {apart:?}");
    }
    let systems: Vec<_> = Attested::all().iter().map(|vector| vector.verify().unwrap()).collect();
    assert_eq!(systems[6].system_version(), Some("17.2.1"));
}

#[test]
fn assertions_of_real_devices_verify() {
    for asserted in Asserted::all() {
        let assertion = asserted.verify().unwrap_or_else(|error| panic!("{}: {error}", asserted.name));
        assert_eq!(assertion.counter(), 1);
        assert_eq!((assertion.category(), assertion.bundle_version()), (None, None));
    }
}

#[test]
fn receipts_of_real_devices_verify() {
    let vectors = vectors();
    for (vector, received) in vectors["receipts"].as_array().unwrap().iter().zip(Received::all()) {
        let name = &received.name;
        let receipt = received.verify().unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = &vector["expected"];
        let date = |field: &str| {
            let text = expected[field].as_str()?;
            crate::app_attest::date::receipt_date(text.as_bytes()).map(|time| UNIX_EPOCH + time)
        };
        assert_eq!(receipt.kind().as_str(), expected["field_6_type"], "{name}");
        assert_eq!(receipt.app_id(), expected["field_2_app_id"], "{name}");
        assert_eq!(receipt.environment(), expected["field_7_environment"].as_str(), "{name}");
        assert_eq!(Some(receipt.creation()), date("field_12_creation"), "{name}");
        assert_eq!(receipt.not_before(), date("field_19_not_before"), "{name}");
        assert_eq!(receipt.expiry(), date("field_21_expiration"), "{name}");
        let metric = receipt.risk_metric().map(|metric| metric.to_string());
        assert_eq!(metric.as_deref(), expected["field_17_risk_metric"].as_str(), "{name}");
        assert_eq!(receipt.kind() == ReceiptKind::Receipt, metric.is_some(), "{name}");
        assert_eq!(receipt.as_bytes(), received.object, "{name}");

        let of_same_key =
            Attested::all().into_iter().find(|attested| attested.name == vector["attestation_id"]).unwrap();
        let key = *of_same_key.verify().unwrap().public_key();
        assert_eq!(*receipt.public_key(), key, "{name}");
        assert!(received.verify_for(Some(&key)).is_ok());
    }
}

#[test]
fn no_object_with_a_certificate_verifies_in_2030() {
    for attested in Attested::all() {
        let error = Attested { at: YEAR_2030, ..attested }.verify().unwrap_err();
        assert_eq!(error.step(), "time", "{error}");
        assert!(error.to_string().contains("not valid at 2030-06-01T00:00:00Z"), "{error}");
    }
    for received in Received::all() {
        let error = Received { at: time(YEAR_2030), ..received }.verify().unwrap_err();
        assert_eq!(error.step(), "receipt_time", "{error}");
    }
}
