//! The treatment of rejected requests, and the policy that chooses it for each request.

use http::request;

use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Rejected, VerifiedDevice};

/// The layer's treatment of requests that it rejects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Enforcement {
    /// The layer answers the request, and the inner service is not called. The default.
    #[default]
    Enforce,
    /// The request reaches the inner service anyway. Every request that is not exempt carries a
    /// [`DeviceOutcome`](crate::DeviceOutcome). This mode is for a roll-out.
    ///
    /// A request still waits for the check; during an outage at Apple it waits until the deadline. With the feature
    /// `axum`, a handler that takes a [`VerifiedDevice`](crate::VerifiedDevice) still refuses requests without one: take
    /// an `Option`.
    ///
    /// # Danger
    ///
    /// Nothing is protected: every request reaches the inner service.
    Monitor,
    /// [`Enforce`](Self::Enforce) for this percentage of the credentials, [`Monitor`](Self::Monitor) for the others. More
    /// than 100 counts as 100.
    ///
    /// The digest of the credential decides alone. A credential is therefore on the same side in every replica and after
    /// every restart, and one that is enforced stays so when the share grows. A share of tokens is no share of devices,
    /// because a device makes new tokens.
    ///
    /// A request is in no share if the layer does not learn the digest of its credential: there is no credential, or it
    /// is malformed, or a [limiter](crate::DeviceCheckLayer::with_limiter) turned it away, or the check passed the
    /// layer's deadline. Such a request is monitored below 100 %. A small share is therefore a small risk, even if most
    /// versions of the app send no token yet.
    ///
    /// # Danger
    ///
    /// Below 100 %, nothing is protected: a request without a credential reaches the inner service.
    Share(u8),
    /// The same as [`Monitor`](Self::Monitor), but no request waits. If the layer has to ask, the request reaches the
    /// inner service at once, and observers get the outcome when it is known. The inner service then finds
    /// [`DeviceOutcome::Unknown`](crate::DeviceOutcome::Unknown) and no device.
    ///
    /// The checks under way are [bounded](crate::DeviceCheckLayer::with_shadow_checks). While there are as many, requests
    /// go on without their credentials and unchecked, even those whose verdict is remembered. Observers get
    /// [`Outcome::LeftOut`](crate::Outcome::LeftOut) for them. The layer also leaves out
    /// requests whose check needs the body, and all that it has to ask about where there is no tokio runtime, or no
    /// feature `tokio`.
    ///
    /// A check continues if its client leaves. Events that come later have a copy of the request's head without
    /// extensions. Responses get no headers from [proofs](crate::Proof::admitted) that had to ask.
    ///
    /// # Danger
    ///
    /// Nothing is protected: every request reaches the inner service.
    Shadow,
}

impl Enforcement {
    /// `enforce`, `monitor`, `share` or `shadow`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
            Self::Share(_) => "share",
            Self::Shadow => "shadow",
        }
    }

    /// The treatment of the request with this decision: a share becomes [`Enforce`](Self::Enforce) or
    /// [`Monitor`](Self::Monitor).
    pub(super) fn of_decision(self, decision: &Result<VerifiedDevice, Rejected>) -> Self {
        self.of_digest(match decision {
            Ok(device) => Some(device.digest()),
            Err(rejected) => rejected.digest,
        })
    }

    /// The treatment of the request whose credential has this digest.
    pub(super) fn of_digest(self, digest: Option<TokenDigest>) -> Self {
        match self {
            Self::Share(percent)
                if percent >= 100 || digest.is_some_and(|digest| place(digest) < percent) =>
            {
                Self::Enforce
            }
            Self::Share(_) => Self::Monitor,
            fixed => fixed,
        }
    }
}

/// The place of a digest among the percents, from 0 to 99.
fn place(digest: TokenDigest) -> u8 {
    let [first, second, third, fourth, ..] = *digest.as_bytes();
    let part = u64::from(u32::from_be_bytes([first, second, third, fourth]));
    // Below 100, because `part` is below 2^32.
    ((part * 100) >> 32) as u8
}

/// Chooses the [`Enforcement`] of each request. The policy sees the head as the client sent it, so the client controls
/// everything in it.
///
/// Implemented by [`Enforcement`] itself, and closures:
///
/// ```
/// use http::request;
/// use tower_devicecheck::Enforcement;
/// # use tower_devicecheck::EnforcementPolicy;
/// # fn check(_: impl EnforcementPolicy) {}
///
/// # check(
/// |head: &request::Parts| match head.uri.path() {
///     "/transfer" => Enforcement::Enforce,
///     "/feed" => Enforcement::Shadow,
///     _ => Enforcement::Share(25),
/// }
/// # );
/// ```
///
/// # Danger
///
/// A policy by path is only as safe as its comparison of paths. Make [`Enforcement::Enforce`] the last arm once the
/// roll-out is over.
#[diagnostic::on_unimplemented(
    note = "use an `Enforcement` or a closure `Fn(&request::Parts) -> Enforcement`"
)]
pub trait EnforcementPolicy: Send + Sync + 'static {
    /// Returns the enforcement of one request. The layer calls this once per request, exempt ones too; it must not
    /// block or panic.
    fn enforcement(&self, head: &request::Parts) -> Enforcement;
}

impl EnforcementPolicy for Enforcement {
    fn enforcement(&self, _: &request::Parts) -> Enforcement {
        *self
    }
}

impl<F> EnforcementPolicy for F
where
    F: Fn(&request::Parts) -> Enforcement + Send + Sync + 'static,
{
    fn enforcement(&self, head: &request::Parts) -> Enforcement {
        self(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_from_nothing_to_everything() {
        let digest = |first: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&first.to_be_bytes());
            TokenDigest::from(bytes)
        };
        let one_percent = u32::MAX / 100;
        let cases = [
            ("the lowest digest", digest(0), 1),
            ("the end of the first percent", digest(one_percent), 1),
            ("the start of the second", digest(one_percent + 1), 2),
            ("the middle", digest(1 << 31), 51),
            ("the highest digest", digest(u32::MAX), 100),
        ];
        for (name, digest, from) in cases {
            for percent in 0..=u8::MAX {
                let expected = if percent >= from { Enforcement::Enforce } else { Enforcement::Monitor };
                assert_eq!(Enforcement::Share(percent).of_digest(Some(digest)), expected, "{name} {percent}");
            }
        }
    }

    #[test]
    fn a_request_without_a_digest_is_enforced_by_the_whole_share_only() {
        for (percent, expected) in
            [(0, Enforcement::Monitor), (99, Enforcement::Monitor), (100, Enforcement::Enforce)]
        {
            assert_eq!(Enforcement::Share(percent).of_digest(None), expected, "{percent}");
        }
    }
}
