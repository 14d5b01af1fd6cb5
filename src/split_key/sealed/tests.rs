use proptest::prelude::*;

use super::*;
use crate::split_key::{
    fixtures::{KEYS, split, splitter},
    metadata::Version,
    record::SplitKeyRecord,
    splitter::Split,
};

#[test]
fn the_length_of_a_sealed_key_does_not_show() {
    let lengths: Vec<_> = KEYS
        .iter()
        .map(|(provider, key)| split(Version::Sealed, provider, key, 1).record().server_part().expose().len())
        .collect();
    assert!(lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
}

/// Every text that differs from this one in one bit and is UTF-8.
fn flipped(text: &str) -> impl Iterator<Item = String> {
    (0..text.len() * 8).filter_map(|bit| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        String::from_utf8(bytes).ok()
    })
}

#[test]
fn one_flipped_bit_anywhere_does_not_open() {
    let (provider, key) = KEYS[0];
    let split = split(Version::Sealed, provider, key, 7);
    let record = split.record();
    let server = record.server_part();
    let client = split.client_part();
    let opens = |server: &ServerPart, client: &ClientPart, project: &str, metadata| {
        let by_parts = open(server, client, project).is_ok();
        let record = SplitKeyRecord::new(project, provider, metadata, server.clone());
        let by_record = record.is_ok_and(|record| splitter(Version::Sealed).open(&record, client).is_ok());
        by_parts || by_record
    };
    assert!(opens(server, client, "project", client.metadata()));

    let mut tried = 0;
    // The client part changes with its metadata, also where the record changes alike.
    for text in flipped(client.expose()) {
        if let Ok(changed) = text.parse::<ClientPart>() {
            assert!(!opens(server, &changed, "project", client.metadata()), "{text}");
            assert!(!opens(server, &changed, "project", changed.metadata()), "{text}");
            tried += 1;
        }
    }
    for text in flipped(server.expose()) {
        if let Ok(changed) = text.parse() {
            assert!(!opens(&changed, client, "project", client.metadata()), "{text}");
            tried += 1;
        }
    }
    for project in flipped("project") {
        assert!(!opens(server, client, &project, client.metadata()), "{project:?}");
        tried += 1;
    }
    assert!(tried > 1_500, "{tried}");

    // Bits below the base64 change, too.
    let sealed =
        base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, server.expose()).unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let text = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, changed);
        assert!(!opens(&text.parse().unwrap(), client, "project", client.metadata()), "{bit}");
    }
}

/// The bytes of a server part: nonce, sealed text and tag.
fn sealed_bytes(split: &Split) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(split.record().server_part().expose()).unwrap()
}

/// The plaintext of a key, as it is before it is sealed.
fn padded(key: &str) -> Vec<u8> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.push(END);
    bytes.resize(BLOCK, 0);
    bytes
}

proptest! {
    /// The sealed text is the key combined with a keystream, and the keystream has nothing of the key. So a server part
    /// is that of any other key under another keystream: who lacks the client part cannot tell which one it is.
    #[test]
    fn a_server_part_fits_every_other_key(one in "[!-~]{1,255}", other in "[!-~]{1,255}", seed: u64) {
        let parts = [&one, &other].map(|key| split(Version::Sealed, "any", key, seed));
        prop_assert_eq!(parts[0].client_part(), parts[1].client_part());
        let sealed = [sealed_bytes(&parts[0]), sealed_bytes(&parts[1])];
        prop_assert_eq!(&sealed[0][..NONCE], &sealed[1][..NONCE]);
        let texts = sealed.map(|bytes| bytes[NONCE..NONCE + BLOCK].to_vec());
        let keystream = |text: &[u8], key: &str| -> Vec<u8> {
            text.iter().zip(padded(key)).map(|(byte, letter)| byte ^ letter).collect()
        };
        prop_assert_eq!(keystream(&texts[0], &one), keystream(&texts[1], &other));
    }

    /// Each split has a client part of its own, so two server parts of one key have nothing in common.
    #[test]
    fn two_splits_of_a_key_share_nothing(key in "[!-~]{1,255}") {
        let splits = [(); 2].map(|()| splitter(Version::Sealed).split("project", "any", &key).unwrap());
        let [one, other] = [sealed_bytes(&splits[0]), sealed_bytes(&splits[1])];
        prop_assert!(!one.windows(8).any(|piece| other.windows(8).any(|other| piece == other)));
        let mixed = splitter(Version::Sealed).open(splits[0].record(), splits[1].client_part());
        prop_assert!(mixed.is_err());
    }
}
