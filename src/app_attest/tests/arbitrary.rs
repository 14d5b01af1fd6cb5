//! Arbitrary bytes, and arbitrary changes of real objects: nothing panics, and nothing verifies.

use proptest::prelude::*;

use super::mutations::{loose_in_attestation, loose_in_receipt};
use super::*;
use crate::app_attest::cbor::Item;
use crate::app_attest::certificate::Certificate;
use crate::app_attest::receipt_fields::ReceiptFields;
use crate::app_attest::signed_data::SignedData;

/// Replaces, removes and inserts bytes.
fn changed(object: &[u8], edits: &[(usize, u8, u8)]) -> Vec<u8> {
    let mut object = object.to_vec();
    for (place, kind, byte) in edits {
        let place = place % object.len().max(1);
        match kind {
            0 if !object.is_empty() => object[place] = *byte,
            1 if !object.is_empty() => drop(object.remove(place)),
            _ => object.insert(place, *byte),
        }
    }
    object
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    prop::collection::vec((any::<usize>(), 0_u8..3, any::<u8>()), 1..6)
}

/// Whether the objects have one length and differ in these ranges only.
fn differs_only_in(before: &[u8], after: &[u8], ranges: &[std::ops::Range<usize>]) -> bool {
    let may_differ = |offset: usize| ranges.iter().any(|range| range.contains(&offset));
    before.len() == after.len()
        && before
            .iter()
            .zip(after)
            .enumerate()
            .all(|(offset, (left, right))| left == right || may_differ(offset))
}

proptest! {
    #[test]
    fn the_parsers_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Item::only(&bytes);
        let _ = SignedData::parse(&bytes);
        let _ = ReceiptFields::parse(&bytes);
        let _ = Certificate::parse(&bytes).map(|certificate| (certificate.public_key(), certificate.extension(b"")));
        let attested = Attested { object: bytes.clone(), ..Attested::all().swap_remove(0) };
        prop_assert!(attested.verify().is_err());
        let asserted = Asserted { object: bytes.clone(), ..Asserted::all().swap_remove(0) };
        prop_assert!(asserted.verify().is_err());
        let received = Received { object: bytes, ..Received::all().swap_remove(0) };
        prop_assert!(received.verify().is_err());
    }

    #[test]
    fn an_edited_attestation_does_not_verify(index in 0_usize..7, edits in edits()) {
        let attested = Attested::all().swap_remove(index);
        let object = changed(&attested.object, &edits);
        let ranges: Vec<_> = loose_in_attestation(&attested.object).into_iter().map(|(range, _)| range).collect();
        if !differs_only_in(&attested.object, &object, &ranges) {
            let result = Attested { object, ..attested }.verify();
            prop_assert!(result.is_err());
        }
    }

    #[test]
    fn an_edited_assertion_does_not_verify(index in 0_usize..5, edits in edits()) {
        let asserted = Asserted::all().swap_remove(index);
        let object = changed(&asserted.object, &edits);
        if object != asserted.object {
            let result = Asserted { object, ..asserted }.verify();
            prop_assert!(result.is_err());
        }
    }

    #[test]
    fn an_edited_receipt_does_not_verify(index in 0_usize..14, edits in edits()) {
        let received = Received::all().swap_remove(index);
        let object = changed(&received.object, &edits);
        let ranges: Vec<_> = loose_in_receipt(&received.object, 0).into_iter().map(|(range, _)| range).collect();
        if !differs_only_in(&received.object, &object, &ranges) {
            let result = Received { object, ..received }.verify();
            prop_assert!(result.is_err());
        }
    }
}
