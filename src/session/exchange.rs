//! The exchange: a service that sells sessions.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode, request};
use tower_service::Service;

use crate::gate::answer;
use crate::gate::body::ResponseBody;
use crate::gate::decision::{DeviceOutcome, Rejected, VerifiedDevice};
use crate::gate::error::VerifyError;
use crate::gate::rejection::Rejection;
use crate::meter::{SESSIONS, label};
use crate::runtime::{Instant, wall_clock};
use crate::session::claims::Claims;
#[cfg(feature = "jwt")]
use crate::session::jwt::Jwts;
use crate::session::sessions::Sessions;

/// A tower service that sells sessions. Mount it behind a [`DeviceCheckLayer`](crate::DeviceCheckLayer) whose proofs may
/// buy one. It answers a `POST` with JSON and `Cache-Control: no-store`:
///
/// ```json
/// {"session":"AQoLDA0K…","expires_in":3600,"refresh_in":1800}
/// ```
///
/// Both times are in seconds, and the client counts them from the answer, because its clock may be wrong.
///
/// | the request comes with | answer |
/// |---|---|
/// | [fresh](crate::Evidence::is_fresh) evidence of a device token, or of App Attest | 200 |
/// | a debug token | 200: the session is marked as that of a debug token |
/// | a token that has bought a session in the last minute, a verdict that was remembered, or a session | 401, [`ReusedToken`](crate::Rejection::ReusedToken) |
/// | a [revoked](crate::session::Revocations::revoke_subject) subject | 403, [`Denied`](crate::Rejection::Denied) |
/// | a device that the policy about [marks](crate::DeviceCheckLayer::with_marks) left to the handler | 403, [`Denied`](crate::Rejection::Denied) |
/// | no [`VerifiedDevice`], because no layer is in front, or the route is exempt; or the device of another [tenant](crate::tenant) | 500, [`Misconfigured`](crate::Rejection::Misconfigured) |
/// | another method | 405 |
///
/// A session never buys a session: otherwise one stolen session would live for ever. Leave
/// [`with_sessions`](crate::DeviceCheckLayer::with_sessions) off the layer in front, so that a client that still sends
/// its old session is judged by its token.
///
/// Of several requests that come with one token together, one buys a session. This is known to one process; a layer with
/// [`with_single_use`](crate::DeviceCheckLayer::with_single_use) makes it hold for all replicas.
///
/// A debug token that expires, or is taken off the server, does not end the sessions that it has bought.
#[derive(Clone, Debug)]
#[must_use]
pub struct Exchange {
    sessions: Sessions,
    is_limited_use: bool,
    #[cfg(feature = "jwt")]
    jwts: Option<Jwts>,
}

impl Exchange {
    /// Makes the service.
    pub const fn new(sessions: Sessions) -> Self {
        Self {
            sessions,
            is_limited_use: false,
            #[cfg(feature = "jwt")]
            jwts: None,
        }
    }

    /// Sells sessions with limited use instead: 5 minutes, and one request. Mount it on a path of its own. A layer
    /// needs [`SessionProof::with_limited_use`](crate::session::SessionProof::with_limited_use) to admit them.
    pub const fn with_limited_use(mut self, limited_use: bool) -> Self {
        self.is_limited_use = limited_use;
        self
    }

    /// Sells JSON Web Tokens instead, for services that are not this server. Mount it on a path of its own. If their
    /// tenant and App ID are not those of the sessions, each purchase is [`Misconfigured`](Rejection::Misconfigured).
    #[cfg(feature = "jwt")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "jwt")))]
    pub fn with_jwt(mut self, jwts: Jwts) -> Self {
        self.jwts = Some(jwts);
        self
    }

    fn answer(&self, head: &request::Parts) -> Response<ResponseBody<String>> {
        if head.method != Method::POST {
            return answer::wrong_method("POST");
        }
        match self.sell(head) {
            Ok((text, expires_in)) => {
                let refresh_in = expires_in / 2;
                // A session is base64url, and dots, which needs no escapes.
                let body =
                    format!(r#"{{"session":"{text}","expires_in":{expires_in},"refresh_in":{refresh_in}}}"#);
                answer::json(StatusCode::OK, body)
            }
            Err(rejection) => answer::rejection(rejection, head),
        }
    }

    /// Returns the text of a new session, and its seconds.
    fn sell(&self, head: &request::Parts) -> Result<(String, u32), Rejection> {
        let Some(device) = head.extensions.get::<VerifiedDevice>() else {
            return Err(match head.extensions.get::<DeviceOutcome>() {
                Some(DeviceOutcome::Rejected(rejection)) => *rejection,
                _ => (&VerifyError::misconfigured("no verified device at the exchange")).into(),
            });
        };
        self.sessions.check_tenant(device.tenant()).map_err(|rejected| rejected.rejection())?;
        let issued = self.sessions.issue(device, &head.headers, self.is_limited_use, wall_clock());
        let issued = issued.map_err(|rejected| rejected.rejection())?;
        self.sessions.check_buyer(device, Instant::now()).map_err(|rejected| rejected.rejection())?;
        let text = self.mint(&issued.claims).map_err(|rejected| rejected.rejection())?;
        SESSIONS.add([label("bought_with", issued.claims.bought_with.as_str()), label("by", "exchange")]);
        Ok((text, issued.lifetime))
    }

    fn mint(&self, claims: &Claims) -> Result<String, Rejected> {
        #[cfg(feature = "jwt")]
        if let Some(jwts) = &self.jwts {
            jwts.check_owner(&self.sessions)?;
            return jwts.mint(claims).map_err(|error| VerifyError::misconfigured(error).into());
        }
        self.sessions.mint(claims)
    }
}

impl<B> Service<Request<B>> for Exchange {
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
