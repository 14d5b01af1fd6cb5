//! The faults, and the outcome of each by the table of decisions: the docs of `Rejection` and `docs/operating.md`. No
//! code of the client is used.

use std::ops::RangeInclusive;

use bytes::Bytes;
use h2::Reason;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub(super) const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// The connection on which a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The first one.
    New,
    /// One that has served a request.
    Kept,
}

/// The certificate that the server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    Good,
    OtherAuthority,
    Expired,
    NotYetValid,
    OtherName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Close,
    Reset,
}

/// The part of an answer that comes before the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Nothing,
    /// Only in HTTP/1.1.
    HalfHead,
    Head,
    HalfBody,
}

/// `Retry-After` of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryAfter {
    Absent,
    Seconds(u64),
    /// A date so many seconds ahead.
    Date(u64),
    PastDate,
    /// More seconds than 64 bits hold.
    Huge,
    /// Anything that is neither seconds nor a date.
    Rubbish(&'static [u8]),
    /// Two headers, in seconds.
    Repeated(u64, u64),
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, Vec<u8>)>,
    pub(super) body: Bytes,
}

/// The length that a body of 100 MiB has according to its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    Right,
    /// It ends with the connection, or with the stream.
    Not,
}

#[derive(Clone, Debug)]
pub(super) enum Fault {
    None,
    // There is no connection.
    Refused,
    EndsBeforeTls(End),
    SilentBeforeTls,
    PlainText,
    Certificate(Identity),
    NoSuchName,
    SilentName,
    // A connection ends, or does not, during a request.
    Ends(After, End),
    Silent(After),
    /// One byte each second.
    Trickles(After),
    ResetStream(After, Reason),
    /// Reads nothing, and says so.
    GoAwayUnread,
    /// Ends the connection with this reason in the middle of the request.
    GoAway(Reason),
    /// Lets the request end, and takes no other.
    GoAwayAfterwards,
    // A connection ends between two requests.
    EndsIdle(End),
    GoAwayIdle,
    // Answers.
    Answer(Answer),
    Busy(u16, RetryAfter),
    /// A body of 100 MiB.
    Flood(u16, Announced),
    /// Two answers to one request.
    Twice(Answer, Answer),
    /// These bytes of HTTP/1.1.
    Raw(&'static [u8]),
}

impl Fault {
    /// Whether it strikes where a connection is accepted.
    pub(super) const fn is_of_connection(&self) -> bool {
        matches!(
            self,
            Self::EndsBeforeTls(_)
                | Self::SilentBeforeTls
                | Self::PlainText
                | Self::Certificate(_)
                | Self::GoAwayUnread
        )
    }

    pub(super) const fn is_of_names(&self) -> bool {
        matches!(self, Self::NoSuchName | Self::SilentName)
    }

    /// Whether it can strike one attempt and spare the next one.
    pub(super) const fn strikes_once(&self) -> bool {
        self.is_of_connection()
            || matches!(
                self,
                Self::Ends(..)
                    | Self::Silent(_)
                    | Self::Trickles(_)
                    | Self::ResetStream(..)
                    | Self::GoAway(_)
                    | Self::GoAwayAfterwards
            )
    }

    /// The seconds after which deadlines end the first and the second attempt: 2 for a connection, 3 for an attempt, and
    /// 5 for both.
    pub(super) const fn deadlines(&self) -> &'static [u64] {
        match self {
            Self::Silent(_) | Self::Trickles(_) => &[3, 2],
            Self::SilentBeforeTls | Self::SilentName => &[2, 2],
            _ => &[],
        }
    }
}

/// The outcome that a fault has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) status: u16,
    pub(super) code: &'static str,
    /// The requests that reach Apple.
    pub(super) calls: usize,
    /// The connections that are opened at most.
    pub(super) connections: usize,
    pub(super) retry_after: Option<RangeInclusive<u64>>,
    /// The seconds for which Apple is left alone.
    pub(super) hold: Option<u64>,
    /// The seconds until the client's deadlines have ended it.
    pub(super) waits: u64,
}

/// One attempt at a call.
enum Attempt {
    NoConnection,
    /// The server has not read it.
    Unread,
    /// The connection ended before the answer.
    Ended,
    OutOfTime,
    Served,
    Means(Class),
}

/// The rows of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Genuine,
    Refused,
    Throttled(RetryAfter),
    Unavailable,
    /// A plain 502, 503 or 504.
    Momentary,
    Down(RetryAfter),
    Misconfigured,
    RefusedProviderToken,
}

fn attempt(fault: &Fault) -> Attempt {
    match fault {
        Fault::Refused
        | Fault::EndsBeforeTls(_)
        | Fault::SilentBeforeTls
        | Fault::PlainText
        | Fault::Certificate(_)
        | Fault::NoSuchName
        | Fault::SilentName => Attempt::NoConnection,
        Fault::Ends(..) | Fault::GoAway(_) => Attempt::Ended,
        Fault::Silent(_) | Fault::Trickles(_) => Attempt::OutOfTime,
        Fault::GoAwayUnread | Fault::ResetStream(_, Reason::REFUSED_STREAM) => Attempt::Unread,
        // A stream that is reset says nothing about its connection.
        Fault::ResetStream(..) => Attempt::Means(Class::Unavailable),
        Fault::None | Fault::EndsIdle(_) | Fault::GoAwayIdle | Fault::GoAwayAfterwards => Attempt::Served,
        Fault::Answer(answer) | Fault::Twice(answer, _) => Attempt::Means(class(answer)),
        Fault::Busy(429, time) => Attempt::Means(Class::Throttled(*time)),
        Fault::Busy(_, time) => Attempt::Means(Class::Down(*time)),
        // A body over 4 KiB is unreadable. The status counts.
        Fault::Flood(429, _) => Attempt::Means(Class::Throttled(RetryAfter::Absent)),
        Fault::Flood(502..=504, _) => Attempt::Means(Class::Momentary),
        // Not HTTP: unreadable, too.
        Fault::Flood(..) | Fault::Raw(_) => Attempt::Means(Class::Unavailable),
    }
}

/// The table of answers.
fn class(answer: &Answer) -> Class {
    let text = String::from_utf8_lossy(&answer.body).to_lowercase();
    let is_page =
        answer.body.contains(&b'<') || answer.headers.iter().any(|(_, value)| value == b"text/html");
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    match answer.status {
        200 if is_page => Class::Misconfigured,
        200 if answer.body.len() > 256 || !answer.body.is_ascii() || text.starts_with(['{', '[']) => {
            Class::Unavailable
        }
        200 => Class::Genuine,
        400 if says(&["authorization token", "authentication_token"]) => Class::RefusedProviderToken,
        400 if says(&["device token"]) && !is_page && text.len() <= 256 => Class::Refused,
        400 if says(&["device token"]) => Class::Unavailable,
        400 if says(&["time stamp", "timestamp", "payload", "bits"]) => Class::Misconfigured,
        401 | 403 => Class::RefusedProviderToken,
        404 | 405 => Class::Misconfigured,
        429 => Class::Throttled(RetryAfter::Absent),
        502..=504 => Class::Momentary,
        _ => Class::Unavailable,
    }
}

/// The outcome by the table of a fault that strikes on such a connection: each time, or `once`.
pub(super) fn expected(fault: &Fault, stage: Stage, once: bool) -> Expected {
    // One retry: after no connection, a request that was not read, silence, a reused connection that ended, or a
    // plain 502, 503 or 504. It goes over another connection.
    let (is_repeated, calls_each) = match attempt(fault) {
        Attempt::NoConnection => (true, 0),
        Attempt::Unread | Attempt::OutOfTime => (true, 1),
        Attempt::Ended => (stage == Stage::Kept, 1),
        Attempt::Means(Class::Momentary | Class::RefusedProviderToken) => (true, 1),
        Attempt::Served | Attempt::Means(_) => (false, 1),
    };
    let class = match attempt(fault) {
        Attempt::Means(class) => class,
        Attempt::Served => Class::Genuine,
        _ => Class::Unavailable,
    };
    let class = if once && is_repeated { Class::Genuine } else { class };
    let (status, code) = match class {
        Class::Genuine => (200, ""),
        Class::Refused => (401, "refused_token"),
        Class::Throttled(_) => (503, "throttled"),
        Class::Unavailable | Class::Momentary | Class::Down(_) => (503, "unavailable"),
        Class::Misconfigured | Class::RefusedProviderToken => (500, "misconfigured"),
    };
    let calls = match (is_repeated, once) {
        (false, _) => 1,
        (true, false) => 2 * calls_each,
        (true, true) => calls_each + 1,
    };
    let hold = match class {
        Class::Throttled(time) | Class::Down(time) => seconds(time).map(|time| time.clamp(1, 300)),
        _ => None,
    };
    let retry_after = match class {
        Class::Throttled(RetryAfter::Date(_)) => Some(1..=300),
        Class::Throttled(_) => {
            let soonest = hold.unwrap_or(5);
            Some(soonest..=(soonest + soonest / 2).min(300))
        }
        Class::Unavailable | Class::Momentary | Class::Down(_) => Some(1..=5),
        _ => None,
    };
    let waits = fault.deadlines().iter().take(if once { 1 } else { 2 }).sum();
    // A long body ends an HTTP/1.1 connection, too.
    let is_other_connection =
        is_repeated && (matches!(fault, Fault::Flood(..)) || !matches!(attempt(fault), Attempt::Means(_)));
    let is_gone = matches!(fault, Fault::EndsIdle(_) | Fault::GoAwayIdle);
    let connections = 1 + usize::from(is_other_connection) + usize::from(is_gone);
    Expected { status, code, calls, connections, retry_after, hold, waits }
}

fn seconds(time: RetryAfter) -> Option<u64> {
    match time {
        RetryAfter::Absent | RetryAfter::Rubbish(_) => None,
        RetryAfter::Seconds(seconds) | RetryAfter::Date(seconds) => Some(seconds),
        RetryAfter::PastDate => Some(0),
        RetryAfter::Huge => Some(u64::MAX),
        // Both are kept only by the longer one.
        RetryAfter::Repeated(first, second) => Some(first.max(second)),
    }
}
