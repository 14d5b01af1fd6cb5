//! `RateLimiter`: permits in time, the client that a request counts for, and its memory.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{HeaderName, Request, StatusCode, header::RETRY_AFTER, request};
use http_body_util::Full;
use tower_devicecheck::limit::{LimitKey, Limiter, RateLimiter, forwarded_for, peer_address};

use crate::support::{App, Apple, get};

const MINUTE: Duration = Duration::from_secs(60);

fn by_peer(head: &request::Parts) -> Option<LimitKey> {
    peer_address(head).map(LimitKey::from)
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// A request with this token from this address.
fn from(address: &str, token: &str) -> Request<Full<Bytes>> {
    let mut request = get(token);
    request.extensions_mut().insert(SocketAddr::new(ip(address), 4711));
    request
}

fn head_from(address: impl Into<IpAddr>) -> request::Parts {
    let mut head = Request::new(()).into_parts().0;
    head.extensions.insert(address.into());
    head
}

#[tokio::test(start_paused = true)]
async fn one_address_floods_and_the_others_are_served() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_limiter(RateLimiter::new(3, MINUTE, by_peer)));
    let known = apple.genuine();
    let mut served = 0;
    for number in 0..100 {
        let token = if number == 0 { known.clone() } else { apple.fake.forged_token() };
        let status = app.send(from("192.0.2.1", &token)).await.status();
        served += usize::from(status != StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!((served, apple.calls()), (3, 3));
    // The flooder's own hits go on, and so do others.
    assert_eq!(app.send(from("192.0.2.1", &known)).await.status(), StatusCode::OK);
    assert_eq!(app.send(from("192.0.2.2", &apple.genuine())).await.status(), StatusCode::OK);
    assert_eq!(apple.calls(), 4);
    // One permit comes back after a third of the time.
    tokio::time::advance(MINUTE / 3).await;
    for expected in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(app.send(from("192.0.2.1", &apple.genuine())).await.status(), expected);
    }
    assert_eq!(apple.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_time_until_the_next_permit() {
    let seconds = Duration::from_secs;
    let day = seconds(24 * 60 * 60);
    type Row<'a> = (&'a str, u32, Duration, Duration, u64);
    // Permits, in this time; the time that passes once they are spent, and the seconds that are left.
    let rows: &[Row<'_>] = &[
        ("at once", 1, MINUTE, Duration::ZERO, 60),
        ("later", 1, MINUTE, seconds(59), 1),
        ("rounded up", 1, MINUTE, Duration::from_millis(57_001), 3),
        ("a part", 30, MINUTE, Duration::ZERO, 2),
        ("less than a second", 600, MINUTE, Duration::ZERO, 1),
        ("a nanosecond", 1, MINUTE, MINUTE - Duration::from_nanos(1), 1),
        ("days", 1, day * 7, day, 6 * 24 * 60 * 60),
    ];
    for (name, permits, per, passed, left) in rows {
        let apple = Apple::new();
        let app = App::new(&apple.layer().with_limiter(RateLimiter::new(*permits, *per, by_peer)));
        for _ in 0..*permits {
            assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK, "{name}");
        }
        tokio::time::advance(*passed).await;
        let response = app.get(&apple.genuine()).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS, "{name}");
        assert_eq!(response.headers()[RETRY_AFTER], left.to_string(), "{name}");
        // A client that waits for this time gets its permit.
        tokio::time::advance(seconds(*left)).await;
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK, "{name}");
        assert_eq!(apple.calls(), *permits as usize + 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_shares_a_limit() {
    type Row<'a> = (&'a str, &'a str, &'a str, bool);
    let rows: &[Row<'_>] = &[
        ("the same", "192.0.2.1", "192.0.2.1", true),
        ("neighbours", "192.0.2.1", "192.0.2.2", false),
        ("IPv4 in IPv6", "192.0.2.1", "::ffff:192.0.2.1", true),
        ("two of them", "::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
        ("one IPv6 network", "2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", true),
        ("two IPv6 networks", "2001:db8:0:1::1", "2001:db8:0:2::1", false),
        ("IPv4 and its bytes in IPv6", "192.0.2.1", "c000:201::", false),
    ];
    for (name, first, second, is_shared) in rows {
        let apple = Apple::new();
        let app = App::new(&apple.layer().with_limiter(RateLimiter::new(1, MINUTE, by_peer)));
        assert_eq!(app.send(from(first, &apple.genuine())).await.status(), StatusCode::OK, "{name}");
        let status = app.send(from(second, &apple.genuine())).await.status();
        assert_eq!(status == StatusCode::TOO_MANY_REQUESTS, *is_shared, "{name}");
        assert_eq!(apple.calls(), if *is_shared { 1 } else { 2 }, "{name}");
    }
    let with = |address: &str, bits| LimitKey::with_ipv6_prefix(ip(address), bits);
    for (bits, first, second, is_shared) in [
        (0, "2001:db8::1", "fe80::1", true),
        (0, "192.0.2.1", "192.0.2.2", false),
        (48, "2001:db8:1:2::", "2001:db8:1:ffff::", true),
        (48, "2001:db8:1:2::", "2001:db8:2:2::", false),
        (127, "2001:db8::2", "2001:db8::3", true),
        (128, "2001:db8::2", "2001:db8::3", false),
        (u8::MAX, "2001:db8::2", "2001:db8::3", false),
    ] {
        assert_eq!(with(first, bits) == with(second, bits), is_shared, "{first} {second} /{bits}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_key_share_one_limit() {
    let apple = Apple::new();
    let header = HeaderName::from_static("x-forwarded-for");
    let limiter = RateLimiter::new(1, MINUTE, move |head: &request::Parts| {
        forwarded_for(head, &header, 2).map(LimitKey::from)
    });
    let app = App::new(&apple.layer().with_limiter(limiter.clone()));
    // Sent in this order: the first one without an address takes the one permit of all of them.
    let rows: &[(&str, &[&[u8]], u16)] = &[
        ("two hops", &[b"192.0.2.1, 10.0.0.1"], 200),
        ("the client adds to the left", &[b"10.9.9.9, 192.0.2.1, 10.0.0.1"], 429),
        ("the client adds a line", &[b"192.0.2.99", b"192.0.2.1", b"10.0.0.1"], 429),
        ("garbage on the left", &[b"\xff\"\\, 192.0.2.1, 10.0.0.1"], 429),
        ("another client", &[b"192.0.2.1, 192.0.2.2, 10.0.0.1"], 200),
        ("no header", &[], 200),
        ("around a proxy", &[b"192.0.2.3"], 429),
        ("garbage", &[b"\xff\xfe, 10.0.0.1"], 429),
        ("nothing", &[b","], 429),
        ("unknown", &[b"unknown, 10.0.0.1"], 429),
        ("a name", &[b"localhost, 10.0.0.1"], 429),
    ];
    for (name, lines, expected) in rows {
        let mut request = get(&apple.genuine());
        for line in *lines {
            request.headers_mut().append("x-forwarded-for", line.to_vec().try_into().unwrap());
        }
        assert_eq!(app.send(request).await.status().as_u16(), *expected, "{name}");
    }
    assert_eq!((apple.calls(), limiter.len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_full_limiter_keeps_those_that_it_has() {
    let apple = Apple::new();
    let limiter = RateLimiter::new(2, MINUTE, by_peer).with_capacity(2);
    let app = App::new(&apple.layer().with_limiter(limiter.clone()));
    for (step, address, expected) in [
        (0, "192.0.2.1", 200),
        (0, "192.0.2.2", 200),
        (0, "192.0.2.3", 200), // Two permits for all others.
        (0, "192.0.2.4", 200),
        (0, "192.0.2.5", 429),
        (0, "192.0.2.1", 200), // Its own second one.
        (0, "192.0.2.1", 429),
        (30, "192.0.2.5", 200), // The bucket of 192.0.2.2 is full again: there is room.
        (0, "192.0.2.5", 200),
        (0, "192.0.2.5", 429),
        (0, "192.0.2.6", 200), // The others' one permit that came back.
        (0, "192.0.2.7", 429),
    ] {
        tokio::time::advance(Duration::from_secs(step)).await;
        assert_eq!(app.send(from(address, &apple.genuine())).await.status().as_u16(), expected, "{address}");
        assert!(limiter.len() <= 2);
    }
    assert_eq!(apple.calls(), 8);
}

#[tokio::test(start_paused = true)]
async fn clones_in_two_layers_are_one_limit() {
    let apple = Apple::new();
    let limiter = RateLimiter::new(1, MINUTE, |_: &request::Parts| Some(LimitKey::from("everybody")));
    let layer = apple.layer().with_limiter(limiter.clone());
    let apps = [App::new(&layer), App::new(&apple.layer().with_limiter(limiter.clone()))];
    assert_eq!(apps[0].status(&apple.genuine()).await, StatusCode::OK);
    for app in &apps {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!((apple.calls(), limiter.len()), (1, 1));
    assert_eq!(format!("{limiter:?}"), "RateLimiter { permits: 1, per: 60s, clients: 1, .. }");
}

#[tokio::test(start_paused = true)]
async fn a_million_addresses_take_less_than_10_megabytes_and_no_request_pays_for_many() {
    const MILLION: u32 = 1_000_000;
    let mut flooded = None;
    let mut times = Vec::with_capacity(MILLION as usize);
    let mut passed = 0;
    let used = measure(|| {
        let limiter = RateLimiter::new(30, MINUTE, by_peer);
        for number in 0..MILLION {
            let address = Ipv6Addr::from_bits(u128::from(number) << 64 | 1);
            let head = head_from(address);
            let started = Instant::now();
            passed += usize::from(limiter.check(&head).is_ok());
            times.push(started.elapsed());
        }
        flooded = Some(limiter);
    });
    let limiter = flooded.unwrap();
    let kilobytes = used.bytes_current / 1_000;
    // Those that have a bucket, and the 30 permits of all the others.
    assert_eq!((limiter.len(), passed), (100_000, 100_030));
    assert!(kilobytes <= 10_000, "{kilobytes} kB");

    // All the buckets are full again at once.
    tokio::time::advance(MINUTE).await;
    let address = |number: u8| head_from(Ipv4Addr::new(192, 0, 2, number));
    let started = Instant::now();
    assert_eq!(limiter.check(&address(0)), Ok(()));
    let first = started.elapsed();
    // It has removed two, and made its own.
    assert_eq!(limiter.len(), 100_000 - 1);
    for number in 1..=255 {
        assert_eq!(limiter.check(&address(number)), Ok(()));
    }
    assert_eq!(limiter.len(), 100_000 - 256);
    times.sort_unstable();
    let (median, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{kilobytes} kB; a check takes {median:?}, the longest of a million {last:?}");
    println!("{first:?} for the first one after all buckets are full again");
}
