use std::{collections::HashMap, error::Error, ffi::OsString, fs, path::PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};
use p256::{SecretKey, ecdsa::SigningKey};

use super::*;

const TEAM: &str = "TEAM123456";
const ID: &str = "KEY1234567";

fn pem() -> String {
    let key = SecretKey::from_slice(&[7; 32]).unwrap();
    key.to_pkcs8_pem(Default::default()).unwrap().to_string()
}

fn body() -> String {
    pem().lines().filter(|line| !line.starts_with('-')).collect()
}

fn der() -> Vec<u8> {
    BASE64_STANDARD.decode(body()).unwrap()
}

/// No error and no `Debug` output may hold a run of the key's base64.
fn assert_no_key(name: &str, text: &str) {
    let body = body();
    for start in (0..body.len() - 12).step_by(4) {
        assert!(!text.contains(&body[start..start + 12]), "{name}: {text}");
    }
}

#[test]
fn every_damage_of_a_variable_is_mended() {
    let pem = pem();
    let lines = |with: &str| pem.trim().replace('\n', with);
    let cases: &[(&str, String)] = &[
        ("as it is", pem.clone()),
        ("CRLF", lines("\r\n")),
        ("CR", lines("\r")),
        ("literal \\n", lines("\\n")),
        ("literal \\r\\n", lines("\\r\\n")),
        ("literal \\\\n", lines("\\\\n")),
        ("both", lines("\\n\n")),
        ("spaces", lines(" ")),
        ("nothing between the lines", lines("")),
        ("no space anywhere", lines("").replace(' ', "")),
        ("double quotes", format!("\"{pem}\"")),
        ("double quotes, literal \\n", format!("\"{}\\n\"", lines("\\n"))),
        ("single quotes, white space around", format!("  '{pem}'\n")),
        ("both quotes", format!("\"'{pem}'\"")),
        ("byte order mark", format!("\u{feff}{pem}")),
        ("text before", format!("Bag Attributes\n  friendlyName: x\n{pem}")),
        ("text after", format!("{pem}\nsome text")),
        ("bare base64", body()),
        ("bare base64, unpadded", body().trim_end_matches('=').to_owned()),
        ("bare base64 in lines", body().replace('M', "M\n")),
        ("base64 of the whole file", BASE64_STANDARD.encode(&pem)),
        ("base64 of the whole file, quoted", format!("'{}'", BASE64_STANDARD.encode(&pem))),
    ];
    for (name, text) in cases {
        let credentials = Credentials::from_pem(TEAM, ID, text);
        assert!(credentials.is_ok(), "{name}: {credentials:?}");
    }
    let credentials = Credentials::from_der(TEAM, ID, &der()).unwrap();
    assert_eq!((credentials.team_id(), credentials.key_id()), (TEAM, ID));
    assert_no_key("debug", &format!("{credentials:?}"));
}

#[test]
fn each_wrong_key_is_named() {
    let pem = pem();
    let label = |label: &str| pem.replace("PRIVATE KEY", label);
    let armour = |der: &[u8]| {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64_STANDARD.encode(der))
    };
    let other_curve = p384_pkcs8();
    let mut damaged = der();
    damaged[36..68].fill(0);
    let public = SigningKey::from_slice(&[7; 32]).unwrap().verifying_key().to_public_key_der().unwrap();
    let sec1 = SecretKey::from_slice(&[7; 32]).unwrap().to_sec1_der().unwrap();
    let cases: &[(&str, String, &str)] = &[
        ("empty", String::new(), "empty"),
        ("white space", " \n".to_owned(), "empty"),
        ("quotes", "\"\"".to_owned(), "empty"),
        ("a path", "/run/secrets/AuthKey_X.p8".to_owned(), "path"),
        ("a text", "<the key>".to_owned(), "not base64"),
        ("URL-safe base64", "-_-_".to_owned(), "not base64"),
        ("body damaged", pem.replacen('M', "?", 1), "not base64"),
        ("first line only", "-----BEGIN PRIVATE KEY-----".to_owned(), "cut off"),
        ("half of the first line", "-----BEGIN PRIV".to_owned(), "cut off"),
        ("no last line", pem.split("-----END").next().unwrap().to_owned(), "cut off"),
        ("no body", "-----BEGIN PRIVATE KEY----------END PRIVATE KEY-----".to_owned(), "cut off"),
        ("bare, cut off", body()[..100].to_owned(), "cut off"),
        ("bare, cut off inside a group", body()[..101].to_owned(), "cut off"),
        ("armoured, cut off", armour(&der()[..60]), "cut off"),
        ("armoured, one byte", armour(&[0x30]), "cut off"),
        ("EC PRIVATE KEY", label("EC PRIVATE KEY"), "SEC 1"),
        ("SEC 1 inside", armour(&sec1), "SEC 1"),
        ("ENCRYPTED PRIVATE KEY", label("ENCRYPTED PRIVATE KEY"), "encrypted"),
        ("CERTIFICATE", label("CERTIFICATE"), "certificate"),
        ("PUBLIC KEY", label("PUBLIC KEY"), "public key"),
        ("a public key inside", armour(public.as_bytes()), "public key"),
        ("RSA PRIVATE KEY", label("RSA PRIVATE KEY"), "RSA"),
        ("OPENSSH PRIVATE KEY", label("OPENSSH PRIVATE KEY"), "first line"),
        ("another curve", armour(&other_curve), "curve"),
        ("Ed25519", armour(&ED25519), "not an elliptic curve key"),
        ("zero for a key", armour(&damaged), "damaged"),
        ("something else", armour(b"something else"), "PKCS#8"),
    ];
    for (name, text, reason) in cases {
        let error = Credentials::from_pem(TEAM, ID, text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.starts_with("private key: "), "{name}: {shown}");
        assert!(shown.contains(reason), "{name}: {shown}");
        assert_no_key(name, &shown);
    }
    for (name, der) in
        [("empty", &[][..]), ("one byte", &[0x30]), ("text", b"text"), ("a long length", &[0x30, 0x83])]
    {
        assert!(Credentials::from_der(TEAM, ID, der).is_err(), "{name}");
    }
}

/// The outer structure of a P-384 key, without a key inside.
fn p384_pkcs8() -> Vec<u8> {
    let mut der = vec![
        0x30, 0x20, 2, 1, 0, 0x30, 0x10, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0,
        0x22,
    ];
    der.resize(0x22, 0);
    der
}

const ED25519: [u8; 16] = [0x30, 14, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 2, 4, 0];

#[test]
fn no_cut_or_flip_of_a_key_panics() {
    let der = der();
    for length in 0..der.len() {
        assert!(Credentials::from_der(TEAM, ID, &der[..length]).is_err(), "{length}");
        let mut flipped = der.clone();
        flipped[length] ^= 0xff;
        let _ = Credentials::from_der(TEAM, ID, &flipped);
    }
    let pem = pem();
    for length in 0..pem.trim_end().len() {
        let _ = Credentials::from_pem(TEAM, ID, &pem[..length]);
    }
}

#[test]
fn ids() {
    let cases: &[(&str, &str, Result<&str, &str>)] = &[
        ("as it is", "ABCDE12345", Ok("ABCDE12345")),
        ("white space and quotes", " \"ABCDE12345\"\n", Ok("ABCDE12345")),
        ("another length", "ABC", Ok("ABC")),
        ("empty", "", Err("empty")),
        ("quotes only", "''", Err("empty")),
        ("issuer of App Store Connect", "69a6de70-03db-47e3-e053-5b8c7c11a4d1", Err("App Store Connect")),
        ("bundle id", "com.example.app", Err("bundle id")),
        ("App ID", "ABCDE12345.com.example.app", Err("bundle id")),
        ("file name", "AuthKey_ABCDE12345.p8", Err("key file")),
        ("JSON", "A\",\"x\":\"", Err("neither letters nor digits")),
        ("not ASCII", "ÄBCDE12345", Err("neither letters nor digits")),
    ];
    for (name, id, expected) in cases {
        match (check_id(id), expected) {
            (Ok(found), Ok(id)) => assert_eq!(found, *id, "{name}"),
            (Err(found), Err(reason)) => assert!(found.contains(reason), "{name}: {found}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}

type Variables<'a> = &'a [(&'a str, &'a str)];

fn from_env(variables: Variables<'_>) -> Result<Credentials, CredentialsError> {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    Credentials::from_lookup(|name| match variables.get(name) {
        Some(&"not unicode") => Err(VarError::NotUnicode(OsString::new())),
        Some(value) => Ok((*value).to_owned()),
        None => Err(VarError::NotPresent),
    })
}

/// A file that is removed on drop.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = env::temp_dir().join(format!("{}-{name}", uuid::Uuid::new_v4()));
        fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn environment_variables() {
    let key = pem();
    let file = TempFile::new("key.p8", key.as_bytes());
    let path = file.0.to_str().unwrap();
    let quoted = format!("\"{path}\"");
    let good: &[(&str, Variables<'_>)] = &[
        ("text", &[(ISS, TEAM), (KID, ID), (KEY, &key)]),
        ("file", &[(ISS, TEAM), (KID, ID), (KEY_FILE, path)]),
        ("file, quoted", &[(ISS, TEAM), (KID, ID), (KEY_FILE, &quoted)]),
        ("text, and an empty file", &[(ISS, TEAM), (KID, ID), (KEY, &key), (KEY_FILE, " ")]),
        ("quoted ids", &[(ISS, "\"TEAM123456\""), (KID, "'KEY1234567'"), (KEY, &key)]),
    ];
    for (name, variables) in good {
        let credentials = from_env(variables).unwrap();
        assert_eq!((credentials.team_id(), credentials.key_id()), (TEAM, ID), "{name}");
    }
    let bad: &[(&str, Variables<'_>, &str, &str)] = &[
        ("nothing", &[], ISS, "not set"),
        ("team id empty", &[(ISS, ""), (KID, ID), (KEY, &key)], ISS, "not set"),
        ("no key id", &[(ISS, TEAM), (KEY, &key)], KID, "not set"),
        ("no key", &[(ISS, TEAM), (KID, ID)], KEY, "APPLE_JWT_PRIVATE_KEY_FILE"),
        ("both keys", &[(ISS, TEAM), (KID, ID), (KEY, &key), (KEY_FILE, path)], KEY, "unset one"),
        ("not Unicode", &[(ISS, TEAM), (KID, "not unicode"), (KEY, &key)], KID, "UTF-8"),
        (
            "team id a UUID",
            &[(ISS, "69a6de70-03db-47e3-e053-5b8c7c11a4d1"), (KID, ID), (KEY, &key)],
            ISS,
            "UUID",
        ),
        ("key id a file", &[(ISS, TEAM), (KID, "AuthKey_ABCDE12345.p8"), (KEY, &key)], KID, "key file"),
        ("key bad", &[(ISS, TEAM), (KID, ID), (KEY, "?")], KEY, "not base64"),
        ("no file", &[(ISS, TEAM), (KID, ID), (KEY_FILE, "/nowhere/at/all.p8")], KEY_FILE, "cannot be read"),
    ];
    for (name, variables, variable, reason) in bad {
        let error = from_env(variables).unwrap_err();
        let shown = error.to_string();
        assert!(shown.starts_with(variable) && shown.contains(reason), "{name}: {shown}");
        assert_no_key(name, &format!("{error:?}"));
        assert_eq!(error.source().is_some(), *name == "no file", "{name}");
    }
}

#[test]
fn files() {
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("in DER", der(), "from_der"),
        ("too large", vec![b'A'; MAX_FILE_LENGTH + 1], "too large"),
        ("empty", Vec::new(), "empty"),
    ];
    for (name, content, reason) in cases {
        let file = TempFile::new("bad.p8", content);
        let shown = Credentials::from_pem_file(TEAM, ID, &file.0).unwrap_err().to_string();
        assert!(shown.contains(reason) && shown.contains("bad.p8"), "{name}: {shown}");
    }
    let error = Credentials::from_pem_file(TEAM, ID, env::temp_dir()).unwrap_err();
    assert!(error.source().is_some(), "a folder: {error}");
}

#[test]
fn a13_nothing_that_looks_like_a_key_is_printed() {
    let (pem, body) = (pem(), body());
    let twice = BASE64_STANDARD.encode(&pem);
    let file = "/nonexistent/AuthKey_KEY1234567.p8".to_owned();
    let escaped = pem.replace('\n', "\\n");
    let keys = [pem.clone(), escaped, body.clone(), twice, format!("'{pem}'"), format!("/{body}")];
    for key in &keys {
        let cases = [
            ("the file", vec![(ISS, TEAM), (KID, ID), (KEY_FILE, key)], Some(KEY)),
            ("the team id", vec![(ISS, key), (KID, ID), (KEY, &pem)], None),
            ("the key id", vec![(ISS, TEAM), (KID, key), (KEY, &pem)], None),
        ];
        for (name, variables, other) in cases {
            let variables: HashMap<_, _> = variables.into_iter().collect();
            let lookup =
                |name: &str| variables.get(name).map(|value| (*value).to_owned()).ok_or(VarError::NotPresent);
            let error = Credentials::from_lookup(lookup).unwrap_err();
            let text = format!("{error} {error:?}");
            assert_no_key(name, &text);
            assert!(other.is_none_or(|other| text.contains(&format!("{other} "))), "{name}: {text}");
        }
    }
    let error = Credentials::from_pem_file(TEAM, ID, &file).unwrap_err().to_string();
    assert!(error.contains(&file), "a path is shown: {error}");
    let credentials = Credentials::from_pem(TEAM, ID, &pem).unwrap();
    let given = body.replace(['+', '/', '='], "A");
    let error = CredentialsError::other_team(credentials.team_id(), &given);
    assert_no_key("another team", &error.to_string());
}

#[test]
fn a14_keys_that_windows_and_dashboards_have_damaged_are_mended() {
    let utf16 = |text: &str, big: bool| -> Vec<u8> {
        let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    };
    let marked = format!("\u{feff}{}", pem().replace('\n', "\r\n"));
    let folder = std::env::temp_dir().join(format!("tower-devicecheck-a14-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("key.p8");
    for (name, bytes) in [
        ("PowerShell", utf16(&marked, false)),
        ("big-endian", utf16(&marked, true)),
        ("no byte order mark", utf16(&pem(), false)),
        ("base64 of it", BASE64_STANDARD.encode(utf16(&marked, false)).into_bytes()),
    ] {
        fs::write(&file, bytes).unwrap();
        let credentials = Credentials::from_pem_file(TEAM, ID, &file);
        assert!(credentials.is_ok(), "{name}: {credentials:?}");
    }
    fs::remove_dir_all(folder).unwrap();
    let once = BASE64_STANDARD.encode(pem());
    let twice = BASE64_STANDARD.encode(&once);
    for text in [twice.clone(), BASE64_STANDARD.encode(body()), BASE64_STANDARD.encode(&twice)] {
        let credentials = Credentials::from_pem(TEAM, ID, &text);
        assert!(credentials.is_ok(), "{credentials:?}");
    }
}

#[test]
fn a14_a_path_given_for_the_key_is_named() {
    for path in
        ["/run/secrets/AuthKey_X.p8", "./key.p8", "C:\\keys\\AuthKey_X.p8", "~/AuthKey_X.p8", "key.pem"]
    {
        let variables: HashMap<_, _> = [(ISS, TEAM), (KID, ID), (KEY, path)].into_iter().collect();
        let lookup =
            |name: &str| variables.get(name).map(|value| (*value).to_owned()).ok_or(VarError::NotPresent);
        let error = Credentials::from_lookup(lookup).unwrap_err().to_string();
        assert!(error.contains("path") && error.contains(KEY_FILE), "{path}: {error}");
    }
}

#[test]
fn a14_all_missing_variables_are_named_at_once() {
    let error = Credentials::from_lookup(|_| Err(VarError::NotPresent)).unwrap_err().to_string();
    for name in [ISS, KID, KEY, KEY_FILE] {
        assert!(error.contains(name), "{error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    /// Whatever the variables hold, the key is in no error, and credentials come with a team id and a key id only.
    #[test]
    fn no_environment_shows_the_key(choices in proptest::collection::vec((0..4_usize, 0..6_usize), 0..8)) {
        let values = [TEAM.to_owned(), ID.to_owned(), pem(), body(), " ".to_owned(), "./no-such-file.p8".to_owned()];
        let variables: HashMap<&str, &str> =
            choices.iter().map(|(name, value)| ([ISS, KID, KEY, KEY_FILE][*name], &*values[*value])).collect();
        let made = Credentials::from_lookup(|name| {
            variables.get(name).map(|value| (*value).to_owned()).ok_or(VarError::NotPresent)
        });
        let set = |name| variables.get(name).is_some_and(|value: &&str| !value.trim().is_empty());
        match made {
            Ok(credentials) => {
                assert!(set(ISS) && set(KID) && set(KEY) && !set(KEY_FILE));
                assert_no_key("credentials", &format!("{credentials:?}"));
            }
            Err(error) => {
                let texts = [error.to_string(), format!("{error:?}"), format!("{:?}", error.source())];
                texts.iter().for_each(|text| assert_no_key("error", text));
            }
        }
    }
}
