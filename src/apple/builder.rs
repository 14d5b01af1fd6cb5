//! The builder of the client.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use tower_service::Service;

use crate::BoxError;
use crate::apple::breaker::{Availability, Breaker, Listener, RetryBudget};
use crate::apple::call::{Caller, Endpoints};
#[cfg(feature = "app-attest")]
use crate::apple::per_environment::PerEnvironment;
#[cfg(feature = "redis")]
use crate::apple::shared_hold::SharedHold;
use crate::apple::transport::{ErasedTransport, ServiceTransport};
use crate::apple::{
    client::AppleClient, credentials::Credentials, error::ClientError, limit::CallLimit, refusals::Refusals,
    wire::Operation,
};
use crate::gate::routing::Environment;
#[cfg(feature = "redis")]
use crate::redis::Redis;
use crate::runtime::REQUESTS_MAY_VANISH;

impl AppleClient {
    /// A client with every default of [`AppleClientBuilder`]. Feature `reqwest`.
    ///
    /// # Errors
    ///
    /// Returns an error if the transport cannot be set up.
    #[cfg(all(feature = "reqwest", not(target_arch = "wasm32")))]
    pub fn new(credentials: Credentials) -> Result<Self, ClientError> {
        Self::builder(credentials).build()
    }

    /// A builder that starts with every default.
    pub fn builder(credentials: Credentials) -> AppleClientBuilder {
        AppleClientBuilder {
            credentials,
            production: "https://api.devicecheck.apple.com".to_owned(),
            development: "https://api.development.devicecheck.apple.com".to_owned(),
            #[cfg(feature = "app-attest")]
            receipts: PerEnvironment {
                production: "https://data.appattest.apple.com".to_owned(),
                development: "https://data-development.appattest.apple.com".to_owned(),
            },
            transport: None,
            attempt_timeout: Duration::from_secs(3),
            total_timeout: Duration::from_secs(5),
            in_flight_limit: 256,
            waiting_limit: 4096,
            retry: true,
            listener: None,
            #[cfg(feature = "redis")]
            redis: None,
        }
    }
}

/// Builds an [`AppleClient`].
#[derive(Clone)]
#[must_use]
pub struct AppleClientBuilder {
    credentials: Credentials,
    production: String,
    development: String,
    #[cfg(feature = "app-attest")]
    receipts: PerEnvironment<String>,
    transport: Option<Arc<dyn ErasedTransport>>,
    attempt_timeout: Duration,
    total_timeout: Duration,
    in_flight_limit: usize,
    waiting_limit: usize,
    retry: bool,
    listener: Option<Listener>,
    #[cfg(feature = "redis")]
    redis: Option<Redis>,
}

impl AppleClientBuilder {
    /// Sets the base URL of an environment's server, for a proxy or a fake. The scheme is `https`, or `http` for a
    /// loopback address. The client appends Apple's paths to the path of the URL. Default: Apple's hosts.
    pub fn base_url(mut self, environment: Environment, url: impl AsRef<str>) -> Self {
        match environment {
            Environment::Production => self.production = url.as_ref().to_owned(),
            Environment::Development => self.development = url.as_ref().to_owned(),
        }
        self
    }

    /// Sets the base URL of an environment's server for receipts of App Attest, as [`base_url`](Self::base_url) does for
    /// device tokens. Default: Apple's hosts, `data.appattest.apple.com` and `data-development.appattest.apple.com`.
    /// Feature `app-attest`.
    #[cfg(feature = "app-attest")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "app-attest")))]
    pub fn receipt_base_url(mut self, environment: Environment, url: impl AsRef<str>) -> Self {
        let place = match environment {
            Environment::Production => &mut self.receipts.production,
            Environment::Development => &mut self.receipts.development,
        };
        *place = url.as_ref().to_owned();
        self
    }

    /// Sets the tower service that sends requests to Apple, with any layers around it. Default: a `ReqwestTransport`,
    /// if the feature `reqwest` is on. [`HttpTransport`](crate::HttpTransport) adapts other HTTP clients.
    ///
    /// The transport must not follow redirects. The client discards answers over 4 KiB, over 32 KiB in place of a
    /// receipt of App Attest, but only the transport can stop
    /// reading them. Each request is sent by a clone of the service.
    pub fn transport<S>(mut self, transport: S) -> Self
    where
        S: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        self.transport = Some(Arc::new(ServiceTransport(transport)));
        self
    }

    /// Sets the deadline of one attempt. Default: 3 seconds.
    ///
    /// Deadlines need the feature `tokio` and a tokio runtime with its time driver on, or, on
    /// `wasm32-unknown-unknown`, a host with `setTimeout`. Elsewhere the transport must keep its own deadlines.
    pub const fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }

    /// Sets the deadline of a whole call: all attempts, and the wait for a slot. Default: 5 seconds. The requirements
    /// are those of [`attempt_timeout`](Self::attempt_timeout).
    pub const fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = timeout;
        self
    }

    /// Sets the number of calls that may be in flight at once. Further calls wait for a slot, except on wasm, where
    /// they fail. Default: 256.
    pub const fn in_flight_limit(mut self, limit: usize) -> Self {
        self.in_flight_limit = limit;
        self
    }

    /// Sets the number of calls that may wait for a slot. Further calls fail at once, as
    /// [`Unavailable`](crate::VerifyErrorKind::Unavailable). Default: 4,096.
    pub const fn waiting_limit(mut self, limit: usize) -> Self {
        self.waiting_limit = limit;
        self
    }

    /// Sets whether the client retries a request once, immediately. It retries if there was no connection, if a reused
    /// connection ended, if an HTTP/2 server turned the request away unread, if the attempt timed out, or on status
    /// 502, 503 or 504 without `Retry-After`. Default: `true`.
    pub const fn retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    /// Shares the time for which Apple wants to be left alone (`Retry-After`) with all processes that use this Redis
    /// with the same prefix. A process that is asked about new tokens looks once a second, which takes one command, and
    /// the deadline of a cache at most. Default: each process goes by what Apple has told it. Feature `redis`.
    #[cfg(feature = "redis")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
    pub fn share_retry_after(mut self, redis: Redis) -> Self {
        self.redis = Some(redis);
        self
    }

    /// Sets a listener that is told whenever calls to one of Apple's two servers begin to fail at once, or are made again.
    /// Quick changes may be told as one, and the end of a `Retry-After` is told with the next call. It runs on the task of a call, so it must not block. Default: none. The log has the same at level DEBUG.
    pub fn on_availability(
        mut self,
        listener: impl Fn(Environment, Availability) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    #[cfg(test)]
    pub(super) fn url(&self, environment: Environment) -> &str {
        match environment {
            Environment::Production => &self.production,
            Environment::Development => &self.development,
        }
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// Returns an error if a base URL cannot be used, if a timeout or the in-flight limit is zero, or if there is no
    /// transport.
    pub fn build(self) -> Result<AppleClient, ClientError> {
        let zero = [
            (self.attempt_timeout.is_zero(), "attempt timeout"),
            (self.total_timeout.is_zero(), "total timeout"),
            (self.in_flight_limit == 0, "in-flight limit"),
        ];
        if let Some((_, name)) = zero.iter().find(|(is_zero, _)| *is_zero) {
            return Err(ClientError::new(format!("the {name} is zero, so that no call could succeed")));
        }
        let production = endpoints("base URL for production", &self.production)?;
        let development = endpoints("base URL for development", &self.development)?;
        let transport = match self.transport {
            Some(transport) => transport,
            None => default_transport(self.attempt_timeout)?,
        };
        #[cfg(feature = "redis")]
        let shared_hold = self.redis.map(|redis| SharedHold::new(redis, self.credentials.team_id()));
        let team_id: Box<str> = self.credentials.team_id().into();
        let credentials = Arc::new(Mutex::new(self.credentials));
        #[cfg(feature = "app-attest")]
        let receipt_caller = Caller {
            team_id: team_id.clone(),
            credentials: Arc::clone(&credentials),
            production: endpoints("base URL for receipts of production", &self.receipts.production)?,
            development: endpoints("base URL for receipts of development", &self.receipts.development)?,
            transport: Arc::clone(&transport),
            attempt_timeout: self.attempt_timeout,
            total_timeout: self.total_timeout,
            limit: CallLimit::new(
                RECEIPTS_IN_FLIGHT,
                self.waiting_limit,
                self.total_timeout,
                REQUESTS_MAY_VANISH,
            ),
            retry: self.retry,
            retry_budget: RetryBudget::default(),
            refusals: Refusals::default(),
            breaker: Breaker::silent(RECEIPTS_IN_FLIGHT),
            #[cfg(feature = "redis")]
            shared_hold: None,
        };
        let caller = Caller {
            team_id,
            credentials,
            production,
            development,
            transport,
            attempt_timeout: self.attempt_timeout,
            total_timeout: self.total_timeout,
            limit: CallLimit::new(
                self.in_flight_limit,
                self.waiting_limit,
                self.total_timeout,
                REQUESTS_MAY_VANISH,
            ),
            retry: self.retry,
            retry_budget: RetryBudget::default(),
            refusals: Refusals::default(),
            breaker: Breaker::new(self.in_flight_limit, self.listener),
            #[cfg(feature = "redis")]
            shared_hold,
        };
        Ok(AppleClient {
            caller: Arc::new(caller),
            #[cfg(feature = "app-attest")]
            receipt_caller: Arc::new(receipt_caller),
        })
    }
}

impl fmt::Debug for AppleClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppleClientBuilder")
            .field("credentials", &self.credentials)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("total_timeout", &self.total_timeout)
            .field("in_flight_limit", &self.in_flight_limit)
            .field("waiting_limit", &self.waiting_limit)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

/// The calls about receipts that may be in flight at once. No request waits for them.
#[cfg(feature = "app-attest")]
const RECEIPTS_IN_FLIGHT: usize = 16;

#[cfg(all(feature = "reqwest", not(target_arch = "wasm32")))]
fn default_transport(attempt_timeout: Duration) -> Result<Arc<dyn ErasedTransport>, ClientError> {
    use crate::apple::reqwest_transport::ReqwestTransport;

    let mut transport = ReqwestTransport::builder();
    transport.connect_timeout = transport.connect_timeout.min(attempt_timeout);
    Ok(Arc::new(ServiceTransport(transport.build()?)))
}

#[cfg(not(all(feature = "reqwest", not(target_arch = "wasm32"))))]
fn default_transport(_: Duration) -> Result<Arc<dyn ErasedTransport>, ClientError> {
    Err(ClientError::new(
        "there is no transport: give one to `AppleClientBuilder::transport`, or turn on the feature `reqwest`, \
         which wasm does not have",
    ))
}

/// The endpoint URLs under a base URL. Returns an error if no provider token may be sent to the base URL. The error
/// calls the base URL `name`, the term that the operator knows.
pub(super) fn endpoints(name: &str, base: &str) -> Result<Endpoints, ClientError> {
    let base = base.trim();
    let fail = |reason: &str| ClientError::new(format!("{name}: {reason}"));
    // The check reads the text, because the parser drops fragments.
    if base.contains(['?', '#']) {
        return Err(fail("it has a query or a fragment: remove it"));
    }
    let uri: Uri =
        base.parse().map_err(|error| fail("it is not a URL: write `https://host`").with_source(error))?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(fail("it has no scheme or no host: write `https://host`"));
    };
    if authority.as_str().contains('@') {
        return Err(fail("it has a user name, which is not sent: remove it"));
    }
    if authority.host().is_empty() {
        return Err(fail("it has no host: write `https://host`"));
    }
    // The parser accepts anything as a port, such as part of a password.
    if authority.as_str() != authority.host() && authority.port_u16().is_none() {
        return Err(fail("its port is no number: write `https://host`, or `https://host:8443`"));
    }
    if *scheme == Scheme::HTTP && !is_loopback(authority.host()) {
        return Err(fail("it is `http`, which only a loopback address may have: write `https://host`"));
    }
    if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
        return Err(fail("its scheme is neither `https` nor `http`: write `https://host`"));
    }
    let prefix = uri.path().trim_end_matches('/');
    let join = |operation: Operation| {
        let path = operation.path();
        format!("{scheme}://{authority}{prefix}{path}")
            .parse()
            .map_err(|error| fail("it is too long, or not a URL").with_source::<http::uri::InvalidUri>(error))
    };
    Ok(Endpoints {
        validate: join(Operation::Validate)?,
        query_bits: join(Operation::QueryBits)?,
        update_bits: join(Operation::UpdateBits { bit0: None, bit1: None })?,
        attestation_data: join(Operation::RefreshReceipt)?,
    })
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let good: &[(&str, &str)] = &[
            ("https://api.devicecheck.apple.com", "https://api.devicecheck.apple.com/v1/query_two_bits"),
            (" https://example.com/ ", "https://example.com/v1/query_two_bits"),
            ("https://example.com:8443/apple/", "https://example.com:8443/apple/v1/query_two_bits"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80/v1/query_two_bits"),
            ("http://127.9.9.9", "http://127.9.9.9/v1/query_two_bits"),
            ("http://[::1]:8080/a/b", "http://[::1]:8080/a/b/v1/query_two_bits"),
            ("HTTP://LocalHost:8080", "http://LocalHost:8080/v1/query_two_bits"),
        ];
        for (base, expected) in good {
            let endpoints = endpoints("base URL for production", base).unwrap();
            assert_eq!(endpoints.query_bits, *expected, "{base}");
        }
        let bad: &[(&str, &str)] = &[
            ("", "not a URL"),
            ("https://", "not a URL"),
            ("https://exa mple.com", "not a URL"),
            ("api.devicecheck.apple.com", "no scheme"),
            ("/v1", "no scheme"),
            ("ftp://example.com", "neither"),
            ("http://example.com", "loopback"),
            ("http://10.0.0.1", "loopback"),
            ("http://127.0.0.1.example.com", "loopback"),
            ("http://localhost.example.com", "loopback"),
            ("http://[::2]", "loopback"),
            ("http://localhost@example.com", "user name"),
            ("https://user:secret@example.com", "user name"),
            ("https://user:secret/x@example.com", "port"),
            ("https://example.com:", "port"),
            ("https://example.com/?a", "query"),
            ("https://example.com/#a", "fragment"),
        ];
        for (base, reason) in bad {
            let error = endpoints("base URL for development", base).unwrap_err().to_string();
            assert!(error.contains(reason), "{base}: {error}");
            assert!(error.contains("development") && !error.contains("secret"), "{base}: {error}");
        }
    }
}
