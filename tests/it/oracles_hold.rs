//! Property tests: the oracles of the fuzz targets, on any bytes.

use proptest::{collection::vec, prelude::*, sample::select};

use crate::oracles;

/// Any bytes, and bytes that are made of words that mean something to the parser.
fn bytes(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let word = select(words).prop_map(|word| word.as_bytes().to_vec());
    let part = prop_oneof![4 => word, 1 => vec(any::<u8>(), 0..4)];
    prop_oneof![1 => vec(any::<u8>(), 0..200), 4 => vec(part, 0..12).prop_map(|parts| parts.concat())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn header_to_token(data in bytes(&["\0\u{3}", "\0\u{4}", "\0\u{5}", "Bearer ", "AgAA", "Ag==", ".", " ", "=", "A"])) {
        oracles::tokens::header_to_token(&data);
    }

    #[test]
    fn path_of_a_limited_key(data in bytes(&["v1/", "chat", "files/", "..", ".", "/", "%2e", "%2F", "%5c", "%25", ";", "%3b", "%3f", "%23", "x"])) {
        oracles::keys::path(&data);
    }

    #[test]
    fn client_part(data in bytes(&["\u{2}", "\u{1}", ".", "00000002", "0000019900000000", "deadbeef", "00000001", "x"])) {
        oracles::keys::client_part(&data);
    }

    #[test]
    fn session(data in bytes(&["\0", "\u{1}", "\u{2}", "AQ", "_", "\u{1}\0\u{1}"])) {
        oracles::session::session(&data);
    }

    #[cfg(all(feature = "app-attest", feature = "redis"))]
    #[test]
    fn value_in_redis(data in bytes(&["\0", "\u{1}", "\u{2}", "\u{3}", "\u{4}", "\u{5}", "\n", "0", "1", "0\n{}"])) {
        oracles::redis_values::value(&data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn answer_of_apple(
        status in prop_oneof![Just(0_u16), Just(200), 0..400_u16],
        data in bytes(&["device token", "Device Token", "payload", "authorization token", "\u{1}", "{", "<html", "bit state not found", r#"{"bit0":true,"bit1":false}"#]),
        choice in any::<u8>(),
    ) {
        let [high, low] = status.to_be_bytes();
        oracles::apple::answer(&[&[high, low, choice][..], &data].concat());
    }

    #[test]
    fn credentials(data in bytes(&["TEAM123456", "\0", "\0TEAM123456\0https://example.com\0", "-----BEGIN PRIVATE KEY-----\n", "\u{1}", "-----END PRIVATE KEY-----", "\"", "\\n"])) {
        oracles::credentials::credentials(&data);
    }

    #[test]
    fn key_file(data in bytes(&[r#"{"format":1,"keys":["#, "]}", r#"{"project":"p","provider":"openai","#, r#""metadata":"000000020000019900000000deadbeef","#, r#""server_part":""#, "\u{1}", r#"","#, r#""state":"active"}"#, ","])) {
        oracles::keys::key_file(&data);
    }
}
