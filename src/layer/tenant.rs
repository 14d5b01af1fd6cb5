//! The layer of a tenant.

use std::sync::Arc;

use crate::gate::tenant::name::{TenantError, TenantName};
use crate::gate::{Gate, gate_body::BodyMode};
use crate::layer::DeviceCheckLayer;

impl<M: BodyMode> DeviceCheckLayer<M> {
    /// Makes this the layer of a tenant: its name becomes part of every key under which the layer remembers something.
    /// [`Tenants`](crate::tenant::Tenants) do this for layers without a tenant. Call it yourself, before
    /// [`mark_writer`](Self::mark_writer), if you need a handle from the layer.
    ///
    /// Layers of tenants that are clones of one layer share its plug-ins, such as the limiter and the `AppleClient`, and
    /// nothing else: each has its own checks under way, places of [shadow checks](Self::with_shadow_checks) and outages.
    ///
    /// # Errors
    ///
    /// Returns an error if `name` cannot be a [`TenantName`].
    pub fn with_tenant(self, name: &str) -> Result<Self, TenantError> {
        let tenant: TenantName = name.parse()?;
        let layer = self.with_settings(|settings| settings.set_tenant(&tenant));
        Ok(layer.with_gate(|gate| gate.set_tenant(tenant)))
    }

    /// The gate for the tenant of this name.
    pub(crate) fn into_gate_of(self, tenant: &TenantName) -> Result<Arc<Gate<M>>, TenantError> {
        match &self.gate.tenant {
            None => Ok(self.with_tenant(tenant.as_str())?.gate),
            Some(known) if known == tenant => Ok(self.gate),
            Some(_) => Err(TenantError("the layer is that of another tenant")),
        }
    }
}
