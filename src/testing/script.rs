//! Scripted replies, which replace the answers of a fake Apple.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{gate::routing::Environment, testing::endpoint::Endpoint};

/// A scripted answer of a [`FakeApple`](crate::testing::FakeApple) to one call.
///
/// A reply starts as Apple's own answer ([`normal`](Self::normal)), as another answer ([`status`](Self::status),
/// [`oversized`](Self::oversized)) or as no answer ([`reset`](Self::reset), [`hang`](Self::hang)). The other methods
/// modify it.
///
/// ```
/// use std::time::Duration;
/// use tower_devicecheck::testing::{Endpoint, FakeApple, Reply};
///
/// let apple = FakeApple::new();
/// apple.script(Reply::status(503));
/// apple.script(Reply::status(429).header("retry-after", "7").body("Too Many Requests"));
/// apple.script(Reply::normal().delay(Duration::from_secs(2)));
/// apple.share(0.1, Reply::reset().for_endpoint(Endpoint::Validate));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Reply {
    /// `None` for Apple's own answer.
    status: Option<StatusCode>,
    headers: HeaderMap,
    body: Option<Bytes>,
    pub(super) delay: Duration,
    pub(super) fault: Option<Fault>,
    endpoint: Option<Endpoint>,
    environment: Option<Environment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Reset,
    Hang,
    CutShort,
}

const MAX_OVERSIZE: usize = 64 * 1024 * 1024;

impl Reply {
    /// Apple's own answer.
    pub fn normal() -> Self {
        Self {
            status: None,
            headers: HeaderMap::new(),
            body: None,
            delay: Duration::ZERO,
            fault: None,
            endpoint: None,
            environment: None,
        }
    }

    /// Answers any call with the given status and an empty body. The fake verifies nothing and sets no bits.
    ///
    /// # Panics
    ///
    /// Panics if `status` is not between 200 and 999, the range of final statuses.
    #[track_caller]
    pub fn status(status: u16) -> Self {
        assert!((200..1000).contains(&status), "{status} is not the status of an answer");
        Self { status: StatusCode::from_u16(status).ok(), ..Self::normal() }
    }

    /// Answers with status 200 and a body of this length, at most 64 MiB.
    pub fn oversized(bytes: usize) -> Self {
        Self::status(200).body(vec![b'x'; bytes.min(MAX_OVERSIZE)])
    }

    /// Does not answer: the connection is reset, and every call on it fails. In process, the call fails with an
    /// [`io::Error`](std::io::Error) of the kind `ConnectionReset`.
    pub fn reset() -> Self {
        Self { fault: Some(Fault::Reset), ..Self::normal() }
    }

    /// Does not answer: the call never ends by itself.
    pub fn hang() -> Self {
        Self { fault: Some(Fault::Hang), ..Self::normal() }
    }

    /// Cuts the answer short: `Content-Length` announces 64 bytes more than are sent, and then the connection
    /// (HTTP/1.1) or the stream (HTTP/2) is closed. In process, the call fails with an
    /// [`io::Error`](std::io::Error) of the kind `UnexpectedEof`.
    pub fn cut_short(mut self) -> Self {
        self.fault = Some(Fault::CutShort);
        self
    }

    /// Sets the body. Default: the body of Apple's own answer after [`normal`](Self::normal), otherwise empty.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sets a header. It replaces a header of the same name.
    ///
    /// # Panics
    ///
    /// Panics if the name or the value is not valid in a header.
    #[track_caller]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
            panic!("{name:?} with the value {value:?} is not a header");
        };
        self.headers.insert(name, value);
        self
    }

    /// Delays the answer after the fake has judged the call, on tokio's clock, which tests can pause. An update of bits
    /// takes effect even if the client gives up during the delay. Default: no delay.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Reserves this reply for calls to one endpoint. Default: any endpoint.
    pub fn for_endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Reserves this reply for calls to one environment. Default: any environment.
    pub fn for_environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    fn is_for(&self, endpoint: Option<Endpoint>, environment: Environment) -> bool {
        self.endpoint.is_none_or(|mine| Some(mine) == endpoint)
            && self.environment.is_none_or(|mine| mine == environment)
    }

    /// Whether the fake judges the call before it sends this reply.
    pub(super) fn is_normal(&self) -> bool {
        self.status.is_none() && !matches!(self.fault, Some(Fault::Reset | Fault::Hang))
    }

    /// Changes Apple's own answer into this reply.
    pub(super) fn apply(
        &self,
        (mut status, mut body): (StatusCode, Bytes),
        headers: &mut HeaderMap,
    ) -> (StatusCode, Bytes) {
        if let Some(scripted) = self.status {
            (status, body) = (scripted, Bytes::new());
        }
        if let Some(scripted) = &self.body {
            body = scripted.clone();
        }
        headers.extend(self.headers.clone());
        (status, body)
    }
}

/// The replies to the next calls.
#[derive(Default)]
pub(super) struct Script {
    next: VecDeque<Reply>,
    shares: Vec<Share>,
    always: Option<Reply>,
}

/// A reply to a share of the calls.
///
/// Each call adds the share to a sum. The call that raises the sum to one whole call gets the reply. This picks calls
/// evenly, and no test depends on chance.
struct Share {
    share: u64,
    sum: u64,
    reply: Reply,
}

/// One whole call. A share is an integer, so that ten tenths are exactly one.
const WHOLE: u64 = 1_000_000_000_000;
/// The most by which a sum of rounded shares, such as three thirds, falls short of one whole call.
const ROUNDING: u64 = 1_000_000;

impl Script {
    pub(super) fn push(&mut self, reply: Reply) {
        self.next.push_back(reply);
    }

    pub(super) fn always(&mut self, reply: Reply) {
        self.always = Some(reply);
    }

    pub(super) fn share(&mut self, fraction: f64, reply: Reply) {
        // The cast saturates, and turns NaN into zero.
        let share = (fraction.clamp(0.0, 1.0) * WHOLE as f64).round() as u64;
        self.shares.push(Share { share, sum: 0, reply });
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.next.len()
    }

    /// The reply to the call that arrives now.
    pub(super) fn next_reply(&mut self, endpoint: Option<Endpoint>, environment: Environment) -> Reply {
        let is_next = |reply: &Reply| reply.is_for(endpoint, environment);
        if let Some(reply) = self.next.iter().position(is_next).and_then(|i| self.next.remove(i)) {
            return reply;
        }
        let mut hit = None;
        for share in &mut self.shares {
            if share.reply.is_for(endpoint, environment) {
                share.sum += share.share;
                // If two shares pick this call, the second one gets a later call.
                if share.sum + ROUNDING >= WHOLE && hit.is_none() {
                    share.sum = share.sum.saturating_sub(WHOLE);
                    hit = Some(share.reply.clone());
                }
            }
        }
        hit.or_else(|| self.always.clone().filter(is_next)).unwrap_or_else(Reply::normal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_exact() {
        let cases: &[(&str, usize, &[f64], &[usize])] = &[
            ("none", 100, &[0.0], &[0]),
            ("all", 100, &[1.0], &[100]),
            ("a tenth", 10, &[0.1], &[1]),
            ("a third", 3, &[1.0 / 3.0], &[1]),
            ("a seventh", 7_000, &[1.0 / 7.0], &[1_000]),
            ("two that meet at the last call", 100, &[0.25, 0.5], &[25, 49]),
            ("which the next one makes up for", 101, &[0.25, 0.5], &[25, 50]),
            ("more than all", 100, &[7.0], &[100]),
            ("less than nothing", 100, &[-1.0], &[0]),
            ("no number", 100, &[f64::NAN], &[0]),
        ];
        for (name, calls, fractions, expected) in cases {
            let mut script = Script::default();
            for (status, fraction) in (500..).zip(*fractions) {
                script.share(*fraction, Reply::status(status));
            }
            let mut counts = vec![0; fractions.len()];
            for _ in 0..*calls {
                if let Some(status) = script.next_reply(None, Environment::Production).status {
                    counts[usize::from(status.as_u16() - 500)] += 1;
                }
            }
            assert_eq!(&counts, expected, "{name}");
        }
    }

    #[test]
    fn the_queue_goes_before_shares_and_these_before_always() {
        let mut script = Script::default();
        script.always(Reply::status(500));
        script.share(0.5, Reply::status(501));
        script.push(Reply::status(502).for_endpoint(Endpoint::QueryBits));
        script.push(Reply::status(503).for_environment(Environment::Development));
        script.push(Reply::status(504));
        let mut take = |endpoint, environment| {
            script.next_reply(Some(endpoint), environment).status.map_or(0, |status| status.as_u16())
        };
        use Endpoint::{QueryBits, Validate};
        use Environment::{Development, Production};
        assert_eq!(take(Validate, Production), 504);
        assert_eq!(take(Validate, Production), 500);
        assert_eq!(take(Validate, Production), 501);
        assert_eq!(take(QueryBits, Development), 502);
        assert_eq!(take(Validate, Development), 503);
        assert_eq!(take(Validate, Production), 500);
    }
}
