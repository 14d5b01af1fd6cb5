//! The key ring: one key signs, all verify.

use std::{env, fmt, fs, path::Path, str::FromStr};

use zeroize::Zeroizing;

use crate::BoxError;
use crate::session::{claims::from_hex, error::SessionError, key::MasterKey};
use crate::wipe::{self, wiping_the_stack};

/// The master keys of a server: the first one signs new sessions, and all of them verify.
///
/// # Rotation
///
/// A session verifies only where its key is known, so a new key must verify everywhere before it signs anywhere:
///
/// 1. Append the new key to the ring of every server.
/// 2. When all servers have it, move it to the front. It signs from then on.
/// 3. After the lifetime of a session, 1 hour by default, remove the old key.
///
/// Removing a key ends all sessions that it has signed, at once. Servers that run
/// [take a new ring](crate::session::Sessions::replace_keys) without a restart.
///
/// # Text
///
/// A ring is text with one key after the other, separated by white space or commas. A key is its number, a colon and its
/// secret, in hexadecimal digits:
///
/// ```sh
/// echo "$(openssl rand -hex 4):$(openssl rand -hex 32)"
/// ```
///
/// ```
/// use tower_devicecheck::session::KeyRing;
///
/// let text = "0a0b0c0d:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// let ring: KeyRing = text.parse()?;
/// assert_eq!(ring.signing_key().number(), 0x0a0b0c0d);
/// # Ok::<_, tower_devicecheck::session::SessionError>(())
/// ```
#[derive(Clone)]
pub struct KeyRing {
    signing: MasterKey,
    verifying: Vec<MasterKey>,
}

impl KeyRing {
    /// Makes a ring of one key.
    #[must_use]
    pub const fn new(signing: MasterKey) -> Self {
        Self { signing, verifying: Vec::new() }
    }

    /// Adds a key that only verifies.
    ///
    /// # Errors
    ///
    /// Returns an error if the ring already has this number or this secret.
    pub fn add_verifying(mut self, key: MasterKey) -> Result<Self, SessionError> {
        if self.keys().any(|known| known.number() == key.number()) {
            return Err(SessionError::new("two keys of the ring have the same number"));
        }
        if self.keys().any(|known| known.has_secret_of(&key)) {
            return Err(SessionError::new("two keys of the ring have the same secret"));
        }
        self.verifying.push(key);
        Ok(self)
    }

    /// Reads the ring from the environment variable `SESSION_KEYS`.
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is not set, or if it does not hold a ring.
    pub fn from_env() -> Result<Self, SessionError> {
        let text = env::var("SESSION_KEYS").map(Zeroizing::new);
        // The error of a variable that is not text quotes the variable.
        text.map_err(|_| SessionError::new("SESSION_KEYS: it is not set, or not text"))?.parse().map_err(
            |error: SessionError| SessionError::new("SESSION_KEYS: it holds no key ring").with_source(error),
        )
    }

    /// Reads the ring from a file. The file system may block.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read, or if it does not hold a ring.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, SessionError> {
        let text = fs::read_to_string(path).map(Zeroizing::new);
        text.map_err(|error| SessionError::new("the file of the key ring cannot be read").with_source(error))?
            .parse()
            .map_err(|error: SessionError| SessionError::new("the file holds no key ring").with_source(error))
    }

    /// The key that signs.
    #[must_use]
    pub const fn signing_key(&self) -> &MasterKey {
        &self.signing
    }

    /// All keys, the signing one first.
    pub(super) fn keys(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.signing).chain(&self.verifying)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): (&MasterKey, &MasterKey)| {
            one.number() == other.number() && one.has_secret_of(other)
        };
        self.verifying.len() == other.verifying.len() && self.keys().zip(other.keys()).all(same)
    }
}

impl FromStr for KeyRing {
    type Err = SessionError;

    fn from_str(text: &str) -> Result<Self, SessionError> {
        wiping_the_stack::<{ wipe::CIPHER }, _>(|| {
            let keys = text.split(|separator: char| separator == ',' || separator.is_whitespace());
            let mut keys = keys.filter(|key| !key.is_empty()).map(master_key);
            let signing = keys.next().unwrap_or(Err(SessionError::new("the key ring is empty")))?;
            keys.try_fold(Self::new(signing), |ring, key| ring.add_verifying(key?))
        })
    }
}

fn master_key(text: &str) -> Result<MasterKey, SessionError> {
    let key = text.split_once(':').and_then(|(number, secret)| {
        let secret = from_hex(secret).map(Zeroizing::new)?;
        Some(MasterKey::new(u32::from_be_bytes(from_hex(number)?), *secret))
    });
    key.ok_or(SessionError::new(
        "a key of the ring is not 8 hexadecimal digits, a colon and 64 hexadecimal digits, all lower-case",
    ))
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("signing", &self.signing).field("verifying", &self.verifying).finish()
    }
}

/// A source of key rings, such as a key management service. Implemented by closures that return a future.
#[diagnostic::on_unimplemented(note = "use a closure `Fn() -> impl Future<Output = Result<KeyRing, E>>`")]
pub trait KeySource: Send + Sync + 'static {
    /// Loads the ring.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no ring. The error is logged, so it must hold no secret.
    fn load(&self) -> impl Future<Output = Result<KeyRing, BoxError>> + Send;
}

impl<F, L, E> KeySource for F
where
    F: Fn() -> L + Send + Sync + 'static,
    L: Future<Output = Result<KeyRing, E>> + Send,
    E: Into<BoxError>,
{
    async fn load(&self) -> Result<KeyRing, BoxError> {
        self().await.map_err(Into::into)
    }
}
