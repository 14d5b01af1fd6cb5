//! No object verifies after one bit of it has changed, except where nothing protects the bit and nothing reads it.

use std::ops::Range;

use super::*;

/// Bytes of which some bits may change, and the reason.
pub(super) type Loose = Vec<(Range<usize>, &'static str)>;

/// The loose bytes of a receipt, which begins at this offset of the object.
pub(super) fn loose_in_receipt(object: &[u8], begin: usize) -> Loose {
    let root = der_of_pem(&text(&vectors()["trust_anchors"], "apple_root_ca_g3_pem_for_receipts"));
    let mut loose = Loose::new();
    let mut add = |part: &[u8], offset: usize, length: usize, reason| {
        let found = begin + find(&object[begin..], part).unwrap() + offset;
        loose.push((found..found + length, reason));
    };
    add(&root, 0, root.len(), "the root inside is ignored; ours counts");
    let sha_256 = b"\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00";
    let head = [b"\x02\x01\x01\x31\x0f", &sha_256[..]].concat();
    add(&head, 2, 1, "the version of the envelope is not signed");
    add(&head, 5, sha_256.len(), "the list of hashes is not signed; the signer names the one that counts");
    let signer = [&sha_256[..], b"\x30\x0a\x06\x08"].concat();
    add(&signer, sha_256.len() - 2, 2, "the parameters of SHA-256 are not signed");
    let name = find(&object[begin..], b"\x02\x01\x01\x30\x81\x90").unwrap();
    loose.push((begin + name + 2..begin + name + 3, "the version of the signer is not signed"));
    loose
}

pub(super) fn loose_in_attestation(object: &[u8]) -> Loose {
    let name = find(object, b"\x67receipt").unwrap();
    let mut loose = loose_in_receipt(object, name + 8);
    loose.push((name + 1..name + 8, "the receipt is optional: under another name, it is not there"));
    loose
}

#[test]
fn no_changed_attestation_verifies() {
    for (index, attested) in Attested::all().into_iter().enumerate() {
        let loose = loose_in_attestation(&attested.object);
        // All bytes of two objects; every ninth of the others.
        let step = if index == 0 || index == 5 { 1 } else { 9 };
        let verifies =
            |object: &[u8]| Attested { object: object.to_vec(), ..attested.clone() }.verify().is_ok();
        check(&attested.name, &attested.object, step, &loose, verifies);
    }
}

#[test]
fn no_changed_assertion_verifies() {
    for asserted in Asserted::all() {
        let verifies =
            |object: &[u8]| Asserted { object: object.to_vec(), ..asserted.clone() }.verify().is_ok();
        for bit in 0..8 {
            for offset in 0..asserted.object.len() {
                let object = flipped(&asserted.object, offset, bit);
                assert!(!verifies(&object), "{}: byte {offset}, bit {bit}", asserted.name);
            }
        }
    }
}

#[test]
fn no_changed_receipt_verifies() {
    for (index, received) in Received::all().into_iter().enumerate() {
        let loose = loose_in_receipt(&received.object, 0);
        // All bytes of one object in BER and of one in DER.
        let step = if index < 2 { 1 } else { 9 };
        let verifies =
            |object: &[u8]| Received { object: object.to_vec(), ..received.clone() }.verify().is_ok();
        check(&received.name, &received.object, step, &loose, verifies);
    }
}

#[test]
fn no_object_verifies_for_other_facts() {
    for attested in Attested::all() {
        for (offset, bit) in (0..32).flat_map(|offset| (0..8).map(move |bit| (offset, bit))) {
            let client_data_hash = flipped(&attested.client_data_hash, offset, bit);
            let error = Attested { client_data_hash, ..attested.clone() }.verify().unwrap_err();
            assert_eq!(error.step(), "nonce");
            let key_id = flipped(attested.key_id.as_bytes(), offset, bit);
            let key_id = KeyId::from(<[u8; 32]>::try_from(key_id).unwrap());
            assert_eq!(Attested { key_id, ..attested.clone() }.verify().unwrap_err().step(), "key_id");
        }
        let app_id = other_app(&attested.app_id);
        assert_eq!(Attested { app_id, ..attested.clone() }.verify().unwrap_err().step(), "rp_id");
        assert_eq!(attested.verify_by(None, &[], &Anchors::apple()).unwrap_err().step(), "environment");
    }
    for asserted in Asserted::all() {
        for (offset, bit) in (0..32).flat_map(|offset| (0..8).map(move |bit| (offset, bit))) {
            let client_data_hash = flipped(&asserted.client_data_hash, offset, bit);
            let error = Asserted { client_data_hash, ..asserted.clone() }.verify().unwrap_err();
            assert_eq!(error.step(), "signature");
            let public_key = flipped(asserted.public_key.as_bytes(), 1 + 2 * offset, bit);
            let public_key = PublicKey::from_bytes(&public_key).unwrap();
            assert_eq!(Asserted { public_key, ..asserted.clone() }.verify().unwrap_err().step(), "signature");
        }
        let app_id = other_app(&asserted.app_id);
        assert_eq!(Asserted { app_id, ..asserted.clone() }.verify().unwrap_err().step(), "rp_id");
    }
    for received in Received::all() {
        let app_id = other_app(&received.app_id);
        assert_eq!(Received { app_id, ..received.clone() }.verify().unwrap_err().step(), "receipt_app_id");
        let other_key = Asserted::all()[4].public_key;
        assert_eq!(received.verify_for(Some(&other_key)).unwrap_err().step(), "receipt_key");
    }
}

/// Flips one bit of every `step`th byte. Only loose bytes may still verify.
fn check(name: &str, object: &[u8], step: usize, loose: &Loose, verifies: impl Fn(&[u8]) -> bool) {
    assert!(verifies(object));
    for offset in (0..object.len()).step_by(step) {
        if verifies(&flipped(object, offset, offset % 8)) {
            assert!(
                loose.iter().any(|(range, _)| range.contains(&offset)),
                "{name}: byte {offset} of {}",
                object.len()
            );
        }
    }
}

pub(super) fn flipped(bytes: &[u8], offset: usize, bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset] ^= 1 << bit;
    bytes
}

fn other_app(app_id: &AppId) -> AppId {
    format!("{app_id}a").parse().unwrap()
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
