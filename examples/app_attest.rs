//! App Attest: `cargo run --example app_attest --features app-attest,testing -- explain < QUESTION.json`.
//!
//! `explain` verifies one attestation, assertion or receipt. It reads one JSON object from stdin, and prints one to
//! stdout:
//!
//! | member of the question | value |
//! |---|---|
//! | `kind` | `attestation`, `assertion` or `receipt` |
//! | `object_base64` | the object |
//! | `app_id` | such as `TEAM123456.com.example.app` |
//! | `key_id_base64` | the key id: needed for attestations; otherwise compared if it is there |
//! | `client_data_hash_base64` | attestations, assertions: the bytes that the app passed as `clientDataHash` |
//! | `public_key_base64` | 65 bytes: needed for assertions; for receipts, compared if it is there |
//! | `at_unix` | attestations, receipts: the time, in Unix seconds, at which certificates must be valid; without it, the present |
//! | `environments` | attestations: the environments to admit, `production` and `development`; without it, only `production` |
//!
//! | member of the answer | value |
//! |---|---|
//! | `ok` | whether the object verifies. The exit status is 0 if it does, otherwise 1 |
//! | `step`, `reason` | if not: the check that failed, as in `ObjectError::step`, or `input` for a wrong question; and a text |
//! | `environment`, `app_id`, `counter`, `risk_metric` and others | otherwise, the object's words; `null` where it is silent |
//! | `category`, `category_number` | the name in lower case, such as `app_store`, and Apple's number |
//! | members that end in `_unix` | Unix seconds |
//!
//! The age of an attestation is not limited, and the counter of an assertion is compared with none: those are the
//! server's to know.

#[path = "app_attest/explain.rs"]
mod explain;

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

/// The longest question, in bytes.
const LONGEST: u64 = 1024 * 1024;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("explain") => run_explain().unwrap_or(ExitCode::FAILURE),
        _ => {
            let _ = writeln!(io::stderr(), "usage: app_attest explain < QUESTION.json");
            ExitCode::FAILURE
        }
    }
}

fn run_explain() -> io::Result<ExitCode> {
    let mut text = Vec::new();
    io::stdin().lock().take(LONGEST).read_to_end(&mut text)?;
    let (is_ok, answer) = explain::explain(&text);
    writeln!(io::stdout(), "{answer}")?;
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
