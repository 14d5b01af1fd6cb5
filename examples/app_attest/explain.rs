//! `explain`: verifies one object, and tells the result.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_devicecheck::{
    Environment,
    app_attest::{
        Anchors, AppId, Assertion, AssertionExpected, Attestation, AttestationExpected, BundleVersion,
        Category, KeyId, ObjectError, PublicKey, Receipt, ReceiptExpected,
    },
};

/// The question: an object, and the facts that it must match.
#[derive(Deserialize)]
struct Question {
    kind: String,
    object_base64: String,
    key_id_base64: Option<String>,
    client_data_hash_base64: Option<String>,
    app_id: Option<String>,
    public_key_base64: Option<String>,
    at_unix: Option<u64>,
    environments: Option<Vec<String>>,
}

/// A question that cannot be answered, or an object that does not verify.
struct Fault {
    step: &'static str,
    reason: String,
}

impl From<ObjectError> for Fault {
    fn from(error: ObjectError) -> Self {
        Self { step: error.step(), reason: error.reason().to_owned() }
    }
}

/// Answers the question in this text. The flag says whether the object verifies.
pub(crate) fn explain(text: &[u8]) -> (bool, Value) {
    match answer(text) {
        Ok(answer) => (true, answer),
        Err(fault) => (false, json!({ "ok": false, "step": fault.step, "reason": fault.reason })),
    }
}

fn answer(text: &[u8]) -> Result<Value, Fault> {
    let question: Question = serde_json::from_slice(text).map_err(|error| input(error.to_string()))?;
    let object = base64("object_base64", &question.object_base64)?;
    let app_id: AppId = given("app_id", question.app_id.as_deref())?.parse()?;
    match question.kind.as_str() {
        "attestation" => attestation(&question, &object, app_id),
        "assertion" => assertion(&question, &object, &app_id),
        "receipt" => receipt(&question, &object, &app_id),
        other => Err(input(format!("kind is {other:?}, not attestation, assertion or receipt"))),
    }
}

fn attestation(question: &Question, object: &[u8], app_id: AppId) -> Result<Value, Fault> {
    let key_id: KeyId = given("key_id_base64", question.key_id_base64.as_deref())?.parse()?;
    let expected = AttestationExpected {
        key_id: &key_id,
        client_data_hash: &client_data_hash(question)?,
        app_ids: &[app_id],
        environments: &environments(question)?,
        now: now(question)?,
        max_age: None,
    };
    let attestation = Attestation::verify(object, &expected, &Anchors::apple())?;
    Ok(json!({
        "ok": true,
        "kind": "attestation",
        "app_id": attestation.app_id().as_str(),
        "environment": attestation.environment().as_str(),
        "counter": 0,
        "category": attestation.category().map(Category::as_str),
        "category_number": attestation.category().map(Category::number),
        "bundle_version": attestation.bundle_version().map(BundleVersion::as_str),
        "key_id_base64": attestation.key_id().to_string(),
        "public_key_base64": STANDARD.encode(attestation.public_key().as_bytes()),
        "platform": attestation.platform(),
        "system_version": attestation.system_version(),
        "attested_at_unix": unix(attestation.attested_at()),
        "risk_metric": attestation.receipt().and_then(Receipt::risk_metric),
        "receipt": attestation.receipt().map(shown),
    }))
}

fn assertion(question: &Question, object: &[u8], app_id: &AppId) -> Result<Value, Fault> {
    let public_key = given("public_key_base64", question.public_key_base64.as_deref())?;
    let public_key = PublicKey::from_bytes(&base64("public_key_base64", public_key)?)?;
    if let Some(key_id) = &question.key_id_base64
        && key_id.parse::<KeyId>()? != public_key.key_id()
    {
        return Err(Fault { step: "key_id", reason: "the public key has another id".to_owned() });
    }
    let client_data_hash = client_data_hash(question)?;
    let expected = AssertionExpected { public_key: &public_key, client_data_hash: &client_data_hash, app_id };
    let assertion = Assertion::verify(object, &expected)?;
    Ok(json!({
        "ok": true,
        "kind": "assertion",
        "app_id": app_id.as_str(),
        "counter": assertion.counter(),
        "category": assertion.category().map(Category::as_str),
        "category_number": assertion.category().map(Category::number),
        "bundle_version": assertion.bundle_version().map(BundleVersion::as_str),
    }))
}

fn receipt(question: &Question, object: &[u8], app_id: &AppId) -> Result<Value, Fault> {
    let public_key = match &question.public_key_base64 {
        Some(text) => Some(PublicKey::from_bytes(&base64("public_key_base64", text)?)?),
        None => None,
    };
    let expected = ReceiptExpected { app_id, public_key: public_key.as_ref(), now: now(question)? };
    let receipt = Receipt::verify(object, &expected, &Anchors::apple())?;
    if let Some(key_id) = &question.key_id_base64
        && key_id.parse::<KeyId>()? != receipt.public_key().key_id()
    {
        return Err(Fault { step: "receipt_key", reason: "the attested key has another id".to_owned() });
    }
    let mut answer = shown(&receipt);
    answer["ok"] = true.into();
    answer["kind"] = "receipt".into();
    Ok(answer)
}

fn shown(receipt: &Receipt) -> Value {
    let environment = receipt.environment().map(|name| if name == "sandbox" { "development" } else { name });
    json!({
        "receipt_kind": receipt.kind().as_str(),
        "app_id": receipt.app_id(),
        "environment": environment,
        "receipt_environment": receipt.environment(),
        "key_id_base64": receipt.public_key().key_id().to_string(),
        "risk_metric": receipt.risk_metric(),
        "creation_unix": unix(receipt.creation()),
        "not_before_unix": receipt.not_before().map(unix),
        "expiry_unix": receipt.expiry().map(unix),
    })
}

fn client_data_hash(question: &Question) -> Result<Vec<u8>, Fault> {
    base64(
        "client_data_hash_base64",
        given("client_data_hash_base64", question.client_data_hash_base64.as_deref())?,
    )
}

fn environments(question: &Question) -> Result<Vec<Environment>, Fault> {
    let Some(names) = &question.environments else { return Ok(vec![Environment::Production]) };
    let parse = |name: &String| name.parse().map_err(|_| input(format!("environments holds {name:?}")));
    names.iter().map(parse).collect()
}

/// The time of the question; without one, the present.
fn now(question: &Question) -> Result<SystemTime, Fault> {
    let Some(seconds) = question.at_unix else { return Ok(SystemTime::now()) };
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .ok_or_else(|| input("at_unix is too late".to_owned()))
}

fn given<'a>(name: &str, value: Option<&'a str>) -> Result<&'a str, Fault> {
    value.ok_or_else(|| input(format!("{name} is missing")))
}

fn base64(name: &str, text: &str) -> Result<Vec<u8>, Fault> {
    STANDARD.decode(text).map_err(|_| input(format!("{name} is not base64")))
}

fn input(reason: String) -> Fault {
    Fault { step: "input", reason }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
