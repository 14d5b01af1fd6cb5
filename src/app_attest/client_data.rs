//! The bytes that an app signs.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use sha2::{Digest, Sha256};

use crate::app_attest::keys::attested_key::hex;

/// The facts of a request that an assertion can sign.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ClientFacts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path and the query, as the client sent them.
    pub path_and_query: &'a str,
    /// The text of the header that shows that the request is fresh: the challenge, the time, or the session.
    pub freshness: &'a str,
    /// The SHA-256 of the body, if it was read.
    pub body_digest: Option<&'a [u8; 32]>,
}

impl<'a> ClientFacts<'a> {
    /// Puts the facts of a request together, for tests.
    #[must_use]
    pub const fn new(
        method: &'a Method,
        path_and_query: &'a str,
        freshness: &'a str,
        body_digest: Option<&'a [u8; 32]>,
    ) -> Self {
        Self { method, path_and_query, freshness, body_digest }
    }

    /// The text that binds an assertion to its request, as [`ClientData::request`] has it.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { method, path_and_query, freshness, .. } = self;
        let body = self.body_digest.map_or_else(|| hex(&Sha256::digest([])), |digest| hex(digest));
        format!("tower-devicecheck-assertion-v1\n{method}\n{path_and_query}\n{freshness}\n{body}")
    }
}

/// The rule for the client data of an object: the bytes that the app passes to Apple's API as `clientDataHash`.
///
/// Most failures of a first attempt come from an app and a server that hash different bytes.
///
/// | rule | the app passes | binds the request |
/// |---|---|---|
/// | [`request`](Self::request), the default of assertions | the SHA-256 of five lines | yes |
/// | [`challenge_text`](Self::challenge_text), the default of attestations | the SHA-256 of the challenge as it came, in UTF-8 | no |
/// | [`challenge_bytes`](Self::challenge_bytes) | the SHA-256 of the challenge, decoded | no |
/// | [`custom`](Self::custom) | your function's bytes | as you like |
#[derive(Clone)]
#[must_use]
pub struct ClientData {
    rule: Rule,
    needs_body: bool,
}

#[derive(Clone)]
enum Rule {
    Request,
    ChallengeText,
    ChallengeBytes,
    Custom(Arc<dyn MakeBytes>),
}

/// A name for closures that make the bytes.
trait MakeBytes: Fn(&ClientFacts<'_>) -> Vec<u8> + Send + Sync {}

impl<F: Fn(&ClientFacts<'_>) -> Vec<u8> + Send + Sync> MakeBytes for F {}

impl ClientData {
    /// The SHA-256 of five lines in UTF-8, with `\n` between them and none at the end: a label, the method, the path with
    /// the query as the client sent it, the text of the header of freshness, and the SHA-256 of the body in lower-case
    /// hexadecimal digits.
    ///
    /// ```text
    /// tower-devicecheck-assertion-v1
    /// POST
    /// /v1/pay?x=1
    /// 1790000000
    /// e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    /// ```
    ///
    /// In Swift:
    ///
    /// ```swift
    /// let body = SHA256.hash(data: bodyData).map { String(format: "%02x", $0) }.joined()
    /// let text = ["tower-devicecheck-assertion-v1", "POST", "/v1/pay?x=1", freshness, body].joined(separator: "\n")
    /// let hash = Data(SHA256.hash(data: Data(text.utf8)))
    /// let assertion = try await DCAppAttestService.shared.generateAssertion(keyId, clientDataHash: hash)
    /// ```
    ///
    /// A proxy that rewrites the path breaks this: see
    /// [`with_original_uri`](crate::DeviceCheckLayer::with_original_uri). In an attestation, the body counts as empty.
    pub const fn request() -> Self {
        Self { rule: Rule::Request, needs_body: true }
    }

    /// The SHA-256 of the header's text, or of the challenge in the body of an attestation: the very characters, without
    /// any decoding.
    ///
    /// # Danger
    ///
    /// As a rule of assertions, it binds nothing of the request: whoever changes a request on its way keeps its assertion.
    pub const fn challenge_text() -> Self {
        Self { rule: Rule::ChallengeText, needs_body: false }
    }

    /// The SHA-256 of the 41 bytes of a challenge. A text that is no base64url counts as its characters.
    ///
    /// # Danger
    ///
    /// The same as of [`challenge_text`](Self::challenge_text).
    pub const fn challenge_bytes() -> Self {
        Self { rule: Rule::ChallengeBytes, needs_body: false }
    }

    /// Your function's bytes, usually a SHA-256. They must depend on [`ClientFacts::freshness`].
    ///
    /// # Danger
    ///
    /// An assertion over bytes that do not depend on the freshness can be kept and sent at any time later, until a
    /// greater counter comes.
    pub fn custom(make: impl Fn(&ClientFacts<'_>) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { rule: Rule::Custom(Arc::new(make)), needs_body: false }
    }

    /// Sets whether the body is read for the rule. Default: `true` for [`request`](Self::request), otherwise `false`.
    ///
    /// # Danger
    ///
    /// Without the body, [`request`](Self::request) takes it for empty, and refuses no changed body. Only for routes
    /// whose requests have none.
    pub const fn with_body(mut self, needed: bool) -> Self {
        self.needs_body = needed;
        self
    }

    pub(super) const fn needs_body(&self) -> bool {
        self.needs_body
    }

    /// Makes the bytes that the app passes as `clientDataHash`.
    pub(super) fn hash(&self, facts: &ClientFacts<'_>) -> Vec<u8> {
        match &self.rule {
            Rule::Request => Sha256::digest(facts.text()).to_vec(),
            Rule::ChallengeText => Sha256::digest(facts.freshness).to_vec(),
            Rule::ChallengeBytes => match URL_SAFE_NO_PAD.decode(facts.freshness) {
                Ok(bytes) => Sha256::digest(bytes).to_vec(),
                Err(_) => Sha256::digest(facts.freshness).to_vec(),
            },
            Rule::Custom(make) => make(facts),
        }
    }
}

impl fmt::Debug for ClientData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match &self.rule {
            Rule::Request => "Request",
            Rule::ChallengeText => "ChallengeText",
            Rule::ChallengeBytes => "ChallengeBytes",
            Rule::Custom(_) => "Custom",
        };
        f.debug_struct("ClientData").field("rule", &rule).field("needs_body", &self.needs_body).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules() {
        let digest = [0xab; 32];
        let facts = ClientFacts::new(&Method::POST, "/v1/pay?x=1", "AQID", Some(&digest));
        let text = format!("tower-devicecheck-assertion-v1\nPOST\n/v1/pay?x=1\nAQID\n{}", "ab".repeat(32));
        assert_eq!(facts.text(), text);
        let without = ClientFacts { body_digest: None, ..facts };
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(without.text(), text.replace(&"ab".repeat(32), empty));
        let cases = [
            (ClientData::request(), Sha256::digest(&text).to_vec(), true),
            (ClientData::challenge_text(), Sha256::digest("AQID").to_vec(), false),
            (ClientData::challenge_bytes(), Sha256::digest([1, 2, 3]).to_vec(), false),
            (ClientData::custom(|facts| facts.freshness.into()), b"AQID".to_vec(), false),
        ];
        for (rule, hash, needs_body) in cases {
            assert_eq!((rule.hash(&facts), rule.needs_body()), (hash, needs_body), "{rule:?}");
        }
        let time = ClientFacts { freshness: "1790000000!", ..facts };
        assert_eq!(ClientData::challenge_bytes().hash(&time), Sha256::digest("1790000000!").to_vec());
    }
}
