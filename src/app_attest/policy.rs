//! The operator's policy about apps and accounts.

use std::{cmp::Ordering, fmt, sync::Arc};

use crate::app_attest::bundle_version::BundleVersion;
use crate::app_attest::category::Category;
use crate::gate::decision::Rejected;
use crate::gate::rejection::Rejection;

/// The policy about the builds of an app and about accounts. A device that it shuts out is genuine, and is rejected as
/// [`Denied`](crate::Rejection::Denied). Default: everything is admitted.
///
/// Environments are those that the route admits, and App IDs those of the proof.
///
/// ```
/// use tower_devicecheck::app_attest::{AttestPolicy, Category};
///
/// # fn policy() -> Result<AttestPolicy, Box<dyn std::error::Error>> {
/// let policy = AttestPolicy::new()
///     .with_categories([Category::AppStore, Category::TestFlight])
///     .with_minimum_build("1200".parse()?)
///     .with_revoked_builds(["1207".parse()?]);
/// # Ok(policy)
/// # }
/// # policy().unwrap();
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct AttestPolicy {
    categories: Option<Vec<Category>>,
    requires_category: bool,
    minimum_build: Option<BundleVersion>,
    revoked_builds: Vec<BundleVersion>,
    requires_build: bool,
    denies_account: Option<Arc<dyn DeniesAccount>>,
}

/// A name for closures that deny accounts.
trait DeniesAccount: Fn(&str) -> bool + Send + Sync {}

impl<F: Fn(&str) -> bool + Send + Sync> DeniesAccount for F {}

impl AttestPolicy {
    /// Makes the policy that admits everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the ways of distribution that are admitted. Default: all.
    ///
    /// A production attestation can come from a development build; only the category tells.
    pub fn with_categories(mut self, categories: impl IntoIterator<Item = Category>) -> Self {
        self.categories = Some(categories.into_iter().collect());
        self
    }

    /// Sets whether a device that tells no category is denied. Default: `false`, because devices before iOS 27 and
    /// macOS 27 tell none. For apps that need iOS 27.
    pub const fn requiring_category(mut self, required: bool) -> Self {
        self.requires_category = required;
        self
    }

    /// Sets the oldest build that is admitted: `CFBundleVersion`, compared number by number. Default: none. A version
    /// that is not numbers and dots is unknown, as if the device told none. If the minimum is such a version, every known
    /// build is denied.
    pub fn with_minimum_build(mut self, build: BundleVersion) -> Self {
        self.minimum_build = Some(build);
        self
    }

    /// Sets builds that are denied, such as those with a leaked secret. Default: none.
    pub fn with_revoked_builds(mut self, builds: impl IntoIterator<Item = BundleVersion>) -> Self {
        self.revoked_builds = builds.into_iter().collect();
        self
    }

    /// Sets whether a device that tells no build, or an unknown one, is denied. Default: `false`, as for
    /// [`requiring_category`](Self::requiring_category).
    pub const fn requiring_build(mut self, required: bool) -> Self {
        self.requires_build = required;
        self
    }

    /// Denies accounts: their keys, and new attestations for them. `denies` is asked with each request of a key that has
    /// an account, and must not block. Default: none.
    pub fn denying_accounts(mut self, denies: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.denies_account = Some(Arc::new(denies));
        self
    }

    pub(super) fn check_account(&self, account: Option<&str>) -> Result<(), Rejected> {
        match (&self.denies_account, account) {
            (Some(denies), Some(account)) if denies(account) => Err(denied("the account is denied")),
            _ => Ok(()),
        }
    }

    pub(super) fn check_app(
        &self,
        category: Option<Category>,
        build: Option<&BundleVersion>,
    ) -> Result<(), Rejected> {
        match category {
            None if self.requires_category => return Err(denied("no category")),
            Some(category)
                if self.categories.as_ref().is_some_and(|admitted| !admitted.contains(&category)) =>
            {
                return Err(denied("the category of the app"));
            }
            _ => {}
        }
        if build.is_some_and(|build| self.revoked_builds.iter().any(|revoked| is_same(build, revoked))) {
            return Err(denied("a revoked build"));
        }
        // A version equals itself if it is known.
        let Some(build) = build.filter(|build| build.compare(build).is_some()) else {
            return if self.requires_build { Err(denied("no build")) } else { Ok(()) };
        };
        let is_too_old = |minimum| build.compare(minimum).is_none_or(Ordering::is_lt);
        if self.minimum_build.as_ref().is_some_and(is_too_old) {
            return Err(denied("a build before the minimum"));
        }
        Ok(())
    }
}

fn is_same(build: &BundleVersion, other: &BundleVersion) -> bool {
    build == other || build.compare(other) == Some(Ordering::Equal)
}

pub(super) fn denied(reason: &'static str) -> Rejected {
    Rejected::from(Rejection::Denied).with_reason(reason)
}

impl fmt::Debug for AttestPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestPolicy")
            .field("categories", &self.categories)
            .field("requires_category", &self.requires_category)
            .field("minimum_build", &self.minimum_build)
            .field("revoked_builds", &self.revoked_builds)
            .field("requires_build", &self.requires_build)
            .field("denies_accounts", &self.denies_account.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_admits_and_denies() {
        let build = |text: &str| text.parse::<BundleVersion>().unwrap();
        let none = AttestPolicy::new;
        let store = || none().with_categories([Category::AppStore, Category::TestFlight]);
        let minimum = || none().with_minimum_build(build("1.10"));
        let revoked = || none().with_revoked_builds([build("7"), build("beta")]);
        let (app_store, development) = (Some(Category::AppStore), Some(Category::Development));
        type Case<'a> = (AttestPolicy, Option<Category>, Option<&'a str>, Option<&'static str>);
        let cases: [Case<'_>; 23] = [
            (none(), None, None, None),
            (none(), development, Some("x"), None),
            (store(), app_store, None, None),
            (store(), Some(Category::TestFlight), None, None),
            (store(), development, None, Some("the category of the app")),
            (store(), None, None, None),
            (store().requiring_category(true), None, None, Some("no category")),
            (store().requiring_category(true), app_store, None, None),
            (none().requiring_category(true), development, None, None),
            (minimum(), None, Some("1.10"), None),
            (minimum(), None, Some("1.10.0"), None),
            (minimum(), None, Some("2"), None),
            (minimum(), None, Some("1.9"), Some("a build before the minimum")),
            (minimum(), None, Some("1.9b"), None),
            (minimum(), None, None, None),
            (minimum().requiring_build(true), None, Some("1.9b"), Some("no build")),
            (minimum().requiring_build(true), None, None, Some("no build")),
            (minimum().requiring_build(true), None, Some("1.11"), None),
            (none().with_minimum_build(build("v2")), None, Some("3"), Some("a build before the minimum")),
            (none().with_minimum_build(build("v2")), None, None, None),
            (revoked(), None, Some("7.0"), Some("a revoked build")),
            (revoked(), None, Some("beta"), Some("a revoked build")),
            (revoked(), None, Some("8"), None),
        ];
        for (number, (policy, category, version, reason)) in cases.into_iter().enumerate() {
            let answer = policy.check_app(category, version.map(build).as_ref());
            assert_eq!(answer.as_ref().err().and_then(Rejected::reason), reason, "{number}");
            assert!(answer.err().is_none_or(|rejected| rejected.rejection() == Rejection::Denied));
        }
        let policy = none().denying_accounts(|account| account == "bob");
        for (account, is_admitted) in [(None, true), (Some("ann"), true), (Some("bob"), false)] {
            assert_eq!(policy.check_account(account).is_ok(), is_admitted, "{account:?}");
        }
    }
}
