//! The code that `examples/tonic.rs` includes is what `greeter.proto` makes.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::{env, fs, path::Path};

const HEADER: &str = "\
// Made from `greeter.proto`; do not edit. The test `the_generated_code_is_up_to_date` compares the two. After a
// change, make it anew, without protoc:
//
//     UPDATE=1 cargo test --package greeter
//
// It is formatted by the generator; rustfmt does not see it, because it is included as text.

";

#[test]
fn the_generated_code_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tonic");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    fs::create_dir_all(&out).unwrap();

    let files = protox::compile([folder.join("greeter.proto")], [&folder]).unwrap();
    tonic_prost_build::configure().emit_rerun_if_changed(false).out_dir(&out).compile_fds(files).unwrap();
    let generated = HEADER.to_owned() + &fs::read_to_string(out.join("greeter.rs")).unwrap();

    let checked_in = folder.join("greeter.rs");
    if env::var_os("UPDATE").is_some() {
        fs::write(&checked_in, &generated).unwrap();
    }
    assert!(
        fs::read_to_string(&checked_in).unwrap_or_default() == generated,
        "examples/tonic/greeter.rs is not what greeter.proto makes: see its first lines"
    );
}
