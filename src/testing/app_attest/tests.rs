//! The bytes of fake objects, against those of real ones.

use std::time::{Duration, SystemTime};

use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use sha2::{Digest, Sha256};

use super::*;
use crate::gate::routing::Environment::{self, Development, Production};

const APP_ID: &str = "A1B2C3D4E5.com.example.app";
const HASH: [u8; 32] = [7; 32];

fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_308)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The authenticator data, which ends an object without faults. Its length is one byte.
fn auth_data(object: &[u8], length: usize) -> &[u8] {
    let begin = object.len() - length;
    let head = match length {
        0..=0xff => vec![0x58, u8::try_from(length).unwrap()],
        _ => [&[0x59][..], &u16::try_from(length).unwrap().to_be_bytes()].concat(),
    };
    assert_eq!(object[..begin][begin - head.len()..], head);
    &object[begin..]
}

#[test]
fn authenticator_data_has_the_lengths_and_offsets_of_real_ones() {
    type Change = fn(VirtualDevice) -> VirtualDevice;
    let cases: &[(&str, Shape, Change, usize, usize, u8)] = &[
        ("iOS 14", Shape::Ios14, |device| device, 164, 37, 0x40),
        ("iOS 26", Shape::Ios26, |device| device, 164, 37, 0x40),
        ("category", Shape::Ios27, |device| device.with_bundle_version(None), 200, 73, 0xc0),
        ("iOS 27", Shape::Ios27, |device| device, 226, 99, 0xc0),
        ("version 1314", Shape::Ios27, |device| device.with_bundle_version(Some("1314")), 229, 102, 0xc0),
        ("no flag", Shape::Ios27, |device| device.with_flags(0x40), 226, 99, 0x40),
        ("macOS 27", Shape::MacOs27, |device| device, 280, 153, 0x40),
    ];
    let ca = FakeAttestCa::new();
    for (name, shape, change, attested, asserted, flags) in cases {
        let device = change(ca.device(APP_ID, *shape, Development));
        let object = device.attest(&HASH, at());
        let data = auth_data(&object, *attested);
        let point = device.public_key();
        let key_id = Sha256::digest(point);
        assert_eq!(data[..32], *Sha256::digest(APP_ID), "{name}");
        assert_eq!(data[32..37], [*flags, 0, 0, 0, 0], "{name}");
        assert_eq!(data[37..53], *b"appattestdevelop", "{name}");
        assert_eq!((&data[53..55], &data[55..87]), (&[0, 32][..], &key_id[..]), "{name}");
        assert_eq!(data[87..97], hex("a5010203262001215820"), "{name}");
        assert_eq!((&data[97..129], &data[129..132]), (&point[1..33], &hex("225820")[..]), "{name}");
        assert_eq!(data[132..164], point[33..], "{name}");
        // The nonce is the last 38 bytes of the extensions.
        let nonce = Sha256::digest([data, &HASH].concat());
        let extension = [&hex("06092a864886f7636408020426"), &hex("3024a1220420")[..], &nonce].concat();
        assert!(contains(&object, &extension), "{name}");

        let object = device.assert(&HASH);
        let data = auth_data(&object, *asserted);
        assert_eq!(data[32..37], [*flags, 0, 0, 0, 1], "{name}");
        assert!(object.starts_with(b"\xa2\x69signature\x58"), "{name}");
        let length = usize::from(object[12]);
        assert!((68..=72).contains(&length), "{name}");
        let signature = Signature::from_der(&object[13..13 + length]).unwrap();
        let key = VerifyingKey::from_sec1_bytes(&point).unwrap();
        key.verify(&Sha256::digest([data, &HASH].concat()), &signature).unwrap();
    }
}

#[test]
fn the_map_has_the_bytes_of_a_real_one() {
    let ca = FakeAttestCa::new();
    let device =
        ca.device(APP_ID, Shape::Ios27, Production).with_bundle_version(Some("1314")).with_category(3);
    let version = b"\x77apple_bundle_version_01\x641314";
    let category = b"\x78\x1capple_validation_category_01\x44\x03\0\0\0";
    let real = [&[0xa2], &version[..], category].concat();
    assert!(device.assert(&HASH).ends_with(&real));
    let other = [&[0xa2], &category[..], version].concat();
    assert!(device.with_category_first().assert(&HASH).ends_with(&other));
}

#[test]
fn leaf_certificates_have_the_bytes_of_real_ones() {
    let ca = FakeAttestCa::new();
    let issuer_and_dates = "304f3123302106035504030c1a4170706c6520417070204174746573746174696f6e2043412031\
        31133011060355040a0c0a4170706c6520496e632e3113301106035504080c0a43616c69666f726e6961\
        301e170d3236303932303134313332305a170d3236303932333134313332305a";
    let usage = "300e0603551d0f0101ff0404030204f0";
    let facts_before = "a40302010abf893003020101bf893103020100bf893203020101bf893303020101bf8934";
    let facts_after = "a5060404736b7320bf893603020105bf893703020100bf893903020100bf893a03020100";
    let key_usage = "06092a864886f763640418";
    let phone = "3049a347044530430c023131303d";
    let mac = "3046a344044230400c023131303a30090c026f6ba1030101ff30090c026f61a1030101ff\
        300b0c046f64656ca1030101ff30150c046f73676ea0060c04727365633005a603020101";
    let system_14 = "300abf8a7806040431342e32";
    let platform = "bf88020a04086970686f6e656f73";
    let mac_platform = "bf88020804066d61636f7378";
    let all = [issuer_and_dates, usage];
    let cases: &[(Shape, &[&str], &[&str])] = &[
        (Shape::Ios14, &[facts_before, facts_after, system_14], &[key_usage, phone, platform]),
        (Shape::Ios26, &[facts_before, facts_after, key_usage, phone, platform], &[mac]),
        (Shape::Ios27, &[facts_before, facts_after, key_usage, phone, platform], &[mac]),
        (Shape::MacOs27, &[&facts_before.replace("0302010a", "0302010d"), mac, mac_platform], &[phone]),
    ];
    for (shape, present, absent) in cases {
        let object = ca.device(APP_ID, *shape, Production).attest(&HASH, at());
        for part in all.iter().chain(*present) {
            assert!(contains(&object, &hex(part)), "{shape:?} {part}");
        }
        for part in *absent {
            assert!(!contains(&object, &hex(part)), "{shape:?} {part}");
        }
        assert!(contains(&object, b"\xbf\x89\x34\x1c\x04\x1aA1B2C3D4E5.com.example.app"), "{shape:?}");
    }
}

#[test]
fn a_time_from_2050_has_four_digits_of_the_year() {
    let device = FakeAttestCa::new().device(APP_ID, Shape::Ios14, Production);
    let object = device.attest(&HASH, SystemTime::UNIX_EPOCH + Duration::from_secs(2_524_608_000 + 86_400));
    assert!(contains(&object, b"\x18\x0f20500101000000Z\x18\x0f20500104000000Z"));
}

#[test]
fn receipts_have_the_encodings_and_the_fields_of_real_ones() {
    let ca = FakeAttestCa::new();
    let device = ca.device(APP_ID, Shape::Ios27, Development);
    let receipt = device.receipt(&HASH, at()).unwrap();
    assert!(contains(&device.attest(&HASH, at()), &receipt));
    // All lengths are indefinite, and the first piece has 1000 bytes.
    assert!(receipt.starts_with(&hex("308006092a864886f70d010702a0803080020101")));
    assert!(contains(&receipt, &hex("06092a864886f70d010701a0802480048203e8")));
    assert!(receipt.ends_with(&[0; 6]));
    let definite =
        device.clone().with_receipts(Some(ReceiptEncoding::Definite)).receipt(&HASH, at()).unwrap();
    assert!(definite.starts_with(&hex("3082")) && !definite.ends_with(&[0; 6]));

    let later = at() + Duration::from_millis(152);
    let refreshed = ca.refreshed(&definite, later, 3).unwrap();
    let attest: &[&[u8]] =
        &[b"\x06ATTEST", b"\x07sandbox", b"\x182026-09-21T14:13:20.308Z", b"\x182026-12-20T14:13:20.308Z"];
    let refresh: &[&[u8]] = &[
        b"\x30\x09\x02\x01\x11\x02\x01\x01\x04\x013",
        b"\x07RECEIPT",
        b"\x172026-09-21T14:13:20.46Z",
        b"\x172026-09-22T14:13:20.46Z",
        b"\x172026-12-20T14:13:20.46Z",
    ];
    for (receipt, present, absent) in [(&definite, attest, refresh), (&refreshed, refresh, attest)] {
        assert!(present.iter().all(|part| contains(receipt, part)));
        assert!(absent.iter().filter(|part| **part != b"\x07sandbox").all(|part| !contains(receipt, part)));
        assert!(contains(receipt, APP_ID.as_bytes()));
        assert!(contains(receipt, b"Application Attestation Fraud Receipt Signing"));
        assert!(contains(receipt, &hex("300f06092a864886f763640c0f04020500")));
        assert!(contains(receipt, ca.receipt_root_der()));
    }
    // A refreshed receipt can be refreshed again, one of another authority cannot.
    assert!(ca.refreshed(&refreshed, later, 4).is_some());
    assert_eq!(FakeAttestCa::new().refreshed(&receipt, later, 3), None);
    assert_eq!(device.with_receipts(None).receipt(&HASH, at()), None);
}

#[test]
fn environment_and_category_are_independent() {
    let ca = FakeAttestCa::new();
    let cases: [(Environment, Option<u32>, &[u8], u8); 3] = [
        (Production, None, b"appattest\0\0\0\0\0\0\0\0\x20", 4),
        (Development, None, b"appattestdevelop\0\x20", 3),
        (Production, Some(3), b"appattest\0\0\0\0\0\0\0\0\x20", 3),
    ];
    for (environment, category, aaguid, sent) in cases {
        let mut device = ca.device(APP_ID, Shape::Ios27, environment);
        if let Some(category) = category {
            device = device.with_category(category);
        }
        let object = device.attest(&HASH, at());
        assert!(
            contains(&object, aaguid) && object.ends_with(&[0x44, sent, 0, 0, 0]),
            "{environment} {category:?}"
        );
    }
}

#[test]
fn clones_are_one_device_and_a_reinstalled_app_has_a_new_key() {
    let device = FakeAttestCa::new().device(APP_ID, Shape::Ios14, Production);
    let counter = |object: &[u8]| object[object.len() - 4..].to_vec();
    assert_eq!(counter(&device.assert(&HASH)), [0, 0, 0, 1]);
    assert_eq!(counter(&device.clone().assert(&HASH)), [0, 0, 0, 2]);
    device.set_counter(0);
    assert_eq!(counter(&device.assert(&HASH)), [0, 0, 0, 1]);
    device.set_counter(u32::MAX - 1);
    assert_eq!(counter(&device.assert(&HASH)), [0xff; 4]);
    let again = device.reinstalled();
    assert_ne!(again.key_id(), device.key_id());
    assert_eq!((again.counter(), device.counter()), (0, u32::MAX));
    assert_eq!(device.attest(&HASH, at()), device.clone().attest(&HASH, at()));
}

#[test]
fn each_fault_changes_what_its_documentation_names() {
    const BOTH: [bool; 3] = [true, true, false];
    const ATTESTATION: [bool; 3] = [true, false, false];
    const RECEIPT: [bool; 3] = [true, false, true];
    let device = FakeAttestCa::new().device(APP_ID, Shape::MacOs27, Production);
    // A receipt has the leaf certificate inside, and with it each fault of the leaf.
    let objects = |device: &VirtualDevice| {
        device.set_counter(0);
        let receipt = device.receipt(&HASH, at());
        (device.attest(&HASH, at()), device.assert(&HASH), receipt)
    };
    let right = objects(&device);
    let cases = [
        (Fault::RpIdHash, BOTH),
        (Fault::TrailingByte, BOTH),
        (Fault::TrailingAuthData, BOTH),
        (Fault::ShortAuthData, BOTH),
        (Fault::DuplicateKey, BOTH),
        (Fault::DuplicateCategory, BOTH),
        (Fault::SecondCategory, BOTH),
        (Fault::Format, ATTESTATION),
        (Fault::Nonce, ATTESTATION),
        (Fault::NonceMissing, ATTESTATION),
        (Fault::NonceTwice, ATTESTATION),
        (Fault::Counter, ATTESTATION),
        (Fault::Aaguid, ATTESTATION),
        (Fault::CredentialId, ATTESTATION),
        (Fault::CoseKey, ATTESTATION),
        (Fault::LeafSignature, ATTESTATION),
        (Fault::LeafAlone, ATTESTATION),
        (Fault::AccessControl, ATTESTATION),
        (Fault::Signature, [false, true, false]),
        (Fault::ReceiptAppId, RECEIPT),
        (Fault::ReceiptKey, RECEIPT),
        (Fault::ReceiptHash, RECEIPT),
        (Fault::ReceiptSignature, RECEIPT),
        (Fault::ReceiptSigner, RECEIPT),
        (Fault::ReceiptChain, RECEIPT),
        (Fault::ReceiptAge, RECEIPT),
        (Fault::ReceiptFieldTwice, RECEIPT),
    ];
    for (fault, [attestation, assertion, receipt]) in cases {
        let wrong = objects(&device.clone().with_fault(fault));
        assert_eq!(wrong.0 != right.0, attestation, "{fault:?}");
        assert_eq!(wrong.1 != right.1, assertion, "{fault:?}");
        assert!(!receipt || wrong.2 != right.2, "{fault:?}");
    }
}
