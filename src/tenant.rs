//! Many apps on one server: each tenant has a gate of its own.
//!
//! A [`DeviceCheckLayer`] decides for one app. [`Tenants`] hold a layer for each tenant, and a [`TenantResolver`] that
//! chooses the tenant of each request, once, before any credential is read. [`guide::tenants`](crate::guide::tenants)
//! has the threat model and the operation.
//!
//! ```
//! use tower::{Layer, ServiceExt};
//! # use bytes::Bytes;
//! # use http::{Request, Response, StatusCode, header::HOST};
//! # use http_body_util::Full;
//! # use tower_devicecheck::{AppleClient, Environment, testing::FakeApple};
//! use tower_devicecheck::{DeviceCheckLayer, VerifiedDevice, tenant::{HostTenants, Tenants}};
//!
//! async fn hello(request: Request<Full<Bytes>>) -> Result<Response<String>, std::convert::Infallible> {
//!     let device = request.extensions().get::<VerifiedDevice>();
//!     let tenant = device.and_then(VerifiedDevice::tenant);
//!     Ok(Response::new(tenant.map(ToString::to_string).unwrap_or_default()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let fakes = [FakeApple::new(), FakeApple::new()];
//! # let client = |fake: &FakeApple| AppleClient::builder(fake.credentials()).transport(fake.transport()).build();
//! # let (apple_of_shop, apple_of_bank) = (client(&fakes[0])?, client(&fakes[1])?);
//! let hosts = HostTenants::new().with("shop.example", "shop")?.with("bank.example", "bank")?;
//! let tenants = Tenants::new(hosts)
//!     .with("shop", DeviceCheckLayer::new(apple_of_shop))?
//!     .with("bank", DeviceCheckLayer::new(apple_of_bank))?;
//! let app = tenants.layer(tower::service_fn(hello));
//!
//! # let request = |host: &str, token: String| {
//! #     Request::get("/").header(HOST, host).header("x-apple-device-token", token).body(Full::default())
//! # };
//! let token = fakes[0].genuine_token(Environment::Production);
//! let response = app.clone().oneshot(request("shop.example", token)?).await?;
//! assert_eq!(response.status(), StatusCode::OK);
//!
//! let response = app.oneshot(request("unknown.example", fakes[0].genuine_token(Environment::Production))?).await?;
//! assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
//! # assert_eq!((fakes[0].calls(), fakes[1].calls()), (1, 0));
//! # Ok(())
//! # }
//! ```

use std::{fmt, sync::Arc};

use http::{Extensions, Uri};
use tower_layer::Layer;

use crate::gate::gate_body::{BodyMode, HeadOnly};
use crate::gate::{observer::Observer, rejection::RejectionResponse, service::Gated};
use crate::layer::DeviceCheckLayer;
use crate::runtime::{read, write};

pub use crate::gate::tenant::TenantGates;
pub use crate::gate::tenant::hosts::HostTenants;
pub use crate::gate::tenant::name::{TenantError, TenantName};
pub use crate::gate::tenant::paths::PathTenants;
pub use crate::gate::tenant::resolver::{ClientChosenTenant, TenantChoice, TenantExtension, TenantResolver};

/// A service that lets only requests from genuine devices of its tenants through to `S`.
pub type TenantCheck<S, M = HeadOnly> = Gated<S, TenantGates<M>>;

/// A tower layer with a [`DeviceCheckLayer`] for each tenant.
///
/// Everything that decides belongs to the tenant's own layer: credentials, proofs, routing, enforcement, limits, the
/// observer, debug tokens. A cache or a guard that several tenants share keeps them apart: the tenant's name is part of
/// every key. A tenant has its own breaker and its own limit of calls to Apple if its layer has its own `AppleClient`.
///
/// A request that belongs to no tenant, or to one that these `Tenants` do not have, is rejected as
/// [`RefusedToken`](crate::Rejection::RefusedToken), whatever it holds. Apple is not asked, and nothing is remembered about
/// it. The answer is that of a tenant to a refused token. Other requests, and the time of the answer, can still tell a
/// client that a tenant exists.
///
/// A request costs one or two look-ups in a hash table more than with one [`DeviceCheckLayer`].
///
/// # Clone
///
/// Clones, and all services made by them, share the tenants, so that a clone can [insert](Self::insert), replace and
/// [remove](Self::remove) them while the service runs.
#[must_use]
pub struct Tenants<M = HeadOnly> {
    gates: Arc<TenantGates<M>>,
}

impl<M: BodyMode> Tenants<M> {
    /// Makes a layer without any tenant, which refuses every request.
    pub fn new(resolver: impl TenantResolver) -> Self {
        Self { gates: Arc::new(TenantGates::new(resolver)) }
    }

    /// Adds a tenant, as [`insert`](Self::insert) does.
    ///
    /// # Errors
    ///
    /// The same as for [`insert`](Self::insert).
    pub fn with(self, name: &str, layer: DeviceCheckLayer<M>) -> Result<Self, TenantError> {
        self.insert(name, layer)?;
        Ok(self)
    }

    /// Adds a tenant, or replaces its layer, from the next request on. A request that is under way ends with the layer
    /// that it began with.
    ///
    /// To add a tenant while the service runs, first add it here, then make the resolver choose it. To remove it, go the
    /// other way.
    ///
    /// # Errors
    ///
    /// Returns an error if `name` cannot be a [`TenantName`], or if the layer is that of [another
    /// tenant](DeviceCheckLayer::with_tenant).
    pub fn insert(&self, name: &str, layer: DeviceCheckLayer<M>) -> Result<(), TenantError> {
        let name: TenantName = name.parse()?;
        let gate = layer.into_gate_of(&name)?;
        write(&self.gates.gates).insert(name, gate);
        Ok(())
    }

    /// Removes a tenant. From the next request on, nothing admits its requests: no session, no remembered verdict.
    pub fn remove(&self, name: &str) {
        write(&self.gates.gates).remove(name);
    }

    /// The names of all tenants, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<TenantName> {
        let mut names: Vec<_> = read(&self.gates.gates).keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn with_gates(self, change: impl FnOnce(&mut TenantGates<M>)) -> Self {
        let mut gates = Arc::unwrap_or_clone(self.gates);
        change(&mut gates);
        Self { gates: Arc::new(gates) }
    }

    /// Sets the observer of requests that no tenant's gate decides about: those that are rejected, with the
    /// [reason](crate::Event::reason) `no tenant`, and those that the resolver exempts. Default:
    /// [`TracingObserver`](crate::TracingObserver).
    pub fn with_observer(self, observer: impl Observer) -> Self {
        self.with_gates(|gates| gates.observer = Arc::new(observer))
    }

    /// Sets the responses to requests of no tenant. Use the same as in the tenants' layers, so that the answer to a
    /// request of no tenant looks like that to a refused token. Default: [`ProblemDetails`](crate::ProblemDetails).
    pub fn with_rejection_response(self, response: impl RejectionResponse) -> Self {
        self.with_gates(|gates| gates.rejection_response = Arc::new(response))
    }

    /// Sets how to find the URI that the client sent, for the resolver, if a router has shortened the path of the request:
    /// see [`DeviceCheckLayer::with_original_uri`]. Default: the request's own URI.
    pub fn with_original_uri(
        self,
        find: impl Fn(&mut Extensions) -> Option<&mut Uri> + Send + Sync + 'static,
    ) -> Self {
        self.with_gates(|gates| gates.original_uri = Some(Arc::new(find)))
    }
}

impl<S, M> Layer<S> for Tenants<M> {
    type Service = TenantCheck<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated::new(inner, Arc::clone(&self.gates))
    }
}

impl<M> Clone for Tenants<M> {
    fn clone(&self) -> Self {
        Self { gates: Arc::clone(&self.gates) }
    }
}

impl<M> fmt::Debug for Tenants<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenants").field("gates", &self.gates).finish()
    }
}
