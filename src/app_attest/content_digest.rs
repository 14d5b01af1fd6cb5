//! The header `Content-Digest` (RFC 9530).

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};

use crate::gate::rejection::MalformedToken;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// The SHA-256 that a head promises for its body. Digests by other algorithms are ignored.
pub(super) fn promised(headers: &HeaderMap) -> Result<[u8; 32], MalformedToken> {
    let mut found = None;
    for value in headers.get_all(CONTENT_DIGEST) {
        let value = value.to_str().map_err(|_| MalformedToken::NotCanonical)?;
        // A dictionary of byte sequences (RFC 9651), which hold no commas.
        for member in value.split(',') {
            let Some(digest) = member.trim_matches([' ', '\t']).strip_prefix("sha-256=") else { continue };
            let digest = digest.strip_prefix(':').and_then(|digest| digest.strip_suffix(':'));
            let digest = digest.and_then(|digest| STANDARD.decode(digest).ok()?.try_into().ok());
            if found.replace(digest.ok_or(MalformedToken::NotCanonical)?).is_some() {
                return Err(MalformedToken::Repeated);
            }
        }
    }
    found.ok_or(MalformedToken::Incomplete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_digests() {
        let right = format!("sha-256=:{}:", STANDARD.encode([7; 32]));
        let other = "sha-512=:AAAA:";
        type Row<'a> = (&'a [&'a str], Result<[u8; 32], MalformedToken>);
        let rows: [Row<'_>; 11] = [
            (&[&right], Ok([7; 32])),
            (&[&format!("{other}, {right}")], Ok([7; 32])),
            (&[&format!("{right},{other}")], Ok([7; 32])),
            (&[other, &right], Ok([7; 32])),
            (&[], Err(MalformedToken::Incomplete)),
            (&[other], Err(MalformedToken::Incomplete)),
            (&[&right, &right], Err(MalformedToken::Repeated)),
            (&[&format!("{right}, {right}")], Err(MalformedToken::Repeated)),
            (&[&right.replace(':', "\"")], Err(MalformedToken::NotCanonical)),
            (&["sha-256=:AAAA:"], Err(MalformedToken::NotCanonical)),
            (&[&format!("{right};a=1")], Err(MalformedToken::NotCanonical)),
        ];
        for (values, expected) in rows {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_DIGEST, value.parse().unwrap());
            }
            assert_eq!(promised(&headers), expected, "{values:?}");
        }
    }
}
