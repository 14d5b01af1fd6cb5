//! `RolloutReport`: an observer whose counts an operator reads before and after the gate is switched on.

mod counts;
mod render;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Mutex};

use http::request;

use self::{
    counts::{Report, tidy},
    render::{Json, Text},
};
use crate::gate::observer::{Event, Observer, Outcome};
use crate::runtime::{lock, wall_clock};

/// An observer that counts decisions, for an operator who rolls the layer out: how many requests the layer would
/// refuse in [monitor mode](crate::Enforcement::Monitor), why, and from which versions of the app.
///
/// [`Display`](fmt::Display) writes the report as aligned text, [`to_json`](Self::to_json) as JSON.
/// [`guide::operating`] walks through a roll-out.
///
/// ```
/// use std::sync::Arc;
/// use tower_devicecheck::{DeviceVerifier, DeviceCheckLayer, Enforcement, RolloutReport, TracingObserver};
///
/// # fn layer(apple: impl DeviceVerifier) -> DeviceCheckLayer {
/// let report = Arc::new(RolloutReport::by(|head| head.headers.get("x-app-version")?.to_str().ok()));
/// let layer = DeviceCheckLayer::new(apple)
///     .with_enforcement(Enforcement::Monitor)
///     .with_observer((TracingObserver, Arc::clone(&report)));
/// println!("{report}");
/// # layer
/// # }
/// ```
///
/// # Counts
///
/// The report counts the decisions since it was made, or since the last [`reset`](Self::reset), in this process: by
/// enforcement, environment, evidence, code of the rejection, and label. *Checked* requests are all but the exempt
/// ones, which have one count and no label. Each code has the times of its first and last request.
///
/// # Labels
///
/// The client chooses the text of most labels, so the report bounds them:
///
/// * A label has at most 64 characters; the report cuts longer ones. Characters other than ASCII letters, digits and
///   `.` `_` `-` `+` `/` `:` become `_`. No label can therefore break a line or the JSON, or look like a row of the
///   report's own.
/// * 64 labels have a row. If another label comes, the label with the fewest requests loses its row, of several the one
///   that has been silent the longest. Its counts go to the common row `(other)`. A flood of labels that are all
///   different therefore does not displace the versions with many requests. Clients that send 64 labels many times each
///   do, and as long as they send more labels, a version that is new has no row: its requests are in `(other)`.
/// * Requests without a label, or with an empty one, have the row `(none)`.
///
/// A report with 64 labels takes less than 64 KiB.
///
/// # Cost
///
/// One short lock for each request, so that all counts of a request change together. The closure does not run under the
/// lock, and a reader holds it only to copy the counts. A request whose label has a row already allocates nothing; a
/// request with a remembered token costs about 5 % more instructions.
///
/// [`guide::operating`]: crate::guide::operating
pub struct RolloutReport {
    label: Option<Box<dyn Label>>,
    counts: Mutex<Report>,
}

/// A name for closures that derive a label from the head of a request.
trait Label: Fn(&request::Parts) -> Option<&str> + Send + Sync {}

impl<F: Fn(&request::Parts) -> Option<&str> + Send + Sync> Label for F {}

impl RolloutReport {
    /// Makes an empty report without labels.
    #[must_use]
    pub fn new() -> Self {
        Self { label: None, counts: Mutex::new(Report::since(wall_clock())) }
    }

    /// Makes an empty report that also counts by a label, such as the version of the app. `label` gets
    /// [the head of each checked request](Event::head).
    ///
    /// The closure runs on the request's task, so it must not block or panic.
    ///
    /// # Danger
    ///
    /// Labels are shown to whoever reads the report. The head can hold secrets: see [`Event::head`]. Return only a part
    /// that holds none.
    #[must_use]
    pub fn by(label: impl Fn(&request::Parts) -> Option<&str> + Send + Sync + 'static) -> Self {
        Self { label: Some(Box::new(label)), ..Self::new() }
    }

    /// Sets all counts to zero.
    pub fn reset(&self) {
        *lock(&self.counts) = Report::since(wall_clock());
    }

    /// The report as one JSON object. Times are Unix times in seconds; shares are between 0 and 1.
    ///
    /// ```text
    /// {
    ///   "since": 1767225600, "until": 1767229200, "exempt": 0, "left_out": 0,
    ///   "monitor": COUNTS, "enforce": COUNTS,
    ///   "environments": {"production": COUNTS, "development": COUNTS},
    ///   "evidence": {"fresh": 800, "remembered": 8600, "stand_in": 12},
    ///   "codes": {"missing_token": {"requests": 512, "first": 1767225601, "last": 1767229199}},
    ///   "labels": {"1.4.2": COUNTS}, "other": COUNTS, "none": COUNTS
    /// }
    /// ```
    ///
    /// `COUNTS` is `{"checked": 10000, "rejected": 588, "rejected_share": 0.0588, "codes": {"missing_token": 512}}`.
    /// The rejections in `monitor` are those that the layer would have answered in enforce mode. `monitor` counts shadow
    /// mode, too; `left_out` counts the requests that shadow mode did not check.
    #[must_use]
    pub fn to_json(&self) -> String {
        Json(&self.copy(), wall_clock()).to_string()
    }

    fn copy(&self) -> Report {
        lock(&self.counts).clone()
    }
}

impl Default for RolloutReport {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RolloutReport {
    // A closure need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RolloutReport").field("counts", &self.copy()).finish_non_exhaustive()
    }
}

/// The report as text, in at most 100 lines.
impl fmt::Display for RolloutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text(&self.copy(), wall_clock()).fmt(f)
    }
}

impl Observer for RolloutReport {
    fn decision(&self, event: &Event<'_>) {
        let label =
            self.label.as_ref().filter(|_| !matches!(event.outcome(), Outcome::Exempt | Outcome::LeftOut));
        let label = label.map(|label| tidy(label(event.head()).unwrap_or_default()));
        lock(&self.counts).add(event, label.as_deref());
    }
}
