//! How a report is written: as text and as JSON.
//!
//! No text needs an escape in JSON: codes are constants, and `tidy` has cleaned the labels.

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use crate::gate::rollout::counts::{Counts, Report, Times};
use crate::runtime::{SystemTime, since_epoch};

/// A report as aligned text, read at this time.
pub(super) struct Text<'a>(pub(super) &'a Report, pub(super) SystemTime);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(report, now) = self;
        let age = |time| Age(now.duration_since(time).unwrap_or_default());
        let (monitor, enforce) = (&report.monitor, &report.enforce);
        let checked = monitor.checked() + enforce.checked();

        writeln!(f, "Device checks of the last {}", age(report.since))?;
        writeln!(f)?;
        if monitor.checked() > 0 || checked == 0 {
            let (rejected, checked, share) = (monitor.rejected(), monitor.checked(), monitor.share());
            writeln!(f, "monitor mode: would refuse {rejected} of {checked} checked requests ({share})")?;
        }
        if enforce.checked() > 0 {
            let (rejected, checked, share) = (enforce.rejected(), enforce.checked(), enforce.share());
            writeln!(f, "enforce mode: refused {rejected} of {checked} checked requests ({share})")?;
        }
        if report.exempt > 0 {
            writeln!(f, "exempt, not checked: {}", report.exempt)?;
        }
        if report.left_out > 0 {
            writeln!(f, "left out of shadow mode, not checked: {}", report.left_out)?;
        }

        let labels = report.labels();
        let own = [("(other)", &report.other), ("(none)", &report.unlabelled)];
        let used = |(_, counts): &(&str, &Counts)| counts.checked() > 0;
        let labels: Vec<_> = labels.into_iter().chain(own).filter(used).collect();
        // The width of "malformed_token", or of a longer label.
        let width = labels.iter().map(|(label, _)| label.len()).fold(15, usize::max);

        let codes = report.codes();
        if !codes.is_empty() {
            writeln!(
                f,
                "\n{:width$} {:>10} {:>9} {:>12} {:>12}",
                "code", "requests", "share", "first", "last"
            )?;
        }
        for (code, Times { requests, first, last }) in codes {
            let (share, first, last) = (Share(requests, checked), age(first).ago(), age(last).ago());
            writeln!(f, "{code:width$} {requests:>10} {share:>9} {first:>12} {last:>12}")?;
        }

        let environments = [("production", &report.production), ("development", &report.development)];
        table(f, "environment", width, environments.iter().copied().filter(used))?;

        writeln!(f, "\n{:width$} {:>10} {:>9}", "evidence", "verified", "share")?;
        let verified = monitor.verified + enforce.verified;
        for (grade, requests) in report.evidence.by_name() {
            writeln!(f, "{grade:width$} {requests:>10} {:>9}", Share(requests, verified))?;
        }
        table(f, "label", width, labels.into_iter())
    }
}

/// A table with a row for each group of requests; nothing without rows.
fn table<'a>(
    f: &mut Formatter<'_>,
    title: &str,
    width: usize,
    rows: impl Iterator<Item = (&'a str, &'a Counts)>,
) -> fmt::Result {
    let mut rows = rows.peekable();
    if rows.peek().is_some() {
        writeln!(f, "\n{title:width$} {:>10} {:>10} {:>9}  codes", "checked", "rejected", "share")?;
    }
    for (name, counts) in rows {
        let (checked, rejected, share) = (counts.checked(), counts.rejected(), counts.share());
        write!(f, "{name:width$} {checked:>10} {rejected:>10} {share:>9}")?;
        for (index, (code, requests)) in counts.codes().into_iter().enumerate() {
            write!(f, "{} {code} {requests}", if index == 0 { " " } else { "," })?;
        }
        writeln!(f)?;
    }
    Ok(())
}

/// A report as JSON, read at this time.
pub(super) struct Json<'a>(pub(super) &'a Report, pub(super) SystemTime);

impl Display for Json<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(report, now) = self;
        let seconds = |time| since_epoch(time).as_secs();
        write!(
            f,
            r#"{{"since":{},"until":{},"exempt":{},"left_out":{}"#,
            seconds(report.since),
            seconds(*now),
            report.exempt,
            report.left_out
        )?;
        write!(f, r#","monitor":{},"enforce":{}"#, JsonCounts(&report.monitor), JsonCounts(&report.enforce))?;
        f.write_str(r#","environments":"#)?;
        let environments = [("production", &report.production), ("development", &report.development)];
        object(f, environments.map(|(name, counts)| (name, JsonCounts(counts))))?;
        f.write_str(r#","evidence":"#)?;
        object(f, report.evidence.by_name())?;
        f.write_str(r#","codes":"#)?;
        object(f, report.codes().into_iter().map(|(code, times)| (code, JsonTimes(times))))?;
        f.write_str(r#","labels":"#)?;
        object(f, report.labels().into_iter().map(|(label, counts)| (label, JsonCounts(counts))))?;
        write!(f, r#","other":{},"none":{}}}"#, JsonCounts(&report.other), JsonCounts(&report.unlabelled))
    }
}

struct JsonCounts<'a>(&'a Counts);

impl Display for JsonCounts<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(counts) = self;
        let (checked, rejected) = (counts.checked(), counts.rejected());
        let share = fraction(rejected, checked);
        write!(f, r#"{{"checked":{checked},"rejected":{rejected},"rejected_share":{share:.4},"codes":"#)?;
        object(f, counts.codes())?;
        f.write_str("}")
    }
}

struct JsonTimes(Times);

impl Display for JsonTimes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Times { requests, first, last } = self.0;
        let (first, last) = (since_epoch(first).as_secs(), since_epoch(last).as_secs());
        write!(f, r#"{{"requests":{requests},"first":{first},"last":{last}}}"#)
    }
}

fn object<'a>(
    f: &mut Formatter<'_>,
    members: impl IntoIterator<Item = (&'a str, impl Display)>,
) -> fmt::Result {
    f.write_str("{")?;
    for (index, (name, value)) in members.into_iter().enumerate() {
        write!(f, r#"{}"{name}":{value}"#, if index == 0 { "" } else { "," })?;
    }
    f.write_str("}")
}

impl Counts {
    fn share(&self) -> Share {
        Share(self.rejected(), self.checked())
    }
}

/// A part of a whole in per cent.
struct Share(u64, u64);

impl Display for Share {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.2} %", 100.0 * fraction(self.0, self.1)))
    }
}

/// A part of a whole, between 0 and 1. Nothing of nothing is 0.
#[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn fraction(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A duration in its largest unit.
struct Age(Duration);

impl Age {
    fn ago(&self) -> String {
        format!("{self} ago")
    }
}

impl Display for Age {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds if seconds < 2 * 60 => write!(f, "{seconds} s"),
            seconds if seconds < 2 * 60 * 60 => write!(f, "{} min", seconds / 60),
            seconds if seconds < 2 * 24 * 60 * 60 => write!(f, "{} h", seconds / (60 * 60)),
            seconds => write!(f, "{} d", seconds / (24 * 60 * 60)),
        }
    }
}
