//! A protected server whose traces go to a collector in the same process: `cargo run --package
//! tower-devicecheck-opentelemetry`.
//!
//! The collector prints each span when it ends. A real server has `opentelemetry-otlp` in its place. `LISTEN` sets the
//! address, by default `127.0.0.1:3000`.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]

#[cfg(test)]
mod tests;

use std::{error::Error, fmt};

use axum::{Router, extract::Request, http::HeaderMap, routing::get};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, Environment, VerifiedDevice,
    testing::{FakeApple, FakeAppleServer},
};
use tower_http::trace::TraceLayer;
use tracing::{Span, Subscriber, field::Empty, info_span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, Registry, layer::SubscriberExt, registry::LookupSpan};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let collector = Collector(Box::new(|span| println!("{}", line(span))));
    tracing::subscriber::set_global_default(Registry::default().with(traces(collector)))?;
    let apple = FakeApple::new().serve().await?;
    let token = apple.apple().genuine_token(Environment::Production);
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}; a fake Apple accepts this token for two minutes:");
    println!(
        "curl -i http://{address}/ -H 'X-Apple-Device-Token: {token}' -H \
         'traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'"
    );
    axum::serve(listener, app(client(&apple)?)).await?;
    Ok(())
}

fn client(apple: &FakeAppleServer) -> Result<AppleClient, Box<dyn Error>> {
    let client = AppleClient::builder(apple.apple().credentials())
        .base_url(Environment::Production, apple.url(Environment::Production))
        .build()?;
    Ok(client)
}

/// The layer is inside of the layer that makes the request's span.
fn app(apple: AppleClient) -> Router {
    Router::new()
        .route("/", get(async |device: VerifiedDevice| format!("hello, verified by {}\n", device.evidence())))
        .route_layer(DeviceCheckLayer::new(apple))
        .layer(TraceLayer::new_for_http().make_span_with(request_span).on_request(()).on_response(
            |response: &axum::response::Response, _, span: &Span| {
                span.record("http.response.status_code", response.status().as_u16());
            },
        ))
}

/// The request's span. Its parent is the span that the client names in `traceparent`.
fn request_span(request: &Request) -> Span {
    let span = info_span!(
        "request",
        otel.kind = "server",
        http.request.method = request.method().as_str(),
        url.path = request.uri().path(),
        http.response.status_code = Empty,
    );
    let caller = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // This fails without a layer for OpenTelemetry, and then there is no trace.
    let _ = span.set_parent(caller);
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// Makes spans of level info and above OpenTelemetry's, and gives them to the collector as they end.
fn traces<S>(collector: Collector) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let provider = SdkTracerProvider::builder().with_simple_exporter(collector).build();
    tracing_opentelemetry::layer().with_tracer(provider.tracer("example")).with_filter(LevelFilter::INFO)
}

/// A collector in this process.
struct Collector(Box<dyn Fn(&SpanData) + Send + Sync>);

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter().for_each(&self.0);
        Ok(())
    }
}

fn line(span: &SpanData) -> String {
    let attributes =
        span.attributes.iter().map(|attribute| format!(" {}={}", attribute.key, attribute.value));
    let parent = match span.parent_span_id {
        SpanId::INVALID => "none".to_owned(),
        parent => parent.to_string(),
    };
    let context = &span.span_context;
    let (trace, id) = (context.trace_id(), context.span_id());
    let head =
        format!("trace={trace} span={id} parent={parent} kind={:?} name={}", span.span_kind, span.name);
    head + &attributes.collect::<String>()
}
