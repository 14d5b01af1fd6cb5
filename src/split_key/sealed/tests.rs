use super::*;
use crate::split_key::{
    fixtures::{KEYS, split, splitter},
    metadata::Version,
    record::SplitKeyRecord,
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
