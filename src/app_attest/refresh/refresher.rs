//! The exchange of stored receipts for newer ones, at their times.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tracing::{Level, event};

use crate::BoxError;
use crate::app_attest::anchors::Anchors;
use crate::app_attest::error::ObjectError;
use crate::app_attest::receipt::{Receipt, ReceiptExpected, ReceiptKind};
use crate::app_attest::refresh::event::{ReceiptEvent, RefreshFailure, RefreshFailureKind, RiskMetric};
use crate::app_attest::refresh::plan;
use crate::app_attest::refresh::store::{ErasedReceiptStore, ReceiptStore, ReceiptStoreError};
use crate::app_attest::refresh::stored::{ReceiptKey, StoredReceipt};
use crate::apple::{AppleClient, ReceiptAnswer};
use crate::gate::{error::VerifyError, observer::TARGET, tenant::name::TenantName};
use crate::meter::{RECEIPT_REFRESHES, label};
use crate::runtime::{SystemTime, pause, wall_clock};

/// The time for which a key is this process's alone. A call to Apple takes seconds.
const LEASE: Duration = Duration::from_secs(10 * 60);
/// The time between two looks at the store, if there is no trouble.
const INTERVAL: Duration = Duration::from_secs(60);
/// The longest time between two looks.
const LONGEST_INTERVAL: Duration = Duration::from_secs(30 * 60);

/// Keeps the receipts of a store fresh, and reads the risk metric from them.
///
/// Spawn [`run`](Self::run) once in each process, or call [`tick`](Self::tick) where nothing can be spawned. For each key
/// that was seen since its last receipt, Apple is asked once, at a random time between the receipt's not-before time and
/// its expiry. All times are in the store, so a restart changes nothing. Processes that share a store share the work.
///
/// No request waits for a refresh, and no refresh decides about a request: the metric is a reason to look, and Apple
/// advises not to block by it. A handler that wants more from a device with many keys asks for the metric:
///
/// ```
/// # #[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
/// # mod example {
/// use tower_devicecheck::app_attest::{ReceiptKey, ReceiptRefresher};
///
/// /// Whether a payment needs a second factor. Without a metric, as in the first day of a key, it does not.
/// async fn needs_second_factor(receipts: &ReceiptRefresher, key: &ReceiptKey) -> bool {
///     matches!(receipts.risk_metric(key).await, Ok(Some(10..)))
/// }
/// # }
/// ```
///
/// The proof or the handler stores the first receipt, and tells when a key is seen:
///
/// ```
/// # #[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
/// # mod example {
/// use std::time::SystemTime;
///
/// use tower_devicecheck::AppleClient;
/// use tower_devicecheck::app_attest::{
///     Attestation, MemoryReceiptStore, ReceiptEvent, ReceiptKey, ReceiptRefresher, ReceiptStore,
///     ReceiptStoreError, StoredReceipt,
/// };
///
/// fn start(apple: AppleClient, store: std::sync::Arc<MemoryReceiptStore>) -> ReceiptRefresher {
///     let refresher = ReceiptRefresher::new(apple, store).with_observer(|event| match event {
///         ReceiptEvent::RiskMetric(metric) if metric.new >= 10 => println!("look at {}", metric.key),
///         _ => {}
///     });
///     let running = refresher.clone();
///     tokio::spawn(async move { running.run().await });
///     refresher
/// }
///
/// async fn attested(
///     store: &MemoryReceiptStore,
///     attestation: &Attestation,
/// ) -> Result<(), ReceiptStoreError> {
///     let key = ReceiptKey { tenant: None, key_id: *attestation.key_id() };
///     match StoredReceipt::attested(attestation, SystemTime::now()) {
///         Some(receipt) => store.put(&key, receipt).await,
///         None => Ok(()),
///     }
/// }
/// # }
/// ```
///
/// # Outages
///
/// A key whose refresh failed is tried again later: [`RefreshFailureKind`] has the times. While Apple or the store does
/// not answer, throttles, or refuses the credentials, the refresher looks at the store after a minute, and takes one key
/// only. This time doubles up to 30 minutes, and is at least what Apple names, up to the same bound.
///
/// Clones are the same refresher.
#[derive(Clone)]
pub struct ReceiptRefresher {
    apple: AppleClient,
    /// The clients of tenants that have their own.
    clients: BTreeMap<TenantName, AppleClient>,
    store: Arc<dyn ErasedReceiptStore>,
    anchors: Anchors,
    at_once: usize,
    longest_wait: Duration,
    observer: Option<Observing>,
    /// The looks at the store in a row that met with trouble.
    troubles: Arc<AtomicU32>,
}

type Observing = Arc<dyn Fn(&ReceiptEvent) + Send + Sync>;

/// A refresh that failed.
struct Failed {
    kind: RefreshFailureKind,
    source: Option<BoxError>,
    retry_after: Option<Duration>,
}

impl Failed {
    const fn new(kind: RefreshFailureKind) -> Self {
        Self { kind, source: None, retry_after: None }
    }
}

impl From<VerifyError> for Failed {
    fn from(error: VerifyError) -> Self {
        Self { kind: error.kind().into(), retry_after: error.retry_after(), source: Some(error.into()) }
    }
}

impl From<ObjectError> for Failed {
    fn from(error: ObjectError) -> Self {
        Self { source: Some(error.into()), ..Self::new(RefreshFailureKind::Unverified) }
    }
}

impl From<ReceiptStoreError> for Failed {
    fn from(error: ReceiptStoreError) -> Self {
        Self { source: Some(error.into()), ..Self::new(RefreshFailureKind::Store) }
    }
}

impl ReceiptRefresher {
    /// Makes a refresher that asks by this client, for the team of the apps.
    #[must_use]
    pub fn new(apple: AppleClient, store: impl ReceiptStore) -> Self {
        Self {
            apple,
            clients: BTreeMap::new(),
            store: Arc::new(store),
            anchors: Anchors::apple(),
            at_once: 8,
            longest_wait: Duration::MAX,
            observer: None,
            troubles: Arc::default(),
        }
    }

    /// Sets the client for the keys of one tenant, whose apps belong to another team. Keys of other tenants, and those of
    /// none, are asked about by the client of [`new`](Self::new).
    #[must_use]
    pub fn with_client_of(mut self, tenant: TenantName, apple: AppleClient) -> Self {
        self.clients.insert(tenant, apple);
        self
    }

    /// Sets the roots that newer receipts must lead to. Default: Apple's.
    ///
    /// # Danger
    ///
    /// The holder of such a root's key can say anything about a device.
    #[must_use]
    pub fn with_anchors(mut self, anchors: Anchors) -> Self {
        self.anchors = anchors;
        self
    }

    /// Sets how many receipts are refreshed at once, from 1 on. The client makes at most 16 such calls at once. Default: 8.
    #[must_use]
    pub fn with_concurrency(mut self, at_once: usize) -> Self {
        self.at_once = at_once.max(1);
        self
    }

    /// Sets the longest time from a receipt's not-before time to its refresh, if all goes well. Default: nine tenths of the
    /// time until its expiry, which is about 80 days.
    ///
    /// Apple is known to keep its data for about 30 days after a device's last attestation: later, it answers that it
    /// has none. A shorter time therefore gives newer metrics, for more calls.
    #[must_use]
    pub const fn with_longest_wait(mut self, longest_wait: Duration) -> Self {
        self.longest_wait = longest_wait;
        self
    }

    /// Sets a listener that is told of each risk metric and of each failure, after the store was. It runs on the task of
    /// the refresher, so it must not block. Default: none. The log has failures: at level WARN those for the operator,
    /// at level DEBUG all others.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(&ReceiptEvent) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Returns the last risk metric of a key: how many keys its device has attested in about 30 days. `None` before the
    /// first refresh, and for a key without a receipt.
    ///
    /// Costs one look at the store.
    ///
    /// # Errors
    ///
    /// Returns an error if the store failed.
    pub async fn risk_metric(&self, key: &ReceiptKey) -> Result<Option<u32>, ReceiptStoreError> {
        Ok(self.store.get(key).await?.and_then(|stored| stored.risk_metric))
    }

    /// Refreshes what is due, for ever. Needs the feature `tokio` and a runtime with its time driver, or a wasm host with
    /// `setTimeout`; elsewhere call [`tick`](Self::tick).
    ///
    /// Dropping the future ends the work. Keys whose refresh was under way are due again 10 minutes later.
    pub async fn run(&self) {
        loop {
            pause(self.tick(wall_clock()).await).await;
        }
    }

    /// Refreshes as many keys as are refreshed at once, of those that are due at this time, and returns the time after
    /// which the next call makes sense: zero if more keys may be due.
    ///
    /// Never fails: failures are events, and log lines. It ends after the total timeout of the client, if there are
    /// timers, and whatever the store takes.
    pub async fn tick(&self, now: SystemTime) -> Duration {
        // During trouble, one key finds out whether it is over, so that the others keep their time.
        let at_once = if self.troubles.load(Relaxed) > 0 { 1 } else { self.at_once };
        let keys = match self.store.due(now, now + LEASE, at_once).await {
            Ok(keys) => keys,
            Err(error) => {
                let source = std::error::Error::source(&error);
                event!(target: TARGET, Level::WARN, error = source, "receipts are not refreshed: their store failed");
                return self.back_off(None);
            }
        };
        let failures = join_all(keys.iter().map(|key| self.refresh(key, now))).await;
        let mut troubles = failures.iter().flatten().filter(|failed| failed.kind.is_trouble()).peekable();
        if troubles.peek().is_some() {
            return self.back_off(troubles.filter_map(|failed| failed.retry_after).max());
        }
        self.troubles.store(0, Relaxed);
        if keys.len() < at_once { INTERVAL } else { Duration::ZERO }
    }

    fn back_off(&self, retry_after: Option<Duration>) -> Duration {
        let doublings = self.troubles.fetch_add(1, Relaxed).min(8);
        (INTERVAL * (1 << doublings)).max(retry_after.unwrap_or_default()).min(LONGEST_INTERVAL)
    }

    /// Refreshes one receipt, and tells of it. Returns the failure, if it was one.
    async fn refresh(&self, key: &ReceiptKey, now: SystemTime) -> Option<Failed> {
        let stored = match self.store.get(key).await {
            Ok(Some(stored)) => stored,
            // It has expired, or was removed.
            Ok(None) => return self.store.remove(key).await.err().map(Into::into),
            Err(error) => return Some(self.tell(key, error.into(), None)),
        };
        let old = stored.risk_metric;
        let (next, answer) = match self.newer(key, &stored, now).await {
            Ok(receipt) => {
                (plan::renewed(stored, &receipt, now, self.longest_wait), Ok(receipt.risk_metric()))
            }
            Err(failed) => (plan::failed(stored, failed.kind, failed.retry_after, now), Err(failed)),
        };
        let next_attempt = next.next_attempt;
        if let Err(error) = self.store.put(key, next).await {
            return Some(self.tell(key, error.into(), None));
        }
        match answer {
            Err(failed) => Some(self.tell(key, failed, next_attempt)),
            Ok(metric) => {
                RECEIPT_REFRESHES.add([label("result", "refreshed")]);
                event!(target: TARGET, Level::DEBUG, %key, metric, "receipt refreshed");
                if let (Some(observer), Some(new)) = (&self.observer, metric) {
                    observer(&ReceiptEvent::RiskMetric(RiskMetric { key: key.clone(), old, new }));
                }
                None
            }
        }
    }

    /// Asks Apple, and verifies what comes.
    async fn newer(
        &self,
        key: &ReceiptKey,
        stored: &StoredReceipt,
        now: SystemTime,
    ) -> Result<Receipt, Failed> {
        if stored.expiry <= now {
            return Err(Failed::new(RefreshFailureKind::Expired));
        }
        let own = key.tenant.as_ref().and_then(|tenant| self.clients.get(tenant));
        let apple = own.unwrap_or(&self.apple);
        let bytes = match apple.refresh_receipt(&stored.receipt, stored.environment).await? {
            ReceiptAnswer::Newer(bytes) => bytes,
            ReceiptAnswer::NotYet => return Err(Failed::new(RefreshFailureKind::NotYet)),
            ReceiptAnswer::NoData => return Err(Failed::new(RefreshFailureKind::NoData)),
            ReceiptAnswer::Rejected => return Err(Failed::new(RefreshFailureKind::Rejected)),
        };
        let expected = ReceiptExpected { app_id: &stored.app_id, public_key: None, now };
        let receipt = Receipt::verify(&bytes, &expected, &self.anchors)?;
        if receipt.public_key().key_id() != key.key_id {
            return Err(ObjectError::refused("receipt_key", "made for another key").into());
        }
        if receipt.kind() != ReceiptKind::Receipt {
            return Err(ObjectError::refused("receipt_kind", "not the kind that Apple's server makes").into());
        }
        Ok(receipt)
    }

    fn tell(&self, key: &ReceiptKey, failed: Failed, next_attempt: Option<SystemTime>) -> Failed {
        use RefreshFailureKind as Kind;

        let Failed { kind, source, retry_after } = failed;
        RECEIPT_REFRESHES.add([label("result", kind.as_str())]);
        // The cause of an error of Apple's client or of the store says more than the error.
        let error = source.as_deref().map(|error| error.source().unwrap_or(error));
        if matches!(kind, Kind::Rejected | Kind::Misconfigured | Kind::Unverified | Kind::Store) {
            event!(target: TARGET, Level::WARN, %key, %kind, error, "receipt not refreshed");
        } else {
            event!(target: TARGET, Level::DEBUG, %key, %kind, error, "receipt not refreshed");
        }
        if let Some(observer) = &self.observer {
            let failure = RefreshFailure { key: key.clone(), kind, source, next_attempt };
            observer(&ReceiptEvent::Failed(failure));
        }
        Failed { kind, source: None, retry_after }
    }
}

impl fmt::Debug for ReceiptRefresher {
    // Omits the store and the listener, which need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiptRefresher")
            .field("apple", &self.apple)
            .field("clients", &self.clients)
            .field("at_once", &self.at_once)
            .field("longest_wait", &self.longest_wait)
            .finish_non_exhaustive()
    }
}
