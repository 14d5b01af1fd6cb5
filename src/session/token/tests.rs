use proptest::prelude::*;

use super::*;
use crate::session::key::MasterKey;

const VECTOR: &str = "AQoLDA0KarE7gGqxSZAQERITFBUWFxgZGhscHR4fICEiIyQlJicoKSorLC0uLwAAAAAAAAAAAAAAAAAAAAASWjCy4cUN_1SLidvmCpmXtH4hBir7eH79lCKt9vo3NQ";

fn sequence<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|index| first + index as u8)
}

fn key() -> SessionKey {
    SessionKey::derive(&MasterKey::new(0x0a0b_0c0d, sequence(0)), "acme", "TEAM123456.com.example.app")
        .unwrap()
}

fn claims() -> Claims {
    Claims {
        is_limited_use: false,
        environment: Environment::Development,
        bought_with: BoughtWith::AppAttest,
        issued: 1_790_000_000,
        expires: 1_790_003_600,
        id: SessionId::from(sequence(0x10)),
        subject: sequence(0x20),
        binding: None,
    }
}

/// The claims of a text that this key has signed.
fn verified(text: &[u8]) -> Option<Claims> {
    let token = Token::parse(text)?;
    (token.key_number() == key().number() && token.is_signed_by(&key())).then(|| token.claims())?
}

#[test]
fn the_test_vector() {
    assert_eq!(mint(&claims(), &key()), VECTOR);
    assert_eq!(verified(VECTOR.as_bytes()), Some(claims()));
}

#[test]
fn no_bit_can_be_changed() {
    let bytes = URL_SAFE_NO_PAD.decode(VECTOR).unwrap();
    for bit in 0..8 * LENGTH {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(verified(URL_SAFE_NO_PAD.encode(changed).as_bytes()), None, "bit {bit}");
    }
}

#[test]
fn there_is_no_other_spelling() {
    // Every other byte in every place, which includes the standard alphabet and the unused bits of the last character.
    for place in 0..TEXT_LENGTH {
        for byte in 0..=u8::MAX {
            let mut text = VECTOR.as_bytes().to_vec();
            text[place] = byte;
            assert_eq!(verified(&text).is_some(), text == VECTOR.as_bytes(), "{byte} at {place}");
        }
    }
    let cases = [
        ("padding", format!("{VECTOR}==")),
        ("white space before", format!(" {VECTOR}")),
        ("white space after", format!("{VECTOR} ")),
        ("one more character", format!("{VECTOR}A")),
        ("one fewer", VECTOR[..TEXT_LENGTH - 1].to_owned()),
        ("padding in the place of the last characters", format!("{}==", &VECTOR[..TEXT_LENGTH - 2])),
        ("a line break", format!("{}\n{}", &VECTOR[..60], &VECTOR[61..])),
        ("nothing", String::new()),
    ];
    for (name, text) in cases {
        assert_eq!(verified(text.as_bytes()), None, "{name}");
    }
}

#[test]
fn flags_of_a_later_version_are_not_understood() {
    for flags in 0..=u8::MAX {
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION;
        bytes[5] = flags;
        let (signed, tag) = bytes.split_at_mut(SIGNED);
        tag.copy_from_slice(&key().sign(signed));
        let token = Token::parse(URL_SAFE_NO_PAD.encode(bytes).as_bytes()).unwrap();
        assert!(token.is_signed_by(&key()));
        assert_eq!(token.claims().is_some(), flags < 0b10_0000, "{flags:08b}");
    }
}

#[test]
fn another_tenant_or_app_has_another_key() {
    let master = MasterKey::new(0x0a0b_0c0d, sequence(0));
    let token = Token::parse(VECTOR.as_bytes()).unwrap();
    for (tenant, app_id) in
        [("", "TEAM123456.com.example.app"), ("acme", ""), ("acme", "TEAM123456.com.example.other")]
    {
        assert!(
            !token.is_signed_by(&SessionKey::derive(&master, tenant, app_id).unwrap()),
            "{tenant} {app_id}"
        );
    }
}

fn any_claims() -> impl Strategy<Value = Claims> {
    let flags = (any::<bool>(), any::<bool>(), 0..4_u8);
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<Option<[u8; 16]>>());
    (flags, any::<[u32; 2]>(), ids).prop_map(|((limited, development, bought), [issued, expires], ids)| {
        Claims {
            is_limited_use: limited,
            environment: if development { Environment::Development } else { Environment::Production },
            bought_with: BoughtWith::from_number(bought).unwrap(),
            issued,
            expires,
            id: ids.0.into(),
            subject: ids.1,
            binding: ids.2,
        }
    })
}

proptest! {
    #[test]
    fn what_was_minted_verifies(claims in any_claims()) {
        let text = mint(&claims, &key());
        prop_assert_eq!(text.len(), TEXT_LENGTH);
        prop_assert_eq!(verified(text.as_bytes()), Some(claims));
    }

    #[test]
    fn nothing_else_verifies(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(verified(&text), None);
    }

    #[test]
    fn no_text_of_the_right_form_verifies(bytes in proptest::collection::vec(any::<u8>(), LENGTH)) {
        let mut bytes = bytes;
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&key().number().to_be_bytes());
        prop_assert_eq!(verified(URL_SAFE_NO_PAD.encode(&bytes).as_bytes()), None);
    }

    #[test]
    fn a_minted_text_that_was_changed_does_not_verify(
        claims in any_claims(),
        changes in proptest::collection::vec((0..TEXT_LENGTH, any::<u8>()), 1..4),
    ) {
        let minted = mint(&claims, &key());
        let mut text = minted.clone().into_bytes();
        for (place, byte) in changes {
            text[place] = byte;
        }
        prop_assert_eq!(verified(&text).is_some(), text == minted.as_bytes());
    }
}
