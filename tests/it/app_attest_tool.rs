//! The example `app_attest`: the tool that explains an object.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::example;

/// The answer of `explain`, and whether the exit status says that the object verifies.
fn explain(question: &[u8]) -> (bool, Value) {
    let mut tool = Command::new(example("app_attest"))
        .arg("explain")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    tool.stdin.take().unwrap().write_all(question).unwrap();
    let output = tool.wait_with_output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn explain_tells_what_an_object_says() {
    let vectors: Value = serde_json::from_str(include_str!("../vectors/app-attest.json")).unwrap();
    let vector = &vectors["attestations"][5];
    let mut question = json!({
        "kind": "attestation",
        "object_base64": vector["attestation_object_base64"],
        "key_id_base64": vector["key_id_base64"],
        "client_data_hash_base64": vector["client_data_hash_base64"],
        "app_id": vector["app_id"],
        "at_unix": vector["verify_at_unix"],
    });
    let (is_ok, answer) = explain(question.to_string().as_bytes());
    assert!(is_ok && answer["ok"] == true, "{answer}");
    assert_eq!(answer["environment"], "production");
    assert_eq!(answer["counter"], 0);
    assert_eq!(answer["receipt"]["creation_unix"], 1_707_340_136);

    question["environments"] = json!(["development"]);
    let (is_ok, answer) = explain(question.to_string().as_bytes());
    assert!(!is_ok && answer["ok"] == false, "{answer}");
    assert_eq!(answer["step"], "environment");

    let vector = &vectors["receipts"][4];
    let question = json!({
        "kind": "receipt",
        "object_base64": vector["receipt_base64"],
        "app_id": vector["app_id"],
        "at_unix": 1_610_276_908,
    });
    let (is_ok, answer) = explain(question.to_string().as_bytes());
    assert!(is_ok, "{answer}");
    assert_eq!((&answer["risk_metric"], &answer["environment"]), (&json!(1), &json!("development")));
}

#[test]
fn explain_answers_rubbish_with_json() {
    for rubbish in ["", "{", "[]", "null", "\u{0}", r#"{"kind":"attestation"}"#, &"[".repeat(10_000)] {
        let (is_ok, answer) = explain(rubbish.as_bytes());
        assert!(!is_ok);
        assert_eq!((&answer["ok"], &answer["step"]), (&json!(false), &json!("input")), "{rubbish:.20}");
    }
}
