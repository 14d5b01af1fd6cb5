//! The crate's metrics: one table of their names, and the way to the recorder that the application has installed.
//!
//! Without the feature `metrics`, nothing is recorded, and the callers are the same.

#![allow(dead_code, reason = "each feature of the crate records a part of the table")]

use std::{borrow::Cow, time::Duration};

#[cfg(feature = "metrics")]
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{PoisonError, RwLock},
};

/// The name and the value of a label. No client chooses a value, and no value is secret.
pub(crate) type Label = (&'static str, Cow<'static, str>);

pub(crate) const fn label(name: &'static str, value: &'static str) -> Label {
    (name, Cow::Borrowed(value))
}

/// A counter: its name, and its description.
pub(crate) struct Counter(&'static str, &'static str);

/// A gauge: its name, and its description.
pub(crate) struct Gauge(&'static str, &'static str);

/// A histogram of times in seconds: its name, and its description.
pub(crate) struct Histogram(&'static str, &'static str);

macro_rules! table {
    ($($metric:ident: $kind:ident = $name:literal, $help:literal;)*) => {
        $(pub(crate) static $metric: $kind = $kind($name, $help);)*

        #[cfg(feature = "metrics")]
        fn describe_all() {
            $($metric.describe();)*
        }

        #[cfg(test)]
        const NAMES: &[(&str, &str)] = &[$(($name, stringify!($kind))),*];
    };
}

table! {
    DECISIONS: Counter = "devicecheck_decisions_total", "Decisions about requests.";
    CHECK_DURATION: Histogram = "devicecheck_check_duration_seconds",
        "Time of the checks that asked a cache, Apple or another service.";
    CHECKS_JOINED: Counter = "devicecheck_checks_joined_total",
        "Requests that waited for the check of another request with the same token.";
    CACHE_LOOKUPS: Counter = "devicecheck_cache_lookups_total", "Look-ups in a verdict cache.";
    CACHE_ENTRIES: Gauge = "devicecheck_cache_entries", "Verdicts in the process's memory, including expired ones.";
    RESERVATIONS: Counter = "devicecheck_reservations_total", "Reservations of single-use tokens.";
    APPLE_DURATION: Histogram = "devicecheck_apple_request_duration_seconds",
        "Time from a request to Apple to its answer or its failure.";
    APPLE_RETRIES: Counter = "devicecheck_apple_retries_total", "Requests to Apple that repeat a failed one.";
    APPLE_IN_FLIGHT: Gauge = "devicecheck_apple_in_flight", "Calls to Apple that hold a slot.";
    APPLE_WAITING: Gauge = "devicecheck_apple_waiting", "Calls to Apple that wait for a slot.";
    APPLE_TURNED_AWAY: Counter = "devicecheck_apple_turned_away_total", "Calls to Apple that were not made.";
    APPLE_AVAILABILITY: Gauge = "devicecheck_apple_availability",
        "Clients whose way to Apple is in this state. A client counts once its state has changed.";
    PROVIDER_TOKENS: Counter = "devicecheck_provider_tokens_total", "Provider tokens that were signed.";
    REDIS_FAILURES: Counter = "devicecheck_redis_failures_total", "Commands that Redis did not carry out in time.";
    REDIS_INCIDENTS: Gauge = "devicecheck_redis_incidents", "Incidents of Redis that are not over.";
    ATTESTATIONS: Counter = "devicecheck_attestations_total", "Attestations of App Attest keys.";
    RECEIPT_REFRESHES: Counter = "devicecheck_receipt_refreshes_total", "Refreshes of receipts of App Attest.";
    SESSIONS: Counter = "devicecheck_sessions_total", "Sessions that were sold.";
    SPLIT_KEY_USES: Counter = "devicecheck_split_key_uses_total", "Uses of split keys.";
}

/// Gives the installed recorder of the `metrics` crate the description of each metric of this crate.
///
/// Exporters write the descriptions beside the values, as Prometheus's `# HELP` lines. Call this once, after the recorder
/// has been installed. The crate records without this call, too. The [guide](crate::guide::metrics) lists the metrics.
#[cfg(feature = "metrics")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "metrics")))]
pub fn describe_metrics() {
    describe_all();
}

#[cfg(feature = "metrics")]
fn labels<const N: usize>(labels: [Label; N]) -> Vec<metrics::Label> {
    labels.into_iter().map(|(name, value)| metrics::Label::new(name, value)).collect()
}

/// Records. A recorder that panics loses a value, and no slot, lock or request: callers record under locks and while
/// they drop.
#[cfg(feature = "metrics")]
fn safely(record: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(record));
}

impl Counter {
    /// Adds one.
    pub(crate) fn add<const N: usize>(&self, labels: [Label; N]) {
        self.add_with(|| labels);
    }

    /// Adds one to the series with labels that take work to make.
    pub(crate) fn add_with<const N: usize>(&self, labels: impl FnOnce() -> [Label; N]) {
        #[cfg(feature = "metrics")]
        safely(|| self.of(labels()).increment(1));
        #[cfg(not(feature = "metrics"))]
        let _ = labels;
    }

    #[cfg(feature = "metrics")]
    fn of<const N: usize>(&self, with: [Label; N]) -> metrics::Counter {
        metrics::counter!(self.0, labels(with))
    }

    #[cfg(feature = "metrics")]
    fn describe(&self) {
        metrics::describe_counter!(self.0, self.1);
    }
}

impl Gauge {
    /// Adds the difference between two values, so that the values of several objects add up.
    pub(crate) fn move_by(&self, before: usize, after: usize) {
        #[cfg(feature = "metrics")]
        if before != after {
            safely(|| metrics::gauge!(self.0).increment(after as f64 - before as f64));
        }
        #[cfg(not(feature = "metrics"))]
        let _ = (before, after);
    }

    /// Adds or takes one where something begins or ends to be so. Makes the series in any case.
    pub(crate) fn change<const N: usize>(&self, was: bool, is: bool, with: [Label; N]) {
        #[cfg(feature = "metrics")]
        safely(|| {
            let change = f64::from(u8::from(is)) - f64::from(u8::from(was));
            metrics::gauge!(self.0, labels(with)).increment(change);
        });
        #[cfg(not(feature = "metrics"))]
        let _ = (was, is, with);
    }

    #[cfg(feature = "metrics")]
    fn describe(&self) {
        metrics::describe_gauge!(self.0, self.1);
    }
}

impl Histogram {
    pub(crate) fn record<const N: usize>(&self, time: Duration, with: [Label; N]) {
        #[cfg(feature = "metrics")]
        safely(|| metrics::histogram!(self.0, labels(with)).record(time));
        #[cfg(not(feature = "metrics"))]
        let _ = (time, with);
    }

    #[cfg(feature = "metrics")]
    fn describe(&self) {
        metrics::describe_histogram!(self.0, metrics::Unit::Seconds, self.1);
    }
}

/// The series of one counter on a path so hot that the recorder is asked for each series once only.
pub(crate) struct HotCounter<K> {
    #[cfg(feature = "metrics")]
    series: RwLock<Vec<(K, metrics::Counter)>>,
    #[cfg(not(feature = "metrics"))]
    series: std::marker::PhantomData<fn() -> K>,
}

impl<K: Copy + PartialEq> HotCounter<K> {
    /// Adds one to the series of `key`. There are so few keys that a search is faster than a hash.
    pub(crate) fn add<const N: usize>(
        &self,
        counter: &Counter,
        key: impl FnOnce() -> K,
        with: impl FnOnce(K) -> [Label; N],
    ) {
        #[cfg(feature = "metrics")]
        safely(|| {
            let key = key();
            let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, known)) = series.iter().find(|(known, _)| *known == key) {
                return known.increment(1);
            }
            drop(series);
            let new = counter.of(with(key));
            new.increment(1);
            self.series.write().unwrap_or_else(PoisonError::into_inner).push((key, new));
        });
        #[cfg(not(feature = "metrics"))]
        let _ = (counter, key, with, &self.series);
    }
}

impl<K> Default for HotCounter<K> {
    fn default() -> Self {
        Self { series: Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::NAMES;

    #[test]
    fn the_guide_lists_every_metric_with_its_kind() {
        let guide = include_str!("../docs/metrics.md");
        let rows: Vec<_> = guide.lines().filter(|line| line.starts_with("| `devicecheck_")).collect();
        let listed: Vec<_> = rows
            .iter()
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
                (cells.nth(1).unwrap(), cells.next().unwrap())
            })
            .collect();
        let table: Vec<_> = NAMES.iter().map(|(name, kind)| (*name, kind.to_lowercase())).collect();
        assert_eq!(listed, table.iter().map(|(name, kind)| (*name, &**kind)).collect::<Vec<_>>());
    }
}
