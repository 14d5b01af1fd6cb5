//! Paths that mean the same to every server.

/// Whether all servers read a path in the same way.
pub(crate) fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let ambiguous = ["%25", "%2e", "%2f", "%5c", "\\"];
    !ambiguous.iter().any(|text| lower.contains(text))
        && !path.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}
