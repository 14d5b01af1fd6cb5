//! The state of a fake Apple, and its answer to one call.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, DATE},
    request,
};

use crate::gate::routing::Environment;
use crate::runtime::{since_epoch, wall_clock};
use crate::testing::rules::{Apple, Fingerprint, fingerprint, provider_token};
use crate::testing::script::{Reply, Script};
use crate::testing::{endpoint::Endpoint, tokens};

pub(super) struct FakeAppleState {
    pub(super) apple: Apple,
    pub(super) script: Script,
    pub(super) counts: CallCounts,
    tokens: usize,
    traces: u64,
}

/// The outcome of a call.
pub(super) enum Played {
    Whole(Response<Bytes>),
    CutShort(Response<Bytes>),
    Reset,
}

impl FakeAppleState {
    pub(super) fn new(apple: Apple) -> Self {
        Self { apple, script: Script::default(), counts: CallCounts::default(), tokens: 0, traces: 0 }
    }

    /// Alternates between two lengths, so that tests use tokens with and without padding.
    pub(super) const fn next_token_length(&mut self) -> usize {
        self.tokens += 1;
        match self.tokens % 2 {
            1 => tokens::LONG,
            _ => tokens::SHORT,
        }
    }

    pub(super) fn arrive(&mut self, environment: Environment, head: &request::Parts) -> Reply {
        let endpoint = Endpoint::from_path(head.uri.path());
        *self.counts.calls.entry((environment, endpoint)).or_default() += 1;
        self.counts.provider_tokens.extend(provider_token(head).map(fingerprint));
        self.script.next_reply(endpoint, environment)
    }

    pub(super) fn respond(
        &mut self,
        reply: &Reply,
        environment: Environment,
        head: &request::Parts,
        body: &[u8],
    ) -> Response<Bytes> {
        let now = self.apple.clock(since_epoch(wall_clock()));
        let normal = if reply.is_normal() {
            self.apple.answer(environment, head, body, now)
        } else {
            (StatusCode::OK, Bytes::new())
        };
        let mut headers = HeaderMap::new();
        // Apple sends this header in practice.
        if let Ok(trace) = HeaderValue::try_from(self.next_trace()) {
            headers.insert(HeaderName::from_static("x-b3-traceid"), trace);
        }
        if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(std::time::UNIX_EPOCH + now)) {
            headers.insert(DATE, date);
        }
        let (status, body) = reply.apply(normal, &mut headers);
        if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            let json = body.starts_with(b"{");
            let media_type = if json { "application/json" } else { "text/plain" };
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// Sixteen hexadecimal digits that differ from call to call and have no meaning.
    fn next_trace(&mut self) -> String {
        self.traces = self.traces.wrapping_add(0x9e37_79b9_7f4a_7c15);
        format!("{:016x}", self.traces)
    }
}

#[derive(Default)]
pub(super) struct CallCounts {
    /// The endpoint is `None` for calls to any other path.
    calls: HashMap<(Environment, Option<Endpoint>), usize>,
    /// Fingerprints of the different tokens that have arrived.
    provider_tokens: HashSet<Fingerprint>,
}

impl CallCounts {
    pub(super) fn calls(&self, which: impl Fn(Environment, Option<Endpoint>) -> bool) -> usize {
        let counted = self.calls.iter().filter(|((environment, endpoint), _)| which(*environment, *endpoint));
        counted.map(|(_, calls)| calls).sum()
    }

    pub(super) fn provider_tokens(&self) -> usize {
        self.provider_tokens.len()
    }
}
