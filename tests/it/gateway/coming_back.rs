//! The provider's answers: the headers and bodies that come back to the app.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, StatusCode},
    response::IntoResponse,
};
use futures::stream;

use super::{CHAT, Gateway, KEY, ai_gateway::Limits, names, provider};

#[tokio::test]
async fn w06_back_to_the_app_come_no_organization_and_no_way_around_the_gateway() {
    let dropped = [
        ("access-control-allow-origin", "*"),
        ("anthropic-organization-id", "org"),
        ("anthropic-workspace-id", "wrkspc"),
        ("cf-ray", "1-FRA"),
        ("content-location", "https://api.example/upload"),
        ("link", "<https://api.example/next>; rel=next"),
        ("location", "https://api.example/upload"),
        ("openai-organization", "org"),
        ("openai-project", "proj"),
        ("refresh", "0; url=https://api.example/"),
        ("server", "cloudflare"),
        ("set-cookie", "__cf_bm=1"),
        ("via", "1.1 google"),
        ("www-authenticate", "Bearer realm=\"org\""),
        ("x-goog-upload-control-url", "https://api.example/upload"),
        ("x-goog-upload-url", "https://api.example/upload"),
    ];
    let kept = [
        ("anthropic-ratelimit-requests-remaining", "9"),
        ("cache-control", "no-store"),
        ("content-disposition", "attachment; filename=\"a.txt\""),
        ("content-type", "application/json"),
        ("openai-poll-after-ms", "500"),
        ("openai-processing-ms", "17"),
        ("openai-version", "2020-10-01"),
        ("request-id", "req_2"),
        ("retry-after", "7"),
        ("retry-after-ms", "7000"),
        ("x-goog-upload-status", "final"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-request-id", "req_1"),
        ("x-should-retry", "false"),
    ];
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS, StatusCode::TEMPORARY_REDIRECT] {
        let (url, _) = provider(move |_| async move {
            let mut response = (status, "{}").into_response();
            for (name, value) in dropped.into_iter().chain(kept) {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        })
        .await;
        let mut gateway = Gateway::new(&url, Limits::default()).await;
        gateway.client =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let response = gateway.post(CHAT).send().await.unwrap();
        assert_eq!(response.status(), status);
        let mut expected: Vec<_> = kept.iter().map(|(name, _)| *name).collect();
        expected.extend(["content-length", "date", "x-gateway-request-id"]);
        expected.sort_unstable();
        assert_eq!(names(response.headers()), expected, "{status}");
        for (name, value) in kept {
            assert_eq!(response.headers()[name], value, "{status}");
        }
    }
}

#[tokio::test]
async fn w06_no_answer_quotes_the_key() {
    let in_pieces = || {
        let (first, second) = KEY.split_at(KEY.len() / 2);
        let pieces = ["{\"error\":\"", first, second, "\"}"];
        Body::from_stream(stream::iter(pieces.map(Ok::<_, std::io::Error>)))
    };
    let quoted = || Body::from(format!("{{\"error\":\"your key {KEY} may not\"}}"));
    let most_of_it = || Body::from(format!("{{\"error\":\"your key {}… may not\"}}", &KEY[..KEY.len() - 9]));
    // A reader that does not know the coding cannot say that the key is not in it.
    let encoded = || Body::from(vec![0x1f, 0x8b, 8, 0]);
    let late = || Body::from(format!("{}{KEY}", " ".repeat(1024 * 1024)));
    type Case = (&'static str, fn() -> Body, Option<&'static str>);
    let cases: [Case; 5] = [
        ("quoted", quoted, None),
        ("in pieces", in_pieces, None),
        ("most of it", most_of_it, None),
        ("encoded", encoded, Some("gzip")),
        ("late", late, None),
    ];
    for (name, body, coding) in cases {
        for status in [302, 400, 404, 429, 500, 529] {
            let (url, _) = provider(move |_| async move {
                let mut response = body().into_response();
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                let headers = response.headers_mut();
                headers.insert("retry-after", HeaderValue::from_static("7"));
                headers.insert("x-request-id", HeaderValue::from_static(KEY));
                if let Some(coding) = coding {
                    headers.insert("content-encoding", HeaderValue::from_static(coding));
                }
                response
            })
            .await;
            let gateway = Gateway::new(&url, Limits::default()).await;
            let response = gateway.post(CHAT).send().await.unwrap();
            // The status and the waiting time are the provider's.
            assert_eq!(response.status(), status, "{name}");
            assert_eq!(response.headers()["retry-after"], "7", "{name}");
            assert!(!format!("{:?}", response.headers()).contains(&KEY[8..28]), "{name}");
            let text = response.text().await.unwrap();
            assert!(!text.contains(&KEY[8..28]), "{name}: {text}");
            assert!(text.contains("\"provider_error\""), "{name}: {text}");
        }
    }

    // Other errors come as they are, also without a body.
    for body in ["{\"error\":\"You sent sk-proj-****8kL9\"}", ""] {
        let (url, _) =
            provider(move |_| async move { (StatusCode::BAD_REQUEST, body).into_response() }).await;
        let gateway = Gateway::new(&url, Limits::default()).await;
        let response = gateway.post(CHAT).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.text().await.unwrap(), body);
    }
}

/// An error that could not be read, because it is compressed, would have to be replaced.
#[tokio::test]
async fn w06_the_provider_is_asked_for_answers_that_can_be_read() {
    let (url, seen) = provider(async |_: Request| StatusCode::OK.into_response()).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let response = gateway.post(CHAT).header("accept-encoding", "gzip, deflate, br").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap().pop().unwrap().headers["accept-encoding"], "identity");
}
