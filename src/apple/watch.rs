//! The watch over a key that the platform replaces.

use std::time::Duration;

use tokio::{runtime::Handle, task::AbortHandle, time::sleep};
use tracing::{Level, event};

use crate::BoxError;
use crate::apple::credentials::{Credentials, CredentialsError};
use crate::apple::{client::AppleClient, error::ClientError};
use crate::gate::observer::TARGET;

impl AppleClient {
    /// Reloads the credentials at each interval, and [rotates](Self::rotate_credentials) to them if they have changed.
    /// This is for keys in mounted secrets that the platform replaces. Feature `tokio`.
    ///
    /// If the credentials cannot be loaded, or are of another team, the client keeps its credentials and logs a
    /// warning, once for each different error. `load` may block. If the key id changes together with the key, `load`
    /// must read both. If `load` reads them between the two writes, the next interval corrects this.
    ///
    /// ```no_run
    /// use std::{fs, time::Duration};
    /// use tower_devicecheck::{AppleClient, BoxError, Credentials};
    ///
    /// fn load() -> Result<Credentials, BoxError> {
    ///     let key_id = fs::read_to_string("/run/secrets/devicecheck/key-id")?;
    ///     Ok(Credentials::from_pem_file("A1B2C3D4E5", &key_id, "/run/secrets/devicecheck/key.p8")?)
    /// }
    ///
    /// # async fn example() -> Result<(), BoxError> {
    /// # #[cfg(feature = "reqwest")] {
    /// let apple = AppleClient::new(load()?)?;
    /// let _watch = apple.watch_credentials(Duration::from_secs(30), load)?;
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error outside a tokio runtime, or if the interval is zero.
    pub fn watch_credentials<E: Into<BoxError>>(
        &self,
        interval: Duration,
        load: impl Fn() -> Result<Credentials, E> + Clone + Send + 'static,
    ) -> Result<CredentialsWatch, ClientError> {
        let runtime = Handle::try_current()
            .map_err(|error| ClientError::new("a watch needs a tokio runtime").with_source(error))?;
        if interval.is_zero() {
            return Err(ClientError::new("the interval of a watch is zero: give it some seconds"));
        }
        let client = self.clone();
        let task = runtime.spawn(async move {
            let mut fault = None;
            loop {
                sleep(interval).await;
                let (load, before) = (load.clone(), fault.take());
                let loading =
                    tokio::task::spawn_blocking(move || load().map_err(|error| error.into().to_string()));
                let loaded = loading.await.unwrap_or_else(|panic| Err(panic.to_string()));
                let renewed = loaded.and_then(|new| client.renew(new).map_err(|error| error.to_string()));
                fault = renewed.err();
                match &fault {
                    Some(error) if fault != before => event!(
                        target: TARGET,
                        Level::WARN,
                        error,
                        "the credentials cannot be loaded: keeping the old ones"
                    ),
                    None if before.is_some() => {
                        event!(target: TARGET, Level::INFO, "the credentials can be loaded again");
                    }
                    _ => {}
                }
            }
        });
        Ok(CredentialsWatch { task: task.abort_handle() })
    }

    fn renew(&self, credentials: Credentials) -> Result<(), CredentialsError> {
        if self.caller.credentials().is_same(&credentials) {
            return Ok(());
        }
        let key_id = credentials.key_id().to_owned();
        self.rotate_credentials(credentials)?;
        event!(target: TARGET, Level::INFO, key_id, "the credentials have changed: using the new ones");
        Ok(())
    }
}

/// A watch over credentials, made by [`AppleClient::watch_credentials`]. Dropping it ends the watch.
#[derive(Debug)]
#[must_use]
pub struct CredentialsWatch {
    task: AbortHandle,
}

impl Drop for CredentialsWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
