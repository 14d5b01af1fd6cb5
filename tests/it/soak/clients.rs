//! The clients: what they keep, and how they send requests.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use reqwest::RequestBuilder;
use serde_json::Value;
use tokio::time::Instant;
use tower_devicecheck::{Environment, testing::app_attest::VirtualDevice};

use super::{
    books::Books,
    random::Random,
    servers::Servers,
    tally::{Answer, Claim, Tally},
};
use crate::support::TOKEN_HEADER;

/// No request is without an answer for longer. The layer promises 5 seconds for Apple, and a request may wait for a guard
/// and a cache beside it.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time for which a client keeps a connection that it does not use.
pub(super) const IDLE: Duration = Duration::from_secs(2);
/// The time for which a known token is used.
const KNOWN: Duration = Duration::from_secs(30);

/// Whether anything is at fault: odd numbers are storms.
#[derive(Debug)]
pub(super) struct Sky(Mutex<(u64, Instant)>);

impl Sky {
    fn new() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }

    pub(super) fn change(&self) {
        let mut sky = self.0.lock().unwrap();
        *sky = (sky.0 + 1, Instant::now());
    }

    pub(super) fn number(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    /// Whether nothing was at fault since then.
    pub(super) fn was_calm_since(&self, number: u64) -> bool {
        number.is_multiple_of(2) && number == self.number()
    }

    /// Whether nothing was at fault for this time.
    pub(super) fn is_calm_for(&self, time: Duration) -> bool {
        let (number, since) = *self.0.lock().unwrap();
        number.is_multiple_of(2) && since.elapsed() > time
    }
}

/// Tokens that Apple has called genuine.
pub(super) type Known = Mutex<VecDeque<(String, Instant)>>;

pub(super) struct Clients {
    pub(super) servers: Arc<Servers>,
    pub(super) books: Arc<Books>,
    pub(super) tally: Arc<Tally>,
    pub(super) sky: Sky,
    pub(super) http: reqwest::Client,
    pub(super) grpc: tonic::transport::Channel,
    pub(super) known: Known,
    pub(super) known_to_grpc: Known,
    /// Sessions that may be used until then.
    pub(super) sessions: Known,
    /// Sessions that are over.
    pub(super) old_sessions: Known,
    /// Devices with an attested key.
    pub(super) devices: Mutex<Vec<VirtualDevice>>,
    /// Tokens that nobody uses any more, and that the fake Apple may forget.
    retired: Known,
    /// Turns for which there was no room.
    pub(super) held_back: AtomicU64,
}

impl Clients {
    pub(super) fn new(servers: Arc<Servers>, books: Arc<Books>, tally: Arc<Tally>) -> Arc<Self> {
        // Connections of a crowd would otherwise stay for longer than the calm at the end of a short run.
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_idle_timeout(IDLE);
        let http = http.build().unwrap();
        let grpc = tonic::transport::Endpoint::new(servers.grpc.clone()).unwrap().timeout(PATIENCE);
        Arc::new(Self {
            grpc: grpc.connect_lazy(),
            servers,
            books,
            tally,
            sky: Sky::new(),
            http,
            known: Known::default(),
            known_to_grpc: Known::default(),
            sessions: Known::default(),
            old_sessions: Known::default(),
            devices: Mutex::default(),
            retired: Known::default(),
            held_back: AtomicU64::new(0),
        })
    }

    pub(super) fn genuine(&self) -> String {
        self.servers.fake.genuine_token(Environment::Production)
    }

    pub(super) fn get(&self, path: &str, token: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.servers.http)).header(TOKEN_HEADER, token)
    }

    pub(super) fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.servers.http))
    }

    /// Sends a request, and judges its answer.
    pub(super) async fn send(
        &self,
        kind: &'static str,
        claim: Claim,
        request: RequestBuilder,
    ) -> (Answer, Bytes) {
        let sky = self.sky.number();
        let sent = Instant::now();
        let answer = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok((Answer::Status(status), response.bytes().await?))
        };
        let (answer, body) = answer.await.unwrap_or_else(|error: reqwest::Error| {
            if error.is_timeout() {
                self.tally.alarm.ring(format!("{kind}: no answer within {:?}", sent.elapsed()));
            }
            (Answer::Broken(format!("{error:?}")), Bytes::new())
        });
        self.tally.note(kind, claim, &answer, self.sky.was_calm_since(sky));
        (answer, body)
    }

    /// Sends a request, and leaves before the answer, or shortly after.
    pub(super) async fn leave(&self, kind: &'static str, request: RequestBuilder, after: Duration) -> Answer {
        let answer = match tokio::time::timeout(after, request.send()).await {
            Ok(Ok(response)) => Answer::Status(response.status().as_u16()),
            Ok(Err(error)) => Answer::Broken(format!("{error:?}")),
            Err(_elapsed) => Answer::Left,
        };
        self.tally.note(kind, Claim::Open, &answer, false);
        answer
    }

    /// Whether Apple will call this token genuine for long enough; else it is let go.
    pub(super) fn keep(&self, pool: &Known, token: String, most: usize) {
        let mut pool = pool.lock().unwrap();
        pool.push_back((token, Instant::now()));
        let is_old = |at: &Instant| at.elapsed() > KNOWN;
        while pool.len() > most || pool.front().is_some_and(|(_, at)| is_old(at)) {
            let (token, _) = pool.pop_front().unwrap();
            self.retire(token);
        }
    }

    pub(super) fn any(pool: &Known, random: &mut Random) -> Option<String> {
        let pool = pool.lock().unwrap();
        let young: Vec<_> = pool.iter().filter(|(_, at)| at.elapsed() < KNOWN).collect();
        (!young.is_empty()).then(|| young[random.below(young.len())].0.clone())
    }

    pub(super) fn retire(&self, token: String) {
        self.retired.lock().unwrap().push_back((token, Instant::now()));
    }

    /// Forgets all tokens. No request may be under way.
    pub(super) fn forget(&self) {
        for pool in [&self.known, &self.known_to_grpc, &self.retired] {
            for (token, _) in std::mem::take(&mut *pool.lock().unwrap()) {
                self.servers.fake.expire(&token);
            }
        }
    }

    /// Forgets everything that no request uses any more.
    pub(super) fn tidy_up(&self) {
        self.books.prune();
        let mut retired = self.retired.lock().unwrap();
        while retired.front().is_some_and(|(_, at)| at.elapsed() > KNOWN + PATIENCE) {
            self.servers.fake.expire(&retired.pop_front().unwrap().0);
        }
    }
}

/// A text in a JSON answer.
pub(super) fn text_of(body: &[u8], name: &str) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body[name].as_str().unwrap_or_default().to_owned()
}
