//! No bytes that are not a receipt of Apple's verify, and none make the verifier panic.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use tower_devicecheck::app_attest::{Anchors, Receipt, ReceiptExpected};

fuzz_target!(|receipt: &[u8]| {
    let expected = ReceiptExpected {
        app_id: &"TEAM123456.com.example.app".parse().expect("an App ID"),
        public_key: None,
        now: UNIX_EPOCH + Duration::from_secs(1_606_039_982),
    };
    assert!(Receipt::verify(receipt, &expected, &Anchors::apple()).is_err());
});
