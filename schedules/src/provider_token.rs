//! The provider token: however many requests need one, one is signed.

use std::time::Duration;

use shuttle::sync::Arc;
use shuttle::thread;

use super::es256::signatures;
use super::provider_token::{ProviderTokens, RENEW_AFTER, Signer};
use crate::runtime::{SystemTime, Timestamp};

fn tokens() -> Arc<ProviderTokens> {
    Arc::new(ProviderTokens::new(Signer::new("TEAM123456", "KEY1234567", &[]).expect("a signer")))
}

fn at(start: Timestamp, after: Duration) -> Timestamp {
    Timestamp { monotonic: start.monotonic + after, wall: start.wall + after }
}

fn start() -> Timestamp {
    Timestamp { monotonic: crate::runtime::Instant::now(), wall: SystemTime::now() }
}

/// Requests at once, when there is none, and when it is time for another.
pub(crate) fn one_signature<const N: usize>() {
    let (tokens, start, before) = (tokens(), start(), signatures());
    for (after, signed) in [(Duration::ZERO, 1), (RENEW_AFTER, 2)] {
        let requests = [(); N].map(|()| {
            let tokens = Arc::clone(&tokens);
            thread::spawn(move || tokens.token(at(start, after)).expect("a token").header())
        });
        let headers = requests.map(|request| request.join().expect("a token"));
        assert!(headers.iter().all(|header| *header == headers[0]));
        assert_eq!(signatures() - before, signed);
    }
}

/// Requests have been refused with one token, and one more needs a token.
pub(crate) fn one_replacement<const N: usize>() {
    let (tokens, start, before) = (tokens(), start(), signatures());
    let refused = tokens.token(start).expect("a token");
    let requests = [(); N].map(|()| {
        let (tokens, refused) = (Arc::clone(&tokens), refused.clone());
        thread::spawn(move || tokens.replace(&refused, start).expect("a token").expect("another").header())
    });
    let other = {
        let tokens = Arc::clone(&tokens);
        thread::spawn(move || tokens.token(start).expect("a token").header())
    };
    let headers = requests.map(|request| request.join().expect("a token"));
    let other = other.join().expect("a token");
    let (old, new) = (refused.header(), &headers[0]);
    assert!(headers.iter().all(|header| header == new) && *new != old && (other == *new || other == old));
    assert_eq!(signatures() - before, 2);
    let again = tokens.token(start).expect("a token");
    assert!(tokens.replace(&again, start).expect("no error").is_none(), "it is too early for another");
}
