//! Name resolution for the default transport.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::watch;

use crate::runtime::{Instant, lock};

/// Looks each name up once for all connections that need it at the same time.
///
/// The system's resolver blocks a thread for each lookup. While it is slow, a crowd of new devices would otherwise take
/// a thread each.
#[derive(Clone, Default)]
pub(super) struct SharedLookups(Arc<Mutex<HashMap<String, Lookup>>>);

type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;

struct Lookup {
    began: Instant,
    /// `None` until there is a result.
    found: watch::Receiver<Option<Found>>,
}

impl SharedLookups {
    /// A lookup that takes longer is left alone, and the next connection begins another one: the system may have other
    /// servers to ask by now. That bounds the threads by the system's own timeout in units of this time.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// Joins the lookup in flight, or begins one. The lookup is a task, so that no caller can abandon it.
    async fn resolve<F>(&self, name: String, look_up: impl FnOnce(String) -> F) -> io::Result<Vec<SocketAddr>>
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let mut found = {
            let mut lookups = lock(&self.0);
            lookups.retain(|_, lookup| lookup.is_in_flight());
            let lookup = lookups.entry(name.clone()).or_insert_with(|| {
                let (sender, found) = watch::channel(None);
                let look_up = look_up(name);
                tokio::spawn(async move { sender.send(Some(look_up.await.map_err(Arc::new))) });
                Lookup { began: Instant::now(), found }
            });
            lookup.found.clone()
        };
        let found = found.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        match found {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error)),
            None => Err(io::Error::other("the runtime of the name's lookup was shut down")),
        }
    }
}

impl Lookup {
    fn is_in_flight(&self) -> bool {
        self.found.borrow().is_none()
            && self.found.has_changed().is_ok()
            && self.began.elapsed() < SharedLookups::PATIENCE
    }
}

impl Resolve for SharedLookups {
    fn resolve(&self, name: Name) -> Resolving {
        let lookups = self.clone();
        Box::pin(async move {
            let look_up = |name: String| async move {
                // The port is the connector's business.
                Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect())
            };
            let addresses = lookups.resolve(name.as_str().to_owned(), look_up).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a11_a_slow_resolver_is_asked_once_and_again_after_two_seconds() {
        let lookups = SharedLookups::default();
        let asked = Arc::new(Mutex::new(0));
        let resolve = |takes: Duration| {
            let (lookups, asked) = (lookups.clone(), Arc::clone(&asked));
            async move {
                let look_up = |_| async move {
                    *lock(&asked) += 1;
                    tokio::time::sleep(takes).await;
                    Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))])
                };
                lookups.resolve("host".to_owned(), look_up).await
            }
        };
        let second = Duration::from_secs(1);
        let found = join_all((0..500).map(|_| resolve(second))).await;
        assert!(found.iter().all(|found| found.as_ref().unwrap().len() == 1));
        assert_eq!(*lock(&asked), 1);
        assert!(resolve(second).await.is_ok());
        assert_eq!(*lock(&asked), 2, "nothing is remembered");

        // 500 connections in ten seconds, each of which is given up after two.
        let hung = (0..500).map(|n| {
            let resolve = resolve(1_000 * second);
            async move {
                tokio::time::sleep(Duration::from_millis(20 * n)).await;
                let _ = tokio::time::timeout(2 * second, resolve).await;
            }
        });
        join_all(hung).await;
        assert!(*lock(&asked) <= 2 + 5, "{}", lock(&asked));
    }

    #[tokio::test]
    async fn a_failure_reaches_all_and_a_lookup_that_was_stopped_is_an_error() {
        let lookups = SharedLookups::default();
        let fail = || lookups.resolve("host".to_owned(), |_| async { Err(io::ErrorKind::NotFound.into()) });
        for found in join_all([fail(), fail()]).await {
            assert_eq!(found.unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        let other = std::thread::spawn({
            let lookups = lookups.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let hung = lookups.resolve("host".to_owned(), |_| pending());
                runtime.block_on(async { assert!(futures_util::poll!(Box::pin(hung)).is_pending()) });
            }
        });
        other.join().unwrap();
        let answer = lookups.resolve("host".to_owned(), |_| async { Ok(Vec::new()) });
        assert!(answer.await.is_ok(), "the stopped one is replaced");
    }
}
