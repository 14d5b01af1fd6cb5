//! The teams of one layer: a token belongs to one of them.

use std::sync::Arc;

use crate::device_check::verifier::{DeviceVerifier, ErasedVerifier};
use crate::gate::decision::Evidence;

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

    /// This evidence, with the team.
    pub(super) fn evidence(&self, evidence: Evidence) -> Evidence {
        match &self.name {
            Some(name) => evidence.with_team(Arc::clone(name)),
            None => evidence,
        }
    }
}
