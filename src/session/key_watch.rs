//! The watch over a key ring that is replaced while the server runs.

use std::{sync::Arc, time::Duration};

use tracing::{Level, event};

use crate::gate::observer::{Chain, TARGET};
use crate::runtime::{has_tasks, pause, spawn};
use crate::session::error::SessionError;
use crate::session::ring::{KeyRing, KeySource};
use crate::session::sessions::Sessions;

impl Sessions {
    /// Loads the key ring at each interval, and [takes it](Self::replace_keys) if it has changed. Needs the feature
    /// `tokio`.
    ///
    /// If the ring cannot be loaded, the keys stay, and a warning is logged once until it can be loaded again. Replace a
    /// file by renaming another one: a file that is half written may hold a ring with fewer keys.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tower_devicecheck::session::{KeyRing, SessionError, Sessions};
    ///
    /// # async fn example() -> Result<(), SessionError> {
    /// let load = || async { KeyRing::from_file("/run/secrets/session-keys") };
    /// let sessions = Sessions::new("", "TEAM123456.com.example.app", &load().await?)?;
    /// let _watch = sessions.watch_keys(Duration::from_secs(30), load)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error outside a tokio runtime, or if the interval is zero.
    pub fn watch_keys(
        &self,
        interval: Duration,
        source: impl KeySource,
    ) -> Result<SessionKeyWatch, SessionError> {
        if !has_tasks() {
            return Err(SessionError::new("a watch over session keys needs a tokio runtime"));
        }
        if interval.is_zero() {
            return Err(SessionError::new("the interval of a watch is zero: give it some seconds"));
        }
        let running = Arc::new(());
        let (sessions, is_running) = (self.clone(), Arc::downgrade(&running));
        spawn(async move {
            let mut current: Option<KeyRing> = None;
            let mut is_failing = false;
            loop {
                pause(interval).await;
                if is_running.strong_count() == 0 {
                    return;
                }
                let taken = match source.load().await {
                    Ok(ring) if current.as_ref().is_some_and(|current| current.is_same(&ring)) => Ok(()),
                    Ok(ring) => sessions.replace_keys(&ring).map_err(Into::into).map(|()| {
                        // The first ring is usually the one that the server started with.
                        if current.is_some() {
                            event!(target: TARGET, Level::INFO, keys = ?ring, "the session keys have changed: using the new ones");
                        }
                        current = Some(ring);
                    }),
                    Err(error) => Err(error),
                };
                if let Err(error) = &taken
                    && !is_failing
                {
                    let error = tracing::field::display(Chain(&**error));
                    event!(target: TARGET, Level::WARN, error, "the session keys cannot be loaded: keeping the old ones");
                }
                is_failing = taken.is_err();
            }
        });
        Ok(SessionKeyWatch { _running: running })
    }
}

/// A watch over session keys, made by [`Sessions::watch_keys`]. After it is dropped, the watch ends within one interval.
#[derive(Debug)]
#[must_use]
pub struct SessionKeyWatch {
    _running: Arc<()>,
}
