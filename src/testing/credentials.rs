//! The fake Apple's key as the client for Apple takes it.

use crate::{apple::Credentials, testing::fake_apple::FakeApple};

impl FakeApple {
    /// Credentials that it accepts: the team and the key that it was made with.
    ///
    /// # Panics
    ///
    /// If the team id or the key id given to [`with_key`](Self::with_key) is not one that Apple could have
    /// made.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        #[allow(clippy::expect_used, reason = "see Panics")]
        Credentials::from_pem(self.team_id(), self.key_id(), &self.private_key_pem())
            .expect("the key is well-formed, and so are the ids of a fake Apple by default")
    }
}
