//! The log: the Worker's console.

use std::io::{self, Write};

/// Sends warnings, errors and decisions that are worth a line to the console, where `wrangler tail` shows them.
pub(crate) fn to_console() {
    // The standard library's clock panics here, and the console has its own.
    tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(|| Line(Vec::new())).init();
}

/// One event, shown when it is dropped.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        worker::console_log!("{}", String::from_utf8_lossy(&self.0).trim_end());
    }
}
