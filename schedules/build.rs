//! Plants faults: writes copies of modules with one line changed, by which the explorer shows that it can find them.

#![allow(clippy::expect_used, clippy::panic, reason = "a build script")]

use std::{env, fs, path::Path};

/// A module, the name of its copy, a text in it, and what takes its place.
const FAULTS: [(&str, &str, &str, &str); 7] = [
    ("device_check/single_flight", "lost_wake_up", "state.woken || matches!(", "matches!("),
    (
        "device_check/single_flight",
        "left_alone",
        "waiting.into_values().for_each(Waker::wake);",
        "drop(waiting);",
    ),
    (
        "device_check/single_flight",
        "wakers_taken",
        "let waker = lock(&place.flight.state).waiting.remove(&self.id);",
        "let waker = mem::take(&mut lock(&place.flight.state).waiting);",
    ),
    ("apple/limit", "limit", "woken.into_iter().for_each(Waker::wake);", "drop(woken);"),
    (
        "apple/limit",
        "lost_slot",
        "                state.free += 1;\n            }\n            if let",
        "            }\n            if let",
    ),
    ("apple/breaker", "breaker", "open.next = now + Self::PROBE_INTERVAL;", ""),
    (
        "replay/memory",
        "memory",
        "filter(|token| token.owner == Some(claim.owner()))",
        "filter(|_| claim.owner() == claim.owner())",
    ),
];

fn main() {
    let out = env::var("OUT_DIR").expect("a folder");
    for (module, name, before, after) in FAULTS {
        let path = format!("../src/{module}.rs");
        println!("cargo:rerun-if-changed={path}");
        let text = fs::read_to_string(&path).expect("a module");
        assert!(text.contains(before), "{path} has changed: plant the fault {name} elsewhere");
        // A file that is included has no comment about itself.
        let lines = text.lines().filter(|line| !line.starts_with("//!"));
        let text = lines.collect::<Vec<_>>().join("\n").replace(before, after);
        let text = text.replace("#[cfg(test)]\nmod tests;", "");
        fs::write(Path::new(&out).join(format!("{name}.rs")), text).expect("a copy");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
