//! From a file to the records of split keys: the oracle of the property test, on the inputs of libFuzzer.

#![no_main]
#![allow(dead_code, reason = "each target has one oracle of several")]

#[path = "../../tests/it/oracles/mod.rs"]
mod oracles;

libfuzzer_sys::fuzz_target!(|data: &[u8]| oracles::keys::key_file(data));
