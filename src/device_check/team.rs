//! The teams of one layer: a token belongs to one of them.

use std::sync::Arc;

use crate::apple::token::Verdict;
use crate::device_check::verifier::{DeviceVerifier, ErasedVerifier, TokenQuestion};
use crate::gate::{bits::Bits, error::VerifyError, evidence::Evidence, tenant::name::TenantName};

/// A verifier, and the name of its team in the evidence.
#[derive(Clone)]
pub(crate) struct Team {
    pub(super) verifier: Arc<dyn ErasedVerifier>,
    /// `None` in a layer with one team, where it says nothing.
    name: Option<Arc<str>>,
    /// The scope of the verifier and the tenant. `None` in a layer without tenants.
    scope_of_tenant: Option<Arc<str>>,
}

impl Team {
    pub(super) fn only(verifier: impl DeviceVerifier) -> Self {
        Self { verifier: Arc::new(verifier), name: None, scope_of_tenant: None }
    }

    /// One of several.
    pub(super) fn named(self) -> Self {
        let name = Some(self.verifier.scope().into());
        Self { name, ..self }
    }

    /// A team in the gate of a tenant, whose verdicts and reservations answer for no other tenant of the team.
    pub(super) fn of_tenant(self, tenant: &TenantName) -> Self {
        // No tenant's name holds a slash.
        let scope = format!("{tenant}/{}", self.verifier.scope());
        Self { scope_of_tenant: Some(scope.into()), ..self }
    }

    /// The scope of everything that is remembered for this team.
    pub(super) fn scope(&self) -> &str {
        self.scope_of_tenant.as_deref().unwrap_or_else(|| self.verifier.scope())
    }

    /// Asks about a token, and for marks about the bits of its device, too.
    pub(super) async fn ask(
        &self,
        question: TokenQuestion<'_>,
        for_marks: bool,
    ) -> Result<(Verdict, Option<Bits>), VerifyError> {
        if !for_marks {
            return Ok((self.verifier.verify(question).await?, None));
        }
        let bits = self.verifier.verify_marks(question).await?;
        Ok((if bits.is_some() { Verdict::Genuine } else { Verdict::Refused }, bits))
    }

    /// This evidence, with the team.
    pub(super) fn evidence(&self, evidence: Evidence) -> Evidence {
        match &self.name {
            Some(name) => evidence.with_team(Arc::clone(name)),
            None => evidence,
        }
    }
}
