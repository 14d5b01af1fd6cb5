//! Everything that the suite prints, kept for a search.
//!
//! With `CAPTURE` in the environment, the whole log at level TRACE, every `Debug` and every error that the tests come
//! across go to files in the folder that it names. `.ci/secrets` searches them for the secrets of the fixtures, and
//! searches for leaks that a test plants on purpose.

use std::{
    error::Error,
    fmt::Debug,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{LazyLock, Mutex},
};

use tower_devicecheck::Environment;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{Apple, Log};

struct Files {
    printed: Mutex<File>,
    secrets: Mutex<File>,
}

static FILES: LazyLock<Option<Files>> = LazyLock::new(|| {
    let folder = std::env::var_os("CAPTURE")?;
    let open = |name| {
        let file = OpenOptions::new().create(true).append(true).open(Path::new(&folder).join(name));
        Mutex::new(file.expect("the folder that CAPTURE names exists"))
    };
    Some(Files { printed: open("printed"), secrets: open("secrets") })
});

/// Whether anything is kept.
pub(crate) fn is_on() -> bool {
    FILES.is_some()
}

/// Keeps a text that a person may see.
pub(crate) fn printed(text: &str) {
    if let Some(files) = &*FILES {
        writeln!(files.printed.lock().unwrap(), "{text}").unwrap();
    }
}

/// Keeps the `Debug` of a value.
pub(crate) fn shown(value: &dyn Debug) {
    if is_on() {
        printed(&format!("{value:?}"));
    }
}

/// Names a secret that must not be found in what is printed. Each line of it counts by itself.
pub(crate) fn secret(text: &str) {
    if let Some(files) = &*FILES {
        let mut secrets = files.secrets.lock().unwrap();
        for line in text.lines().filter(|line| !line.starts_with("-----")) {
            writeln!(secrets, "{line}").unwrap();
        }
    }
}

/// The failure of a result, kept with its causes.
pub(crate) trait Fails {
    type Error;

    /// # Panics
    ///
    /// If it is a success.
    fn failure(self) -> Self::Error;
}

impl<T: Debug, E: Error> Fails for Result<T, E> {
    type Error = E;

    #[track_caller]
    fn failure(self) -> E {
        let error = self.unwrap_err();
        shown(&error);
        let mut cause: Option<&dyn Error> = Some(&error);
        while let Some(error) = cause {
            printed(&error.to_string());
            cause = error.source();
        }
        error
    }
}

/// Writes events of the capture's level to the capture, and those of the test's own level to its log, too.
pub(crate) struct Tee {
    log: Option<(Log, Level)>,
}

impl Tee {
    pub(crate) fn new(log: Option<(Log, Level)>) -> Self {
        Self { log }
    }

    /// The level of the subscriber in front of it.
    pub(crate) fn level(&self) -> Level {
        match &self.log {
            Some((_, level)) if !is_on() => *level,
            _ => Level::TRACE,
        }
    }
}

impl MakeWriter<'_> for Tee {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { log: self.log.clone().map(|(log, _)| log) }
    }

    fn make_writer_for(&self, meta: &tracing::Metadata<'_>) -> Line {
        Line { log: self.log.clone().filter(|(_, level)| meta.level() <= level).map(|(log, _)| log) }
    }
}

/// One line of the log.
pub(crate) struct Line {
    log: Option<Log>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(files) = &*FILES {
            files.printed.lock().unwrap().write_all(bytes)?;
        }
        self.log.as_mut().map_or(Ok(bytes.len()), |log| log.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One leak for each way out and each kind of secret, for `.ci/secrets`, which must find them all.
#[test]
#[ignore = "leaks on purpose"]
fn planted_leaks() {
    let apple = Apple::new();
    let pem = apple.fake.private_key().to_pem();
    let _guard = Log::default().listen(Level::ERROR);
    tracing::trace!(token = apple.genuine(), "planted: a device token in the log");
    tracing::trace!(line = pem.lines().nth(1), "planted: a line of a private key in the log");
    tracing::trace!(token = %apple.fake.credentials().key_id(), "not a secret");
    shown(&apple.fake.genuine_token(Environment::Development));
    let leak = |secret: &str| Err::<(), _>(io::Error::other(secret.to_owned())).failure();
    leak("planted: Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6IktFWTEyMzQ1NjcifQ.");
    leak("planted: debug-secret-7d9f1c6e");
    leak("planted: sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9");
    leak("planted: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.00000002");
}
