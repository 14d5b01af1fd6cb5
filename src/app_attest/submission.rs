//! The body of a request that submits an attestation.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::app_attest::key_id::KeyId;
use crate::app_attest::refusals::rejected;
use crate::gate::decision::Rejected;
use crate::gate::rejection::{MalformedToken, Rejection};
use crate::runtime::within;

const LONGEST: usize = 32 * 1024;
/// Only a flood of empty frames has more.
const MOST_FRAMES: usize = 1 << 16;
const DEADLINE: Duration = Duration::from_secs(10);

/// The members of the body.
pub(super) struct Submission {
    pub(super) key_id: KeyId,
    pub(super) challenge: String,
    pub(super) attestation: Vec<u8>,
}

impl Submission {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Rejected> {
        let unreadable = |reason| malformed(MalformedToken::Unreadable).with_reason(reason);
        let json: Value = serde_json::from_slice(body).map_err(|_| unreadable("json"))?;
        let member = |name| match json.get(name) {
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(unreadable("a member is no text")),
            None => Err(malformed(MalformedToken::Incomplete)),
        };
        let attestation = STANDARD.decode(member("attestation")?);
        Ok(Self {
            key_id: member("key_id")?.parse().map_err(|error| rejected(&error))?,
            challenge: member("challenge")?.to_owned(),
            attestation: attestation.map_err(|_| malformed(MalformedToken::NotCanonical))?,
        })
    }
}

fn malformed(reason: MalformedToken) -> Rejected {
    Rejection::from(reason).into()
}

/// Reads a body of at most 32 KiB.
pub(super) async fn read(body: impl Body<Data = Bytes>) -> Result<Bytes, Rejection> {
    if body.size_hint().lower() > LONGEST as u64 {
        return Err(Rejection::TooLarge);
    }
    let reading = async {
        let mut body = std::pin::pin!(body);
        let mut bytes = BytesMut::new();
        for _ in 0..MOST_FRAMES {
            let Some(frame) = body.frame().await else { return Ok(bytes.freeze()) };
            let frame = frame.map_err(|_| Rejection::IncompleteBody)?;
            let Ok(data) = frame.into_data() else { return Ok(bytes.freeze()) };
            if data.len() > LONGEST - bytes.len() {
                return Err(Rejection::TooLarge);
            }
            bytes.extend_from_slice(&data);
        }
        Err(Rejection::TooLarge)
    };
    within(DEADLINE, reading).await.unwrap_or(Err(Rejection::IncompleteBody))
}
