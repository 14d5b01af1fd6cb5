//! The evidence for a verified device.

use std::{fmt, sync::Arc};

/// The evidence for a [`VerifiedDevice`](crate::VerifiedDevice): the proof that verified the device, and the basis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Evidence {
    proof: &'static str,
    basis: &'static str,
    /// The name of the secret that replaces a device, otherwise the team.
    detail: Option<Arc<str>>,
    grade: Grade,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Grade {
    Fresh,
    Remembered,
    StandIn,
}

impl Evidence {
    const fn new(proof: &'static str, basis: &'static str, grade: Grade) -> Self {
        Self { proof, basis, detail: None, grade }
    }

    /// Evidence that `proof` checked the credential just now: for this request, or for a concurrent request with the
    /// same credential. `basis` is one lower-case word for logs, such as `apple`.
    #[must_use]
    pub const fn fresh(proof: &'static str, basis: &'static str) -> Self {
        Self::new(proof, basis, Grade::Fresh)
    }

    /// Evidence that `proof` remembered an earlier check.
    #[must_use]
    pub const fn remembered(proof: &'static str, basis: &'static str) -> Self {
        Self::new(proof, basis, Grade::Remembered)
    }

    /// Evidence that `proof` accepted a secret called `name` instead of a device. The default observer logs each such
    /// admission at level warn.
    #[must_use]
    pub const fn stand_in(proof: &'static str, basis: &'static str, name: Arc<str>) -> Self {
        Self { proof, basis, detail: Some(name), grade: Grade::StandIn }
    }

    /// Sets the team whose server accepted the credential, for a proof that asks several. A secret has no team, so this
    /// does nothing to the evidence of a [stand-in](Self::is_stand_in).
    #[must_use]
    pub fn with_team(mut self, team: Arc<str>) -> Self {
        if !self.is_stand_in() {
            self.detail = Some(team);
        }
        self
    }

    /// The [scheme](crate::Proof::scheme) of the proof that decided.
    #[must_use]
    pub const fn proof(&self) -> &'static str {
        self.proof
    }

    /// The basis in one word. The check with device tokens has `apple`, `cache` and `debug-token`.
    #[must_use]
    pub const fn basis(&self) -> &'static str {
        self.basis
    }

    /// The name of the secret, if a secret replaces a device.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.detail.as_deref().filter(|_| self.is_stand_in())
    }

    /// The team that accepted the credential, if the proof asks several: see
    /// [`add_verifier`](crate::DeviceCheckLayer::add_verifier). Otherwise `None`.
    #[must_use]
    pub fn team(&self) -> Option<&str> {
        self.detail.as_deref().filter(|_| !self.is_stand_in())
    }

    /// Whether the credential was checked just now and belongs to a device: it is neither remembered nor a secret that
    /// replaces a device.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        matches!(self.grade, Grade::Fresh)
    }

    /// Evidence that `proof` remembered an earlier check of a secret that replaces a device.
    #[cfg(feature = "session")]
    pub(crate) const fn remembered_stand_in(proof: &'static str, basis: &'static str) -> Self {
        Self::new(proof, basis, Grade::StandIn)
    }

    /// Whether a secret replaces a device.
    #[must_use]
    pub const fn is_stand_in(&self) -> bool {
        matches!(self.grade, Grade::StandIn)
    }
}

/// The basis, followed by a colon and the name or the team if there is one: `debug-token:ci`, `apple:TEAM123456`.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.basis)?;
        match &self.detail {
            Some(detail) => write!(f, ":{detail}"),
            None => Ok(()),
        }
    }
}
