//! The fake devices of `testing` and the verifier, which share no code, agree about every shape and every fault.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tower_devicecheck::{
    Environment,
    app_attest::{
        Anchors, AppId, Assertion, AssertionExpected, Attestation, AttestationExpected, Category,
        ObjectError, PublicKey, Receipt, ReceiptExpected, ReceiptKind,
    },
    testing::app_attest::{FakeAttestCa, Fault, ReceiptEncoding, Shape, VirtualDevice},
};

const APP: &str = "A1B2C3D4E5.com.example.app";
const HASH: [u8; 32] = [7; 32];
const SHAPES: [Shape; 4] = [Shape::Ios14, Shape::Ios26, Shape::Ios27, Shape::MacOs27];

fn afternoon() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_790_000_000_308)
}

fn anchors(ca: &FakeAttestCa) -> Anchors {
    let anchors = Anchors::apple().with_attestation_roots(ca.attestation_root_der()).unwrap();
    anchors.with_receipt_roots(ca.receipt_root_der()).unwrap()
}

fn app(is_on_mac: bool) -> AppId {
    let app: AppId = APP.parse().unwrap();
    if is_on_mac { app.on_mac() } else { app }
}

struct Judge<'a> {
    ca: &'a FakeAttestCa,
    environment: Environment,
    is_on_mac: bool,
    made_at: SystemTime,
    now: SystemTime,
}

impl<'a> Judge<'a> {
    fn new(ca: &'a FakeAttestCa, shape: Shape) -> Self {
        let (made_at, now) = (afternoon(), afternoon());
        Self { ca, environment: Environment::Production, is_on_mac: shape == Shape::MacOs27, made_at, now }
    }

    fn attestation(&self, device: &VirtualDevice) -> Result<Attestation, ObjectError> {
        let expected = AttestationExpected {
            key_id: &device.key_id().parse().unwrap(),
            client_data_hash: &HASH,
            app_ids: &[app(self.is_on_mac)],
            environments: &[self.environment],
            now: self.now,
            max_age: Some(AttestationExpected::MAX_AGE),
        };
        Attestation::verify(&device.attest(&HASH, self.made_at), &expected, &anchors(self.ca))
    }

    fn assertion(&self, device: &VirtualDevice) -> Result<Assertion, ObjectError> {
        let expected = AssertionExpected {
            public_key: &PublicKey::from_bytes(&device.public_key()).unwrap(),
            client_data_hash: &HASH,
            app_id: &app(self.is_on_mac),
        };
        Assertion::verify(&device.assert(&HASH), &expected)
    }
}

fn step<T>(result: Result<T, ObjectError>) -> &'static str {
    result.map_or_else(|error| error.step(), |_| "")
}

#[test]
fn every_shape_is_genuine() {
    let ca = FakeAttestCa::new();
    for shape in SHAPES {
        for environment in [Environment::Production, Environment::Development] {
            for encoding in [None, Some(ReceiptEncoding::Indefinite), Some(ReceiptEncoding::Definite)] {
                let device = ca.device(APP, shape, environment).with_receipts(encoding);
                let other_order = device.reinstalled().with_category_first().with_flags(0x40);
                for device in [device, other_order.with_bundle_version(Some("1314"))] {
                    let judge = Judge { environment, ..Judge::new(&ca, shape) };
                    let attestation = judge.attestation(&device).unwrap();
                    assert_eq!(attestation.attested_at(), UNIX_EPOCH + Duration::from_secs(1_790_000_000));
                    assert_eq!(
                        (attestation.environment(), attestation.app_id().as_str()),
                        (environment, APP)
                    );
                    assert_eq!(attestation.receipt().is_some(), encoding.is_some(), "{shape:?}");
                    let has_map = matches!(shape, Shape::Ios27 | Shape::MacOs27);
                    assert_eq!(attestation.category().is_some(), has_map, "{shape:?}");
                    let assertion = judge.assertion(&device).unwrap();
                    assert_eq!(
                        (assertion.counter(), assertion.category().is_some()),
                        (1, has_map),
                        "{shape:?}"
                    );
                    assert_eq!(judge.assertion(&device).unwrap().counter(), 2);
                }
            }
        }
    }
}

#[test]
fn a_newer_receipt_has_a_risk_metric() {
    let ca = FakeAttestCa::new();
    let device = ca.device(APP, Shape::Ios27, Environment::Production);
    let attestation = Judge::new(&ca, Shape::Ios27).attestation(&device).unwrap();
    let first = attestation.receipt().unwrap();
    assert_eq!((first.kind(), first.risk_metric()), (ReceiptKind::Attest, None));
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let newer = ca.refreshed(first.as_bytes(), afternoon() + week, 3).unwrap();
    let public_key = Some(attestation.public_key());
    let expected = ReceiptExpected { app_id: &app(false), public_key, now: afternoon() + week };
    let newer = Receipt::verify(&newer, &expected, &anchors(&ca)).unwrap();
    assert_eq!((newer.kind(), newer.risk_metric()), (ReceiptKind::Receipt, Some(3)));
    assert_eq!(newer.creation(), afternoon() + week);
}

#[test]
fn every_fault_is_found_where_it_is() {
    use Fault::{
        Aaguid, AccessControl, CoseKey, Counter, CredentialId, DuplicateCategory, DuplicateKey, Format,
        LeafAlone, LeafSignature, Nonce, NonceMissing, NonceTwice, ReceiptAge, ReceiptAppId, ReceiptChain,
        ReceiptFieldTwice, ReceiptHash, ReceiptKey, ReceiptSignature, ReceiptSigner, RpIdHash,
        SecondCategory, ShortAuthData, Signature, TrailingAuthData, TrailingByte,
    };
    // The steps of the attestation and of the assertion; an empty one admits.
    let rows: [(Fault, &[&str], &[&str]); 27] = [
        (RpIdHash, &["rp_id"], &["rp_id"]),
        (TrailingByte, &["cbor"], &["cbor"]),
        (TrailingAuthData, &["extensions", "auth_data"], &["extensions", "auth_data"]),
        (ShortAuthData, &["auth_data", "extensions"], &["auth_data", "extensions"]),
        (DuplicateKey, &["cbor"], &["cbor"]),
        (DuplicateCategory, &["extensions"], &["extensions"]),
        (SecondCategory, &["extensions"], &["extensions"]),
        (Format, &["format"], &[""]),
        (Nonce, &["nonce"], &[""]),
        (NonceMissing, &["nonce"], &[""]),
        (NonceTwice, &["nonce"], &[""]),
        (Counter, &["counter"], &[""]),
        (Aaguid, &["environment"], &[""]),
        (CredentialId, &["credential_id"], &[""]),
        (CoseKey, &["public_key"], &[""]),
        (LeafSignature, &["chain"], &[""]),
        (LeafAlone, &["certificates"], &[""]),
        (AccessControl, &["access_list"], &[""]),
        (Signature, &[""], &["signature"]),
        (ReceiptAppId, &["receipt_app_id"], &[""]),
        (ReceiptKey, &["receipt_key"], &[""]),
        (ReceiptHash, &["receipt_client_data_hash"], &[""]),
        (ReceiptSignature, &["receipt_signature"], &[""]),
        (ReceiptSigner, &["receipt_signature"], &[""]),
        (ReceiptChain, &["receipt_chain"], &[""]),
        (ReceiptAge, &["receipt_age"], &[""]),
        (ReceiptFieldTwice, &["receipt_format"], &[""]),
    ];
    let ca = FakeAttestCa::new();
    for (fault, attested, asserted) in rows {
        for shape in SHAPES {
            let device = ca.device(APP, shape, Environment::Production).with_fault(fault);
            let judge = Judge::new(&ca, shape);
            let is_in_the_map = matches!(fault, DuplicateCategory | SecondCategory);
            let has_no_map = matches!(shape, Shape::Ios14 | Shape::Ios26);
            let is_no_fault =
                is_in_the_map && has_no_map || fault == AccessControl && shape != Shape::MacOs27;
            let (attested, asserted): (&[&str], &[&str]) =
                if is_no_fault { (&[""], &[""]) } else { (attested, asserted) };
            let found = (step(judge.attestation(&device)), step(judge.assertion(&device)));
            assert!(attested.contains(&found.0), "{fault:?} {shape:?}: {}", found.0);
            assert!(asserted.contains(&found.1), "{fault:?} {shape:?}: {}", found.1);
        }
    }
}

#[test]
fn times_roots_environments_and_platforms() {
    let (ca, other) = (FakeAttestCa::new(), FakeAttestCa::new());
    let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
    let iphone = ca.device(APP, Shape::Ios27, Environment::Production);
    let mac = ca.device(APP, Shape::MacOs27, Environment::Production);
    let at = |now| Judge { now, ..Judge::new(&ca, Shape::Ios27) };
    let start = |made_at| Judge { made_at, now: made_at, ..Judge::new(&ca, Shape::Ios27) };
    let rows = [
        ("another root", &iphone, Judge::new(&other, Shape::Ios27), "chain"),
        ("an hour late", &iphone, at(afternoon() + hours(1) - Duration::from_secs(1)), ""),
        ("two hours late", &iphone, at(afternoon() + hours(2)), "age"),
        ("two days late", &iphone, at(afternoon() + hours(49)), "time"),
        ("a clock 23 hours behind", &iphone, at(afternoon() - hours(23)), ""),
        ("a clock 25 hours behind", &iphone, at(afternoon() - hours(25)), "time"),
        ("in 1971", &iphone, start(UNIX_EPOCH + hours(9_000)), ""),
        (
            "another environment",
            &iphone,
            Judge { environment: Environment::Development, ..Judge::new(&ca, Shape::Ios27) },
            "environment",
        ),
        ("an iPhone for a Mac", &iphone, Judge::new(&ca, Shape::MacOs27), "access_list"),
        ("a Mac that is not announced", &mac, Judge::new(&ca, Shape::Ios27), ""),
    ];
    for (name, device, judge, expected) in rows {
        assert_eq!(step(judge.attestation(device)), expected, "{name}");
    }
}

#[test]
fn categories() {
    let ca = FakeAttestCa::new();
    let judge = Judge::new(&ca, Shape::Ios27);
    for number in 0..16 {
        let device = ca.device(APP, Shape::Ios27, Environment::Production).with_category(number);
        let expected = Category::from_number(number).ok();
        assert_eq!(expected.is_some(), matches!(number, 1..=6 | 10), "{number}");
        let attestation = judge.attestation(&device).ok().and_then(|attestation| attestation.category());
        let assertion = judge.assertion(&device).ok().and_then(|assertion| assertion.category());
        assert_eq!((attestation, assertion), (expected, expected), "{number}");
    }
}
