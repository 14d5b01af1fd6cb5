//! Requests with device tokens: known, new, refused, spent, malformed, and those of clients that leave.

use std::{sync::atomic::Ordering, time::Duration};

use futures::future::join_all;
use http::HeaderValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    books::HAS_LEAVERS,
    clients::Clients,
    random::Random,
    tally::{Answer, Claim},
};
use crate::support::TOKEN_HEADER;

const MILLISECOND: Duration = Duration::from_millis(1);
/// The most tokens that are known at a time.
const MOST_KNOWN: usize = 40;
/// The time after which an app tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The time in which a guard whose store answers again has given back what it owes.
const GIVEN_BACK: Duration = Duration::from_secs(2);

pub(super) async fn hit(clients: &Clients, random: &mut Random) {
    let Some(token) = Clients::any(&clients.known, random) else { return new(clients).await };
    clients.send("hit", Claim::Genuine, clients.get("/", &token)).await;
}

pub(super) async fn new(clients: &Clients) {
    let token = clients.genuine();
    let (answer, _) = clients.send("new token", Claim::Genuine, clients.get("/", &token)).await;
    if answer.is_admitted() {
        clients.keep(&clients.known, token, MOST_KNOWN);
    } else {
        clients.retire(token);
    }
}

/// Many requests with one new token, of which some may leave.
pub(super) async fn crowd(clients: &Clients, random: &mut Random) {
    let token = clients.genuine();
    if random.one_in(2) {
        let get = || clients.get("/", &token);
        join_all((0..8).map(|_| clients.send("crowd", Claim::Genuine, get()))).await;
        return clients.retire(token);
    }
    let get = || clients.get("/", &token).header(HAS_LEAVERS, "1");
    let leaving = [0; 2].map(|_| random.time(Duration::ZERO, 10 * MILLISECOND));
    clients.books.left.fetch_add(leaving.len(), Ordering::SeqCst);
    let kind = "crowd, with leavers";
    let stay = join_all((0..8).map(|_| clients.send(kind, Claim::Genuine, get())));
    let leave = leaving.map(|after| clients.leave(kind, get(), after));
    futures::join!(stay, join_all(leave));
    clients.retire(token);
}

pub(super) async fn refused(clients: &Clients, random: &mut Random) {
    let token = clients.servers.fake.forged_token();
    for _ in 0..=random.below(3) {
        clients.send("refused token", Claim::Forged, clients.get("/", &token)).await;
    }
}

pub(super) async fn cancelled(clients: &Clients, random: &mut Random) {
    let token = clients.genuine();
    let after = random.time(Duration::ZERO, 30 * MILLISECOND);
    let answer = clients.leave("cancelled", clients.get("/", &token), after).await;
    if matches!(answer, Answer::Left | Answer::Broken(_)) {
        clients.books.left.fetch_add(1, Ordering::SeqCst);
    }
    clients.retire(token);
}

pub(super) async fn rubbish(clients: &Clients, random: &mut Random) {
    let length = 1 + random.below(300);
    let bytes = random.bytes(length);
    let kind = "rubbish";
    let mut own = random.clone();
    let mut known = || Clients::any(&clients.known, &mut own);
    match random.below(6) {
        0 => {
            // Bytes that may stand in a header.
            let bytes: Vec<_> = bytes.into_iter().filter(|byte| *byte >= 32 && *byte != 127).collect();
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return };
            let request = clients.http.get(format!("{}/", clients.servers.http)).header(TOKEN_HEADER, value);
            clients.send(kind, Claim::Forged, request).await;
        }
        1 => {
            let token = "A".repeat(8 * 1024 + 4 * (1 + random.below(10_000)));
            clients.send(kind, Claim::Forged, clients.get("/", &token)).await;
        }
        // Aliases of a token that is known: one more character, another alphabet, and two at once.
        2 => {
            let Some(token) = known() else { return };
            clients.send(kind, Claim::Forged, clients.get("/", &format!("{token}A"))).await;
        }
        3 => {
            let Some(token) = known() else { return };
            let alias = token.replace('+', "-").replace('/', "_");
            let claim = if alias == token { Claim::Open } else { Claim::Forged };
            clients.send(kind, claim, clients.get("/", &alias)).await;
        }
        4 => {
            let Some(token) = known() else { return };
            let request = clients.get("/", &token).header(TOKEN_HEADER, clients.servers.fake.forged_token());
            clients.send(kind, Claim::Forged, request).await;
        }
        _ => no_http(clients, &bytes).await,
    }
}

/// Bytes that are no HTTP. The server may answer or close, and has to do so.
async fn no_http(clients: &Clients, bytes: &[u8]) {
    let address = clients.servers.http.trim_start_matches("http://");
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let _ = stream.write_all(bytes).await;
    let _ = stream.write_all(b"\r\n\r\n").await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let status = answer.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    let answer = status.map_or(Answer::Left, Answer::Status);
    clients.tally.note("no HTTP", Claim::Forged, &answer, false);
}

/// A token that counts once. After an error of the server's, the app tries again with the same one.
pub(super) async fn once(clients: &Clients, random: &mut Random) {
    let token = clients.genuine();
    let copies = if random.one_in(3) { 3 } else { 1 };
    let claim = if copies == 1 { Claim::Genuine } else { Claim::Open };
    let kind = if copies == 1 { "single-use token" } else { "single-use token, copied" };
    let send = |claim| clients.send(kind, claim, clients.get("/once", &token));
    let answers = join_all((0..copies).map(|_| send(claim))).await;
    if answers.iter().any(|(answer, _)| answer.is_admitted()) {
        clients.send("spent token", Claim::Forged, clients.get("/once", &token)).await;
    } else if copies == 1 && answers[0].0.is_failure_of_the_server() {
        retry(clients, &token).await;
    }
    clients.retire(token);
}

/// A guard gives a token back whose request got an error of the server's, as soon as its store answers again. Until then,
/// the token may be taken.
async fn retry(clients: &Clients, token: &str) {
    let started = Instant::now();
    // For less than the lease of a reservation, which would give the token back, too.
    while started.elapsed() < Duration::from_secs(25) {
        sleep(RETRY_AFTER).await;
        let is_calm = clients.sky.is_calm_for(GIVEN_BACK);
        let kind = "single-use token, again";
        let (answer, _) = clients.send(kind, Claim::Open, clients.get("/once", token)).await;
        if answer == Answer::Status(401) && is_calm {
            clients.tally.alarm.ring("a token whose request got a 5xx was spent".to_owned());
        }
        if answer.is_admitted() {
            break;
        }
    }
}
