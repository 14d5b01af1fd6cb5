//! Shapes of objects that no published object has.

use super::made::{Made, TODAY, array_item, assertion, bytes_item, map_item, signed, text_item};
use super::*;
use crate::app_attest::receipt::Enclosing;
use crate::app_attest::{Category, ObjectErrorKind};
use rcgen::KeyUsagePurpose;

const CATEGORY: &str = "apple_validation_category_01";
const VERSION: &str = "apple_bundle_version_01";

/// The last number of an extension of Apple, and its content.
type Extension = (u64, Vec<u8>);

fn step<T>(result: Result<T, ObjectError>) -> &'static str {
    result.err().map_or("ok", |error| error.step())
}

/// The map behind the authenticator data.
fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries: Vec<_> = entries.iter().map(|(key, value)| (text_item(key), value.clone())).collect();
    map_item(&entries)
}

#[test]
fn a_made_attestation_verifies_whatever_its_flags() {
    for flags in [0, 0x40, 0x80, 0xc0, 0xff] {
        let attestation = Made { flags, ..Made::default() }.verify().unwrap();
        assert_eq!(attestation.attested_at(), time(TODAY));
        assert_eq!((attestation.platform(), attestation.system_version()), (None, None));
        assert!(attestation.receipt().is_none());
    }
}

#[test]
fn each_field_of_an_attestation_counts() {
    let cases: &[(&str, Made)] = &[
        ("counter", Made { counter: 1, ..Made::default() }),
        ("environment", Made { aaguid: *b"appattestdevelop", ..Made::default() }),
        ("environment", Made { aaguid: *b"appattestsandbox", ..Made::default() }),
        ("credential_id", Made { credential_id: Some([7; 32]), ..Made::default() }),
        ("public_key", Made { cose_algorithm: 0x27, ..Made::default() }),
        ("nonce", Made { nonces: 0, ..Made::default() }),
        ("nonce", Made { nonces: 2, ..Made::default() }),
        ("certificates", Made { certificates: 1, ..Made::default() }),
        ("ok", Made { certificates: 3, ..Made::default() }),
        ("ok", Made { certificates: 4, ..Made::default() }),
        ("certificates", Made { certificates: 5, ..Made::default() }),
        ("chain", Made { usage: KeyUsagePurpose::CrlSign, ..Made::default() }),
        ("receipt_format", Made { receipt: Some(vec![]), ..Made::default() }),
        ("receipt_app_id", Made { receipt: Some(Received::all()[0].object.clone()), ..Made::default() }),
        ("extensions", Made { behind: vec![0x01], ..Made::default() }),
    ];
    for (expected, made) in cases {
        let made =
            Made { behind: made.behind.clone(), receipt: made.receipt.clone(), extensions: vec![], ..*made };
        let about = format!("{} certificates, {} nonces", made.certificates, made.nonces);
        assert_eq!(step(made.verify()), *expected, "{about}");
    }
}

#[test]
fn a_forged_chain_is_not_a_matter_of_time() {
    let (attested, _) = Made::default().make();
    for at in [TODAY, YEAR_2030] {
        assert_eq!(step(Attested { at, ..attested.clone() }.verify()), "chain");
    }
    let (attested, anchors) = Made::default().make();
    let late = Attested { at: YEAR_2030, ..attested };
    assert_eq!(step(late.verify_by(None, BOTH, &anchors)), "time");
}

#[test]
fn an_attestation_has_an_age() {
    let (attested, anchors) = Made::default().make();
    let hour = Some(AttestationExpected::MAX_AGE);
    // A clock that is up to a day slow does no harm.
    let cases =
        [(TODAY - 86_400, "ok"), (TODAY + 3_600, "ok"), (TODAY + 3_601, "age"), (TODAY - 86_401, "time")];
    for (at, expected) in cases {
        assert_eq!(
            step(Attested { at, ..attested.clone() }.verify_by(hour, BOTH, &anchors)),
            expected,
            "{at}"
        );
    }
    let later = Attested { at: TODAY + 86_400, ..attested };
    assert_eq!(step(later.verify_by(None, BOTH, &anchors)), "ok");
}

#[test]
fn a_mac_must_have_full_security() {
    let access_list = bytes_of_base64(
        "MEajRARCMEAMAjExMDowCQwCb2uhAwEB/zAJDAJvYaEDAQH/MAsMBG9kZWyhAwEB/zAVDARvc2duoAYMBHJzZWMwBaYDAgEB",
    );
    let mut weaker = access_list.clone();
    weaker[20] ^= 1;
    let platform = |name: &[u8]| {
        let text = [&[0x04, name.len() as u8], name].concat();
        let field = [&[0xbf, 0x88, 0x02, text.len() as u8], &text[..]].concat();
        [&[0x30, field.len() as u8], &field[..]].concat()
    };
    let cases: [(bool, Vec<Extension>, &str); 10] = [
        (false, vec![], "ok"),
        (true, vec![], "access_list"),
        (true, vec![(6, access_list.clone())], "ok"),
        (true, vec![(6, weaker.clone())], "access_list"),
        (true, vec![(6, access_list.clone()), (6, access_list.clone())], "access_list"),
        (false, vec![(6, weaker.clone())], "ok"),
        (false, vec![(7, platform(b"iphoneos")), (6, weaker.clone())], "ok"),
        (false, vec![(7, platform(b"macosx")), (6, weaker)], "access_list"),
        (false, vec![(7, platform(b"macosx"))], "access_list"),
        (false, vec![(7, platform(b"macosx")), (6, access_list)], "ok"),
    ];
    for (is_on_mac, extensions, expected) in cases {
        let about = format!("{is_on_mac}: {extensions:x?}");
        assert_eq!(step(Made { is_on_mac, extensions, ..Made::default() }.verify()), expected, "{about}");
    }
}

#[test]
fn the_map_behind_the_authenticator_data() {
    let category = |number: u32| bytes_item(&number.to_le_bytes());
    let good: &[Vec<u8>] = &[
        map(&[(CATEGORY, category(4)), (VERSION, text_item("1314"))]),
        map(&[(VERSION, text_item("1314")), (CATEGORY, category(4))]),
        map(&[(VERSION, text_item("1314")), (CATEGORY, vec![0x04])]),
        map(&[(VERSION, text_item("1314")), (CATEGORY, vec![0x1a, 0, 0, 0, 4])]),
        map(&[("bundleVersion", text_item("1314")), ("validationCategory", category(4))]),
        map(&[("validationCategory", vec![0x04]), (CATEGORY, category(4)), (VERSION, text_item("1314"))]),
        map(&[
            ("apple_cd_hash_hash_01", bytes_item(&[1; 32])),
            (CATEGORY, category(4)),
            ("apple_cd_hash_type_01", bytes_item(&[2])),
            ("something_new", map_item(&[(text_item("a"), array_item(&[vec![0xf5], vec![0x39, 1, 0]]))])),
            (VERSION, text_item("1314")),
        ]),
    ];
    for behind in good {
        let attestation = Made { behind: behind.clone(), ..Made::default() }.verify().unwrap();
        assert_eq!(attestation.category(), Some(Category::AppStore));
        assert_eq!(attestation.bundle_version().unwrap().as_str(), "1314");
        let assertion = assertion(0x40, 7, behind).verify().unwrap();
        assert_eq!((assertion.category(), assertion.counter()), (Some(Category::AppStore), 7));
        assert_eq!(assertion.bundle_version().unwrap().as_str(), "1314");
    }
    let empty = assertion(0xc0, 1, &[0xa0]).verify().unwrap();
    assert_eq!((empty.category(), empty.bundle_version()), (None, None));

    let bad: &[(&str, ObjectErrorKind, Vec<u8>)] = &[
        (
            "extensions",
            ObjectErrorKind::Refused,
            map(&[(CATEGORY, category(4)), ("validationCategory", category(3))]),
        ),
        (
            "extensions",
            ObjectErrorKind::Refused,
            map(&[(VERSION, text_item("1")), ("bundleVersion", text_item("2"))]),
        ),
        ("extensions", ObjectErrorKind::Malformed, map(&[(CATEGORY, category(4)), (CATEGORY, category(4))])),
        ("extensions", ObjectErrorKind::Malformed, map(&[(CATEGORY, bytes_item(&[4]))])),
        ("extensions", ObjectErrorKind::Malformed, map(&[(CATEGORY, text_item("4"))])),
        ("extensions", ObjectErrorKind::Malformed, map(&[(CATEGORY, vec![0x1b, 0, 0, 0, 1, 0, 0, 0, 4])])),
        ("extensions", ObjectErrorKind::Malformed, map(&[(VERSION, vec![0x01])])),
        ("extensions", ObjectErrorKind::Malformed, map(&[(VERSION, text_item(""))])),
        ("extensions", ObjectErrorKind::Malformed, [map(&[(CATEGORY, category(4))]), vec![0]].concat()),
        ("extensions", ObjectErrorKind::Malformed, [map(&[]), map(&[])].concat()),
        ("extensions", ObjectErrorKind::Malformed, bytes_item(b"a")),
        ("extensions", ObjectErrorKind::Malformed, vec![0]),
        ("extensions", ObjectErrorKind::Malformed, vec![0xbf, 0xff]),
        ("category", ObjectErrorKind::Denied, map(&[(CATEGORY, category(0))])),
        ("category", ObjectErrorKind::Denied, map(&[(CATEGORY, category(7))])),
        ("category", ObjectErrorKind::Denied, map(&[(CATEGORY, bytes_item(&4_u32.to_be_bytes()))])),
    ];
    for (step, kind, behind) in bad {
        let error = assertion(0x40, 1, behind).verify().unwrap_err();
        assert_eq!((error.step(), error.kind()), (*step, *kind), "{behind:x?}: {error}");
        let error = Made { behind: behind.clone(), ..Made::default() }.verify().unwrap_err();
        assert_eq!((error.step(), error.kind()), (*step, *kind), "{behind:x?}: {error}");
    }
}

#[test]
fn authenticator_data_that_is_cut_off() {
    for length in 0..37 {
        assert_eq!(step(signed(&vec![0; length]).verify()), "auth_data", "{length}");
    }
    let attested = &Attested::all()[0];
    let begin = attested.object.windows(8).position(|window| window == b"authData").unwrap() + 10;
    assert_eq!(attested.object.len(), begin + 164);
    for length in 0..164 {
        let mut object = attested.object[..begin + length].to_vec();
        object[begin - 1] = length as u8;
        assert_eq!(step(Attested { object, ..attested.clone() }.verify()), "auth_data", "{length}");
    }
}

#[test]
fn cbor_that_is_not_strict() {
    let attested = &Attested::all()[0];
    let asserted = &Asserted::all()[0];
    let both = |change: &dyn Fn(&[u8]) -> Vec<u8>| {
        let attestation = Attested { object: change(&attested.object), ..attested.clone() }.verify();
        let assertion = Asserted { object: change(&asserted.object), ..asserted.clone() }.verify();
        [step(attestation), step(assertion)]
    };
    assert_eq!(both(&|object| object.to_vec()), ["ok", "ok"]);
    assert_eq!(both(&|object| [object, &[0]].concat()), ["cbor", "cbor"], "trailing bytes");
    assert_eq!(both(&|object| [&[0xbf], &object[1..], &[0xff]].concat()), ["cbor", "cbor"], "indefinite map");
    let with = |entry: &[u8], object: &[u8]| [&[object[0] + 1], entry, &object[1..]].concat();
    let unknown = [text_item("other"), vec![0x01]].concat();
    assert_eq!(both(&|object| with(&unknown, object)), ["ok", "ok"], "unknown keys are skipped");
    let twice = [text_item("other"), vec![0x02]].concat();
    assert_eq!(both(&|object| with(&twice, &with(&unknown, object))), ["cbor", "cbor"], "a key twice");
    let deep = |depth: usize| [text_item("other"), vec![0x81; depth], vec![0x01]].concat();
    assert_eq!(both(&|object| with(&deep(3), object)), ["ok", "ok"]);
    assert_eq!(both(&|object| with(&deep(4), object)), ["cbor", "cbor"]);
    assert_eq!(both(&|object| with(&deep(3_000), object)), ["cbor", "cbor"], "depth bomb");
    let bombs: &[&[u8]] = &[
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x7a\xff\xff\xff\xff",
        b"\x5f\x41\x00\xff",
        b"\x9f\xff",
        b"\x1c",
        b"\x62\xff\xff",
    ];
    for bomb in bombs {
        let entry = [&text_item("other")[..], bomb].concat();
        assert_eq!(both(&|object| with(&entry, object)), ["cbor", "cbor"], "{bomb:x?}");
        assert_eq!(both(&|_| bomb.to_vec()), ["cbor", "cbor"], "{bomb:x?}");
    }
    let long = |object: &[u8]| [object, &[0; 16 * 1024]].concat();
    assert_eq!(both(&long), ["size", "size"]);
    assert_eq!(both(&|_| vec![]), ["cbor", "cbor"]);
    assert_eq!(both(&|_| map_item(&[])), ["format", "cbor"]);
}

#[test]
fn a_receipt_belongs_to_its_attestation() {
    let received = &Received::all()[0];
    let receipt = received.verify().unwrap();
    let hash = Attested::all()[0].client_data_hash.clone();
    let created = crate::runtime::since_epoch(receipt.creation());
    let inside = |client_data_hash: &[u8], attested_at: Duration| {
        let public_key = receipt.public_key();
        let around = Enclosing { app_id: &received.app_id, public_key, client_data_hash, attested_at };
        step(Receipt::inside(&received.object, &around, &Anchors::apple()))
    };
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    assert_eq!(inside(&hash, created), "ok");
    assert_eq!(inside(&hash, created + minutes(5)), "ok");
    assert_eq!(inside(&hash, created + minutes(5) + Duration::from_millis(1)), "receipt_age");
    assert_eq!(inside(b"other", created), "receipt_client_data_hash");
}

#[test]
fn ber_that_is_not_bounded() {
    let received = &Received::all()[0];
    let long = [&received.object[..], &[0; 16 * 1024]].concat();
    let bombs = [
        vec![],
        [&received.object[..], &[0]].concat(),
        received.object[..received.object.len() - 1].to_vec(),
        [0x30, 0x80].repeat(8_000),
        [0x24, 0x80].repeat(8_000),
        vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        vec![0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        vec![0x04, 0x80, 0x00, 0x00],
        vec![0x3f, 0x81, 0x00],
    ];
    for object in bombs {
        assert_eq!(step(Received { object, ..received.clone() }.verify()), "receipt_format");
    }
    assert_eq!(step(Received { object: long, ..received.clone() }.verify()), "size");
}

#[test]
fn anchors_replace_apples() {
    let vectors = vectors();
    let anchors = &vectors["trust_anchors"];
    let attestation = text(anchors, "app_attestation_root_ca_pem");
    let receipts = text(anchors, "apple_root_ca_g3_pem_for_receipts");
    let same = Anchors::default()
        .with_attestation_roots(attestation.as_bytes())
        .and_then(|same| same.with_receipt_roots(receipts.as_bytes()))
        .unwrap();
    assert_eq!(same, Anchors::apple());
    assert_eq!(same.clone().with_receipt_roots(&der_of_pem(&receipts)).unwrap(), same);
    let two = same.clone().with_attestation_roots(format!("{receipts}{attestation}").as_bytes()).unwrap();
    assert!(Attested::all()[0].verify_by(None, BOTH, &two).is_ok());
    let other = same.with_attestation_roots(receipts.as_bytes()).unwrap();
    assert_eq!(step(Attested::all()[0].verify_by(None, BOTH, &other)), "chain");
    for bad in [&b""[..], b"no certificate", b"\x30\x00", &attestation.as_bytes()[..200]] {
        assert_eq!(step(Anchors::apple().with_attestation_roots(bad)), "anchor");
    }
}

fn bytes_of_base64(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}
