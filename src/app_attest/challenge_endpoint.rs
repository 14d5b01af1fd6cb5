//! The endpoint that issues challenges.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode, request};
use tower_service::Service;

use crate::app_attest::challenge::{ChallengePurpose, Challenges};
use crate::gate::answer;
use crate::gate::body::ResponseBody;
use crate::gate::error::VerifyError;
use crate::gate::tenant::name::TenantName;

/// A tower service that issues challenges for one purpose. It answers a `GET` and a `POST` alike, with JSON and
/// `Cache-Control: no-store`. It reads no body.
///
/// ```json
/// {"challenge":"AQoLDA0K…","expires_in":300}
/// ```
///
/// The time is in seconds, and the client counts it from the answer. Another method gets a 405. If the operating system
/// gives no random bytes, the answer is a 503.
///
/// Anyone may have a challenge, so mount it outside of a [`DeviceCheckLayer`](crate::DeviceCheckLayer), and behind the
/// server's limit on requests. A challenge costs one HMAC, and no memory until it is used.
///
/// ```
/// use tower_devicecheck::app_attest::{ChallengeEndpoint, ChallengePurpose, Challenges};
///
/// fn endpoint(challenges: Challenges) -> ChallengeEndpoint {
///     ChallengeEndpoint::new(challenges, ChallengePurpose::Attestation)
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ChallengeEndpoint {
    challenges: Challenges,
    purpose: ChallengePurpose,
    tenant: Option<TenantName>,
}

impl ChallengeEndpoint {
    /// Makes the service.
    pub const fn new(challenges: Challenges, purpose: ChallengePurpose) -> Self {
        Self { challenges, purpose, tenant: None }
    }

    /// Issues challenges for this [tenant](crate::tenant). Default: for none.
    pub fn with_tenant(mut self, tenant: TenantName) -> Self {
        self.tenant = Some(tenant);
        self
    }

    fn answer(&self, head: &request::Parts) -> Response<ResponseBody<String>> {
        if head.method != Method::GET && head.method != Method::POST {
            return answer::wrong_method("GET, POST");
        }
        let tenant = self.tenant.as_ref().map_or("", TenantName::as_str);
        match self.challenges.issue(tenant, self.purpose) {
            Ok(challenge) => {
                let expires_in = self.challenges.lifetime().as_secs();
                // A challenge is base64url, which needs no escapes.
                let body = format!(r#"{{"challenge":"{challenge}","expires_in":{expires_in}}}"#);
                answer::json(StatusCode::OK, body)
            }
            Err(error) => answer::rejection((&VerifyError::unavailable(error)).into(), head),
        }
    }
}

impl<B> Service<Request<B>> for ChallengeEndpoint {
    type Response = Response<ResponseBody<String>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(&request.into_parts().0)))
    }
}
