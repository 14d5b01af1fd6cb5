//! From headers to a device token.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header::AUTHORIZATION, request};
use http_body_util::Empty;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    BearerToken, Candidate, DeviceCheckLayer, DeviceToken, DeviceVerifier, HeaderToken, MalformedToken,
    Rejection, ResponseBody, TokenQuestion, TokenSource, Verdict, VerifyError, replay::MemoryReplayGuard,
};

use super::wait;

const TOKEN: HeaderName = HeaderName::from_static("x-apple-device-token");
const OTHER: HeaderName = HeaderName::from_static("x-other");
const LONGEST: usize = 8_192;

/// Reads header lines, separated by zeros. The first byte of each chooses its name.
pub(crate) fn header_to_token(data: &[u8]) {
    let mut head = Request::new(()).into_parts().0;
    for line in data.split(|byte| *byte == 0) {
        let Some((choice, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        head.headers.append([TOKEN, AUTHORIZATION, OTHER][usize::from(choice % 3)].clone(), value);
    }
    header(head.clone());
    bearer(head.clone());
    gate(&head.headers);
}

/// The header's source takes the only value, whole, and leaves all others.
fn header(mut head: request::Parts) {
    let before = head.headers.clone();
    let taken = HeaderToken::default().take(&mut head);
    let mut left = before.clone();
    left.remove(TOKEN);
    assert_eq!(head.headers, left);
    match (taken, all(&before, &TOKEN)[..].as_ref()) {
        (Ok(None), []) | (Err(MalformedToken::Repeated), [_, _, ..]) => {}
        (Ok(Some(candidate)), [value]) => syntax(candidate, value),
        (taken, values) => panic!("{taken:?} of {} values", values.len()),
    }
    assert!(matches!(HeaderToken::default().take(&mut head), Ok(None)));
}

/// Parts of a bearer token, put together again, are the bearer token.
fn bearer(mut head: request::Parts) {
    let before = head.headers.clone();
    let taken = BearerToken::new().take(&mut head);
    let values = all(&before, &AUTHORIZATION);
    let is_bearer = |value: &Vec<u8>| value.len() >= 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
    if !values.iter().any(is_bearer) {
        assert!(matches!(taken, Ok(None)) && head.headers == before);
        return;
    }
    let [value] = &values[..] else {
        assert!(matches!(taken, Err(MalformedToken::Repeated)) && !head.headers.contains_key(AUTHORIZATION));
        return;
    };
    let candidate = taken.expect("one value").expect("a bearer token");
    let left = all(&head.headers, &AUTHORIZATION);
    match value.iter().rposition(|byte| *byte == b'.') {
        Some(dot) => {
            syntax(candidate, &value[dot + 1..]);
            let client_part = &value[7..dot.max(7)];
            assert_eq!(left, if client_part.is_empty() { vec![] } else { vec![value[..dot].to_vec()] });
        }
        None => {
            syntax(candidate, &value[7..]);
            assert!(left.is_empty());
        }
    }
    assert!(!head.headers.get(AUTHORIZATION).is_some_and(|value| !value.is_sensitive()));
}

/// A candidate is a token exactly if a naive reader of base64 says so, and the token's text is its own only spelling.
fn syntax(candidate: Candidate, text: &[u8]) {
    let token = DeviceToken::try_from(candidate);
    let naive = naive(text);
    assert_eq!(token.as_ref().ok().map(DeviceToken::expose), naive);
    if let (Ok(token), Some(text)) = (token, naive) {
        let again: DeviceToken = text.parse().expect("its own text");
        assert!(again.expose() == text && again.digest() == token.digest());
    }
}

/// The text without padding, if it is canonical base64.
fn naive(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t', '\n', '\r', '\x0c']);
    let unpadded = text.trim_end_matches('=');
    let padding = text.len() - unpadded.len();
    let six_bits = |letter: u8| {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        alphabet.iter().position(|known| *known == letter)
    };
    let numbers: Vec<usize> = unpadded.bytes().map(six_bits).collect::<Option<_>>()?;
    let (wanted, unused) = match numbers.len() % 4 {
        0 => (0, 0),
        2 => (2, 0b1111),
        3 => (1, 0b11),
        _ => return None,
    };
    let is_canonical = numbers.last()? & unused == 0 && (padding == 0 || padding == wanted);
    (is_canonical && text.len() <= LONGEST).then_some(unpadded)
}

/// A verifier that finds everything genuine, and counts.
struct Generous(Arc<AtomicUsize>);

impl DeviceVerifier for Generous {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Verdict::Genuine)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

/// With single use, a token admits once, and nothing else is asked about.
fn gate(headers: &HeaderMap) {
    let asked = Arc::new(AtomicUsize::new(0));
    let layer = DeviceCheckLayer::new(Generous(Arc::clone(&asked)))
        .with_single_use(MemoryReplayGuard::new())
        .add_token_source(BearerToken::new());
    let send = || {
        let inner = service_fn(async |request: Request<Empty<Bytes>>| {
            assert!(!request.headers().contains_key(TOKEN));
            Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
        });
        let mut request = Request::new(Empty::new());
        request.headers_mut().clone_from(headers);
        wait(layer.layer(inner).oneshot(request)).expect("an answer")
    };
    let rejection = |response: http::Response<ResponseBody<Empty<Bytes>>>| {
        response.extensions().get::<Rejection>().copied()
    };
    let (first, second) = (rejection(send()), rejection(send()));
    let values = all(headers, &TOKEN);
    let bearers = all(headers, &AUTHORIZATION);
    let shown = match (&values[..], &bearers[..]) {
        ([value], _) => naive(value),
        ([], [value]) if value.len() >= 7 && value[..7].eq_ignore_ascii_case(b"bearer ") => {
            naive(value[7..].rsplit(|byte| *byte == b'.').next().unwrap_or_default())
        }
        _ => None,
    };
    match (first, shown) {
        (None, Some(_)) => {
            assert_eq!((second, asked.load(Ordering::Relaxed)), (Some(Rejection::ReusedToken), 1));
        }
        (Some(_), _) => assert_eq!((second, asked.load(Ordering::Relaxed)), (first, 0)),
        (None, None) => panic!("admitted without a token"),
    }
}

fn all(headers: &HeaderMap, name: &HeaderName) -> Vec<Vec<u8>> {
    headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect()
}
