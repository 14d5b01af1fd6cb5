//! Keys: the operator's master keys, and the keys of one app that are derived from them.

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::session::error::SessionError;
use crate::wipe::{self, wiping_the_stack};

/// A secret of 32 bytes, and its number. The key that signs sessions is derived from it, for each tenant and App ID
/// another one. A master key is wiped on drop; `Debug` shows only the number.
#[derive(Clone)]
pub struct MasterKey {
    number: u32,
    /// Boxed: a key that is moved leaves no copy behind.
    secret: Box<Zeroizing<[u8; 32]>>,
}

impl MasterKey {
    /// Makes a key from 32 random bytes. The number is not a secret: each session holds it. The caller must wipe the bytes
    /// that it passed in.
    #[must_use]
    pub fn new(number: u32, secret: [u8; 32]) -> Self {
        Self { number, secret: Box::new(Zeroizing::new(secret)) }
    }

    /// Makes a random key, for tests, and for a single server that need not know its sessions after a restart.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system gives no random bytes.
    pub fn random() -> Result<Self, SessionError> {
        let mut secret = Box::new(Zeroizing::new([0; 32]));
        let mut number = [0; 4];
        fill(&mut number)?;
        fill(&mut **secret)?;
        Ok(Self { number: u32::from_be_bytes(number), secret })
    }

    /// The number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn has_secret_of(&self, other: &Self) -> bool {
        self.secret == other.secret
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey")
            .field("number", &format_args!("{:08x}", self.number))
            .finish_non_exhaustive()
    }
}

/// The key for the sessions of one tenant and App ID. hmac and sha2 wipe it on drop.
pub(super) struct SessionKey {
    number: u32,
    mac: Hmac<Sha256>,
}

impl SessionKey {
    /// Neither `tenant` nor `app_id` may contain a zero byte, which separates them.
    pub(super) fn derive(master: &MasterKey, tenant: &str, app_id: &str) -> Result<Self, SessionError> {
        let info = [b"tower-devicecheck/session/v1\0", tenant.as_bytes(), b"\0", app_id.as_bytes()];
        let mut key = Zeroizing::new([0; 32]);
        let failed = || SessionError::new("the key of the sessions cannot be derived");
        wiping_the_stack::<{ wipe::CIPHER }, _>(|| {
            Hkdf::<Sha256>::new(None, &**master.secret).expand_multi_info(&info, &mut *key)
        })
        .map_err(|_| failed())?;
        Ok(Self { number: master.number, mac: Hmac::new_from_slice(&*key).map_err(|_| failed())? })
    }

    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn sign(&self, text: &[u8]) -> [u8; 32] {
        self.mac.clone().chain_update(text).finalize().into_bytes().into()
    }

    /// Whether this key made the authenticator, compared in constant time.
    pub(super) fn has_signed(&self, text: &[u8], tag: &[u8]) -> bool {
        self.mac.clone().chain_update(text).verify_slice(tag).is_ok()
    }
}

/// Fills a buffer with bytes from the operating system.
pub(super) fn fill(bytes: &mut [u8]) -> Result<(), SessionError> {
    getrandom::fill(bytes).map_err(|error| {
        SessionError::new("the operating system gives no random bytes").with_source(error.to_string())
    })
}
