//! Single use: a token admits one request, and a client that leaves takes it from nobody.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

use shuttle::future::block_on;
use shuttle::sync::Arc;
use shuttle::thread;

use super::owner::Owner;
use super::{Claim, ErasedReplayGuard, MemoryReplayGuard, ReplayKey, admit_once};
use crate::explore::{Signal, leave_after};
use crate::gate::decision::VerifiedDevice;
use crate::gate::evidence::Evidence;
use crate::gate::{credential::TokenDigest, routing::Environment};

struct World {
    guard: Arc<dyn ErasedReplayGuard>,
    apple: Signal,
    admitted: AtomicUsize,
}

fn world() -> Arc<World> {
    Arc::new(World {
        guard: Arc::new(MemoryReplayGuard::new()),
        apple: Signal::default(),
        admitted: AtomicUsize::new(0),
    })
}

impl World {
    /// A request with the token. It comes with a check that finds the token genuine when Apple answers.
    async fn request(self: Arc<Self>) -> bool {
        let digest = TokenDigest::from([7; 32]);
        let claim = Claim::new(Owner::random());
        let check = async {
            self.apple.wait().await;
            let evidence = Evidence::fresh("device_check", "apple");
            Ok(VerifiedDevice::new(digest, Environment::Production, evidence, SystemTime::now()))
        };
        let key = ReplayKey::new("TEAM123456", digest);
        let is_admitted = admit_once(&self.guard, key, &claim, true, check).await.is_ok();
        if is_admitted {
            self.admitted.fetch_add(1, Relaxed);
        }
        is_admitted
    }
}

pub(crate) fn one_is_admitted<const N: usize>() {
    let world = world();
    let requests = [(); N].map(|()| {
        let world = Arc::clone(&world);
        thread::spawn(move || block_on(world.request()))
    });
    world.apple.set();
    for request in requests {
        request.join().expect("no panic");
    }
    assert_eq!(world.admitted.load(Relaxed), 1);
}

pub(crate) fn one_leaves() {
    let world = world();
    let leaver = {
        let world = Arc::clone(&world);
        thread::spawn(move || leave_after(1, world.request()))
    };
    let stayer = {
        let world = Arc::clone(&world);
        thread::spawn(move || block_on(world.request()))
    };
    world.apple.set();
    leaver.join().expect("no panic");
    stayer.join().expect("no panic");
    // A withdrawal may be under way.
    thread::yield_now();
    let admitted = world.admitted.load(Relaxed);
    assert!(admitted <= 1);
    // If the one who left had the token, nobody has it, and the next request is admitted.
    assert_eq!(block_on(Arc::clone(&world).request()), admitted == 0);
}
