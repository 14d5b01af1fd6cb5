//! The address of a client: of the connection, or of a proxy's header.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderName, request};

/// The address that a server or an outer layer has put into the extensions of a request: as a [`SocketAddr`], otherwise
/// as an [`IpAddr`].
///
/// Behind a proxy it is the proxy's; see [`forwarded_for`]. axum puts a `ConnectInfo<SocketAddr>` there instead, and
/// tonic a `TcpConnectInfo`: take the address out of those in the closure.
#[must_use]
pub fn peer_address(head: &request::Parts) -> Option<IpAddr> {
    let extensions = &head.extensions;
    extensions.get::<SocketAddr>().map(SocketAddr::ip).or_else(|| extensions.get::<IpAddr>().copied())
}

/// The address of the client, as the outermost of your proxies saw it: from a header to which each of them appends the
/// address of its own client, `X-Forwarded-For` or `Forwarded` (RFC 7239).
///
/// `hops` is the number of your proxies. The address is the one at that place from the right; clients wrote all that is
/// further to the left. It may have a port, brackets and quotes. `None`, if there are fewer addresses, if there is no
/// address at that place, or if `hops` is zero; a [`RateLimiter`](crate::limit::RateLimiter) then counts the request
/// with all those that have no key.
///
/// ```
/// use std::time::Duration;
/// use http::{HeaderName, request};
/// use tower_devicecheck::limit::{LimitKey, RateLimiter, forwarded_for};
///
/// // A CDN, and a load balancer behind it.
/// let header = HeaderName::from_static("x-forwarded-for");
/// let limiter = RateLimiter::new(30, Duration::from_secs(60), move |head: &request::Parts| {
///     forwarded_for(head, &header, 2).map(LimitKey::from)
/// });
/// ```
///
/// # Danger
///
/// With more hops than there are proxies, clients write the address themselves: each request can have a limit of its
/// own. So can a client that reaches the server around the proxies. With fewer hops, all clients of a proxy share one
/// limit, and one of them can use it up. A header that the proxies neither append to nor replace is the client's.
#[must_use]
pub fn forwarded_for(head: &request::Parts, header: &HeaderName, hops: usize) -> Option<IpAddr> {
    let lines: Vec<&[u8]> = head.headers.get_all(header).iter().map(|line| line.as_bytes()).collect();
    // Split from the right and at every comma: a quote that a client has opened on the left swallows nothing.
    let mut elements = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    let mut found = None;
    for _ in 0..hops {
        found = Some(elements.next().filter(|element| is_whole(element))?);
    }
    address(str::from_utf8(found?).ok()?)
}

/// Whether no comma inside of quotes has cut the element. A proxy may quote text of the client's, such as its `Host`.
fn is_whole(element: &[u8]) -> bool {
    let quotes = element.iter().filter(|byte| **byte == b'"').count();
    quotes % 2 == 0 && !element.contains(&b'\\')
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`, each also in quotes, alone or as the
/// parameter `for`.
fn address(element: &str) -> Option<IpAddr> {
    let node = if element.contains('=') {
        // A semicolon in quotes may be the client's: its `Host`, for instance.
        let mut is_quoted = false;
        let ends = |byte: char| {
            is_quoted ^= byte == '"';
            byte == ';' && !is_quoted
        };
        element.split(ends).find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case("for").then_some(value)
        })?
    } else {
        element
    };
    let node = node.trim();
    let node = node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node);
    let in_brackets = || node.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    node.parse()
        .ok()
        .or_else(|| in_brackets().map(IpAddr::V6))
        .or_else(|| node.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(lines: &[&[u8]]) -> request::Parts {
        let mut request = Request::builder();
        for line in lines {
            request = request.header("x-forwarded-for", *line);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_place_from_the_right_decides() {
        type Row<'a> = (&'a str, &'a [&'a [u8]], usize, Option<&'a str>);
        let rows: &[Row<'_>] = &[
            ("no header", &[], 1, None),
            ("no hops", &[b"192.0.2.1"], 0, None),
            ("one hop", &[b"192.0.2.1"], 1, Some("192.0.2.1")),
            ("the client writes on the left", &[b"10.0.0.1, 192.0.2.1"], 1, Some("192.0.2.1")),
            ("two hops", &[b"10.0.0.1, 192.0.2.1, 192.0.2.2"], 2, Some("192.0.2.1")),
            ("too many hops", &[b"192.0.2.1, 192.0.2.2"], 3, None),
            ("the most hops", &[b"192.0.2.1, 192.0.2.2"], usize::MAX, None),
            ("several lines", &[b"10.0.0.1", b"192.0.2.1,192.0.2.2", b"192.0.2.3"], 3, Some("192.0.2.1")),
            ("a port", &[b"192.0.2.1:65535"], 1, Some("192.0.2.1")),
            ("no port", &[b"192.0.2.1:"], 1, None),
            ("IPv6", &[b"2001:db8::1"], 1, Some("2001:db8::1")),
            ("IPv6 in brackets", &[b"[2001:db8::1]"], 1, Some("2001:db8::1")),
            ("IPv6 and a port", &[b" [2001:db8::1]:443 "], 1, Some("2001:db8::1")),
            ("IPv6 in quotes", &[b"\"[2001:db8::1]:443\""], 1, Some("2001:db8::1")),
            ("IPv6 in IPv4's place", &[b"::ffff:192.0.2.1"], 1, Some("::ffff:192.0.2.1")),
            ("IPv4 in brackets", &[b"[192.0.2.1]"], 1, None),
            ("half a bracket", &[b"[2001:db8::1"], 1, None),
            ("half a quote", &[b"\"192.0.2.1"], 1, None),
            ("a zone", &[b"fe80::1%eth0"], 1, None),
            ("Forwarded", &[b"for=192.0.2.1;proto=https;by=203.0.113.43"], 1, Some("192.0.2.1")),
            ("Forwarded, IPv6", &[b"proto=https; For=\"[2001:db8::1]:4711\""], 1, Some("2001:db8::1")),
            ("Forwarded without for", &[b"proto=https;by=192.0.2.1"], 1, None),
            ("Forwarded, a hidden client", &[b"for=_secret"], 1, None),
            ("unknown", &[b"unknown"], 1, None),
            ("nothing", &[b""], 1, None),
            ("nothing in the right place", &[b"192.0.2.1, "], 1, None),
            ("nothing beside the right place", &[b", 192.0.2.1"], 1, Some("192.0.2.1")),
            ("garbage of the client's", &[b"\xff\x80 \"', 192.0.2.1"], 1, Some("192.0.2.1")),
            ("garbage in the right place", &[b"192.0.2.2, \xff"], 1, None),
            ("a quote that the client opens", &[b"for=\"x", b"for=192.0.2.1"], 1, Some("192.0.2.1")),
            ("a host with commas", &[b"for=192.0.2.1;host=\"a,for=10.0.0.1,b\""], 1, None),
            ("the same, further left", &[b"for=192.0.2.1;host=\"a,for=10.0.0.1,b\""], 2, None),
            ("the same, half", &[b"for=192.0.2.1;host=\"a,for=10.0.0.1;b=\""], 1, None),
            ("the same, escaped", &[b"for=192.0.2.1;host=\"a\\\",for=10.0.0.1;b=\\\"\""], 1, None),
        ];
        let header = HeaderName::from_static("x-forwarded-for");
        for (name, lines, hops, expected) in rows {
            let found = forwarded_for(&head(lines), &header, *hops);
            assert_eq!(found, expected.map(|address| address.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn the_address_of_the_connection() {
        let [first, second]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let mut head = head(&[b"192.0.2.3"]);
        assert_eq!(peer_address(&head), None);
        head.extensions.insert(first);
        assert_eq!(peer_address(&head), Some(first));
        head.extensions.insert(SocketAddr::new(second, 1));
        assert_eq!(peer_address(&head), Some(second));
    }
}
