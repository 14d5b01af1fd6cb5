use std::{convert::Infallible, sync::Arc, sync::Mutex, time::Duration};

use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};

use crate::apple::token::Verdict;
use crate::device_check::debug_token::DebugTokens;
use crate::device_check::verifier::{DeviceVerifier, TokenQuestion};
use crate::gate::error::VerifyError;
use crate::layer::DeviceCheckLayer;
use crate::runtime::{SystemTime, set_wall_clock};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Accepts every token, and counts.
#[derive(Default)]
struct Accepts(Mutex<usize>);

impl DeviceVerifier for Accepts {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        *self.0.lock().unwrap() += 1;
        Ok(Verdict::Genuine)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

async fn status(layer: &DeviceCheckLayer, header: &str, value: &str) -> StatusCode {
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
    });
    let request = Request::builder().header(header, value).body(()).unwrap();
    layer.layer(inner).oneshot(request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_makes_no_verdict_live_longer() {
    let start = SystemTime::UNIX_EPOCH + 1_000 * HOUR;
    // The wall clock's jump, the time that passes, and whether the verdict is still good.
    let cases: &[(&str, SystemTime, Duration, bool)] = &[
        ("no jump", start + 299 * SECOND, 299 * SECOND, true),
        ("no jump, over", start + 300 * SECOND, 300 * SECOND, false),
        ("put back, over by the other clock", start - HOUR, 300 * SECOND, false),
        ("put back", start - HOUR, 299 * SECOND, true),
        ("put forward", start + HOUR, SECOND, false),
    ];
    for (name, jump, passed, is_good) in cases {
        set_wall_clock(start);
        let accepts = Arc::new(Accepts::default());
        let layer = DeviceCheckLayer::new(Arc::clone(&accepts));
        assert_eq!(status(&layer, "x-apple-device-token", "AgAA").await, StatusCode::OK, "{name}");
        set_wall_clock(*jump);
        tokio::time::advance(*passed).await;
        assert_eq!(status(&layer, "x-apple-device-token", "AgAA").await, StatusCode::OK, "{name}");
        assert_eq!(*accepts.0.lock().unwrap(), if *is_good { 1 } else { 2 }, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_debug_token_expires_by_the_wall_clock() {
    let expires_at = SystemTime::UNIX_EPOCH + HOUR;
    let accepts = Arc::new(Accepts::default());
    let tokens = DebugTokens::new().add_expiring("ci", "correct-horse-battery", expires_at).unwrap();
    let layer = DeviceCheckLayer::new(Arc::clone(&accepts)).with_debug_tokens(tokens);
    for (now, expected) in [(expires_at - SECOND, StatusCode::OK), (expires_at, StatusCode::UNAUTHORIZED)] {
        set_wall_clock(now);
        assert_eq!(status(&layer, "x-debug-token", "correct-horse-battery").await, expected);
    }
    assert_eq!(*accepts.0.lock().unwrap(), 0);
}
