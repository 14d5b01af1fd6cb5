//! Explores the interleavings of requests in the modules that share state between them, with shuttle.
//!
//! The modules are those of the crate, from their files. Only [`sync`] is another: each of its operations is a point at
//! which threads may be switched. `docs/reliability.md` says what is shown, and what is not.

#![allow(clippy::all, missing_docs, unreachable_pub, missing_debug_implementations)]

mod explore;
#[path = "../../src/meter.rs"]
mod meter;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

mod sync {
    pub(crate) use shuttle::sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak, atomic,
    };
}

#[path = "."]
mod runtime {
    #[path = "../../src/runtime.rs"]
    mod real;
    pub(crate) use real::*;

    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(shuttle::future::spawn(future));
    }
}

mod quote {
    pub(crate) const fn shown_id(id: &str) -> &str {
        id
    }
}

/// Overwrites nothing: the stacks of shuttle's threads are short, and hold no secret.
mod wipe {
    pub(crate) const SIGNATURE: usize = 0;

    pub(crate) fn wiping_the_stack<const DEPTH: usize, T>(function: impl FnOnce() -> T) -> T {
        function()
    }
}

#[path = "."]
mod gate {
    #[path = "../../src/gate/bits.rs"]
    pub(crate) mod bits;
    #[path = "../../src/gate/credential.rs"]
    pub(crate) mod credential;
    #[path = "../../src/gate/decision.rs"]
    pub(crate) mod decision;
    #[path = "../../src/gate/error.rs"]
    pub(crate) mod error;
    #[path = "../../src/gate/evidence.rs"]
    pub(crate) mod evidence;
    #[path = "../../src/gate/marks.rs"]
    pub(crate) mod marks;
    pub(crate) mod observer {
        pub(crate) const TARGET: &str = "schedules";
    }
    #[path = "../../src/gate/problem.rs"]
    pub(crate) mod problem;
    #[path = "../../src/gate/rejection.rs"]
    pub(crate) mod rejection;
    #[path = "../../src/gate/routing.rs"]
    pub(crate) mod routing;
    #[path = "."]
    pub(crate) mod tenant {
        #[path = "../../src/gate/tenant/name.rs"]
        pub(crate) mod name;
    }
}

#[path = "."]
mod replay {
    #[path = "../../src/replay/claim.rs"]
    mod claim;
    #[path = "replay.rs"]
    pub(crate) mod explored;
    #[path = "../../src/replay/guard.rs"]
    mod guard;
    #[path = "../../src/replay/memory.rs"]
    mod memory;
    #[path = "../../src/replay/once.rs"]
    mod once;
    #[path = "../../src/replay/owner.rs"]
    pub(crate) mod owner;

    pub(crate) use self::claim::{Claim, Claimed, ReplayKey};
    pub(crate) use self::guard::ErasedReplayGuard;
    pub(crate) use self::memory::MemoryReplayGuard;
    pub(crate) use self::once::admit_once;

    #[path = "."]
    pub(crate) mod broken {
        #[path = "replay.rs"]
        pub(crate) mod explored;
        mod memory {
            include!(concat!(env!("OUT_DIR"), "/memory.rs"));
        }
        pub(crate) use self::memory::MemoryReplayGuard;
        pub(crate) use super::{Claim, ErasedReplayGuard, ReplayKey, admit_once, owner};
    }
}

#[path = "."]
mod device_check {
    #[path = "single_flight.rs"]
    pub(crate) mod explored;
    #[rustfmt::skip]
    #[path = "../../src/device_check/single_flight.rs"]
    pub(crate) mod single_flight;

    #[path = "."]
    pub(crate) mod lost_wake_up {
        #[path = "single_flight.rs"]
        pub(crate) mod explored;
        pub(crate) mod single_flight {
            include!(concat!(env!("OUT_DIR"), "/lost_wake_up.rs"));
        }
    }

    #[path = "."]
    pub(crate) mod left_alone {
        #[path = "single_flight.rs"]
        pub(crate) mod explored;
        pub(crate) mod single_flight {
            include!(concat!(env!("OUT_DIR"), "/left_alone.rs"));
        }
    }

    #[path = "."]
    pub(crate) mod wakers_taken {
        #[path = "single_flight.rs"]
        pub(crate) mod explored;
        pub(crate) mod single_flight {
            include!(concat!(env!("OUT_DIR"), "/wakers_taken.rs"));
        }
    }
}

#[path = "."]
mod app_attest {
    #[path = "../../src/app_attest/app_id.rs"]
    pub(crate) mod app_id;
    #[path = "../../src/app_attest/bundle_version.rs"]
    pub(crate) mod bundle_version;
    #[path = "../../src/app_attest/category.rs"]
    pub(crate) mod category;
    #[path = "../../src/app_attest/error.rs"]
    pub(crate) mod error;
    #[path = "counter.rs"]
    pub(crate) mod explored;
    #[path = "../../src/app_attest/key_id.rs"]
    pub(crate) mod key_id;
    #[path = "."]
    pub(crate) mod keys {
        #[path = "../../src/app_attest/keys/attested_key.rs"]
        pub(crate) mod attested_key;
        #[path = "../../src/app_attest/keys/counter.rs"]
        pub(crate) mod counter;
        #[path = "../../src/app_attest/keys/memory.rs"]
        pub(crate) mod memory;
        #[path = "../../src/app_attest/keys/store.rs"]
        pub(crate) mod store;
    }
    #[path = "../../src/app_attest/public_key.rs"]
    pub(crate) mod public_key;
}

#[path = "."]
mod apple {
    #[rustfmt::skip]
    #[path = "../../src/apple/breaker.rs"]
    pub(crate) mod breaker;
    /// A signer that counts, and does not sign.
    pub(crate) mod es256 {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

        static SIGNATURES: AtomicUsize = AtomicUsize::new(0);

        pub(crate) fn signatures() -> usize {
            SIGNATURES.load(Relaxed)
        }

        pub(crate) struct SigningKey;

        impl SigningKey {
            pub(crate) fn from_pkcs8(_: &[u8]) -> Result<Self, std::fmt::Error> {
                Ok(Self)
            }

            pub(crate) fn sign(&self, _: &[u8]) -> Result<[u8; 64], std::fmt::Error> {
                SIGNATURES.fetch_add(1, Relaxed);
                Ok([0; 64])
            }
        }
    }
    #[path = "../../src/apple/limit.rs"]
    pub(crate) mod limit;
    #[path = "../../src/apple/per_environment.rs"]
    pub(crate) mod per_environment;
    #[rustfmt::skip]
    #[path = "../../src/apple/provider_token.rs"]
    pub(crate) mod provider_token;
    #[path = "../../src/apple/task.rs"]
    pub(crate) mod task;

    #[path = "breaker.rs"]
    pub(crate) mod breaker_explored;
    #[path = "limit.rs"]
    pub(crate) mod limit_explored;
    #[path = "provider_token.rs"]
    pub(crate) mod provider_token_explored;

    #[path = "."]
    pub(crate) mod broken {
        pub(crate) mod breaker {
            include!(concat!(env!("OUT_DIR"), "/breaker.rs"));
        }
        #[path = "breaker.rs"]
        pub(crate) mod breaker_explored;
        pub(crate) mod limit {
            include!(concat!(env!("OUT_DIR"), "/limit.rs"));
        }
        #[path = "limit.rs"]
        pub(crate) mod limit_explored;
    }

    #[path = "."]
    pub(crate) mod lost_slot {
        pub(crate) mod limit {
            include!(concat!(env!("OUT_DIR"), "/lost_slot.rs"));
        }
        #[path = "limit.rs"]
        pub(crate) mod limit_explored;
    }
}

/// Explores all scenarios; with `--in-order`, up to 30,000 schedules of each.
fn main() {
    use explore::Size::{self, Large, Small};

    let in_order = std::env::args().any(|argument| argument == "--in-order");
    let scenarios: [(&str, Size, fn()); 24] = [
        ("single flight: all get the result", Large, device_check::explored::all_get_the_result),
        ("single flight: one leaves", Large, device_check::explored::one_leaves),
        ("single flight: all but the last leave", Large, device_check::explored::all_but_the_last_leave),
        ("single flight: committed work ends", Large, device_check::explored::committed_work_ends),
        ("provider token: one signature for two", Small, apple::provider_token_explored::one_signature::<2>),
        (
            "provider token: one signature for three",
            Large,
            apple::provider_token_explored::one_signature::<3>,
        ),
        (
            "provider token: one replacement for one",
            Small,
            apple::provider_token_explored::one_replacement::<1>,
        ),
        (
            "provider token: one replacement for two",
            Large,
            apple::provider_token_explored::one_replacement::<2>,
        ),
        ("replay guard: one of two is admitted", Large, replay::explored::one_is_admitted::<2>),
        ("replay guard: one of three is admitted", Large, replay::explored::one_is_admitted::<3>),
        ("replay guard: one leaves", Large, replay::explored::one_leaves),
        ("breaker: one call of two is the probe", Small, apple::breaker_explored::one_probe_a_second::<2>),
        ("breaker: one call of three is the probe", Large, apple::breaker_explored::one_probe_a_second::<3>),
        ("breaker: the named time holds", Large, apple::breaker_explored::the_named_time_holds),
        (
            "breaker: the listener hears the last state",
            Small,
            apple::breaker_explored::the_listener_hears_the_last_state,
        ),
        ("queue: one slot for two", Small, apple::limit_explored::one_slot_for_two),
        ("queue: one of two leaves", Small, apple::limit_explored::one_of_two_leaves),
        ("queue: one slot for three", Large, apple::limit_explored::one_slot_for_three),
        ("queue: two slots for three", Large, apple::limit_explored::two_slots_for_three),
        ("queue: one of the line leaves", Large, apple::limit_explored::one_of_the_line_leaves),
        ("queue: nobody drives the waiters", Large, apple::limit_explored::nobody_drives_the_waiters),
        ("queue: one that nobody drives leaves", Large, apple::limit_explored::one_that_nobody_drives_leaves),
        ("counter: one of two requests", Small, app_attest::explored::one_counter_twice),
        ("counter: a window", Large, app_attest::explored::window),
    ];
    for (name, size, scenario) in scenarios {
        explore::explore(name, scenario, if in_order { Small } else { size });
    }

    explore::finds("a wake-up during a poll is lost", device_check::lost_wake_up::explored::one_leaves);
    explore::finds("the others are not woken", device_check::left_alone::explored::one_leaves);
    explore::finds(
        "who leaves takes the wakers of the others",
        device_check::wakers_taken::explored::one_leaves,
    );
    explore::finds("a free slot wakes nobody", apple::broken::limit_explored::one_slot_for_three);
    explore::finds("a slot does not come back", apple::lost_slot::limit_explored::two_slots_for_three);
    explore::finds("each call is a probe", apple::broken::breaker_explored::one_probe_a_second::<2>);
    explore::finds("who leaves takes the token from another", replay::broken::explored::one_leaves);
    explore::finds("a counter is compared and written in two steps", app_attest::explored::two_steps);
    println!("{} schedules", explore::total());
}
