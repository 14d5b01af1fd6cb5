//! The counter of a key: each number admits one request.

use std::time::SystemTime;

use shuttle::future::block_on;
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use super::app_id::AppId;
use super::key_id::KeyId;
use super::keys::attested_key::AttestedKey;
use super::keys::counter::{CounterRule, KeyCounter};
use super::keys::memory::MemoryAttestKeyStore;
use super::keys::store::AttestKeyStore;
use super::public_key::PublicKey;
use crate::gate::routing::Environment;

fn store() -> (Arc<MemoryAttestKeyStore>, KeyId) {
    let store = MemoryAttestKeyStore::new();
    let mut point = [5; 65];
    point[0] = 4;
    let key = PublicKey::from_bytes(&point).expect("a point");
    let app_id: AppId = "TEAM123456.com.example.app".parse().expect("an App ID");
    let id = key.key_id();
    let key = AttestedKey::new("", key, app_id, Environment::Production, SystemTime::now());
    let _ = block_on(store.insert(key)).expect("it is new");
    (Arc::new(store), id)
}

/// Sends requests with these counters at once, and returns which were admitted.
fn send<const N: usize>(counters: [u32; N], rule: CounterRule) -> [bool; N] {
    let (store, id) = store();
    let requests = counters.map(|counter| {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            block_on(store.advance("", &id, counter, rule, SystemTime::now())).expect("no error")
        })
    });
    requests.map(|request| request.join().expect("no panic"))
}

pub(crate) fn one_counter_twice() {
    for rule in [CounterRule::Window, CounterRule::Strict] {
        let [first, again] = send([1, 1], rule);
        assert!(first != again, "one of two");
    }
}

pub(crate) fn window() {
    let [first, again, second] = send([1, 1, 2], CounterRule::Window);
    assert!(first != again, "one of two");
    assert!(second, "it is new, in any order");
}

pub(crate) fn strict() {
    let [first, again, second] = send([1, 1, 2], CounterRule::Strict);
    assert!(first as u8 + again as u8 <= 1);
    assert!(second, "the greatest one counts");
}

/// A store that compares and writes in two steps, against the contract.
pub(crate) fn two_steps() {
    let counter = Arc::new(Mutex::new(KeyCounter::default()));
    let requests = [0, 1].map(|_| {
        let counter = Arc::clone(&counter);
        thread::spawn(move || {
            let before = *counter.lock().expect("a lock");
            let after = before.after(1, CounterRule::Window);
            if let Some(after) = after {
                *counter.lock().expect("a lock") = after;
            }
            after.is_some()
        })
    });
    let admitted = requests.map(|request| request.join().expect("no panic"));
    assert!(admitted != [true, true], "one counter has admitted two requests");
}
