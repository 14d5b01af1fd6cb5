//! The request to Apple, and the one table of Apple's answers.

use std::{error::Error, fmt, io::Write, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::apple::answer_headers::{ahead, retry_after, trace_id};
use crate::apple::bits::read_bits;
use crate::apple::provider_token::{BACKDATING, PROVIDER_TOKEN_LIFETIME, ProviderToken, RENEW_AFTER};
use crate::apple::token::DeviceToken;
use crate::apple::transport::LongestAnswer;
use crate::gate::{error::VerifyError, routing::Environment};
use crate::runtime::{SystemTime, Timestamp, since_epoch};

/// One of Apple's three operations on a token, or the one on a receipt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Validate,
    QueryBits,
    UpdateBits {
        bit0: Option<bool>,
        bit1: Option<bool>,
    },
    #[cfg_attr(not(feature = "app-attest"), allow(dead_code))]
    RefreshReceipt,
}

/// The text that an operation is about.
#[derive(Clone)]
pub(super) enum Subject {
    Token(DeviceToken),
    /// A receipt, in base64.
    #[cfg_attr(not(feature = "app-attest"), allow(dead_code))]
    Receipt(Bytes),
}

impl Operation {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Validate => "/v1/validate_device_token",
            Self::QueryBits => "/v1/query_two_bits",
            Self::UpdateBits { .. } => "/v1/update_two_bits",
            Self::RefreshReceipt => "/v1/attestationData",
        }
    }

    /// The operation's name in metrics and traces.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::QueryBits => "query_bits",
            Self::UpdateBits { .. } => "update_bits",
            Self::RefreshReceipt => "refresh_receipt",
        }
    }

    const fn longest_answer(self) -> LongestAnswer {
        match self {
            Self::RefreshReceipt => LongestAnswer::RECEIPT,
            _ => LongestAnswer::DEFAULT,
        }
    }

    pub(super) fn request(
        self,
        uri: Uri,
        provider_token: &ProviderToken,
        subject: &Subject,
        now: Timestamp,
    ) -> Request<Bytes> {
        let (body, authorization, content_type) = match subject {
            Subject::Token(token) => {
                (self.body(token, Uuid::new_v4(), now), provider_token.header(), "application/json")
            }
            // Apple's page "Assessing fraud risk" shows the provider token without `Bearer`, and names no media type.
            Subject::Receipt(base64) => (base64.clone(), provider_token.bare_header(), "text/plain"),
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, authorization);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        request.extensions_mut().insert(self.longest_answer());
        request
    }

    /// The body. Its memory is wiped when the transport drops it. Base64, UUIDs and numbers need no escaping.
    fn body(self, token: &DeviceToken, transaction_id: Uuid, now: Timestamp) -> Bytes {
        let unpadded = token.as_bytes();
        let padding: &[u8] = match unpadded.len() % 4 {
            2 => b"==",
            3 => b"=",
            _ => b"",
        };
        // Reserves room for the whole body at once: growing would leave copies of the token behind.
        let mut body = Zeroizing::new(Vec::with_capacity(unpadded.len() + 192));
        for part in [br#"{"device_token":""#, unpadded, padding, br#"","transaction_id":""#] {
            body.extend_from_slice(part);
        }
        body.extend_from_slice(
            transaction_id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes(),
        );
        let timestamp = since_epoch(now.wall).as_millis();
        // Writing to memory does not fail.
        let _ = write!(body, r#"","timestamp":{timestamp}"#);
        if let Self::UpdateBits { bit0, bit1 } = self {
            for (name, bit) in [("bit0", bit0), ("bit1", bit1)] {
                let _ = bit.map(|bit| write!(body, r#","{name}":{bit}"#));
            }
        }
        body.push(b'}');
        Bytes::from_owner(body)
    }
}

/// The meaning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Apple performed the operation.
    Accepted,
    /// The device token is not genuine.
    RefusedDeviceToken,
    /// Apple does not take the receipt, or not in this environment.
    RefusedReceipt,
    /// It is too early for a newer receipt.
    NotYet,
    /// Apple has no data about the key of the receipt.
    NoData,
    /// Apple does not, or no longer, accept our provider token.
    RefusedProviderToken,
    /// Apple does not accept the key's rights, or our request.
    Misconfigured,
    Throttled,
    Unavailable,
}

/// The table of answers. The first row decides whose status is that of the answer and whose phrase is in the
/// lower-cased text.
///
/// Apple documents the statuses and a name for each fault ("Bad Device Token"). Seen in practice: another text with the
/// same words ("Missing or incorrectly formatted device token payload"). The order of the rows matters: that text also
/// contains "payload", and a text about our provider token may also name the device token.
#[rustfmt::skip]
const TABLE: &[(u16, &str, Class)] = &[
    (200, "", Class::Accepted),
    (400, "authorization token", Class::RefusedProviderToken),
    (400, "authentication_token", Class::RefusedProviderToken),
    (400, "authentication token", Class::RefusedProviderToken),
    (400, "device token", Class::RefusedDeviceToken),
    (400, "time stamp", Class::Misconfigured),
    (400, "timestamp", Class::Misconfigured),
    (400, "bits", Class::Misconfigured),
    (400, "payload", Class::Misconfigured),
    (401, "authorization token", Class::RefusedProviderToken),
    (401, "authentication_token", Class::RefusedProviderToken),
    (401, "", Class::RefusedProviderToken),
    (403, "forbidden", Class::RefusedProviderToken),
    (403, "", Class::RefusedProviderToken),
    // Apple returns neither of these two, so the base URL is wrong.
    (404, "", Class::Misconfigured),
    (405, "", Class::Misconfigured),
    (429, "", Class::Throttled),
    // Any other answer, even an empty or unknown 400, says nothing about the token.
];

/// The same table for the operation on a receipt. Apple documents the statuses with these phrases, in "Assessing fraud
/// risk". The texts about the provider token are those of the other operations.
#[rustfmt::skip]
const RECEIPT_TABLE: &[(u16, &str, Class)] = &[
    (200, "", Class::Accepted),
    (304, "", Class::NotYet),
    (400, "authorization token", Class::RefusedProviderToken),
    (400, "authentication_token", Class::RefusedProviderToken),
    (400, "authentication token", Class::RefusedProviderToken),
    (400, "incorrect environment", Class::RefusedReceipt),
    (400, "payload", Class::RefusedReceipt),
    (401, "", Class::RefusedProviderToken),
    (403, "", Class::RefusedProviderToken),
    (404, "", Class::NoData),
    (405, "", Class::Misconfigured),
    (429, "", Class::Throttled),
];

fn look_up(operation: Operation, response: &Response<Bytes>) -> (Class, &'static str) {
    let (status, body) = (response.status(), response.body());
    if body.len() > operation.longest_answer().0 {
        // The page of a server in front of Apple. Its status is what counts.
        let is_throttled = status == StatusCode::TOO_MANY_REQUESTS;
        return (if is_throttled { Class::Throttled } else { Class::Unavailable }, "");
    }
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    let table = if matches!(operation, Operation::RefreshReceipt) { RECEIPT_TABLE } else { TABLE };
    let (class, phrase) = table
        .iter()
        .find(|(known, phrase, _)| *known == status && text.contains(phrase))
        .map_or((Class::Unavailable, ""), |(_, phrase, class)| (*class, *phrase));
    match (class, operation) {
        // A firewall's page may also mention a device token, or a payload.
        (Class::RefusedDeviceToken | Class::RefusedReceipt, _)
            if is_page(response) || text.len() > LONGEST_TEXT =>
        {
            (Class::Unavailable, "")
        }
        (Class::Accepted, Operation::Validate | Operation::UpdateBits { .. }) if is_page(response) => {
            (Class::Misconfigured, "")
        }
        // The media type of Apple's text about bits is not known.
        (Class::Accepted, Operation::QueryBits) if is_page(response) && read_bits(body).is_none() => {
            (Class::Misconfigured, "")
        }
        (Class::Accepted, Operation::Validate | Operation::UpdateBits { .. }) if !is_plain(body, &text) => {
            (Class::Unavailable, "")
        }
        (Class::Accepted | Class::NoData, Operation::RefreshReceipt) if is_page(response) => {
            (Class::Misconfigured, "")
        }
        _ => (class, phrase),
    }
}

/// The longest text that counts as Apple's own, in bytes. Known texts have at most 53 bytes.
const LONGEST_TEXT: usize = 256;

/// Whether the answer is a web page. Apple's answers are not.
fn is_page(response: &Response<Bytes>) -> bool {
    let is_html =
        |value: &HeaderValue| value.as_bytes().to_ascii_lowercase().windows(4).any(|part| part == b"html");
    response.body().contains(&b'<') || response.headers().get_all(CONTENT_TYPE).iter().any(is_html)
}

/// Whether the body of a 200 can be that of a plain success: empty or a short text. Apple promises only the status.
/// JSON, or a text about bits, is the late answer to an earlier query on a reused connection.
fn is_plain(body: &[u8], text: &str) -> bool {
    let is_text = !body.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace());
    let is_bits = ["bit state", "bit0"].iter().any(|phrase| text.contains(phrase));
    text.len() <= LONGEST_TEXT
        && std::str::from_utf8(body).is_ok()
        && is_text
        && !is_bits
        && !text.trim_start().starts_with(['{', '[', '"'])
}

/// Any unsuccessful answer. `Display` uses our own words, because Apple's text could echo the token.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) class: Class,
    pub(super) status: StatusCode,
    pub(super) has_retry_after: bool,
    pub(super) retry_after: Option<Duration>,
    /// The seconds by which this server's clock is ahead of Apple's, if the answer has a date.
    ahead: Option<i64>,
    environment: Environment,
    path: &'static str,
    phrase: &'static str,
    trace_id: Option<Box<str>>,
}

/// Classifies an answer. `Ok` is the body of a successful one, `Err` any other.
pub(super) fn read(
    operation: Operation,
    environment: Environment,
    response: &Response<Bytes>,
    now: impl FnOnce() -> SystemTime,
) -> Result<Bytes, Answer> {
    let (class, phrase) = look_up(operation, response);
    if class == Class::Accepted {
        return Ok(response.body().clone());
    }
    let headers = response.headers();
    let now = now();
    Err(Answer {
        class,
        status: response.status(),
        has_retry_after: headers.contains_key(RETRY_AFTER),
        retry_after: retry_after(headers, now),
        ahead: ahead(headers, now),
        environment,
        path: operation.path(),
        phrase,
        trace_id: trace_id(headers),
    })
}

impl Answer {
    /// The answer again if it is a verdict, or else the error for the caller.
    pub(super) fn into_verdict(self) -> Result<Self, VerifyError> {
        let retry_after = self.retry_after;
        match self.class {
            Class::Accepted
            | Class::RefusedDeviceToken
            | Class::RefusedReceipt
            | Class::NotYet
            | Class::NoData => Ok(self),
            Class::RefusedProviderToken | Class::Misconfigured => Err(VerifyError::misconfigured(self)),
            Class::Throttled => Err(VerifyError::throttled(retry_after, self)),
            Class::Unavailable => Err(VerifyError::unavailable(self).with_retry_after(retry_after)),
        }
    }
}

impl Answer {
    /// Whether Apple is down, or wants to be left alone.
    pub(super) fn is_outage(&self) -> bool {
        let is_down = matches!(self.status.as_u16(), 502..=504)
            || self.status.is_server_error() && self.has_retry_after;
        self.class == Class::Throttled || self.class == Class::Unavailable && is_down
    }

    /// The seconds by which the clocks differ, if this explains the refusal of the provider token.
    fn fault_of_clock(&self) -> Option<i64> {
        let fast = BACKDATING.as_secs().cast_signed();
        let slow = (PROVIDER_TOKEN_LIFETIME - RENEW_AFTER - BACKDATING).as_secs().cast_signed();
        self.ahead.filter(|ahead| *ahead >= fast || *ahead <= -slow)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.class, self.status.as_u16()) {
            (Class::RefusedProviderToken, 403) => {
                "Apple forbids the request (check that the key has the DeviceCheck service)"
            }
            (Class::RefusedProviderToken, _) if self.fault_of_clock().is_some() => {
                "Apple refused the provider token (set this server's clock)"
            }
            (Class::RefusedProviderToken, _) if self.ahead.is_some() => {
                "Apple refused the provider token (check team id, key id, and that the key is not revoked)"
            }
            (Class::RefusedProviderToken, _) => {
                "Apple refused the provider token (check team id, key id, that the key is not revoked, and the \
                 clock)"
            }
            (Class::Misconfigured, 200) => {
                "a web page came in place of Apple's answer (check the base URL, and proxies in between)"
            }
            (Class::Misconfigured, 404 | 405) => "the server does not know the request (check the base URL)",
            (Class::Misconfigured, _) => "Apple does not accept the request (check the clock)",
            (Class::RefusedReceipt, _) => {
                "Apple does not take the receipt (check the environment that is stored with it)"
            }
            (Class::NotYet, _) => "it is too early for a newer receipt",
            (Class::NoData, _) => "Apple has no data about the key of the receipt",
            (Class::Throttled, _) => "Apple is asked too often",
            (Class::Unavailable, 500..) => "Apple has a fault",
            _ => "the answer is not one that Apple is known to give",
        })?;
        write!(f, ": status {} from {}{}", self.status.as_u16(), self.environment, self.path)?;
        if !self.phrase.is_empty() {
            write!(f, ", about {:?}", self.phrase)?;
        }
        if let Some(trace_id) = &self.trace_id {
            write!(f, ", x-b3-traceid {trace_id}")?;
        }
        match self.ahead {
            // `Date` counts whole seconds, and the answer took time to arrive.
            Some(-5..=5) => f.write_str("; this server's clock agrees with Apple's"),
            Some(ahead @ 0..) => write!(f, "; this server's clock is {ahead} s ahead of Apple's"),
            Some(ahead) => write!(f, "; this server's clock is {} s behind Apple's", ahead.unsigned_abs()),
            None => Ok(()),
        }
    }
}

impl Error for Answer {}

#[cfg(test)]
mod tests;
