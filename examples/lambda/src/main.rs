//! The protected server of `examples/axum.rs` as a function on AWS Lambda. README.md says how to deploy it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the verified device as JSON |
//! | `GET /bits` | the device's two bits, as Apple keeps them for the team |
//! | `PUT /bits` | sets them: `{"bit0": true, "bit1": false}` |
//! | `GET /health` | `ok`, for anybody |
//! | anything else | 404, and Apple is not asked: the layer is a `route_layer` |
//!
//! [`AppleClient::from_env`] says which variables it reads.

#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "Lambda logs what a function prints")]

use std::{error::Error, io, process::ExitCode};

use axum::{Json, Router, extract::State, http::request, routing::get};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_devicecheck::{AppleClient, BitsError, DeviceCheckLayer, Route, VerifiedDevice};

// One thread: Lambda gives a function one request at a time.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // CloudWatch adds the time.
    tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(io::stderr).init();
    // Outside of the handler: the client and the layer, with their connections and verdicts, live as long as the
    // instance.
    let served = match AppleClient::from_env() {
        Ok(apple) => lambda_http::run(app(apple)).await,
        Err(error) => Err(error.into()),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

fn app(apple: AppleClient) -> Router {
    let gate = DeviceCheckLayer::new(apple.clone()).with_routing(|head: &request::Parts| {
        if head.uri.path() == "/health" { Route::Exempt } else { Route::Production }
    });
    Router::new()
        .route("/", get(device))
        .route("/bits", get(query_bits).put(update_bits))
        .route("/health", get(|| async { "ok" }))
        .route_layer(gate)
        .with_state(apple)
}

async fn device(device: VerifiedDevice) -> Json<Value> {
    Json(json!({
        "environment": device.environment().as_str(),
        "evidence": device.evidence().to_string(),
        "digest": device.digest().to_string(),
    }))
}

async fn query_bits(
    State(apple): State<AppleClient>,
    device: VerifiedDevice,
) -> Result<Json<Value>, BitsError> {
    let bits = apple.query_bits(&device).await?;
    Ok(Json(json!({
        "bit0": bits.bit0(),
        "bit1": bits.bit1(),
        "last_update": bits.last_update().map(|month| month.to_string()),
    })))
}

#[derive(Deserialize, Serialize)]
struct TwoBits {
    bit0: bool,
    bit1: bool,
}

async fn update_bits(
    State(apple): State<AppleClient>,
    device: VerifiedDevice,
    Json(bits): Json<TwoBits>,
) -> Result<Json<TwoBits>, BitsError> {
    apple.update_bits(&device, bits.bit0, bits.bit1).await?;
    Ok(Json(bits))
}
