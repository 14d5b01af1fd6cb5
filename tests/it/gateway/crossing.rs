//! The lists of what crosses the gateway: headers and query parameters, there and back.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode},
};
use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use tower_devicecheck::split_key::gateway::PassedBody;

use super::{CHAT, Gateway, KEY, ai_gateway::Limits, code, names, ok, provider, status};

/// Headers by which servers and proxies are told another method, path, host or credential.
const OVERRIDES: [(&str, &str); 34] = [
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-HTTP-Method", "DELETE"),
    ("X-Method-Override", "DELETE"),
    ("X_HTTP_METHOD_OVERRIDE", "DELETE"),
    ("X-Method", "DELETE"),
    ("X-Original-Method", "DELETE"),
    ("X-Original-URL", "/v1/organization/admin_api_keys"),
    ("X-Original-URI", "/v1/organization/admin_api_keys"),
    ("X-Rewrite-URL", "/v1/organization/admin_api_keys"),
    ("X-Override-URL", "/v1/organization/admin_api_keys"),
    ("X-Envoy-Original-Path", "/v1/organization/admin_api_keys"),
    ("X-Accel-Redirect", "/v1/organization/admin_api_keys"),
    ("X-Forwarded-Prefix", "/v1/organization"),
    ("X-Forwarded-Path", "/v1/organization"),
    ("X-Forwarded-Uri", "/v1/organization"),
    ("X-Forwarded-Method", "DELETE"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Server", "evil.example"),
    ("X-Forwarded-Scheme", "http"),
    ("X-Forwarded-Ssl", "off"),
    ("X-Forwarded-User", "admin"),
    ("X-Forwarded-Access-Token", "stolen"),
    ("X-Original-Host", "evil.example"),
    ("X-Host", "evil.example"),
    ("X-HTTP-Host-Override", "evil.example"),
    ("Forwarded", "for=192.0.2.1;host=evil.example"),
    ("Api-Key", "stolen"),
    ("X-Auth-Token", "stolen"),
    ("X-Goog-Iam-Authorization-Token", "stolen"),
    ("X-Goog-User-Project", "stolen"),
    ("X-Goog-Request-Params", "model=models/other"),
    ("X-Goog-FieldMask", "*"),
    ("X-Amz-Security-Token", "stolen"),
    ("X-An-Invention", "of tomorrow"),
];

/// Written by hand, because an HTTP client has ideas of its own about `Host`.
#[tokio::test]
async fn w04_no_header_tells_the_provider_another_method_path_host_or_credential() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let headers: String = OVERRIDES.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let lines = [
        ("origin form", format!("POST {CHAT} HTTP/1.1\r\nhost: evil.example")),
        ("absolute form", format!("POST http://evil.example{CHAT} HTTP/1.1\r\nhost: other.example")),
    ];
    for (name, line) in lines {
        let text = format!(
            "{line}\r\nconnection: close\r\nauthorization: Bearer {}\r\n{headers}content-length: 0\r\n\r\n",
            gateway.credential()
        );
        assert_eq!(status(&gateway.exchange(&text).await), "200", "{name}");
        let head = seen.lock().unwrap().pop().unwrap();
        assert_eq!((head.method, head.uri.to_string()), (Method::POST, "/base/v1/chat/completions".into()));
        let expected = ["accept", "authorization", "content-length", "host"];
        let mut crossed = names(&head.headers);
        crossed.retain(|name| !expected.contains(name));
        assert!(crossed.is_empty(), "{name}: {crossed:?}");
        assert_eq!(head.headers["host"], url.trim_start_matches("http://"), "{name}");
        assert_eq!(head.headers["authorization"], format!("Bearer {KEY}"), "{name}");
    }
}

#[tokio::test]
async fn w04_no_parameter_tells_the_provider_another_method_path_host_or_credential() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for query in [
        "$httpMethod=DELETE",
        "%24httpMethod=DELETE",
        "%24http%4dethod=DELETE",
        "limit=2&$HTTPMETHOD=DELETE",
        "_method=DELETE",
        "httpMethod=DELETE",
        "method=DELETE",
        "X-HTTP-Method-Override=DELETE",
        "x-http-method-override=DELETE",
        "$outputDefaults=1",
        "$.xgafv=1",
        "callback=evil",
        "$callback=evil",
        "upload_protocol=resumable",
        "uploadType=resumable",
        "quotaUser=192.0.2.1",
        "userIp=192.0.2.1",
        "$userProject=stolen",
        "userProject=stolen",
        "project_id=stolen",
        "workspace_id=stolen",
        "$req=1",
        "url=http://evil.example",
        "host=evil.example",
        "limit=2;$httpMethod=DELETE",
        "LIMIT=2",
        "limit%00=2",
        "=2",
        "%",
        "%zz=1",
    ] {
        for path in [CHAT, "/v1/openai/app/models"] {
            let response = gateway.post(&format!("{path}?{query}")).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
            assert_eq!(code(response).await, "bad_query", "{query}");
        }
    }
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(gateway.apple.calls(), 0);
}

/// Forms and batches carry methods, paths and parameters in the body.
#[tokio::test]
async fn w04_no_media_type_brings_other_parameters_or_requests() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    for media in [
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-Urlencoded ; charset=utf-8",
        "multipart/mixed; boundary=x",
        "multipart/batch; boundary=x",
        "application/http",
        "message/http",
        // Some servers end the type at a space.
        "application/x-www-form-urlencoded x",
        // A list, of which servers take the first or the last.
        "application/json, application/x-www-form-urlencoded",
        "application/json,multipart/mixed; boundary=x",
        "application/json; charset=utf-8, message/http",
        "application/json; a=\"b\", application/http",
        "application/json; a=\"\\\\\", application/http",
        "application/json, application/json",
        "application/json,",
        // A quote without an end hides no list.
        "application/json; a=\"b, application/http",
        "application/json; a=\"b\\\", application/http",
    ] {
        let response = gateway.post(CHAT).header("content-type", media).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{media}");
        assert_eq!(code(response).await, "bad_media_type", "{media}");
    }
    // The same list in two headers.
    let request = gateway.post(CHAT).header("content-type", "application/json");
    let response = request.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(code(response).await, "bad_media_type");
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(gateway.apple.calls(), 0);
    for media in [
        "application/json",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=\"a,b\"",
        "multipart/form-data; boundary=\"a\\\",b\"; charset=utf-8",
        "audio/wav",
        "application/sdp",
        "",
    ] {
        let response = gateway.post(CHAT).header("content-type", media).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{media}");
    }
}

#[tokio::test]
async fn w04_trailers_do_not_cross() {
    let trailers = HeaderMap::from_iter([(
        "x-http-method-override".parse().unwrap(),
        HeaderValue::from_static("DELETE"),
    )]);
    let frames = [Frame::data(Bytes::from_static(b"{}")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
    let upload = PassedBody::request(Body::new(body), 10, std::time::Duration::from_secs(10));
    let sent = upload.collect().await.unwrap();
    assert!(sent.trailers().is_none_or(HeaderMap::is_empty), "{:?}", sent.trailers());
    assert_eq!(sent.to_bytes(), "{}");
}

/// The headers and parameters of the SDKs of OpenAI, Anthropic and Google, in Python and JavaScript.
#[tokio::test]
async fn w04_what_sdks_send_crosses() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let headers = [
        ("accept", "application/json"),
        ("accept-language", "de"),
        ("anthropic-beta", "files-api"),
        ("anthropic-version", "2023-06-01"),
        ("content-type", "application/json"),
        ("idempotency-key", "stainless-python-retry-1"),
        ("openai-beta", "assistants=v2"),
        ("user-agent", "OpenAI/Python"),
        ("x-client-request-id", "1"),
        ("x-goog-api-client", "google-genai-sdk/1 gl-python/3"),
        ("x-goog-upload-command", "upload, finalize"),
        ("x-goog-upload-protocol", "raw"),
        ("x-server-timeout", "60"),
        ("x-stainless-arch", "x64"),
        ("x-stainless-async", "false"),
        ("x-stainless-helper-method", "stream"),
        ("x-stainless-lang", "python"),
        ("x-stainless-read-timeout", "600"),
        ("x-stainless-retry-count", "0"),
        ("x-stainless-runtime-version", "3.11"),
    ];
    let mut request = gateway.post(CHAT);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    assert_eq!(request.body("{}").send().await.unwrap().status(), StatusCode::OK);
    let head = seen.lock().unwrap().pop().unwrap();
    for (name, value) in headers {
        assert_eq!(head.headers.get(name).map(HeaderValue::as_bytes), Some(value.as_bytes()), "{name}");
    }
    for query in [
        "limit=2&after=a%2Fb&order=asc&before=x",
        "include[]=usage&include%5B%5D=step_details.tool_calls%5B*%5D",
        "metadata%5Bkey%5D=value&model=m&stream=true&starting_after=1&purpose=batch",
        "limit=",
        "limit",
    ] {
        let response = gateway.post(&format!("/v1/openai/app/files?{query}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{query}");
        assert_eq!(seen.lock().unwrap().pop().unwrap().uri.query(), Some(query));
    }
}

/// The place of the user is nobody's business, and some providers answer 401 or 403 to browsers and proxies.
#[tokio::test]
async fn w06_nothing_about_the_user_the_network_or_an_organization_reaches_the_provider() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let mut request = gateway.post(CHAT);
    for name in [
        "akamai-origin-hop",
        "anthropic-dangerous-direct-browser-access",
        "anthropic-organization-id",
        "anthropic-workspace-id",
        "baggage",
        "cdn-loop",
        "cf-connecting-ip",
        "cf-ew-via",
        "cf-ipcity",
        "cf-ipcountry",
        "cf-iplatitude",
        "cf-ray",
        "cf-visitor",
        "cf-worker",
        "client-ip",
        "cloudfront-viewer-address",
        "cloudfront-viewer-country",
        "cookie",
        "dnt",
        "fastly-client-ip",
        "fly-client-ip",
        "fly-region",
        "from",
        "openai-organization",
        "openai-project",
        "origin",
        "priority",
        "referer",
        "sec-ch-ua",
        "sec-ch-ua-platform",
        "sec-fetch-dest",
        "sec-fetch-mode",
        "sec-fetch-site",
        "sec-gpc",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "true-client-ip",
        "via",
        "x-amzn-trace-id",
        "x-appengine-city",
        "x-appengine-user-ip",
        "x-arr-clientip",
        "x-azure-clientip",
        "x-client-ip",
        "x-client-geo-location",
        "x-cloud-trace-context",
        "x-envoy-external-address",
        "x-forwarded-for",
        "x-nf-client-connection-ip",
        "x-original-forwarded-for",
        "x-real-ip",
        "x-requested-with",
        "x-vercel-ip-city",
        "x-vercel-forwarded-for",
    ] {
        request = request.header(name, "192.0.2.1");
    }
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    let head = seen.lock().unwrap().pop().unwrap();
    let mut crossed = names(&head.headers);
    crossed.retain(|name| !["accept", "authorization", "content-length", "host"].contains(name));
    assert!(crossed.is_empty(), "{crossed:?}");
}
