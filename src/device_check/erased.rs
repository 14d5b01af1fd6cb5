//! The twin of the verifier's trait that can be a trait object.

use futures_util::future::BoxFuture;

use crate::{
    apple::DeviceToken,
    device_check::verifier::{DeviceVerifier, VerifyError},
    gate::decision::Verdict,
    gate::routing::Environment,
};

pub(crate) trait ErasedVerifier: Send + Sync {
    fn verify<'a>(
        &'a self,
        token: &'a DeviceToken,
        environment: Environment,
    ) -> BoxFuture<'a, Result<Verdict, VerifyError>>;
    fn scope(&self) -> &str;
}

impl<V: DeviceVerifier> ErasedVerifier for V {
    fn verify<'a>(
        &'a self,
        token: &'a DeviceToken,
        environment: Environment,
    ) -> BoxFuture<'a, Result<Verdict, VerifyError>> {
        Box::pin(DeviceVerifier::verify(self, token, environment))
    }

    fn scope(&self) -> &str {
        DeviceVerifier::scope(self)
    }
}
