//! From the text of a key, and of the ids and URLs beside it, to credentials.

use tower_devicecheck::{AppleClient, Credentials, Environment, testing::FakeApple};

use super::chain;

/// A key for tests, which Apple does not know, without its armour.
pub(crate) const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg3RQi+ioYxX/Px+Bk\n\
    EHix+MifY6jrKnD7x2Y1aVEwbjGhRANCAATTOvBYpghTmxNAg6H0XQsRsVVLn+dJ\n\
    l7sm3zzbB9G75Re8WWOT5rsZAzgeZuDf7522Y7VXbhRDFEFNVQlC0JIW\n";

/// Reads a team id, a key id, a base URL and a key, separated by zeros. A byte 1 stands for [`KEY`].
pub(crate) fn credentials(data: &[u8]) {
    let mut parts =
        data.splitn(4, |byte| *byte == 0).map(|part| String::from_utf8_lossy(part).replace('\u{1}', KEY));
    let [Some(team_id), Some(key_id), Some(url), Some(key)] =
        [parts.next(), parts.next(), parts.next(), parts.next()]
    else {
        return;
    };
    let made = Credentials::from_pem(&team_id, &key_id, &key);
    match &made {
        Ok(credentials) => {
            assert_eq!(credentials.team_id(), team_id.trim());
            assert_eq!(credentials.key_id(), key_id.trim());
            let needs_escapes = |letter: char| letter.is_control() || letter == '"' || letter == '\\';
            assert!(
                !credentials.team_id().contains(needs_escapes)
                    && !credentials.key_id().contains(needs_escapes)
            );
            hides(&format!("{credentials:?}"));
            url_of(credentials, &url);
            // The usual damage of environment files and dashboards changes nothing, if there is no other.
            let is_usual = |letter: char| letter.is_ascii_alphanumeric() || "+/=- \t\r\n".contains(letter);
            let is_whole = !key.contains("BEGIN") || key.contains("-----BEGIN PRIVATE KEY-----");
            let is_whole = is_whole && key.chars().all(is_usual);
            for damaged in [
                key.replace('\r', "").replace('\n', "\r\n"),
                key.replace('\n', "\\n"),
                format!("\"{}\"", key.trim()),
                format!(" \n{key}\t "),
            ] {
                assert!(
                    !is_whole || Credentials::from_pem(&team_id, &key_id, &damaged).is_ok(),
                    "{damaged:?}"
                );
            }
        }
        Err(error) => hides(&chain(error)),
    }
    if let Err(error) = Credentials::from_der(&team_id, &key_id, key.as_bytes()) {
        hides(&chain(&error));
    }
}

/// A provider token is sent to `https` alone, or to this machine.
fn url_of(credentials: &Credentials, url: &str) {
    thread_local!(static FAKE: FakeApple = FakeApple::new());
    let transport = FAKE.with(FakeApple::transport);
    let client = AppleClient::builder(credentials.clone())
        .transport(transport)
        .base_url(Environment::Production, url)
        .build();
    match client {
        Ok(_) => {
            let lower = url.trim().to_ascii_lowercase();
            let loopback = ["localhost", "127.", "[::1]", "[0", "[:"].map(|host| format!("http://{host}"));
            assert!(
                lower.starts_with("https://") || loopback.iter().any(|start| lower.starts_with(start)),
                "{url:?}"
            );
            let host = lower.split('/').nth(2).unwrap_or_default();
            assert!(!host.is_empty() && !host.contains('@') && !lower.contains(['?', '#', ' ']), "{url:?}");
        }
        Err(error) => hides(&chain(&error)),
    }
}

/// No line of the key is in the text.
fn hides(shown: &str) {
    for line in KEY.lines() {
        assert!(!shown.contains(&line[20..40]), "{shown}");
    }
}
