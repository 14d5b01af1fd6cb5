//! `/metrics` for Prometheus, on an address of its own: whoever reads it learns how well the server is attacked.

use tower_devicecheck::BoxError;

use super::variable;

/// Records the metrics and serves them at the address in `METRICS_LISTEN`, if it is set.
#[cfg(feature = "_prometheus")]
pub(crate) async fn serve() -> Result<(), BoxError> {
    use std::time::Duration;

    use axum::{Router, routing::get};
    use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
    use tokio::net::TcpListener;

    let Some(address) = variable("METRICS_LISTEN")? else { return Ok(()) };
    let listener =
        TcpListener::bind(address.trim()).await.map_err(|error| format!("METRICS_LISTEN: {error}"))?;
    let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    // Before the first request: the layer keeps the counters that it got for it.
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), &seconds)?
        .install_recorder()?;
    tower_devicecheck::describe_metrics();
    let render = metrics.clone();
    let app = Router::new().route("/metrics", get(move || async move { render.render() }));
    tokio::spawn(super::serve::serve(listener, app, super::serve::Limits::default(), std::future::pending()));
    // The exporter keeps each measured time until this.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            metrics.run_upkeep();
        }
    });
    Ok(())
}

/// Refuses a setting that would have no effect.
#[cfg(not(feature = "_prometheus"))]
pub(crate) async fn serve() -> Result<(), BoxError> {
    match variable("METRICS_LISTEN")? {
        Some(_) => Err("METRICS_LISTEN: build with `--features _prometheus`".into()),
        None => Ok(()),
    }
}
