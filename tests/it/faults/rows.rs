//! The rows of the matrix.

use bytes::Bytes;
use h2::Reason;

use crate::faults::fault::{
    After, Announced, Answer, End, Fault, Identity,
    Protocol::{self, Http1, Http2},
    RetryAfter,
    Stage::{self, Kept, New},
};

pub(super) struct Row {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) stage: Stage,
    /// One after the other: they have the same outcome.
    pub(super) faults: Vec<Fault>,
}

const BOTH: &[Protocol] = &[Http1, Http2];
const STAGES: &[Stage] = &[New, Kept];

struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, name: &str, protocols: &[Protocol], stages: &[Stage], faults: &[Fault]) {
        for stage in stages {
            for protocol in protocols {
                let (name, faults) = (name.to_owned(), faults.to_vec());
                self.0.push(Row { name, protocol: *protocol, stage: *stage, faults });
            }
        }
    }

    fn answers<'a>(&mut self, name: &str, answers: impl IntoIterator<Item = (u16, &'a str)>) {
        let faults: Vec<_> =
            answers.into_iter().map(|(status, text)| Fault::Answer(answer(status, text))).collect();
        self.add(name, BOTH, &[Kept], &faults);
    }
}

fn answer(status: u16, text: &str) -> Answer {
    Answer { status, headers: Vec::new(), body: Bytes::from(text.to_owned()) }
}

fn answer_of(status: u16, name: &'static str, value: &[u8], body: impl Into<Bytes>) -> Fault {
    Fault::Answer(Answer { status, headers: vec![(name, value.to_vec())], body: body.into() })
}

/// All rows. Nobody may connect to `elsewhere`.
pub(super) fn rows(elsewhere: &str) -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    no_connection(&mut rows);
    connections_that_end(&mut rows);
    silence(&mut rows);
    statuses(&mut rows, elsewhere);
    busy(&mut rows);
    bodies(&mut rows);
    rows.0
}

fn no_connection(rows: &mut Rows) {
    for (name, fault) in [
        ("connection refused", Fault::Refused),
        ("closed before TLS", Fault::EndsBeforeTls(End::Close)),
        ("reset before TLS", Fault::EndsBeforeTls(End::Reset)),
        ("silent before TLS", Fault::SilentBeforeTls),
        ("no TLS", Fault::PlainText),
        ("certificate of another authority", Fault::Certificate(Identity::OtherAuthority)),
        ("certificate expired", Fault::Certificate(Identity::Expired)),
        ("certificate not yet valid", Fault::Certificate(Identity::NotYetValid)),
        ("certificate of another name", Fault::Certificate(Identity::OtherName)),
    ] {
        rows.add(name, BOTH, &[New], &[fault]);
    }
    rows.add("no such name in DNS", &[Http2], &[New], &[Fault::NoSuchName]);
    rows.add("DNS is silent", &[Http2], &[New], &[Fault::SilentName]);
}

fn connections_that_end(rows: &mut Rows) {
    for (verb, end) in [("closed", End::Close), ("reset", End::Reset)] {
        for (place, after, protocols) in [
            ("before the head", After::Nothing, BOTH),
            ("within the head", After::HalfHead, &[Http1]),
            ("after the head", After::Head, BOTH),
            ("after half a body", After::HalfBody, BOTH),
        ] {
            rows.add(&format!("{verb} {place}"), protocols, STAGES, &[Fault::Ends(after, end)]);
        }
        rows.add(&format!("{verb} while idle"), BOTH, &[Kept], &[Fault::EndsIdle(end)]);
    }
    for (name, fault) in [
        ("stream refused", Fault::ResetStream(After::Nothing, Reason::REFUSED_STREAM)),
        ("stream reset before the head", Fault::ResetStream(After::Nothing, Reason::INTERNAL_ERROR)),
        ("stream reset after half a body", Fault::ResetStream(After::HalfBody, Reason::CANCEL)),
        ("GOAWAY in the middle: no error", Fault::GoAway(Reason::NO_ERROR)),
        ("GOAWAY in the middle: an error", Fault::GoAway(Reason::INTERNAL_ERROR)),
        ("GOAWAY in the middle: too fast", Fault::GoAway(Reason::ENHANCE_YOUR_CALM)),
        ("GOAWAY, then the answer", Fault::GoAwayAfterwards),
    ] {
        rows.add(name, &[Http2], STAGES, &[fault]);
    }
    rows.add("GOAWAY, request unread", &[Http2], &[New], &[Fault::GoAwayUnread]);
    rows.add("GOAWAY while idle", &[Http2], &[Kept], &[Fault::GoAwayIdle]);
}

fn silence(rows: &mut Rows) {
    for (place, after, protocols) in [
        ("before the head", After::Nothing, BOTH),
        ("within the head", After::HalfHead, &[Http1]),
        ("after the head", After::Head, BOTH),
        ("after half a body", After::HalfBody, BOTH),
    ] {
        rows.add(&format!("silent {place}"), protocols, STAGES, &[Fault::Silent(after)]);
    }
    rows.add("a byte a second of the head", &[Http1], STAGES, &[Fault::Trickles(After::HalfHead)]);
    rows.add("a byte a second of the body", BOTH, STAGES, &[Fault::Trickles(After::Head)]);
}

fn statuses(rows: &mut Rows, elsewhere: &str) {
    let plain = |statuses: &mut dyn Iterator<Item = u16>| -> Vec<_> {
        statuses.map(|status| (status, "Status")).collect()
    };
    rows.answers("200", [(200, ""), (200, "OK")]);
    rows.answers(
        "200 with JSON, bits or much text",
        [
            (200, "{}"),
            (200, r#"{"bit0":true,"bit1":false,"last_update_time":"2026-01"}"#),
            (200, &"all is well ".repeat(100)),
        ],
    );
    rows.answers("200 with a web page", [(200, "<html><body>Welcome</body></html>")]);
    rows.answers("201 to 299", plain(&mut (201..300)));
    rows.answers("400 about the device token", [
        (400, "Bad Device Token"),
        (400, "Missing or incorrectly formatted device token payload"),
        (400, r#"{"responseCode":"400","responseMessage":"Missing or badly formatted device token payload"}"#),
    ]);
    rows.answers(
        "400 about our request",
        [
            (400, "Bad Bits"),
            (400, "Missing or incorrectly formatted bits"),
            (400, "Bad Timestamp"),
            (400, "Missing or incorrectly formatted time stamp"),
            (400, "Bad Payload"),
        ],
    );
    for text in [
        "Bad Authorization Token",
        "Missing or badly formatted authorization token",
        "BAD_AUTHENTICATION_TOKEN",
        "Bad authorization token. No device token was read",
    ] {
        rows.answers(&format!("400 {text}"), [(400, text)]);
    }
    rows.answers(
        "400, empty or unknown",
        [
            (400, ""),
            (400, " \r\n"),
            (400, "Bad Request"),
            (400, "token"),
            (400, "<html><body>Your device token is blocked</body></html>"),
            (400, &format!("device token {}", "blocked ".repeat(100))),
        ],
    );
    for status in [401, 403] {
        rows.answers(&status.to_string(), [(status, "")]);
    }
    rows.answers("404, 405", plain(&mut (404..406)));
    let others = [402].into_iter().chain(406..429).chain(430..500);
    rows.answers("all other 4xx", plain(&mut others.into_iter()));
    rows.answers("500, 501, 505 to 599", plain(&mut (500..502).chain(505..600)));
    rows.answers("502, 503, 504", plain(&mut (502..505)));
    for place in [elsewhere, "/elsewhere", "http://127.0.0.1:9/", "//", ""] {
        let redirects: Vec<_> =
            (300..309).map(|status| answer_of(status, "location", place.as_bytes(), "Moved")).collect();
        let place = if place == elsewhere { "another host" } else { place };
        rows.add(&format!("300 to 308, to {place:?}"), BOTH, &[Kept], &redirects);
    }
}

fn busy(rows: &mut Rows) {
    for (name, time) in [
        ("absent", RetryAfter::Absent),
        ("0", RetryAfter::Seconds(0)),
        ("7", RetryAfter::Seconds(7)),
        ("3600", RetryAfter::Seconds(3600)),
        ("a number of 26 digits", RetryAfter::Huge),
        ("a date in 60 s", RetryAfter::Date(60)),
        ("a date of the past", RetryAfter::PastDate),
        ("-5", RetryAfter::Rubbish(b"-5")),
        ("1.5", RetryAfter::Rubbish(b"1.5")),
        ("empty", RetryAfter::Rubbish(b"")),
        ("a word", RetryAfter::Rubbish(b"soon")),
        ("3, 9", RetryAfter::Rubbish(b"3, 9")),
        ("no UTF-8", RetryAfter::Rubbish(b"\xff\xfe")),
        ("twice: 3 and 9", RetryAfter::Repeated(3, 9)),
        ("twice: 9 and 3", RetryAfter::Repeated(9, 3)),
    ] {
        rows.add(&format!("429, `Retry-After` {name}"), BOTH, &[Kept], &[Fault::Busy(429, time)]);
    }
    for status in [500, 503] {
        let fault = Fault::Busy(status, RetryAfter::Seconds(20));
        rows.add(&format!("{status}, `Retry-After` 20"), BOTH, &[Kept], &[fault]);
    }
}

fn bodies(rows: &mut Rows) {
    for status in [200, 400, 429, 503] {
        for (length, announced) in [("announced", Announced::Right), ("not announced", Announced::Not)] {
            let fault = Fault::Flood(status, announced);
            rows.add(&format!("{status} with 100 MiB, length {length}"), BOTH, &[Kept], &[fault]);
        }
    }
    let bomb = |coding: &'static str| answer_of(200, "content-encoding", coding.as_bytes(), bomb());
    rows.add("200 with a gzip bomb", BOTH, &[Kept], &[bomb("gzip"), bomb("GZIP, gzip")]);
    rows.add(
        "200, not UTF-8",
        BOTH,
        &[Kept],
        &[Fault::Answer(Answer {
            status: 200,
            headers: Vec::new(),
            body: Bytes::from_static(b"OK \xff\xfe"),
        })],
    );
    rows.add(
        "400, not UTF-8",
        BOTH,
        &[Kept],
        &[Fault::Answer(Answer {
            status: 400,
            headers: Vec::new(),
            body: Bytes::from_static(b"\xff\xfe\xc3"),
        })],
    );
    rows.add(
        "500, a header that is not UTF-8",
        BOTH,
        &[Kept],
        &[answer_of(500, "x-b3-traceid", b"\xff\xfe", "")],
    );
    let (refused, genuine) = (answer(400, "Bad Device Token"), answer(200, ""));
    rows.add("two answers: 400, 200", &[Http1], STAGES, &[Fault::Twice(refused.clone(), genuine.clone())]);
    rows.add("two answers: 200, 400", &[Http1], STAGES, &[Fault::Twice(genuine.clone(), refused)]);
    rows.add(
        "bytes after the answer",
        &[Http1],
        STAGES,
        &[Fault::Twice(
            answer(400, "Bad Device Token"),
            Answer { body: Bytes::from_static(&[0; 4096]), ..genuine },
        )],
    );
    for (name, bytes) in [
        ("not HTTP", &b"SSH-2.0-OpenSSH_9.9\r\n\r\n"[..]),
        ("two different lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\nhello"),
        ("a length below zero", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
        (
            "a chunk without a length",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello\r\n0\r\n\r\n",
        ),
        ("a header without a colon", b"HTTP/1.1 200 OK\r\ncontent-length\r\n\r\n"),
    ] {
        rows.add(name, &[Http1], &[New], &[Fault::Raw(bytes)]);
    }
}

/// The gzip form of 600 KB of zeros, in less than 4 KiB.
fn bomb() -> Bytes {
    let mut bits = Vec::new();
    let mut push =
        |code: u32, length: u32| bits.extend((0..length).rev().map(|place| code >> place & 1 == 1));
    // The last block, with the fixed codes: `1`, then `01` from its lowest bit on.
    push(0b110, 3);
    // A zero, and then copies of 258 bytes from one byte before.
    push(0b0011_0000, 8);
    for _ in 0..2_325 {
        push(0b1100_0101, 8);
        push(0, 5);
    }
    push(0, 7);
    let deflated = bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |sum, bit| sum << 1 | u8::from(*bit)));
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    head.into_iter().chain(deflated).chain([0; 8]).collect()
}
