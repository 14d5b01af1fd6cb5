//! Calls of a tonic client.

use std::{sync::atomic::Ordering, time::Duration};

use tonic::{Code, Request};

use super::{
    clients::Clients,
    random::Random,
    tally::{Answer, Claim},
};
use crate::{
    examples::tonic_example::greeter::{GreetRequest, greeter_client::GreeterClient},
    support::TOKEN_HEADER,
};

const MOST_KNOWN: usize = 20;

async fn call(
    clients: &Clients,
    kind: &'static str,
    claim: Claim,
    token: &str,
    patience: Option<Duration>,
) -> Answer {
    let sky = clients.sky.number();
    let mut request = Request::new(GreetRequest::default());
    request.metadata_mut().insert(TOKEN_HEADER, token.parse().unwrap());
    let mut client = GreeterClient::new(clients.grpc.clone());
    let reply = client.greet(request);
    let reply = match patience {
        Some(patience) => tokio::time::timeout(patience, reply).await.ok(),
        None => Some(reply.await),
    };
    let answer = match reply.map(|reply| reply.map_err(|status| (status.code(), status.message().to_owned())))
    {
        None => Answer::Left,
        Some(Ok(_)) => Answer::Status(200),
        Some(Err((Code::Unauthenticated, _))) => Answer::Grpc("Unauthenticated"),
        Some(Err((Code::Unavailable, _))) => Answer::Grpc("Unavailable"),
        Some(Err((Code::Internal, _))) => Answer::Grpc("Internal"),
        Some(Err((code, message))) => Answer::Broken(format!("{code:?}: {message}")),
    };
    if matches!(answer, Answer::Left | Answer::Broken(_)) {
        clients.books.left.fetch_add(1, Ordering::SeqCst);
    }
    clients.tally.note(kind, claim, &answer, clients.sky.was_calm_since(sky));
    answer
}

pub(super) async fn any(clients: &Clients, random: &mut Random) {
    let known = Clients::any(&clients.known_to_grpc, random);
    match (random.below(10), known) {
        (0, _) => {
            let token = clients.servers.fake.forged_token();
            call(clients, "tonic, refused", Claim::Forged, &token, None).await;
        }
        (1, _) => {
            let token = clients.genuine();
            let patience = random.time(Duration::ZERO, Duration::from_millis(20));
            call(clients, "tonic, cancelled", Claim::Open, &token, Some(patience)).await;
            clients.retire(token);
        }
        (2.., Some(token)) if !random.one_in(6) => {
            call(clients, "tonic, hit", Claim::Genuine, &token, None).await;
        }
        _ => {
            let token = clients.genuine();
            if call(clients, "tonic, new token", Claim::Genuine, &token, None).await.is_admitted() {
                clients.keep(&clients.known_to_grpc, token, MOST_KNOWN);
            } else {
                clients.retire(token);
            }
        }
    }
}
