//! Paths that mean the same to every server.

/// Texts that end a segment's name for some servers, plain or once decoded: parameters, a query or a fragment follow.
const ENDS: [&str; 4] = [";", "%3b", "%3f", "%23"];

/// Whether all servers read a path in the same way.
pub(crate) fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let ambiguous = ["%25", "%2e", "%2f", "%5c", "\\"];
    !ambiguous.iter().any(|text| lower.contains(text)) && !lower.split('/').any(is_dots)
}

/// Whether a server may take the segment for `.` or `..`.
fn is_dots(segment: &str) -> bool {
    let rest = segment.trim_start_matches('.');
    let dots = segment.len() - rest.len();
    matches!(dots, 1 | 2) && (rest.is_empty() || ENDS.iter().any(|end| rest.starts_with(end)))
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
