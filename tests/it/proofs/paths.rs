//! The URI of a request that a router has shortened.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body, extract::OriginalUri, routing::get};
use http::{Extensions, Request, StatusCode, Uri, request, uri::PathAndQuery};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{DeviceCheckLayer, Facts, Proof, Route, Step};

use super::keyed;
use crate::support::{Apple, TOKEN_HEADER};

/// The parameter `key` of the query. It notes every URI that it sees.
#[derive(Clone, Default)]
struct QueryKey(Arc<Mutex<Vec<String>>>);

impl QueryKey {
    fn take(head: &mut request::Parts) -> Option<String> {
        let query = head.uri.query()?.to_owned();
        let key = query.split('&').find_map(|pair| pair.strip_prefix("key="))?.to_owned();
        let left: Vec<_> = query.split('&').filter(|pair| !pair.starts_with("key=")).collect();
        let query = if left.is_empty() { String::new() } else { format!("?{}", left.join("&")) };
        let mut parts = head.uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(format!("{}{query}", head.uri.path())).unwrap());
        head.uri = Uri::from_parts(parts).unwrap();
        Some(key)
    }
}

impl Proof for QueryKey {
    fn scheme(&self) -> &'static str {
        "QueryKey"
    }

    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
        self.0.lock().unwrap().push(head.uri.to_string());
        match Self::take(head) {
            Some(key) => keyed(&key.parse().unwrap(), facts),
            None => Step::absent(),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        Self::take(head);
    }
}

fn with_original(layer: DeviceCheckLayer) -> DeviceCheckLayer {
    layer.with_original_uri(|extensions: &mut Extensions| {
        extensions.get_mut::<OriginalUri>().map(|uri| &mut uri.0)
    })
}

/// Tells the path and query that a handler sees, and the original ones.
async fn handler(OriginalUri(original): OriginalUri, request: Request<Body>) -> String {
    format!("{} {original}", request.uri())
}

async fn send(app: &Router, uri: &str, token: Option<&str>) -> (u16, String) {
    let mut request = Request::builder().uri(uri);
    if let Some(token) = token {
        request = request.header(TOKEN_HEADER, token);
    }
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn policy_and_proofs_see_the_path_of_the_client_and_handlers_the_stripped_one() {
    let apple = Apple::new();
    let proof = QueryKey::default();
    let policy = |head: &request::Parts| match head.uri.path() {
        "/api/open" => Route::Exempt,
        _ => Route::Production,
    };
    let layer = with_original(apple.layer().with_routing(policy)).add_proof_before(proof.clone()).unwrap();
    let routes = Router::new().route("/open", get(handler)).route("/shut", get(handler)).layer(layer);
    let app = Router::new().nest("/api", routes);
    let token = apple.genuine();
    let cases: &[(&str, Option<&str>, u16, &str)] = &[
        ("/api/open?a=1", None, 200, "/open?a=1 /api/open?a=1"),
        ("/api/shut?a=1", None, 401, ""),
        ("/api/shut?a=1", Some(&token), 200, "/shut?a=1 /api/shut?a=1"),
        ("/api/shut?key=good", None, 200, "/shut /api/shut"),
        ("/api/shut?a=1&key=good&b=2", None, 200, "/shut?a=1&b=2 /api/shut?a=1&b=2"),
        ("/api/shut?a=1&key=bad&b=2", Some(&token), 401, ""),
    ];
    for (uri, token, status, seen) in cases {
        let (found, body) = send(&app, uri, *token).await;
        assert_eq!(found, *status, "{uri}");
        assert!(*status != 200 || body == *seen, "{uri}: {body}");
    }
    let shown: Vec<_> = cases.iter().map(|(uri, ..)| *uri).filter(|uri| !uri.contains("open")).collect();
    assert_eq!(*proof.0.lock().unwrap(), shown);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn a_parameter_of_a_proof_behind_the_one_that_decides_is_gone_unless_credentials_are_forwarded() {
    let apple = Apple::new();
    let token = apple.genuine();
    for (forward, seen) in
        [(false, "/shut?a=1 /api/shut?a=1"), (true, "/shut?a=1&key=good /api/shut?a=1&key=good")]
    {
        for with_token in [true, false] {
            let layer = with_original(apple.layer()).add_proof_after(QueryKey::default()).unwrap();
            let layer = layer.with_forwarded_credentials(forward);
            let app = Router::new().nest("/api", Router::new().route("/shut", get(handler)).layer(layer));
            let token = with_token.then_some(&*token);
            assert_eq!(send(&app, "/api/shut?a=1&key=good", token).await, (200, seen.to_owned()));
        }
    }
    // One for each layer, which has a cache of its own.
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn a_uri_that_a_router_has_rewritten_stays_rewritten() {
    let apple = Apple::new();
    let layer = with_original(apple.layer()).add_proof_before(QueryKey::default()).unwrap();
    let service = layer.layer(service_fn(async |request: Request<Body>| {
        assert_eq!(request.uri(), "/new?page=2");
        assert_eq!(request.extensions().get::<OriginalUri>().unwrap().0, "/old?p=2");
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
    }));
    let mut request = Request::get("/new?page=2").header(TOKEN_HEADER, apple.genuine());
    request.extensions_mut().unwrap().insert(OriginalUri(Uri::from_static("/old?p=2")));
    let response = service.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!((response.status(), apple.calls()), (StatusCode::OK, 1));
}

#[tokio::test]
async fn without_an_original_uri_a_parameter_is_taken_from_the_requests_own() {
    let apple = Apple::new();
    let layer = apple.layer().add_proof_before(QueryKey::default()).unwrap();
    for layer in [layer.clone(), with_original(layer)] {
        let service = layer.layer(service_fn(async |request: Request<Body>| {
            assert_eq!(request.uri(), "/x?a=1");
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        }));
        let request = Request::get("/x?key=good&a=1").body(Body::empty()).unwrap();
        assert_eq!(service.oneshot(request).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(apple.calls(), 0);
}
