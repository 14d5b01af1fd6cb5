use base64::{Engine, engine::general_purpose::STANDARD};
use http::header::AUTHORIZATION;

use super::{builder, script, status};
use crate::apple::receipts::ReceiptAnswer;
use crate::apple::transport::LongestAnswer;
use crate::gate::{error::VerifyErrorKind, routing::Environment};

#[tokio::test]
async fn the_request_is_as_apple_documents_it() {
    let (sent, transport) = script(vec![|| status(200, "AAEC\r\nAwQF\n")]);
    let client = builder()
        .receipt_base_url(Environment::Development, "https://proxy.example/apple/")
        .transport(transport)
        .build()
        .unwrap();
    for (environment, url) in [
        (Environment::Production, "https://data.appattest.apple.com/v1/attestationData"),
        (Environment::Development, "https://proxy.example/apple/v1/attestationData"),
    ] {
        let answer = client.refresh_receipt(&[0xff; 5000], environment).await.unwrap();
        assert_eq!(answer, ReceiptAnswer::Newer(vec![0, 1, 2, 3, 4, 5]));
        let request = sent.0.lock().unwrap().pop().unwrap();
        assert_eq!((request.method().as_str(), &*request.uri().to_string()), ("POST", url));
        let token = request.headers()[AUTHORIZATION].to_str().unwrap();
        assert!(token.starts_with("eyJ") && !token.contains(' '), "bare");
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        assert_eq!(STANDARD.decode(request.body()).unwrap(), [0xff; 5000]);
        assert_eq!(LongestAnswer::of(request.extensions()), 32 * 1024);
    }
    assert_eq!(sent.count(), 0, "no other request");
}

#[tokio::test]
async fn an_error_of_the_base_url_names_it() {
    let (_, transport) = script(vec![|| status(200, "")]);
    let builder = builder().receipt_base_url(Environment::Production, "http://example.com");
    let error = builder.transport(transport).build().unwrap_err().to_string();
    assert!(error.starts_with("base URL for receipts of production: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn throttled_receipts_hold_off_no_device_token() {
    let (sent, transport) = script(vec![|| status(429, ""), || status(200, "")]);
    let client = builder().transport(transport).build().unwrap();
    let error = client.refresh_receipt(b"receipt", Environment::Production).await.unwrap_err();
    assert_eq!(error.kind(), VerifyErrorKind::Throttled);
    client.validate(&super::token(), Environment::Production).await.unwrap();
    assert_eq!(sent.count(), 2);
}
