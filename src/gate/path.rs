//! Paths that mean the same to every server.

/// Texts that end a segment's name for some servers, plain or once decoded: parameters, a query or a fragment follow.
const ENDS: [&str; 4] = [";", "%3b", "%3f", "%23"];

/// Whether all servers read a path in the same way.
pub(crate) fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let ambiguous = ["%25", "%2e", "%2f", "%5c", "\\"];
    !ambiguous.iter().any(|text| lower.contains(text))
        && !path.split('/').any(|segment| matches!(name_of(segment), "." | ".."))
}

/// The shortest name for which a server may take the segment.
pub(crate) fn name_of(segment: &str) -> &str {
    let ends_at = |at: &usize| {
        let rest = &segment.as_bytes()[*at..];
        ENDS.iter()
            .any(|end| rest.get(..end.len()).is_some_and(|text| text.eq_ignore_ascii_case(end.as_bytes())))
    };
    // Each end begins with an ASCII character, so the text can be cut there.
    (0..segment.len()).find(ends_at).map_or(segment, |at| &segment[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_before_an_encoded_end_are_not_plain() {
        for path in ["/a/..;x/b", "/a/..%3bx/b", "/a/..%3Bx", "/a/.%3b/b", "/a/..%3f/b", "/a/..%23x/b", "/.."]
        {
            assert!(!is_plain(path), "{path}");
        }
        for path in ["/a/b%3bx", "/a/b;x", "/a/...%3b", "/a/..x%3b", "/a%3f%23", "/", "/a/.b"] {
            assert!(is_plain(path), "{path}");
        }
    }
}
