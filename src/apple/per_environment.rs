//! One value for each of Apple's two servers.

use crate::gate::routing::Environment;

/// A value for each environment: Apple's two servers fail and judge apart.
#[derive(Clone, Debug, Default)]
pub(super) struct PerEnvironment<T> {
    pub(super) production: T,
    pub(super) development: T,
}

impl<T> PerEnvironment<T> {
    pub(super) const fn of(&self, environment: Environment) -> &T {
        match environment {
            Environment::Production => &self.production,
            Environment::Development => &self.development,
        }
    }
}
