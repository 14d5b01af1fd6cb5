//! Quotes of operators' settings, for errors and logs.

use std::fmt;

/// Shows a text, or only its length if it may hold a misplaced secret: a key, a password in a URL, a line of a file.
pub(crate) const fn quoted(text: &str) -> Quoted<'_> {
    Quoted(text)
}

pub(crate) struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if may_hold_secret(self.0) {
            write!(f, "({} characters, not shown because they may hold a secret)", self.0.chars().count())
        } else {
            f.write_str(self.0)
        }
    }
}

/// An id for logs. Hides a text that does not have the length of Apple's ids, because it may be a secret in the wrong
/// variable.
#[cfg(feature = "_apple")]
pub(crate) const fn shown_id(id: &str) -> &str {
    if id.len() == 10 { id } else { "(not shown)" }
}

/// Whether a text may hold a secret: it is long, has several lines, is a URL with a user or a query, or has a long run
/// of letters and digits, as keys and tokens do. Paths, names, ids and UUIDs have no such run.
pub(crate) fn may_hold_secret(text: &str) -> bool {
    let is_secret_run = |run: &str| {
        let has = |kind: fn(&u8) -> bool| run.bytes().any(|byte| kind(&byte));
        let is_mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
        run.len() >= 32 || (run.len() >= 20 && is_mixed)
    };
    text.len() > 200
        || text.contains("-----")
        || text.contains(char::is_control)
        || (text.contains("://") && text.contains(['@', '?']))
        || text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '+').any(is_secret_run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a13_what_is_shown_and_what_is_not() {
        let cases: &[(&str, bool)] = &[
            ("", true),
            ("staging", true),
            ("TEAM123456", true),
            ("/var/run/secrets/AuthKey_KEY1234567.p8", true),
            ("C:\\Program Files\\app\\AuthKey_KEY1234567.p8", true),
            (
                "/var/lib/kubelet/pods/0b7e4c1e-38a1-4f6e-9b0e-6f1f2a3c4d5e/volumes/kubernetes.io~secret/key",
                true,
            ),
            ("https://proxy.example.com:8443/apple", true),
            ("https://user:password@example.com", false),
            ("https://example.com/?key=abc", false),
            ("-----BEGIN PRIVATE KEY-----", false),
            ("a\nb", false),
            ("MIGHAgEAMBMGByqGSM49AgEG", false),
            ("sk-proj-Abcdefghij0123456789_x", false),
            ("0123456789abcdef0123456789abcdef", false),
            ("ghp_ABCDEFGHIJabcdefghij0123", false),
        ];
        for (text, shown) in cases {
            assert_eq!(quoted(text).to_string() == *text, *shown, "{text}");
        }
    }
}
