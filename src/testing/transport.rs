//! The fake Apple in the process, as a tower service.

use std::task::{Context, Poll};
use std::{io, pin::Pin};

use bytes::Bytes;
use http::{Request, Response, header::HOST, request};
use tower_service::Service;

use crate::testing::{fake_apple::FakeApple, state::Played};
use crate::{BoxError, gate::routing::Environment};

/// A transport that leads to a [`FakeApple`]; made by [`FakeApple::transport`].
///
/// A request goes to development if its host name contains `development`, as Apple's does, and otherwise to production.
/// The host is that of the URI, or of the `Host` header if the URI has none.
///
/// A call that is [reset](crate::testing::Reply::reset) or [cut short](crate::testing::Reply::cut_short)
/// fails with an [`io::Error`].
#[derive(Clone, Debug)]
pub struct FakeAppleService {
    apple: FakeApple,
}

impl FakeApple {
    /// Makes a transport to this fake, for an `AppleClient`. It needs no socket.
    #[must_use]
    pub fn transport(&self) -> FakeAppleService {
        FakeAppleService { apple: self.clone() }
    }
}

impl Service<Request<Bytes>> for FakeAppleService {
    type Response = Response<Bytes>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let apple = self.apple.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let environment = environment(&head);
            let reply = apple.arrive(environment, &head);
            match apple.play(reply, environment, &head, &body).await {
                Played::Whole(response) => Ok(response),
                Played::CutShort(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Played::Reset => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            }
        })
    }
}

fn environment(head: &request::Parts) -> Environment {
    let header = || head.headers.get(HOST).and_then(|host| host.to_str().ok());
    match head.uri.host().or_else(header) {
        Some(host) if host.contains("development") => Environment::Development,
        _ => Environment::Production,
    }
}
