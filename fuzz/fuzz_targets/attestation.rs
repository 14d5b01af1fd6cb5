//! No bytes that are not an attestation of Apple's verify, and none make the verifier panic.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use tower_devicecheck::Environment;
use tower_devicecheck::app_attest::{Anchors, Attestation, AttestationExpected};

fuzz_target!(|object: &[u8]| {
    let expected = AttestationExpected {
        key_id: &[7; 32].into(),
        client_data_hash: &[7; 32],
        app_ids: &["TEAM123456.com.example.app".parse().expect("an App ID")],
        environments: &[Environment::Production, Environment::Development],
        now: UNIX_EPOCH + Duration::from_secs(1_606_039_982),
        max_age: None,
    };
    assert!(Attestation::verify(object, &expected, &Anchors::apple()).is_err());
});
