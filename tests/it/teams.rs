//! Two teams for one app.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use http::StatusCode;
use tower_devicecheck::{
    AppleClient, Availability, BitsErrorKind, DebugTokens, DeviceCheckLayer, Environment, Rejection, Route,
    Verdict,
    cache::{CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    replay::MemoryReplayGuard,
    testing::{FakeApple, PrivateKey, Reply},
};

use crate::support::{App, Apple, get, rejection};

const FIRST: &str = "TEAM123456";
const SECOND: &str = "TEAM654321";

/// The Apple of the first team, and that of the second.
struct Apples {
    first: Apple,
    second: Apple,
}

impl Apples {
    fn new() -> Self {
        let fake = FakeApple::with_key(&PrivateKey::generate(), SECOND, "KEY7654321");
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
        Self { first: Apple::new(), second: Apple { fake, client } }
    }

    fn layer(&self) -> DeviceCheckLayer {
        self.first.layer().add_verifier(self.second.client.clone())
    }

    fn calls(&self) -> (usize, usize) {
        (self.first.calls(), self.second.calls())
    }
}

#[tokio::test]
async fn the_second_team_is_asked_when_the_first_one_refuses() {
    let both = Route::ProductionThenDevelopment;
    // The status, the team, and the calls to each team.
    type Make = fn(&Apples) -> String;
    type Row = (&'static str, Make, Route, Option<&'static str>, (usize, usize));
    let rows: [Row; 6] = [
        ("the first team", |apples| apples.first.genuine(), Route::Production, Some(FIRST), (1, 0)),
        ("the second team", |apples| apples.second.genuine(), Route::Production, Some(SECOND), (1, 1)),
        ("forged", |apples| apples.first.fake.forged_token(), Route::Production, None, (1, 1)),
        ("the second team, two environments", |apples| apples.second.genuine(), both, Some(SECOND), (2, 1)),
        (
            "the second team's development",
            |apples| apples.second.fake.genuine_token(Environment::Development),
            both,
            Some(SECOND),
            (2, 2),
        ),
        ("forged, two environments", |apples| apples.first.fake.forged_token(), both, None, (2, 2)),
    ];
    for (name, token, route, team, calls) in rows {
        let apples = Apples::new();
        let app = App::new(&apples.layer().with_routing(route));
        let token = token(&apples);
        for basis in ["apple", "cache"] {
            let status = if team.is_some() { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            assert_eq!(app.status(&token).await, status, "{name}");
            if let Some(team) = team {
                assert_eq!(app.evidence().team(), Some(team), "{name}");
                assert_eq!(app.evidence().to_string(), format!("{basis}:{team}"), "{name}");
            }
            // The second request is remembered.
            assert_eq!(apples.calls(), calls, "{name}");
        }
    }
}

#[tokio::test]
async fn one_team_and_debug_tokens_have_no_team_in_the_evidence() {
    let apples = Apples::new();
    let secret = "9a1f0f66-5f0b-4d0c-8f3b-0c5d6a0d2c11";
    let debug = || DebugTokens::new().add("ci", secret).unwrap();
    let app = App::new(&apples.first.layer());
    assert_eq!(app.status(&apples.first.genuine()).await, StatusCode::OK);
    assert_eq!(app.evidence().team(), None);
    let app = App::new(&apples.layer().with_debug_tokens(debug()));
    assert_eq!(app.status(secret).await, StatusCode::OK);
    assert_eq!((app.evidence().team(), app.evidence().to_string().as_str()), (None, "debug-token:ci"));
    assert_eq!(apples.calls(), (1, 0));
}

#[tokio::test]
async fn an_error_of_the_first_team_never_leads_to_the_second() {
    for (reply, status) in [(500, 503), (429, 503), (401, 500)] {
        let apples = Apples::new();
        apples.first.fake.always(Reply::status(reply));
        let app = App::new(&apples.layer());
        assert_eq!(app.status(&apples.second.genuine()).await, status, "{reply}");
        assert_eq!((app.inner.calls(), apples.second.calls()), (0, 0), "{reply}");
    }
    // Nor does an error of the second one admit or refuse.
    let apples = Apples::new();
    apples.second.fake.always(Reply::status(500));
    let app = App::new(&apples.layer());
    let token = apples.second.genuine();
    assert_eq!(app.status(&token).await, StatusCode::SERVICE_UNAVAILABLE);
    apples.second.fake.clear();
    assert_eq!((app.status(&token).await, app.evidence().team()), (StatusCode::OK, Some(SECOND)));
    assert_eq!(apples.first.calls(), 1, "its refusal is remembered");
}

#[tokio::test]
async fn a_verdict_of_one_team_never_answers_for_the_other() {
    let apples = Apples::new();
    let cache = Arc::new(MemoryCache::new());
    let both = App::new(&apples.layer().with_cache(Arc::clone(&cache)));
    let first = App::new(&apples.first.layer().with_cache(Arc::clone(&cache)));
    let second = App::new(&apples.second.layer().with_cache(Arc::clone(&cache)));
    let token = apples.second.genuine();
    assert_eq!((both.status(&token).await, apples.calls()), (StatusCode::OK, (1, 1)));
    assert_eq!((first.status(&token).await, apples.calls()), (StatusCode::UNAUTHORIZED, (1, 1)));
    assert_eq!((second.status(&token).await, apples.calls()), (StatusCode::OK, (1, 1)));
    // The other way round: what one team's layer has learned counts for both.
    let token = apples.first.genuine();
    assert_eq!((second.status(&token).await, apples.calls()), (StatusCode::UNAUTHORIZED, (1, 2)));
    assert_eq!((both.status(&token).await, apples.calls()), (StatusCode::OK, (2, 2)));
    assert_eq!(both.evidence().team(), Some(FIRST));
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_make_one_call_to_each_team() {
    let apples = Apples::new();
    let app = App::new(&apples.layer());
    let token = apples.second.genuine();
    apples.first.fake.always(Reply::normal().delay(Duration::from_millis(100)));
    apples.second.fake.always(Reply::normal().delay(Duration::from_millis(100)));
    let statuses = join_all((0..100).map(|_| app.status(&token))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK));
    assert_eq!(apples.calls(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_token_of_the_second_team_is_spent_once_in_all_layers() {
    let apples = Apples::new();
    let guard = Arc::new(MemoryReplayGuard::new());
    let both = App::new(&apples.layer().with_single_use(Arc::clone(&guard)));
    let second = App::new(&apples.second.layer().with_single_use(Arc::clone(&guard)));
    let token = apples.second.genuine();
    assert_eq!((both.status(&token).await, apples.calls()), (StatusCode::OK, (1, 1)));
    assert_eq!(rejection(&second.get(&token).await), Rejection::ReusedToken);
    assert_eq!(apples.calls(), (1, 1));
    // The first team is asked once more, as the docs say.
    assert_eq!(rejection(&both.get(&token).await), Rejection::ReusedToken);
    assert_eq!(apples.calls(), (2, 1));

    // At once.
    let token = apples.second.genuine();
    let responses = join_all((0..20).map(|_| both.get(&token))).await;
    let admitted = responses.iter().filter(|response| response.status() == StatusCode::OK).count();
    assert_eq!(admitted, 1);
    assert_eq!(apples.second.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_second_team_spends_no_token() {
    let apples = Apples::new();
    let app = App::new(&apples.layer().with_single_use(MemoryReplayGuard::new()));
    let token = apples.second.genuine();
    apples.second.fake.always(Reply::status(500));
    assert_eq!(app.status(&token).await, StatusCode::SERVICE_UNAVAILABLE);
    apples.second.fake.clear();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    assert_eq!(app.inner.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stale_verdict_of_the_second_team_counts_whichever_team_has_the_outage() {
    for first_is_down in [true, false] {
        let apples = Apples::new();
        let genuine = apples.second.genuine();
        let token = genuine.parse().unwrap();
        let key = VerdictKey::new(SECOND, Environment::Production, &token);
        let hour = Duration::from_secs(60 * 60);
        let checked_at = SystemTime::now() - hour / 6;
        let cache = Arc::new(MemoryCache::new());
        let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), checked_at, hour);
        cache.put(&key, verdict).await.unwrap();
        let app = App::new(&apples.layer().with_cache(cache).with_stale_verdicts(hour));
        let down = if first_is_down { &apples.first } else { &apples.second };
        down.fake.always(Reply::status(503));
        while down.client.availability(Environment::Production) == Availability::Available {
            assert_eq!(app.status(&apples.second.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
        }
        let calls = down.calls();
        assert_eq!(app.status(&genuine).await, StatusCode::OK, "{first_is_down}");
        assert_eq!(app.evidence().to_string(), format!("stale:{SECOND}"), "{first_is_down}");
        assert_eq!(down.calls(), calls, "known to be down: {first_is_down}");
    }
}

#[tokio::test]
async fn bits_belong_to_the_team_that_admitted() {
    let apples = Apples::new();
    let app = App::new(&apples.layer());
    let clients = [apples.first.client.clone(), apples.second.client.clone()];
    for (token, place) in [(apples.first.genuine(), 0), (apples.second.genuine(), 1)] {
        app.send(get(&token)).await;
        let device = app.device();
        assert_eq!(clients.iter().position(|client| client.has_admitted(&device)), Some(place));
        clients[place].update_bits(&device, true, None).await.unwrap();
        assert!(clients[place].query_bits(&device).await.unwrap().bit0());
        let calls = apples.calls();
        let other = &clients[1 - place];
        for error in [
            other.query_bits(&device).await.unwrap_err(),
            other.update_bits(&device, true, None).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), BitsErrorKind::OtherTeam);
        }
        assert_eq!(apples.calls(), calls, "Apple is not asked");
    }
}
