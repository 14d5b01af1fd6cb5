//! The choice of a request's tenant.

use http::{HeaderName, request};

use crate::gate::tenant::name::TenantName;

/// The decision of a [`TenantResolver`] about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TenantChoice {
    /// The request belongs to this tenant, whose gate decides about it.
    Tenant(TenantName),
    /// The request belongs to no tenant. It is rejected as [`RefusedToken`](crate::Rejection::RefusedToken), whatever
    /// it holds.
    Unknown,
    /// The request reaches the inner service without any gate, such as a health check.
    Exempt,
}

impl From<Option<TenantName>> for TenantChoice {
    fn from(name: Option<TenantName>) -> Self {
        name.map_or(Self::Unknown, Self::Tenant)
    }
}

/// Chooses the tenant of each request, from facts that the client cannot choose freely.
///
/// Implemented by [`HostTenants`](crate::tenant::HostTenants), [`PathTenants`](crate::tenant::PathTenants),
/// [`TenantExtension`], [`ClientChosenTenant`], and closures:
///
/// ```
/// use http::request;
/// use tower_devicecheck::tenant::{HostTenants, TenantChoice, TenantResolver};
///
/// # fn main() -> Result<(), tower_devicecheck::tenant::TenantError> {
/// let hosts = HostTenants::new().with("shop.example.com", "shop")?;
/// let resolver = move |head: &request::Parts| match head.uri.path() {
///     "/health" => TenantChoice::Exempt,
///     _ => hosts.resolve(head),
/// };
/// # fn check(_: impl TenantResolver) {}
/// # check(resolver);
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    note = "use `HostTenants`, or a closure `Fn(&request::Parts) -> TenantChoice`"
)]
pub trait TenantResolver: Send + Sync + 'static {
    /// Returns the tenant of one request. The layer calls this once for each request, before it reads any credential;
    /// it must not block or panic.
    fn resolve(&self, head: &request::Parts) -> TenantChoice;
}

impl<F> TenantResolver for F
where
    F: Fn(&request::Parts) -> TenantChoice + Send + Sync + 'static,
{
    fn resolve(&self, head: &request::Parts) -> TenantChoice {
        self(head)
    }
}

/// Takes the [`TenantName`] that an outer layer has put into the request's extensions, for example by the client's
/// certificate. A request without one is [unknown](TenantChoice::Unknown).
///
/// No client can set an extension, so the tenant is as trustworthy as the outer layer.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct TenantExtension;

impl TenantResolver for TenantExtension {
    fn resolve(&self, head: &request::Parts) -> TenantChoice {
        head.extensions.get::<TenantName>().cloned().into()
    }
}

/// Lets **the client** choose its tenant, by a header. A request with no such header, with two, or with an empty one is
/// [unknown](TenantChoice::Unknown).
///
/// # Danger
///
/// Anyone can send the header. The client then chooses the policy that judges it: it chooses the tenant with the weakest
/// one, such as a tenant in monitor mode or with a debug token. Never use this where one tenant enforces less than
/// another, and never take the header for the tenant: [`VerifiedDevice::tenant`](crate::VerifiedDevice::tenant) is the
/// one whose gate has admitted the request.
#[derive(Clone, Debug)]
pub struct ClientChosenTenant {
    header: HeaderName,
}

impl ClientChosenTenant {
    /// Reads the tenant's name in this header.
    #[must_use]
    pub const fn new(header: HeaderName) -> Self {
        Self { header }
    }
}

impl TenantResolver for ClientChosenTenant {
    fn resolve(&self, head: &request::Parts) -> TenantChoice {
        let mut values = head.headers.get_all(&self.header).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return TenantChoice::Unknown };
        value.to_str().ok().and_then(|name| name.parse().ok()).into()
    }
}
