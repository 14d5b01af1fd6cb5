//! The report of a run.

use std::{fmt::Write, sync::atomic::Ordering, time::Duration};

use super::{Soak, process::Usage};

impl Soak {
    /// Everything that the run has counted, in Markdown.
    pub(super) fn report(&self) -> String {
        let elapsed = self.started.elapsed();
        let tally = &self.clients.tally;
        let requests = tally.total();
        let mut text = String::new();
        let _ = writeln!(
            text,
            "\nSeed {}, {:.0} s: {requests} requests, {:.0} a second; {} turns were held back.\n",
            self.plan.seed,
            elapsed.as_secs_f64(),
            requests as f64 / elapsed.as_secs_f64(),
            self.clients.held_back.load(Ordering::SeqCst),
        );
        let _ = write!(text, "| requests | answers |\n|---|---|\n{}\n", tally.table());
        let (calm, failures) =
            (tally.calm.load(Ordering::SeqCst), tally.calm_failures.load(Ordering::SeqCst));
        let _ = writeln!(
            text,
            "Genuine requests while nothing was at fault: {calm}, of which {failures} failed.\n"
        );
        let paid = self.clients.books.paid();
        let calls = self.clients.servers.fake.calls();
        let (least, most) = (paid.verdicts + paid.refusals, self.most_calls);
        let _ = writeln!(
            text,
            "Calls to Apple: {calls}. The model allows {least} to {most}: {} verdicts, {} refusals, {} requests whose \
             client left, {} that failed, and retries.\n",
            paid.verdicts, paid.refusals, paid.left, paid.failed,
        );
        let _ = write!(
            text,
            "| fault | times | of them with one of Redis | slowest recovery |\n|---|---|---|---|\n"
        );
        for (fault, times) in &self.recoveries {
            let slowest = times.iter().map(|(time, _)| *time).max().unwrap_or_default();
            let double = times.iter().filter(|(_, is_double)| *is_double).count();
            let _ = writeln!(text, "| {fault} | {} | {double} | {} ms |", times.len(), slowest.as_millis());
        }
        let mut all: Vec<Duration> = self.recoveries.values().flatten().map(|(time, _)| *time).collect();
        all.sort_unstable();
        if let (Some(median), Some(slowest)) = (all.get(all.len() / 2), all.last()) {
            let _ = writeln!(
                text,
                "\n{} faults; recovery took {} ms in the median, {} ms at most.",
                all.len(),
                median.as_millis(),
                slowest.as_millis()
            );
        }
        let _ = write!(
            text,
            "\n| moment | live | at most so far | heap and stacks | all that is resident | threads | files |\n|---|---|---|---|---|---|---|\n"
        );
        let mut line = |name: &str, usage: Usage| {
            let [live, peak, memory, resident] =
                [usage.live, usage.peak, usage.memory, usage.resident].map(|size| size as f64 / 1024.0);
            let _ = writeln!(
                text,
                "| {name} | {live:.1} MiB | {peak:.1} MiB | {memory:.1} MiB | {resident:.1} MiB | {} | {} |",
                usage.threads, usage.files
            );
        };
        if let Some(first) = self.samples.first() {
            line("start", *first);
        }
        if self.samples.len() >= 10 {
            for number in 0..10 {
                line(&format!("tenth {}", number + 1), Usage::tenth(&self.samples, number));
            }
        }
        line("end", Usage::measure());
        let rests: Vec<_> = self.rests.iter().map(|live| format!("{:.2}", *live as f64 / 1024.0)).collect();
        let _ = writeln!(text, "\nLive memory at rest, in MiB: {}.", rests.join(", "));
        text
    }
}
