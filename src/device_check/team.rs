//! The teams of one layer: a token belongs to one of them.

use std::sync::Arc;

use crate::apple::token::Verdict;
use crate::device_check::verifier::{DeviceVerifier, ErasedVerifier, TokenQuestion};
use crate::gate::{bits::Bits, decision::Evidence, error::VerifyError};

/// A verifier, and the name of its team in the evidence.
#[derive(Clone)]
pub(crate) struct Team {
    pub(super) verifier: Arc<dyn ErasedVerifier>,
    /// `None` in a layer with one team, where it says nothing.
    name: Option<Arc<str>>,
}

impl Team {
    pub(super) fn only(verifier: impl DeviceVerifier) -> Self {
        Self { verifier: Arc::new(verifier), name: None }
    }

    /// One of several.
    pub(super) fn named(self) -> Self {
        let name = Some(self.scope().into());
        Self { name, ..self }
    }

    pub(super) fn scope(&self) -> &str {
        self.verifier.scope()
    }

    /// Whether this team gave the evidence.
    #[cfg(feature = "_apple")]
    pub(super) fn has_given(&self, evidence: &Evidence) -> bool {
        self.name.as_deref() == evidence.team()
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
